"""The tables and the plot of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from .makers import OURS, TCP, TRIO_WEBSOCKET, WEBSOCKETS_TRIO
from .results import TARGETS, Quartiles, Result

_ROW: Final = "  {:<30} {:>10} {:>8} {:>16}   {}"


def heading(about: dict[str, Any]) -> str:
    """Return the lines that say when, where and with what was measured, and the table's head."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = about["load"] and f", load {about['load'][0]:.1f}"
    return (
        f"{about['date']}, {about['python']}, {about['processors']} processors{load or ''}; "
        f"{about['clock']} time\n"
        f"{versions}\n\n"
        f"Each ratio is to the first stream of its case; the middle half is that of the ratios.\n\n"
        + _ROW.format("", "median", "ratio", "middle half", "target").rstrip()
    )


def table(result: Result) -> str:
    """Return the rows of one case."""
    lines = [f"{result.title}{result.unit and f' ({result.unit})'}  [{result.key}]"]
    names = [result.baseline, *(name for name in result.samples if name != result.baseline)]
    for name in names:
        if name in result.samples:
            lines += _rows(result, name)
    lines += [f"  {name:<30} skipped: {why}" for name, why in result.skipped.items()]
    return "\n".join(lines)


def _rows(result: Result, name: str) -> list[str]:
    """Return the rows of one stream: its value, and its targets."""
    targets = [target for target in TARGETS.get(result.key, ()) if target.stream == name]
    verdicts = {target.baseline: target.verdict(result) for target in targets}
    value = f"{result.value(name).median:.4g}"
    ratio = result.ratio(name, result.baseline)
    verdict = verdicts.pop("", "") or verdicts.pop(result.baseline, "")
    rows = [_ROW.format(name, value, *_cells(ratio), verdict).rstrip()]
    for baseline, verdict in verdicts.items():
        ratio = result.ratio(name, baseline)
        if ratio is not None:
            rows.append(_ROW.format(f"  ... to {baseline}", "", *_cells(ratio), verdict))
    return rows


def _cells(ratio: Quartiles | None) -> tuple[str, str]:
    if ratio is None:
        return "", ""
    half = f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio.low < ratio.high else ""
    return f"{ratio.median:.2f}", half


def missed(results: list[Result]) -> list[str]:
    """Return the names of the targets that were missed."""
    return [
        f"{result.key} ({target})"
        for result in results
        for target in TARGETS.get(result.key, ())
        if "NOT" in target.verdict(result)
    ]


def plot(path: Path, results: list[Result]) -> None:
    """Draw the ratios to a bare TCP stream. The suffix of ``path`` chooses the format."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    kinds = {
        "Throughput: more is better. A bare TCP stream is 1.": ("s2c", "c2s"),
        "Round trip: less is better.": ("rtt",),
    }
    panels = {
        title: chosen
        for title, starts in kinds.items()
        if (chosen := [result for result in results if result.key.startswith(starts)])
    }
    if not panels:
        raise ValueError(
            "the plot shows throughput and round trips, but none of these was measured"
        )
    streams = (TCP, OURS, WEBSOCKETS_TRIO, TRIO_WEBSOCKET)
    colors = ("#9aa0a6", "#1a73e8", "#f9ab00", "#d93025")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9})
    figure, all_axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(10, 4),
        squeeze=False,
        layout="constrained",
        width_ratios=[max(3, len(chosen)) for chosen in panels.values()],
    )
    for axes, (title, chosen) in zip(all_axes[0], panels.items(), strict=True):
        width = 0.8 / len(streams)
        for index, (stream, color) in enumerate(zip(streams, colors, strict=True)):
            ratios = [result.ratio(stream, TCP) for result in chosen]
            known = [(place, ratio) for place, ratio in enumerate(ratios) if ratio]
            axes.bar(
                [place + (index - 1.5) * width for place, _ in known],
                [ratio.median for _, ratio in known],
                width,
                yerr=[
                    [ratio.median - ratio.low for _, ratio in known],
                    [ratio.high - ratio.median for _, ratio in known],
                ],
                ecolor="#5f6368",
                color=color,
                label=stream,
            )
        axes.set_title(title)
        axes.set_xticks(range(len(chosen)), [_short_title(result) for result in chosen])
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][0].legend(ncols=len(streams), loc="upper left", frameon=False)
    all_axes[0][0].set_ylim(top=all_axes[0][0].get_ylim()[1] * 1.15)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _short_title(result: Result) -> str:
    way, _, rest = result.title.partition(", writes of ")
    return f"{way.replace(' to ', chr(10) + 'to ')}\n{rest}" if rest else result.title[14:]
