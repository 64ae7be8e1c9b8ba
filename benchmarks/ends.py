"""What runs in the measured processes: a server, a client, or a relay between the two.

The driver (`cases`) starts these processes. A server prints its port and does what its clients
order. A client reads from its stdin what to measure, and prints what it has measured. It asks the
kernel for the processor time, the page faults and the memory of *all* the processes, before and
after the measured section. So the other processes need no part in that.

An order is the first message on a connection, or the first after the last order has been carried
out: what to do, with what size, and how often. A client is certain that a transfer is over when it
has received everything, or when the server says that it has.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import os
import random
import resource
import ssl
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from .kinds import BARE, HOST, KINDS, OURS, TLS, Handler, Kind

_ORDER: Final = struct.Struct("!cIQ")
_DONE: Final = b"!"
_OPENING: Final = 50  # idle connections that are opened at the same time
_SETTLING: Final = 1.0  # seconds; after that a new connection has nothing left to do
_PERIOD: Final = 0.25  # seconds between two round trips of a connection that does little

LINE: Final = "line"
_LINE_RATE: Final = 100e6 / 8  # bytes a second
_LINE_DELAY: Final = 0.010  # seconds in one direction; its queue holds as many
_LINE_READ: Final = 16384  # bytes

PEM: Final = {"client": "authority.pem", "server": "server.pem"}


# What both ends do


async def drop(end: Any, size: int) -> None:
    """Receive and drop ``size`` bytes."""
    while size > 0:
        data = await end.receive_some()
        if not data:
            raise EOFError("the connection has ended")
        size -= len(data)


async def answer(end: Any) -> None:
    """Carry out a client's orders until it leaves. This is the handler of every server."""
    order = b""
    while data := await end.receive_some():
        order += data
        if len(order) < _ORDER.size:
            continue
        what, size, count = _ORDER.unpack(order[: _ORDER.size])
        early = len(order) - _ORDER.size
        order = b""
        if what == b"u":
            await drop(end, size * count - early)
            await end.send_all(_DONE)
        elif what == b"d":
            data = _data(size)
            for _ in range(count):
                await end.send_all(data)
        elif what == b"e":
            data = _data(size)
            await drop(end, size - early)
            await end.send_all(data)
            for _ in range(count - 1):
                await drop(end, size)
                await end.send_all(data)


def _data(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


async def up(end: Any, size: int, count: int) -> None:
    data = _data(size)
    await end.send_all(_ORDER.pack(b"u", size, count))
    for _ in range(count):
        await end.send_all(data)
    await drop(end, len(_DONE))


async def down(end: Any, size: int, count: int) -> None:
    await end.send_all(_ORDER.pack(b"d", size, count))
    await drop(end, size * count)


async def round_trips(end: Any, size: int, count: int) -> None:
    data = _data(size)
    await end.send_all(_ORDER.pack(b"e", size, count))
    for _ in range(count):
        await end.send_all(data)
        await drop(end, size)


TRANSFERS: Final = {"up": up, "down": down, "round trip": round_trips}


# Readings


def _reading(pid: int) -> list[float]:
    """Return the processor time, the page faults and the resident bytes of a process."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # This is the clock that clock_getcpuclockid(3) returns. It counts all threads, in nanoseconds.
    processor = time.clock_gettime((~pid << 3) | 2)
    return [processor, int(stat[7]), int(stat[21]) * resource.getpagesize()]


class _Meter:
    """The time, and the readings of all processes, from now on."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._before = [_reading(pid) for pid in pids]
        self._start = time.perf_counter()

    def read(self, units: float) -> dict[str, Any]:
        """Return what was measured, for each of so many units of work."""
        seconds = time.perf_counter() - self._start
        after = [_reading(pid) for pid in self._pids]
        change = [
            [(b - a) / units for a, b in zip(*two, strict=True)]
            for two in zip(self._before, after, strict=True)
        ]
        processor, faults, memory = map(list, zip(*change, strict=True))
        return {
            "seconds": seconds / units,
            "processor": processor,
            "faults": faults,
            "memory": memory,
        }


# The client


class _Client:
    """What the client's process does. Its job is what the driver has written."""

    def __init__(self, kind: Kind, tls: TLS, job: dict[str, Any]) -> None:
        self._kind = kind
        self._connect = partial(kind.connect, job["port"], tls)
        self._job = job

    async def run(self) -> dict[str, Any]:
        work, size = self._job["work"], self._job["size"]
        if work in ("idle", "little"):
            return await self._measure_many()
        if work == "message":
            return await self._receive_message()
        if work == "connections":
            return await self._measure(self._open_and_close)
        async with self._connect() as end:
            return await self._measure(partial(TRANSFERS[work], end, size))

    async def _measure(self, work: Callable[[int], Awaitable[None]]) -> dict[str, Any]:
        """Find how many units of work fill the time, which warms up the code too, and measure."""
        count, target = 1, self._job["seconds"]
        while True:
            start = time.perf_counter()
            await work(count)
            taken = time.perf_counter() - start
            if taken >= target / 4:
                break
            count *= 2 if taken > target / 32 else 8
        count = max(1, round(count * target / taken))
        meter = _Meter(self._job["pids"])
        await work(count)
        return meter.read(count)

    async def _open_and_close(self, count: int) -> None:
        for _ in range(count):
            async with self._connect() as end:
                await down(end, 32, 1)

    async def _measure_many(self) -> dict[str, Any]:
        """Open connections, each in a task. Then let them be idle, or let each do a round trip in
        each `_PERIOD`. Nothing is closed in the end.
        """
        sleep = trio.sleep if self._kind.loop == "trio" else asyncio.sleep
        count, seconds, tasks = self._job["size"], self._job["seconds"], []
        is_idle = self._job["work"] == "idle"
        opened = done = 0  # connections, round trips

        async def hold() -> None:
            nonlocal opened
            async with self._connect() as end:
                await down(end, 32, 1)
                opened += 1
                await (sleep(10**9) if is_idle else do_little(end))

        async def do_little(end: Any) -> None:
            nonlocal done
            await end.send_all(_ORDER.pack(b"e", 32, 10**9))
            await sleep(random.random() * _PERIOD)
            while True:
                await end.send_all(_data(32))
                await drop(end, 32)
                done += 1
                await sleep(_PERIOD)

        async def open_until(number: int, start: Callable[[], object]) -> None:
            for ready in range(opened, number, _OPENING):
                tasks.extend(start() for _ in range(ready, min(ready + _OPENING, number)))
                while opened < min(ready + _OPENING, number):
                    await sleep(0.001)
            await sleep(_SETTLING)

        async def measure(start: Callable[[], object]) -> dict[str, Any]:
            await open_until(_OPENING, start)  # These warm up the code.
            meter = _Meter(self._job["pids"])
            await open_until(_OPENING + count, start)
            memory = meter.read(count)["memory"]
            meter, before = _Meter(self._job["pids"]), done
            await sleep(seconds)
            units = seconds / 60 if is_idle else done - before
            print(json.dumps({**meter.read(units), "memory": memory}))
            sys.stdout.flush()
            os._exit(0)

        if self._kind.loop == "trio":
            async with trio.open_nursery() as nursery:
                return await measure(partial(nursery.start_soon, hold))
        return await measure(lambda: asyncio.ensure_future(hold()))

    async def _receive_message(self) -> dict[str, Any]:
        """Receive a message that warms up the code, and the one that the driver measures."""
        async with self._connect() as end:
            await down(end, self._job["warm_up"], 1)
            await down(end, self._job["size"], 1)
            await end.send_all(_DONE)
            return {}


# The relay


async def _relay_bare(target: int, client: Any) -> None:
    """Two pumps and nothing else."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()

    async with await trio.open_tcp_stream(HOST, target) as server, trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, server)
        await pump(server, client)


async def _relay_ours(target: int, client: Any) -> None:
    from trio_wsstream import bridge

    await bridge(client, await trio.open_tcp_stream(HOST, target))


async def _relay_slowly(target: int, client: Any) -> None:
    """Pass bytes on as a line of `_LINE_RATE` and `_LINE_DELAY` does."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        to_sink, on_the_way = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver, on_the_way, sink)
            free_at = 0.0  # when the last bytes have left the queue
            while data := await source.receive_some(_LINE_READ):
                free_at = max(free_at, trio.current_time()) + len(data) / _LINE_RATE
                to_sink.send_nowait((free_at + _LINE_DELAY, bytes(data)))
                await trio.sleep_until(free_at - _LINE_DELAY)
            to_sink.close()

    async def deliver(
        on_the_way: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream
    ) -> None:
        async for due_at, data in on_the_way:
            await trio.sleep_until(due_at)
            await sink.send_all(data)
        await sink.send_eof()

    async with await trio.open_tcp_stream(HOST, target) as server, trio.open_nursery() as nursery:
        nursery.start_soon(pump, client, server)
        await pump(server, client)


RELAYS: Final = {BARE: _relay_bare, OURS: _relay_ours, LINE: _relay_slowly}


# The processes


def tls_context(side: str, folder: str) -> ssl.SSLContext:
    """Return the TLS settings of a side, from the files that the driver has written."""
    file = Path(folder) / PEM[side]
    if side == "client":
        return ssl.create_default_context(cafile=str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


def _run(kind: Kind, function: Callable[[], Awaitable[Any]]) -> Any:
    if kind.loop == "trio":
        return trio.run(function)
    return asyncio.run(function())  # type: ignore[arg-type]


async def _serve(kind: Kind, handler: Handler, tls: TLS) -> None:
    async with kind.serving(handler, tls) as port:
        print(port, flush=True)
        if kind.loop == "trio":
            await trio.sleep_forever()
        await asyncio.Event().wait()


def main(side: str, name: str, folder: str = "", relay: str = "", target: str = "") -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    kind = KINDS[name]
    tls = tls_context(side, folder) if folder else None
    if side == "server":
        handler = partial(RELAYS[relay], int(target)) if relay else answer
        _run(kind, partial(_serve, kind, handler, tls))
        return
    importlib.import_module(kind.requires)  # while the server's process does the same
    job = json.loads(sys.stdin.readline())
    print(json.dumps(_run(kind, _Client(kind, tls, job).run)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
