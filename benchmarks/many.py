"""Open as many connections as the system allows, in one process: ``python -m benchmarks.many``.

Both ends of each pair live in this process, and each end has its own socket on loopback. The
servers' ends are in handlers of `serve_ws`, the clients' ends come from `open_ws_stream`. First all
pairs are open at once and idle. Then all pairs echo at once. Then one side closes all pairs at
once.

The program prints how much memory a pair takes (of this process, without the kernel's buffers), how
long a round trip takes without and with all the other pairs, whether every end was clean, and how
many tasks, files and streams are left. Round trips are measured in processor time of this process.
It does the work of both ends, so other work on the machine does not count.

The program reads ``/proc``, so it runs on Linux only.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from trio_wsstream import StreamClosed, StreamConfig, WsByteStream, open_ws_stream, serve_ws

HOST: Final = "127.0.0.1"
SIDES: Final = ("client", "server")
CLEAN: Final = StreamClosed(1000, "", True, None)
PATIENCE: Final = 600  # seconds; thousands of opens or closes at once take long
CONFIG: Final = StreamConfig(close_timeout=PATIENCE)
OPENING: Final = 100  # clients at a time; `WsListener` drops the oldest handshake if 129 are open
ECHO_SIZE: Final = 1000  # bytes
ROUND_TRIPS: Final = 2000
_OTHER_FILES: Final = 100  # files that are left for everything but the sockets


@dataclass
class Findings:
    """What was measured. Memory is in bytes, times are in seconds."""

    pairs: int
    opening: float = 0
    idling: float = 0  # processor time that all of them take in a minute in which nothing happens
    memory: float = 0  # for each pair
    alone: float = 0  # a round trip while no other pair is open
    among_all: float = 0  # a round trip while all other pairs are open and idle
    echoed: int = 0  # pairs whose data came back unchanged
    echoing: float = 0
    clean: int = 0  # ends of connections that ended cleanly
    told: int = 0  # ends whose subscriber saw that clean end and nothing else
    closing: float = 0
    tasks_left: int = 0
    files_left: int = 0
    streams_left: int = 0


async def measure(
    pairs: int, closing_side: str, round_trips: int = ROUND_TRIPS, idle: float = 0
) -> Findings:
    """Open ``pairs`` pairs, let them idle for so many seconds, and echo, and let ``closing_side``
    close all of them.
    """
    found = Findings(pairs)
    streams_before = _count_streams()
    await _Many(found).run(closing_side, round_trips, idle)
    found.streams_left = _count_streams() - streams_before
    return found


class _Many:
    def __init__(self, found: Findings) -> None:
        self.found = found
        self.clients: list[WsByteStream] = []
        self.servers: list[WsByteStream] = []
        self._may_leave = trio.Event()
        self._may_open = trio.CapacityLimiter(OPENING)

    async def run(self, closing_side: str, round_trips: int, idle: float) -> None:
        found = self.found
        async with trio.open_nursery() as accepting:
            async with trio.open_nursery() as handlers, trio.open_nursery() as clients:
                serve = partial(
                    serve_ws,
                    self._serve,
                    HOST,
                    0,
                    connect_timeout=PATIENCE,
                    config=CONFIG,
                    handler_nursery=handlers,
                )
                listener: Any = (await accepting.start(serve))[0]
                port = listener.transport_listener.socket.getsockname()[1]
                connect = partial(clients.start, self._connect, f"ws://{HOST}:{port}/")
                tasks, files = _count_tasks(), _count_files()

                await connect()
                await self._time_round_trip(round_trips)  # This run only warms up the code.
                found.alone = await self._time_round_trip(round_trips)
                memory = resident()
                found.opening = await _time([connect] * (found.pairs - 1))
                found.memory = (resident() - memory) / max(1, found.pairs - 1)
                found.among_all = await self._time_round_trip(round_trips)
                if idle:
                    start = time.process_time()
                    await trio.sleep(idle)
                    found.idling = (time.process_time() - start) / idle * 60
                found.echoing = await _time(
                    [partial(self._echo, client, i) for i, client in enumerate(self.clients)]
                )
                await self._close(closing_side)
                self._may_leave.set()
            found.tasks_left = _count_tasks() - tasks
            found.files_left = _count_files() - files
            accepting.cancel_scope.cancel()

    async def _serve(self, stream: WsByteStream) -> None:
        """Echo: the handler of the server."""
        self.servers.append(stream)
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.ClosedResourceError:
            pass  # `_close` has closed the server's end.

    async def _connect(self, url: str, *, task_status: trio.TaskStatus[None]) -> None:
        await self._may_open.acquire()
        async with open_ws_stream(url, connect_timeout=PATIENCE, config=CONFIG) as stream:
            self._may_open.release()
            self.clients.append(stream)
            task_status.started()
            await self._may_leave.wait()

    async def _time_round_trip(self, count: int) -> float:
        client, times = self.clients[0], []
        for _ in range(count):
            start = time.process_time()
            await client.send_all(b"a round trip of 32 bytes, always")
            await client.receive_some()
            times.append(time.process_time() - start)
        return statistics.median(times)

    async def _echo(self, client: WsByteStream, number: int) -> None:
        data = number.to_bytes(4, "big") * (ECHO_SIZE // 4)
        await client.send_all(data)
        received = bytearray()
        while len(received) < len(data):
            received += await client.receive_some()
        self.found.echoed += received == data

    async def _close(self, side: str) -> None:
        ends = self.clients + self.servers
        channels = [end.subscribe(kinds=StreamClosed) for end in ends]
        closing = self.clients if side == "client" else self.servers
        self.found.closing = await _time([end.aclose for end in closing])
        told = [[event async for event in channel] for channel in channels]
        self.found.told = told.count([CLEAN])
        self.found.clean = [end.closed for end in ends].count(CLEAN)


async def _time(jobs: list[Callable[[], Awaitable[object]]]) -> float:
    """Run all ``jobs`` at the same time and return how many seconds they took."""
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(job)
    return trio.current_time() - start


def _count_streams() -> int:
    gc.collect()
    return sum(type(each) is WsByteStream for each in gc.get_objects())


def _count_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


def _count_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def raise_file_limit() -> int:
    """Raise the limit of open files to the highest value allowed, and return that value."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    """Measure and print. Exit with 1 if an end was not clean or if something is left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many")
    parser.add_argument(
        "--pairs",
        metavar="N",
        type=int,
        help="default: as many as possible",
    )
    parser.add_argument(
        "--close",
        choices=SIDES,
        default="client",
        help="default: client",
    )
    parser.add_argument(
        "--idle", metavar="SECONDS", type=float, default=0, help="how long nothing happens at first"
    )
    arguments = parser.parse_args()
    limit = raise_file_limit()
    pairs = arguments.pairs or (limit - _OTHER_FILES) // 2
    found = trio.run(measure, pairs, arguments.close, ROUND_TRIPS, arguments.idle)
    left = (found.tasks_left, found.files_left, found.streams_left)
    print(f"{pairs:,} pairs in one process, whose limit of open files is {limit:,}:")
    print(f"  opening all pairs, at most {OPENING} at a time: {found.opening:.1f} s")
    print(f"  memory for each pair: {found.memory / 1024:.1f} KiB")
    print(f"  round trip while all pairs are open: {found.among_all * 1e6:.0f} us,")
    ratio = found.among_all / found.alone
    print(f"    {ratio:.2f} times that of one pair alone, {found.alone * 1e6:.0f} us")
    if arguments.idle:
        print(f"  processor time while all are idle: {found.idling:.2f} s a minute")
    print(
        f"  pairs that echoed {ECHO_SIZE} bytes, all at once: {found.echoed:,},"
        f" in {found.echoing:.1f} s"
    )
    print(f"  the {arguments.close}s closed all pairs at once, in {found.closing:.1f} s: ", end="")
    print(f"{found.clean:,} clean ends, {found.told:,} of them seen by a subscriber")
    print("  left over: {} tasks, {} files, {} streams".format(*left))
    if (found.echoed, found.clean, found.told, *left) != (pairs, 2 * pairs, 2 * pairs, 0, 0, 0):
        sys.exit("FAILED: data was lost, an end was not clean, or something is left over.")


if __name__ == "__main__":
    main()
