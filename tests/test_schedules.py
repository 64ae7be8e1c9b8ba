"""That the order of tasks is what the seed says: see `tests/conftest.py`."""

from __future__ import annotations

import random

import pytest
import trio

_ORDER = trio._core._run._r


def test_each_test_starts_with_the_order_of_its_seed(request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("schedule_seed")
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
