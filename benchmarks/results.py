"""What was measured, the targets, and how the two are compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, NamedTuple

from .makers import OURS, TCP, TLS_OURS, TLS_TCP, TRIO_WEBSOCKET, WEBSOCKETS_TRIO

PACKAGES: Final = (
    "trio-wsstream",
    "trio",
    "trio-websocket",
    "wsproto",
    "websockets",
    "aiohttp",
    "picows",
)


class Quartiles(NamedTuple):
    """The middle half of some values, and their median."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of ``values``, which must not be empty."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass
class Result:
    """What one case measured.

    Attributes:
      key (str), title (str), unit (str): the case's name, its words in the table, and its unit.
      baseline (str): the stream that ratios are taken to.
      samples: for each stream, a list with one value for each round.
      skipped: for each stream that was not measured, the reason.
      rises (bool): whether a higher value is better.
    """

    key: str
    title: str
    unit: str
    baseline: str
    rises: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def value(self, stream: str) -> Quartiles:
        """Return the quartiles of the values of ``stream``."""
        return quartiles(self.samples[stream])

    def ratio(self, stream: str, baseline: str) -> Quartiles | None:
        """Return the quartiles of the ratios of ``stream`` to ``baseline`` in each round."""
        values, bases = self.samples.get(stream), self.samples.get(baseline)
        if not values or not bases or not all(bases):
            return None
        return quartiles([value / base for value, base in zip(values, bases, strict=True)])


@dataclass(frozen=True)
class Target:
    """A target of one stream in one case.

    Attributes:
      stream (str): the stream whose target this is.
      baseline (str): the stream that its ratio is taken to, or "" if the value itself counts.
      limit (float): the lowest ratio or value that is good enough, if more is better in the case;
          else the highest.
    """

    stream: str
    baseline: str
    limit: float

    def __str__(self) -> str:
        return f"{self.stream} to {self.baseline}" if self.baseline else self.stream

    def verdict(self, result: Result) -> str:
        """Return the target and whether it was met, or "" if the stream was not measured."""
        if self.baseline:
            reached = result.ratio(self.stream, self.baseline)
        else:
            reached = result.value(self.stream) if self.stream in result.samples else None
        if reached is None:
            return ""
        is_met = reached.median >= self.limit if result.rises else reached.median <= self.limit
        bound = "at least" if result.rises else "at most"
        return f"{bound} {self.limit:g}: {'met' if is_met else 'NOT MET'}"


def _to_tcp(limit: float) -> Target:
    return Target(OURS, TCP, limit)


TARGETS: Final[dict[str, tuple[Target, ...]]] = {
    "s2c-1k": (_to_tcp(0.93),),
    "s2c-16k": (_to_tcp(0.92),),
    "s2c-64k": (_to_tcp(0.88), Target(OURS, WEBSOCKETS_TRIO, 2)),
    "s2c-1m": (_to_tcp(1.00),),
    "c2s-1k": (_to_tcp(0.88),),
    "c2s-64k": (_to_tcp(0.80), Target(OURS, WEBSOCKETS_TRIO, 2)),
    "c2s-1m": (_to_tcp(0.95),),
    "rtt-32": (_to_tcp(1.10), Target(OURS, WEBSOCKETS_TRIO, 0.5)),
    "connect": (Target(OURS, TRIO_WEBSOCKET, 1.6),),
    "tls-s2c": (Target(TLS_OURS, TLS_TCP, 0.92),),
    "tls-c2s": (Target(TLS_OURS, TLS_TCP, 0.92),),
    "idle-memory": (Target(OURS, "", 28),),
    "idle-tasks": (Target(OURS, "", 2),),
    "message-s2c": (Target(OURS, "", 2),),
    "message-c2s": (Target(OURS, "", 2),),
}
"""The targets of each case. Two tasks for each pair are one task for each stream."""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def circumstances() -> dict[str, Any]:
    """Return when, where and with what is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {package: _version(package) for package in PACKAGES},
    }


def to_json(about: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """Return everything that was measured, ready for JSON."""
    cases = []
    for result in results:
        streams = {}
        for name, samples in result.samples.items():
            ratio = result.ratio(name, result.baseline)
            streams[name] = {
                "median": result.value(name).median,
                "ratio": ratio and ratio._asdict(),
                "samples": samples,
            }
        targets = [
            {"stream": t.stream, "baseline": t.baseline, "verdict": t.verdict(result)}
            for t in TARGETS.get(result.key, ())
        ]
        cases.append(
            {
                "key": result.key,
                "title": result.title,
                "unit": result.unit,
                "baseline": result.baseline,
                "streams": streams,
                "skipped": result.skipped,
                "targets": targets,
            }
        )
    return {**about, "cases": cases}


def write_json(path: Path, about: dict[str, Any], results: list[Result]) -> None:
    """Write `to_json` to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(to_json(about, results), indent=1) + "\n")
