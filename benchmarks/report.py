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
    """Draw the ratios to a bare TCP stream. The suffix of ``path`` chooses the format.

    The baseline is a line at 1. The background is transparent and all colours are of middle
    brightness, so that the plot suits light and dark pages.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    kinds = {
        "Throughput: more is better": ("s2c", "c2s"),
        "Round trip time: less is better": ("rtt",),
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
    gray = "#7d8590"
    style = dict.fromkeys(("text.color", "axes.edgecolor", "xtick.color", "ytick.color"), gray)
    style |= {"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9}
    mpl.rcParams.update(style)
    figure, all_axes = pyplot.subplots(
        1,
        len(panels),
        figsize=(9, 3),
        squeeze=False,
        layout="constrained",
        width_ratios=[max(3, len(chosen)) for chosen in panels.values()],
    )
    for axes, (title, chosen) in zip(all_axes[0], panels.items(), strict=True):
        _draw_bars(axes, chosen)
        axes.axhline(1, color=gray, linestyle="--", linewidth=1, label="bare TCP")
        axes.set_title(title)
        axes.set_xticks(range(len(chosen)), [_short_title(result) for result in chosen])
        axes.spines[["top", "right"]].set_visible(False)
    labels = all_axes[0][0].get_legend_handles_labels()
    figure.legend(*labels, ncols=4, loc="outside upper center", frameon=False)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, transparent=True)


def _draw_bars(axes: Any, results: list[Result]) -> None:
    """Draw a group of bars for each result, one bar for each kind of stream."""
    colors = {OURS: "#1f8fff", WEBSOCKETS_TRIO: "#d99000", TRIO_WEBSOCKET: "#e5534b"}
    width = 0.8 / len(colors)
    for index, (stream, color) in enumerate(colors.items()):
        ratios = [result.ratio(stream, TCP) for result in results]
        known = [(place, ratio.median) for place, ratio in enumerate(ratios) if ratio]
        places = [place + (index - 1) * width for place, _ in known]
        axes.bar(places, [median for _, median in known], width, color=color, label=stream)


def _short_title(result: Result) -> str:
    way, _, rest = result.title.partition(", writes of ")
    return f"{way.replace(' to ', chr(10) + 'to ')}\n{rest}" if rest else result.title[14:]
