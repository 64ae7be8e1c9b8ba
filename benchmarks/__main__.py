"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from pathlib import Path

from . import counts, report
from .cases import Bench, Case, make_cases


def _arguments() -> tuple[argparse.Namespace, list[Case]]:
    cases = make_cases()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare WsByteStream to bare Trio and to other WebSocket libraries. For each "
        "sample, client and server are fresh processes. This takes ten minutes.",
        epilog=f"Cases: {', '.join(case.key for case in cases)}.",
    )
    parser.add_argument(
        "--case",
        metavar="NAME",
        action="append",
        help="measure only this case, or a pattern such as 'ws-down-*'",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=int,
        help="samples of our streams and of bare Trio (default: 7)",
    )
    parser.add_argument("--quick", action="store_true", help="take two minutes; less exact")
    parser.add_argument(
        "--others",
        metavar="N",
        type=int,
        help="samples of other libraries (default: a third of that; 0 leaves them out)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to this file")
    parser.add_argument("--rst", metavar="FILE", type=Path, help="write the tables to this file")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the ratios, as SVG")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare counts that do not depend on the machine with benchmarks/counts.json",
    )
    parser.add_argument("--write", action="store_true", help="with --check: write that file anew")
    arguments = parser.parse_args()
    patterns = arguments.case or ["*"]
    chosen = [case for case in cases if any(fnmatch.fnmatchcase(case.key, p) for p in patterns)]
    if not chosen:
        parser.error(f"there is no case with the name {' or '.join(patterns)}")
    if arguments.rounds is None:
        arguments.rounds = 1 if arguments.quick else 7
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {arguments.rounds}")
    if arguments.others is None:
        arguments.others = -(-arguments.rounds // 3)
    if not 0 <= arguments.others <= arguments.rounds:
        parser.error(f"--others must be from 0 to the number of rounds, not {arguments.others}")
    return arguments, chosen


def main() -> None:
    """Measure the chosen cases, print their tables and write them to files."""
    arguments, cases = _arguments()
    if arguments.check:
        sys.exit(not counts.check(write=arguments.write))
    start, about = time.monotonic(), report.circumstances()
    with Bench(
        seconds=0.1 if arguments.quick else 0.25, idle=5 if arguments.quick else 42
    ) as bench:
        for what in bench.measure(cases, arguments.rounds, arguments.others):
            print(f"{time.monotonic() - start:4.0f} s  {what}", file=sys.stderr, flush=True)
    shown = report.to_rst(report.tables(cases))
    print(f"{about}\n\n{shown}")
    for kind, why in {k: why for case in cases for k, why in case.skipped.items()}.items():
        print(f"{kind} is skipped: {why}.")
    if arguments.json:
        report.write_json(arguments.json, about, cases)
    if arguments.rst:
        arguments.rst.write_text(f"{about}\n\n{shown}")
    if arguments.plot:
        report.plot(arguments.plot, cases)


if __name__ == "__main__":
    main()
