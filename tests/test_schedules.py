"""The seed of a run determines the order in which Trio runs tasks: see `tests/conftest.py`."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

_ORDER = trio._core._run._r


def test_each_test_starts_with_the_order_of_its_seed(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("schedule_seed")
    print(f"--schedule-seed={seed}")  # The last test reads this.
    assert _ORDER.getstate() == random.Random(f"{seed} {request.node.nodeid}").getstate()


def test_a_seed_gives_the_same_order_again() -> None:
    async def order_of(seed: int) -> list[int]:
        order: list[int] = []

        async def work(number: int) -> None:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                order.append(number)

        _ORDER.seed(seed)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(work, number)
        return order

    assert trio.run(order_of, 1) == trio.run(order_of, 1)
    assert trio.run(order_of, 1) != trio.run(order_of, 2)


@pytest.mark.slow
def test_all_workers_of_pytest_xdist_have_the_seed_that_the_header_shows() -> None:
    test = f"{__file__}::{test_each_test_starts_with_the_order_of_its_seed.__name__}"
    command = [sys.executable, "-m", "pytest", "-rA", "-n", "2", "--dist", "each", test]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    seeds = re.findall(r"--schedule-seed=(\d+)", run.stdout)
    assert len(seeds) == 3, run.stdout  # in the header, and from each worker
    assert len(set(seeds)) == 1
