"""The cases that measure time: what is done, how often, and in which order.

A case is opened on a `Meeting` and gives the work to be timed, a coroutine function that does
it so many times. `measure` finds for each kind of stream how often that is in a sample, then
lets them take turns, in an order that is turned around each time, so that none is always
behind the same other.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from .asyncio_makers import ASYNCIO_MAKERS, hosted
from .makers import (
    TCP,
    TLS_MAKERS,
    TLS_TCP,
    TRIO_MAKERS,
    TRIO_WEBSOCKET,
    End,
    Maker,
    Meeting,
    receive_exactly,
)
from .results import Result

KIB: Final = 1024
SIZES: Final = {"1k": KIB, "16k": 16 * KIB, "64k": 64 * KIB, "1m": 1024 * KIB}

Work = Callable[[int], Awaitable[object]]
Clock = Callable[[], float]

CLOCKS: Final[dict[str, Clock]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""How time is told. On a machine with other work to do, the processor's is the fairer one:
both ends are one thread that never waits for anything but itself."""


@dataclass(frozen=True)
class TimedCase:
    """Something to be timed.

    Attributes:
      key (str), title (str), unit (str), baseline (str), rises (bool): as of `Result`.
      open: a context manager that gives the work.
      scale (float): what one unit of work in a second is, in ``unit``; or if less is better,
          what a second for one is.
      makers: of the streams to compare.
    """

    key: str
    title: str
    unit: str
    open: Callable[[Meeting], AbstractAsyncContextManager[Work]]
    scale: float
    rises: bool
    baseline: str = TCP
    makers: tuple[Maker, ...] = (*TRIO_MAKERS, *ASYNCIO_MAKERS)

    def value(self, count: int, seconds: float) -> float:
        """What it means that ``count`` units of work took ``seconds``."""
        return self.scale * (count / seconds if self.rises else seconds / count)


# What is done


@asynccontextmanager
async def _open_pair(meeting: Meeting) -> AsyncGenerator[tuple[End, End], None]:
    client, server = await meeting.pair()
    yield client, server
    await meeting.close(client, server)


@asynccontextmanager
async def _transfer(meeting: Meeting, *, size: int, upwards: bool) -> AsyncGenerator[Work, None]:
    """Writes of ``size`` bytes, and as many reads as it takes until all are there."""
    data = bytes(range(256)) * (size // 256)
    async with _open_pair(meeting) as (client, server):
        sender, receiver = (client, server) if upwards else (server, client)

        async def transfer(count: int) -> None:
            async def send() -> None:
                for _ in range(count):
                    await sender.send_all(data)

            async def receive() -> None:
                left = count * size
                while left > 0:
                    left -= len(await receiver.receive_some())

            await meeting.both(send, receive)

        yield transfer


@asynccontextmanager
async def _round_trip(meeting: Meeting, *, size: int) -> AsyncGenerator[Work, None]:
    """``size`` bytes to the server, and as many back."""
    data = bytes(size)
    async with _open_pair(meeting) as (client, server):

        async def round_trips(count: int) -> None:
            async def ask() -> None:
                for _ in range(count):
                    await client.send_all(data)
                    await receive_exactly(client, size)

            async def answer() -> None:
                for _ in range(count):
                    await receive_exactly(server, size)
                    await server.send_all(data)

            await meeting.both(ask, answer)

        yield round_trips


@asynccontextmanager
async def _connect(meeting: Meeting) -> AsyncGenerator[Work, None]:
    """Connect, take over, one round trip, close; one connection after the other."""
    data = bytes(32)

    async def connect(count: int) -> None:
        for _ in range(count):
            client, server = await meeting.pair()

            async def ask(client: End = client) -> None:
                await client.send_all(data)
                await receive_exactly(client, len(data))

            async def answer(server: End = server) -> None:
                await receive_exactly(server, len(data))
                await server.send_all(data)

            await meeting.both(ask, answer)
            await meeting.close(client, server)

    yield connect


def _transfer_case(upwards: bool, name: str, tls: bool = False) -> TimedCase:
    way = "c2s" if upwards else "s2c"
    way_title = "client to server" if upwards else "server to client"
    size = SIZES[name]
    size_title = f"{size // KIB} KiB" if size < KIB * KIB else "1 MiB"
    return TimedCase(
        f"tls-{way}" if tls else f"{way}-{name}",
        f"{'TLS inside, ' if tls else ''}{way_title}, writes of {size_title}",
        "GB/s",
        partial(_transfer, size=size, upwards=upwards),
        scale=size / 1e9,
        rises=True,
        baseline=TLS_TCP if tls else TCP,
        makers=TLS_MAKERS if tls else (*TRIO_MAKERS, *ASYNCIO_MAKERS),
    )


TIMED_CASES: Final = (
    *(_transfer_case(False, name) for name in SIZES),
    *(_transfer_case(True, name) for name in SIZES),
    TimedCase(
        "rtt-32",
        "round trip of 32 bytes",
        "us",
        partial(_round_trip, size=32),
        scale=1e6,
        rises=False,
    ),
    TimedCase(
        "rtt-4k",
        "round trip of 4 KiB",
        "us",
        partial(_round_trip, size=4 * KIB),
        scale=1e6,
        rises=False,
    ),
    TimedCase(
        "connect",
        "connect, take over, one round trip, close",
        "1/s",
        _connect,
        scale=1,
        rises=True,
        baseline=TRIO_WEBSOCKET,
    ),
    _transfer_case(False, "64k", tls=True),
    _transfer_case(True, "64k", tls=True),
)


# How it is measured


@dataclass
class _Contender:
    """One kind of stream in a case."""

    name: str
    work: Work
    runner: asyncio.Runner | None  # for those on asyncio
    clock: Clock
    count: int = 1  # units of work in a sample

    async def sample(self) -> float:
        """How many seconds a sample takes."""
        gc.collect()
        if self.runner is None:
            start = self.clock()
            await self.work(self.count)
            return self.clock() - start

        async def work() -> None:
            await self.work(self.count)

        start = self.clock()
        self.runner.run(work())
        return self.clock() - start

    async def calibrate(self, seconds: float) -> None:
        """Find how much work takes about as long as a sample is to take. It warms up, too."""
        while (taken := await self.sample()) < seconds / 4:
            self.count *= 2 if taken > seconds / 32 else 8
        self.count = max(1, round(self.count * seconds / taken))


async def _enter(
    stack: AsyncExitStack,
    runner: asyncio.Runner | None,
    manager: AbstractAsyncContextManager[Any],
) -> Any:
    return await stack.enter_async_context(manager if runner is None else hosted(runner, manager))


async def measure(
    case: TimedCase, makers: Iterable[Maker], rounds: int, seconds: float, clock: Clock
) -> dict[str, list[float]]:
    """Time a case with streams from ``makers``, in turns.

    Args:
      case (TimedCase): what to time.
      makers: of the streams to compare.
      rounds (int): how many samples to take of each.
      seconds (float): for about how long each.
      clock: one of `CLOCKS`.

    Returns:
      dict: by the stream's name, a value for each round.
    """
    async with AsyncExitStack() as stack:
        asyncio_runner = stack.enter_context(asyncio.Runner())
        contenders = []
        for maker in makers:
            runner = asyncio_runner if maker.loop == "asyncio" else None
            meeting = await _enter(stack, runner, maker.meet())
            work = await _enter(stack, runner, case.open(meeting))
            contenders.append(_Contender(maker.name, work, runner, clock))
        for contender in contenders:
            await contender.calibrate(seconds)
        values: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        gc.collect()
        gc.freeze()  # so that a collection looks at what the work itself has made
        for _ in range(rounds):
            for contender in contenders:
                taken = await contender.sample()
                values[contender.name].append(case.value(contender.count, taken))
            contenders.reverse()
        gc.unfreeze()
    return values


def result_of(case: TimedCase) -> Result:
    """An empty result for ``case``."""
    return Result(case.key, case.title, case.unit, case.baseline, case.rises)
