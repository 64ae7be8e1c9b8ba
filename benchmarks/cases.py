"""The cases that measure time: what work is timed, how often, and in which order.

A case is opened on a `Meeting` and yields the work to be timed: a coroutine function that does one
unit of work a given number of times. For each kind of stream `measure` first finds how many units
fill one sample. Then the kinds take turns. `measure` reverses their order after each round, so that
no kind always runs after the same other kind.
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
"""The clocks to measure with. On a machine with other work to do, processor time is fairer: both
ends run in one thread, which never waits for anything outside itself."""


@dataclass(frozen=True)
class TimedCase:
    """A case whose time is measured.

    Attributes:
      key (str), title (str), unit (str), baseline (str), rises (bool): the same as in `Result`.
      open: a function that returns a context manager, which yields the work.
      scale (float): the value, in ``unit``, of one unit of work per second. If less is better, the
          value of one second per unit of work.
      makers: the makers of the streams to compare.
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
        """Return the measured value, in ``unit``, if ``count`` units of work took ``seconds``."""
        return self.scale * (count / seconds if self.rises else seconds / count)


# The work that is timed


@asynccontextmanager
async def _open_pair(meeting: Meeting) -> AsyncGenerator[tuple[End, End], None]:
    client, server = await meeting.pair()
    yield client, server
    await meeting.close(client, server)


@asynccontextmanager
async def _transfer(meeting: Meeting, *, size: int, upwards: bool) -> AsyncGenerator[Work, None]:
    """Send writes of ``size`` bytes one way, and read until all bytes have arrived."""
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
    """Send ``size`` bytes to the server, and the same number back."""
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
    """Connect, take over, do one round trip and close, one connection after the other."""
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


# How the work is timed


@dataclass
class _Contender:
    """One kind of stream in a case."""

    name: str
    work: Work
    runner: asyncio.Runner | None  # None for a stream that runs on Trio
    clock: Clock
    count: int = 1  # units of work in a sample

    async def sample(self) -> float:
        """Take one sample and return how many seconds it took."""
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
        """Choose ``count`` so that one sample takes about ``seconds``. It warms up the code too."""
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
    """Time a case with the streams of ``makers``, which take turns.

    Args:
      case (TimedCase): the case to time.
      makers: the makers of the streams to compare.
      rounds (int): how many samples to take of each stream.
      seconds (float): about how many seconds each sample takes.
      clock: one of `CLOCKS`.

    Returns:
      dict: for each stream's name, a list with one value for each round.
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
        gc.freeze()  # From now on the garbage collector looks only at objects that the work makes.
        for _ in range(rounds):
            for contender in contenders:
                taken = await contender.sample()
                values[contender.name].append(case.value(contender.count, taken))
            contenders.reverse()
        gc.unfreeze()
    return values


def result_of(case: TimedCase) -> Result:
    """Return a `Result` for ``case`` that has no samples yet."""
    return Result(case.key, case.title, case.unit, case.baseline, case.rises)
