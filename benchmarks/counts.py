"""Counts of work that do not depend on the machine: ``python -m benchmarks --check``.

Times differ from machine to machine, and on one machine from minute to minute. What is counted here
does not: the bytecode instructions, the calls and the system calls of both ends, for a unit of work
such as one message that is sent and received. Each count is a ratio to that of bare Trio for the
same unit, so it hardly depends on the versions of Python and Trio.

`COUNTS` holds the ratios that were true when it was last written. A ratio that is higher by more
than `SPREAD` is a loss. Who has a good reason for it writes the file anew, with ``--write``.

Both ends are in one process. Where the kernel's buffers allow it, they are in one task, which sends
first and receives then, so that no schedule changes the counts. With writes of 1 MiB the calls
would differ by a tenth from run to run, so no write is as large as that. Trio's clock stands still
(`trio.testing.MockClock`), so nothing happens only because tracing takes long.

Page faults are no counts of this kind, but a process that has bad luck with its heap has so many
more of them that they can be checked, too (`MAX_FAULTS`). They come from samples of two processes.
"""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from . import memory
from .cases import Bench, make_cases
from .ends import answer, down, drop, tls_context
from .kinds import BARE, KINDS, OURS, OURS_INSIDE, TLS
from .report import page_faults

COUNTS: Final = Path(__file__).parent / "counts.json"
SPREAD: Final = {"instructions": 0.04, "calls": 0.02, "system calls": 0.02, "memory": 0.1}
"""Versions of Python change instructions by up to 3 %, and memory by more."""

WIDE_SPREAD: Final = 0.1
"""Of `_WIDE`: tasks take turns in these, in an order that differs from run to run."""

_WIDE: Final = ("64 KiB", "1 MiB", "an idle minute", "connect, round trip, close")

MAX_FAULTS: Final = 50_000
"""Page faults for each GB that is carried. There are next to none, or 200,000 and more."""

_SAMPLED: Final = ("-64k", "relay-trip", "connections", "idle-2000")
_UNITS: Final = 32
_IDLE_SECONDS: Final = 60
_PAIRS: Final = 100
_SYSTEM_CALLS: Final = {
    *("read", "write", "writev", "recv", "recv_into", "send", "sendmsg", "poll", "connect"),
    *("accept", "shutdown", "close", "register", "modify", "unregister", "ioctl"),
    *("setsockopt", "getsockopt"),
}

Unit = Callable[[], Awaitable[None]]
Counts = dict[str, dict[str, float]]


async def _count(unit: Unit, units: int = _UNITS) -> dict[str, float]:
    """Return how much work a unit takes."""
    instructions = calls = system_calls = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions += event == "opcode"
        return trace

    def profile(frame: FrameType, event: str, function: Any) -> None:
        nonlocal calls, system_calls
        calls += event in ("call", "c_call")
        system_calls += event == "c_call" and function.__name__ in _SYSTEM_CALLS

    async def all_units() -> None:  # a frame of its own, because only new frames are traced
        for _ in range(units):
            await unit()

    await all_units()  # until nothing adapts any more, and what is imported late has been
    try:
        sys.settrace(trace)
        await all_units()
        sys.settrace(None)
        sys.setprofile(profile)
        await all_units()
    finally:
        sys.settrace(None)
        sys.setprofile(None)
    counts = {"instructions": instructions, "calls": calls, "system calls": system_calls}
    return {name: count / units for name, count in counts.items()}


@asynccontextmanager
async def _pair(name: str, server_tls: TLS, client_tls: TLS) -> AsyncGenerator[Any, None]:
    """Connect a client and a server, and yield both."""
    kind = KINDS[name]
    send, accepted = trio.open_memory_channel[Any](0)

    async def handle(end: Any) -> None:
        await send.send(end)
        await trio.sleep_forever()

    async with kind.serving(handle, server_tls) as port, kind.connect(port, client_tls) as client:
        server = await accepted.receive()
        await _carry(client, server, 1 << 15)  # This does the handshake of TLS, too.
        yield client, server
        # The closing handshake waits for the grace period of the stream's own task.
        trio.lowlevel.current_clock().autojump_threshold = 0  # type: ignore[attr-defined]


async def _carry(sender: Any, receiver: Any, size: int) -> None:
    data = bytes(size)
    if size <= 1 << 14:
        await sender.send_all(data)
        await drop(receiver, size)
    else:  # which the kernel may not take at once
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, data)
            await drop(receiver, size)


async def _carry_to_waiting(sender: Any, receiver: Any, size: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop, receiver, size)
        await wait_all_tasks_blocked()
        await sender.send_all(bytes(size))


async def _carry_there_and_back(client: Any, server: Any, size: int) -> None:
    await _carry(client, server, size)
    await _carry(server, client, size)


async def _idle() -> None:
    """Let a minute pass."""
    for _ in range(_IDLE_SECONDS):
        trio.lowlevel.current_clock().jump(1)  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()


async def _counts_of(name: str, server_tls: TLS, client_tls: TLS) -> Counts:
    async with _pair(name, server_tls, client_tls) as (client, server):
        found = {
            f"{way}, {size}": await _count(partial(_carry, *ends, count))
            for size, count in (
                ("1 KiB", 1024),
                ("16 KiB", 1 << 14),
                ("64 KiB", 1 << 16),
                ("1 MiB", 1 << 20),
            )
            for way, ends in (("up", (client, server)), ("down", (server, client)))
        }
        found["round trip"] = await _count(partial(_carry_there_and_back, client, server, 32))
        found["to a receiver that waits"] = await _count(
            partial(_carry_to_waiting, client, server, 1024)
        )
        found["an idle minute"] = await _count(_idle, 4)
    return found


async def _connecting(name: str, server_tls: TLS, client_tls: TLS) -> Counts:
    kind = KINDS[name]
    async with kind.serving(answer, server_tls) as port:

        async def connect() -> None:
            async with kind.connect(port, client_tls) as end:
                await down(end, 32, 1)

        return {"connect, round trip, close": await _count(connect)}


def _memory(readers: bool) -> dict[str, float]:
    """Return how much an idle pair has allocated."""

    def of(bare: bool) -> int:
        tracemalloc.start()
        try:
            read = tracemalloc.get_traced_memory
            pairs = partial(memory.measure, _PAIRS, bare=bare, tls=False, readers=readers)
            before, after = trio.run(partial(pairs, read=read))
        finally:
            tracemalloc.stop()
        return int(after[0] - before[0])

    return {"memory": round(of(bare=False) / of(bare=True), 3)}


def count() -> Counts:
    """Return all ratios to bare Trio."""
    ratios = {
        f"ws: an idle pair{with_readers}": _memory(bool(with_readers))
        for with_readers in ("", " with readers")
    }
    with Bench(seconds=0, idle=0) as bench:
        tls = [tls_context(side, bench.folder) for side in ("server", "client")]
        for scheme, contexts, names in (
            ("ws", (None, None), (OURS,)),
            ("wss", tls, (OURS,)),
            ("TLS inside", tls, (OURS_INSIDE,)),
        ):
            for measure in (_counts_of, _connecting):
                bare, ours = (
                    trio.run(measure, name, *contexts, clock=MockClock()) for name in (BARE, *names)
                )
                for unit in bare:
                    ratios[f"{scheme}: {unit}"] = {
                        what: round(ours[unit][what] / bare[unit][what], 3) for what in bare[unit]
                    }
    return ratios


def check(*, write: bool) -> bool:
    """Compare to the file, print all ratios, and return whether nothing was lost."""
    found = count()
    kept: Counts = {} if write else json.loads(COUNTS.read_text())
    losses = []
    for unit, ratios in found.items():
        for what, ratio in ratios.items():
            spread = WIDE_SPREAD if unit.endswith(_WIDE) else SPREAD[what]
            before = kept.get(unit, {}).get(what, ratio)
            print(f"{unit:42} {what:12} {ratio:7.3f} {before:7.3f}")
            if ratio > before * (1 + spread):
                losses.append(
                    f"{unit}: {what} {ratio:.3f} times that of bare Trio, not {before:.3f}"
                )
    if write:
        COUNTS.write_text(json.dumps(found, indent=1) + "\n")
    losses += _check_faults()
    for loss in losses:
        print(f"LOST: {loss}")
    return not losses


def _check_faults() -> list[str]:
    """Take one short sample of each kind of stream: this notices a broken benchmark, too."""
    cases = [case for case in make_cases() if case.key.endswith(_SAMPLED)]
    losses = []
    with Bench(seconds=0.1, idle=0.1) as bench:
        for _ in bench.measure(cases, rounds=1, others=1):
            pass
    for case in cases:
        for kind in (OURS, OURS_INSIDE):
            if case.key.endswith("64k") and case.samples.get(kind):
                faults = page_faults(case, kind)[0]
                print(f"{case.key} {kind}: {faults:,.0f} page faults for each GB")
                if faults > MAX_FAULTS:
                    losses.append(f"{case.key} {kind}: {faults:,.0f} page faults for each GB")
    return losses
