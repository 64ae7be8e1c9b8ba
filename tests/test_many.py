"""A few hundred connections at once; ``nox -s many`` is the same with as many as there can be."""

from __future__ import annotations

import resource
import sys

import pytest

from benchmarks.many import SIDES, Findings, measure, raise_file_limit

PAIRS = 300


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it counts in /proc")
@pytest.mark.parametrize("side", SIDES)
async def test_hundreds_of_pairs_echo_at_once_close_at_once_and_leave_nothing(side: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    raise_file_limit()
    try:
        found = await measure(PAIRS, side, round_trips=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    times = {name: getattr(found, name) for name in ("opening", "echoing", "closing")}
    sizes = {name: getattr(found, name) for name in ("memory", "alone", "among_all")}
    assert found == Findings(
        PAIRS, echoed=PAIRS, clean=2 * PAIRS, told=2 * PAIRS, **times, **sizes
    )  # so no tasks, files or streams are left
