"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import fnmatch
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import trio

from . import memory, report
from .cases import CLOCKS, TIMED_CASES, TimedCase, measure, result_of
from .imports import measure_imports
from .makers import TRIO_MAKERS, Maker
from .results import Result, circumstances, write_json

OTHER_CASES: Final = ("idle", "message", "import")
RESULTS: Final = Path(__file__).parent / "results"


def _arguments() -> argparse.Namespace:
    keys = [*(case.key for case in TIMED_CASES), *OTHER_CASES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare WsByteStream to bare TCP and to other WebSocket libraries.",
        epilog=f"Cases: {', '.join(keys)}.",
    )
    parser.add_argument(
        "--case",
        metavar="NAME",
        action="append",
        help="measure only this case, or a pattern such as s2c-*",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        help="samples of each stream (default: 21)",
    )
    parser.add_argument("--quick", action="store_true", help="take less than a minute; less exact")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="choose cpu on a machine that has other work to do",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results to this file")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the ratios (SVG or PNG)")
    arguments = parser.parse_args()
    patterns = arguments.case or ["*"]
    arguments.chosen = [k for k in keys if any(fnmatch.fnmatchcase(k, p) for p in patterns)]
    if not arguments.chosen:
        parser.error(f"there is no case with the name {' or '.join(patterns)}")
    if arguments.rounds is None:
        arguments.rounds = 5 if arguments.quick else 21
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    return arguments


def _available(makers: Iterable[Maker]) -> tuple[list[Maker], dict[str, str]]:
    """Return the makers that can be used, and for each other maker the reason why it cannot."""
    makers = list(makers)
    skipped = {
        maker.name: f"{maker.requires} is not installed"
        for maker in makers
        if not maker.is_installed
    }
    return [maker for maker in makers if maker.is_installed], skipped


def _time(case: TimedCase, rounds: int, *, quick: bool, clock: str) -> Result:
    result = result_of(case)
    makers, result.skipped = _available(case.makers)
    seconds = 0.02 if quick else 0.06
    result.samples = trio.run(measure, case, makers, rounds, seconds, CLOCKS[clock])
    return result


def _measure(chosen: list[str], rounds: int, *, quick: bool, clock: str) -> Iterator[Result]:
    for case in TIMED_CASES:
        if case.key in chosen:
            yield _time(case, rounds, quick=quick, clock=clock)
    if not memory.is_possible():
        print(f"The cases idle and message are skipped because there is no {memory.PROCESS}.")
        chosen = [key for key in chosen if key not in ("idle", "message")]
    if "idle" in chosen:
        makers, skipped = _available(memory.MAKERS)
        for result in memory.measure_idle(makers, 150 if quick else 1500):
            result.skipped = skipped
            yield result
    if "message" in chosen:
        makers, skipped = _available(TRIO_MAKERS)
        for way in memory.WAYS:
            size = (64 if quick else 1024) * memory.MIB
            result = memory.measure_message(makers, size, way)
            result.skipped = skipped
            yield result
    if "import" in chosen:
        yield measure_imports(rounds)


def main() -> None:
    """Measure the chosen cases, print their tables and write the results to a file."""
    arguments = _arguments()
    start = time.monotonic()
    options = {"quick": arguments.quick, "clock": arguments.clock}
    about = {**circumstances(), **options, "rounds": arguments.rounds}
    print(report.heading(about))
    results = []
    for result in _measure(arguments.chosen, arguments.rounds, **options):
        results.append(result)
        print(report.table(result), flush=True)
    print()
    if misses := report.missed(results):
        print(f"These targets were missed: {', '.join(misses)}.")
    path = arguments.json or RESULTS / f"{about['date'].partition('+')[0].replace(':', '')}.json"
    write_json(path, about, results)
    print(f"The results are in {path}. Measuring took {time.monotonic() - start:.0f} s.")
    if arguments.plot is not None:
        report.plot(arguments.plot, results)
        print(f"The plot is in {arguments.plot}.")


if __name__ == "__main__":
    main()
