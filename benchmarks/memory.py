"""What an idle pair of streams allocates, and where: ``python -m benchmarks.memory [--lines]``.

With ``--readers`` a task waits in ``receive_some`` of each end, as in most programs.

With ``--tls`` each pair goes over TLS, and has carried messages of 64 KiB in both directions before
it is idle: OpenSSL's buffers never shrink.

Both ends are in this process, so that tracemalloc sees all of it. There is nothing else: no
nurseries of `open_ws_stream`, no servers. So this cannot tell what a connection takes in a program;
the cases ``idle-*`` of ``python -m benchmarks`` do. And it says nothing about time: in one process
the order in which the two ends run decides how fast they are.

The resident memory is read from ``/proc``, so this runs on Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from trio_wsstream import WsByteStream, _connecting, _handshake

from .cases import Bench
from .ends import PEM, drop, tls_context
from .many import raise_file_limit, resident

HOST: Final = "127.0.0.1"
_WARM_UP: Final = 20  # pairs
_MESSAGE: Final = 65536  # bytes
_MESSAGES: Final = 4
_TLS: Final[dict[str, Any]] = {}
_SETTLING: Final = 0.5  # seconds; after that a new stream has nothing left to do


async def _welcome(request: Any) -> tuple[None, tuple[()]]:
    return None, ()


async def _make_streams(client: Any, server: Any, port: int, nursery: trio.Nursery) -> list[Any]:
    """Return the two ends of a WebSocket over the two ends of a TCP connection."""
    streams = []

    async def connect() -> None:
        request = _handshake.make_request(f"{HOST}:{port}", "/")
        streams.append(WsByteStream(await _handshake.connect(client, request), nursery))

    async def accept() -> None:
        connection, _ = await _handshake.accept(server, _welcome, max_header_size=16384)
        streams.append(WsByteStream(connection, nursery))

    async with trio.open_nursery() as both:
        both.start_soon(connect)
        both.start_soon(accept)
    return streams


async def _encrypt(client: Any, server: Any) -> tuple[Any, Any]:
    """Return both ends of TLS over both ends of a TCP connection, with the handshake done."""
    ends = (
        trio.SSLStream(client, _TLS["client"], server_hostname=HOST),
        trio.SSLStream(server, _TLS["server"], server_side=True),
    )
    async with trio.open_nursery() as both:
        for end in ends:
            both.start_soon(end.do_handshake)
    return ends


async def _carry(one: Any, other: Any) -> None:
    """Carry some messages, in both directions at the same time."""

    async def send(end: Any) -> None:
        for _ in range(_MESSAGES):
            await end.send_all(bytes(_MESSAGE))

    async with trio.open_nursery() as nursery:
        for end in (one, other):
            nursery.start_soon(send, end)
            nursery.start_soon(drop, end, _MESSAGES * _MESSAGE)


async def measure(
    pairs: int, *, bare: bool, tls: bool, readers: bool, read: Callable[[], Any]
) -> tuple[Any, Any]:
    """Return what ``read`` tells before ``pairs`` pairs are opened, and when they are idle."""
    kept: list[Any] = []
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    port = listener.socket.getsockname()[1]

    async def open_pairs(count: int, nursery: trio.Nursery) -> None:
        for _ in range(count):
            client = await _connecting.open_tcp(HOST, port, HOST)
            ends: Any = client, await listener.accept()
            if tls:
                ends = await _encrypt(*ends)
            if not bare:
                ends = await _make_streams(*ends, port, nursery)
            if tls:
                await _carry(*ends)
            kept.extend(ends)
            if readers:
                for end in ends:
                    nursery.start_soon(end.receive_some)
        await trio.sleep(_SETTLING)

    async with listener, trio.open_nursery() as nursery:
        await open_pairs(_WARM_UP, nursery)
        before = read()
        await open_pairs(pairs, nursery)
        after = read()
        nursery.cancel_scope.cancel()
    return before, after


def show_lines(pairs: int, before: tracemalloc.Snapshot, after: tracemalloc.Snapshot) -> None:
    """Print which lines have allocated what an idle pair keeps."""
    found: Counter[str] = Counter()
    for change in after.compare_to(before, "lineno"):
        frame = change.traceback[0]
        found[f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"] += change.size_diff
    for line, size in found.most_common(50):
        print(f"{size / pairs:8.0f} bytes  {line}")
    print(f"{found.total() / pairs / 1024:8.1f} KiB in all, for each pair")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory")
    parser.add_argument("--pairs", metavar="N", type=int, default=1500, help="default: 1500")
    parser.add_argument("--tls", action="store_true", help="over TLS, and after 64 KiB messages")
    parser.add_argument("--readers", action="store_true", help="with a task that reads each end")
    parser.add_argument("--lines", action="store_true", help="show which lines allocate it")
    arguments = parser.parse_args()
    raise_file_limit()
    if arguments.tls:
        with Bench(0, 0) as bench:
            _TLS.update({side: tls_context(side, bench.folder) for side in PEM})

    def run(bare: bool, read: Callable[[], Any]) -> tuple[Any, Any]:
        async def both() -> tuple[Any, Any]:
            return await measure(
                arguments.pairs,
                bare=bare,
                tls=arguments.tls,
                readers=arguments.readers,
                read=read,
            )

        return trio.run(both)

    if arguments.lines:
        tracemalloc.start()
        show_lines(arguments.pairs, *run(False, tracemalloc.take_snapshot))
        return
    for name, bare in ("bare Trio", True), ("WsByteStream", False):
        process = os.fork()  # What one kind has freed would be used by the next.
        if not process:
            before, after = run(bare, resident)
            print(f"{name}: {(after - before) / arguments.pairs / 1024:.1f} KiB for each idle pair")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
