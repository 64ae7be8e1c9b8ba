"""The tables, the plot and the JSON of what was measured."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from .cases import PEERS, Case, Sample
from .kinds import BARE, OTHERS, OURS, OURS_INSIDE

PACKAGES: Final = ("trio", "trio-websocket", "wsproto", "websockets", "aiohttp", "picows")

Table = tuple[str, list[list[str]]]
Value = Callable[[Sample], float]


class Quartiles(NamedTuple):
    """The middle half of some values, and their median."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        spread = f" ({self.low:.2f} to {self.high:.2f})" if self.low < self.high else ""
        return f"{self.median:.2f}{spread}"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of ``values``, which must not be empty."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def _speed(sample: Sample) -> float:
    return float(1 / sample["seconds"])


def _processor(process: int) -> Value:
    return lambda sample: float(sample["processor"][process])


def _values(case: Case, kind: str, value: Value) -> list[float]:
    return [value(sample) for sample in case.samples.get(kind, ()) if sample]


def ratio(case: Case, kind: str, value: Value = _speed) -> Quartiles | None:
    """Return the quartiles of a kind's ratios to bare Trio in each round; None: not measured."""
    pairs = zip(case.samples.get(kind, ()), case.samples.get(BARE, ()), strict=False)
    ratios = [value(ours) / value(bare) for ours, bare in pairs if ours and bare]
    return quartiles(ratios) if ratios else None


def _shown_ratio(case: Case, kind: str, value: Value = _speed, *, spread: bool = True) -> str:
    found = ratio(case, kind, value)
    return "" if found is None else str(found) if spread else f"{found.median:.2f}"


def _shown_median(case: Case, kind: str, value: Value, form: str) -> str:
    values = _values(case, kind, value)
    return form.format(statistics.median(values)) if values else ""


def _absolute(case: Case) -> str:
    """Return what bare Trio does."""
    if case.work == "round trip":
        return _shown_median(case, BARE, lambda sample: sample["seconds"] * 1e6, "{:.0f} us")
    return _shown_median(
        case, BARE, lambda sample: case.size / sample["seconds"] / 1e9, "{:.2f} GB/s"
    )


def _faults(case: Case, kind: str) -> str:
    """Return the median of the page faults for each GB, and the worst sample."""
    found = [] if case.work == "round trip" else page_faults(case, kind)
    return f"{statistics.median(found):,.0f} ({max(found):,.0f})" if found else ""


def page_faults(case: Case, kind: str) -> list[float]:
    """Return the page faults of both ends for each GB, in each sample."""
    return _values(case, kind, lambda sample: sum(sample["faults"]) / case.size * 1e9)


# The tables


def _speed_table(cases: list[Case], ours: tuple[str, ...], title: str) -> Table:
    others = [kind for kind in OTHERS if any(_values(case, kind, _speed) for case in cases)]
    return title, [
        ["", BARE, *ours, *others],
        *(
            [
                case.title,
                _absolute(case),
                *(_shown_ratio(case, kind) for kind in ours),
                *(_shown_ratio(case, kind, spread=False) for kind in others),
            ]
            for case in cases
        ),
    ]


def _cost_table(cases: list[Case], kind: str, title: str) -> Table:
    return title, [
        ["", "client", "server", f"page faults, {BARE}", "page faults"],
        *(
            [
                case.title,
                *(_shown_ratio(case, kind, _processor(process)) for process in (0, 1)),
                _faults(case, BARE),
                _faults(case, kind),
            ]
            for case in cases
        ),
    ]


def _relay_table(cases: list[Case]) -> Table:
    relays = {"bridge": OURS} | {kind: kind for kind in PEERS}
    return "Relays between a WebSocket and TCP", [
        [
            "",
            "two pumps of Trio",
            *(f"{name}: {of}" for name in relays for of in ("speed", "processor")),
        ],
        *(
            [
                case.title,
                _absolute(case),
                *(
                    _shown_ratio(case, kind, value)
                    for kind in relays.values()
                    for value in (_speed, _processor(2))
                ),
            ]
            for case in cases
        ),
    ]


def _microseconds(case: Case, kind: str) -> list[str]:
    """Return the processor time of client and server."""
    return [
        _shown_median(case, kind, lambda s, p=process: s["processor"][p] * 1e6, "{:,.0f} us")
        for process in (0, 1)
    ]


def _connections_table(case: Case) -> Table:
    def row(kind: str) -> list[str]:
        speed = _shown_median(case, kind, _speed, "{:,.0f}"), _shown_ratio(case, kind)
        return [kind, *speed, *_microseconds(case, kind)]

    head = ["", "in a second", f"ratio to {BARE}", "client", "server"]
    title = f"Connections over {case.title}: open, one round trip, close; and their processor time"
    return title, [head, *map(row, case.samples)]


def _little_table(case: Case) -> Table:
    def row(kind: str) -> list[str]:
        ratios = (_shown_ratio(case, kind, _processor(process)) for process in (0, 1))
        return [kind, *_microseconds(case, kind), *ratios]

    head = ["", "client", "server", f"ratio to {BARE}, client", "server"]
    title = f"{case.title} connections with 4 round trips a second each: processor time of one"
    return title, [head, *map(row, case.samples)]


def _idle_table(case: Case) -> Table:
    def row(kind: str) -> list[str]:
        (sample,) = (sample for sample in case.samples[kind] if sample)
        return [
            kind,
            *(f"{memory / 1024:.1f} KiB" for memory in sample["memory"]),
            *(f"{processor / 60:.2%}" for processor in sample["processor"]),
        ]

    head = ["", "memory, client", "server", "processor, client", "server"]
    title = f"{case.title} idle connections: memory of each, and share of a processor of all"
    return title, [head, *map(row, case.samples)]


def tables(cases: list[Case]) -> list[Table]:
    """Return a title and the rows for each table that has something to show."""

    def of(family: str) -> list[Case]:
        return [case for case in cases if case.family == family]

    found = []
    if ws := of("ws"):
        found += [
            _speed_table(ws, (OURS,), "ws://, speed as a ratio to bare Trio (TCP)"),
            _cost_table(ws, OURS, f"ws://, processor time of {OURS} as a ratio to bare Trio (TCP)"),
        ]
    if tls := of("tls"):
        found += [
            _speed_table(
                tls,
                (OURS, OURS_INSIDE),
                "wss://, and TLS inside ws://, speed as a ratio to TLS over TCP",
            ),
            _cost_table(tls, OURS, "wss://, processor time as a ratio to TLS over TCP"),
            _cost_table(
                tls, OURS_INSIDE, "TLS inside ws://, processor time as a ratio to TLS over TCP"
            ),
        ]
    if relay := of("relay"):
        found.append(_relay_table(relay))
    if line := of("line"):
        found.append(_cost_table(line, OURS, "A line of 100 Mbit/s and 20 ms: processor time"))
    found += map(_connections_table, of("connections"))
    found += map(_little_table, of("little"))
    found += map(_idle_table, of("idle"))
    return found


def to_rst(tables: Iterable[Table]) -> str:
    """Return the tables as reStructuredText, which can be read as it is, too."""
    lines = []
    for title, rows in tables:
        rows = [
            [cell or ".." if not place else cell for place, cell in enumerate(row)] for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rule = "  ".join("=" * width for width in widths)
        head, *body = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        lines += [f"**{title}**", "", rule, head, rule, *body, rule, ""]
    return "\n".join(lines)


def circumstances() -> str:
    """Return when, where and with what is measured."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.python_implementation()} "
        f"{platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; "
        f"{versions}."
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(none)"


def write_json(path: Path, about: str, cases: list[Case]) -> None:
    """Write all samples to a file."""
    found = [
        {"key": case.key, "size": case.size, "samples": case.samples, "skipped": case.skipped}
        for case in cases
    ]
    path.write_text(json.dumps({"about": about, "cases": found}, indent=1) + "\n")


# The plot

_PANELS: Final = {"ws": ("ws://", "bare TCP"), "tls": ("wss://", "TLS over TCP")}
_PLOTTED: Final = ("up-1k", "up-64k", "down-64k", "down-1m", "trip-32")
_COLORS: Final = {OURS: "#1f8fff", "websockets.trio": "#d99000", "trio-websocket": "#e5534b"}
_BAR: Final = 13  # pixels
_GROUP: Final = 52
_SCALE: Final = 170  # pixels for a ratio of 1
_LONGEST: Final = 1.8  # a ratio; a longer bar ends there


def plot(path: Path, cases: list[Case]) -> None:
    """Draw the speed as ratios to bare Trio, as SVG.

    The background is transparent and the colours are of middle brightness, so that the plot suits
    light and dark pages.
    """
    shapes: list[str] = []
    height = 60 + _GROUP * len(_PLOTTED) + 16

    def text(x: float, y: float, words: str, more: str = "") -> None:
        shapes.append(f'<text x="{x:.0f}" y="{y:.0f}" {more}>{words}</text>')

    for place, (kind, color) in enumerate(_COLORS.items()):
        x = 120 + place * 170
        shapes.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{color}"/>')
        text(x + 17, 18, kind)
    for panel, (family, (title, baseline)) in enumerate(_PANELS.items()):
        left = 110 + panel * 370
        text(left, 44, f"{title} (longer is faster)", 'font-weight="bold"')
        for row, key in enumerate(_PLOTTED):
            top = 60 + row * _GROUP
            case = next((case for case in cases if case.key == f"{family}-{key}"), None)
            if case is None:
                continue
            if panel == 0:
                text(left - 10, top + 1.9 * _BAR, case.title, 'text-anchor="end"')
            for bar, (kind, color) in enumerate(_COLORS.items()):
                found = ratio(case, kind)
                if found is None:
                    continue
                y, width = top + bar * _BAR, min(found.median, _LONGEST) * _SCALE
                shapes.append(
                    f'<rect x="{left}" y="{y}" width="{width:.0f}" height="{_BAR - 2}" '
                    f'fill="{color}"/>'
                )
                text(left + width + 5, y + 10, f"{found.median:.2f}", 'font-size="10"')
        x = left + _SCALE
        shapes.append(f'<path d="M{x} 52V{height - 16}" stroke="#7d8590" stroke-dasharray="4 3"/>')
        text(x, height - 3, f"1.00 is {baseline}", 'text-anchor="middle"')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" fill="#7d8590" '
        f'font-family="sans-serif" font-size="12">\n' + "\n".join(shapes) + "\n</svg>\n"
    )
