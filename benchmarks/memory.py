"""The cases that measure memory. Each kind of stream is measured in a process of its own.

These processes run ``python -m benchmarks.memory idle NAME PAIRS`` and ``python -m
benchmarks.memory message NAME BYTES WAY``. They print what they find as JSON. They read ``/proc``,
so they run on Linux only.

The case *one message* has its own peer, a thread with a blocking socket, because no library can
send one message of 1 GiB without having it in memory. The peer sends one frame, whose payload is
the same piece again and again. Over bare TCP it sends the payload alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import resource
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import trio

from .asyncio_makers import ASYNCIO_MAKERS
from .makers import HOST, OURS, TCP, TRIO_MAKERS, Maker, by_name, receive_exactly
from .many import raise_file_limit
from .results import Result

MAKERS: Final = (*TRIO_MAKERS, *ASYNCIO_MAKERS)
MIB: Final = 2**20
WAYS: Final = {"s2c": "server to client", "c2s": "client to server"}

PROCESS: Final = Path("/proc/self")
_PIECE: Final = bytes(MIB)
_SETTLING_TIME: Final = 0.5  # seconds; after that a new connection has nothing left to do


# What runs in the process that measures


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return int((PROCESS / "statm").read_text().split()[1]) * resource.getpagesize()


def _reset_peak() -> None:
    (PROCESS / "clear_refs").write_text("5")


def _peak() -> int:
    """Return the highest resident memory, in bytes, since `_reset_peak` was called."""
    status = (PROCESS / "status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def _open_idle(maker: Maker, count: int) -> dict[str, float]:
    """Open ``count`` pairs, let them become idle, and return what each costs."""
    is_trio = maker.loop == "trio"

    def tasks() -> int:
        if is_trio:
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())

    async def settle() -> None:
        if is_trio:
            await trio.sleep(_SETTLING_TIME)
        else:
            await asyncio.sleep(_SETTLING_TIME)

    async with maker.meet() as meeting:
        pairs = [await meeting.pair() for _ in range(10)]  # These warm up the code.
        await settle()
        memory_before, tasks_before = _resident(), tasks()
        pairs += [await meeting.pair() for _ in range(count)]
        await settle()
        memory, new_tasks = _resident() - memory_before, tasks() - tasks_before
        for pair in pairs:
            await meeting.close(*pair)
    return {"memory": memory / count / 1024, "tasks": new_tasks / count}


async def _receive_message(maker: Maker, size: int, way: str) -> dict[str, float]:
    """Receive one message from a `_Peer`, and return the peak memory that this took."""
    async with maker.meet() as meeting:
        listener = socket.create_server((HOST, 0))
        peer = _Peer(size, speaks_websocket=maker.speaks_websocket, masked=way == "c2s")
        if way == "c2s":
            peer.start(lambda: socket.create_connection((HOST, meeting.port)))
            receiver = await meeting.accept()
        else:
            peer.start(lambda: listener.accept()[0])
            receiver = await meeting.connect(listener.getsockname()[1])
        await receive_exactly(receiver, len(_PIECE))  # This warms up the code.
        listener.close()
        start = _resident()
        _reset_peak()
        peer.may_send.set()
        await receive_exactly(receiver, size)
        peak = _peak() - start
        peer.may_close.set()
        with contextlib.suppress(Exception):  # The peer does no closing handshake.
            await receiver.aclose()
    return {"memory": peak / MIB}


class _Peer:
    """A peer that sends one message of 1 MiB, and one of ``size`` bytes once `may_send` is set."""

    def __init__(self, size: int, *, speaks_websocket: bool, masked: bool) -> None:
        self.may_send = threading.Event()
        self.may_close = threading.Event()
        self._size = size
        self._speaks_websocket = speaks_websocket
        self._masked = masked

    def start(self, connect: Callable[[], socket.socket]) -> None:
        """Start a thread that connects and sends."""
        threading.Thread(target=self._run, args=(connect,), daemon=True).start()

    def _run(self, connect: Callable[[], socket.socket]) -> None:
        with connect() as peer:
            if self._speaks_websocket:
                (_ask if self._masked else _answer)(peer)
            self._send_message(peer, len(_PIECE))
            self.may_send.wait()
            self._send_message(peer, self._size)
            self.may_close.wait()

    def _send_message(self, peer: socket.socket, size: int) -> None:
        if self._speaks_websocket:
            second = (0x80 if self._masked else 0) | 127
            peer.sendall(bytes((0x82, second)) + size.to_bytes(8, "big"))
        if self._masked and self._speaks_websocket:
            peer.sendall(bytes(4))  # A masking key of zeros leaves the payload as it is.
        for _ in range(size // len(_PIECE)):
            peer.sendall(_PIECE)


def _receive_head(peer: socket.socket) -> bytes:
    """Receive an HTTP head, and no byte that follows it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += peer.recv(1)
    return head


def _ask(peer: socket.socket) -> None:
    """Do a client's opening handshake (RFC 6455, section 4)."""
    peer.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    _receive_head(peer)


def _answer(peer: socket.socket) -> None:
    """Do a server's opening handshake."""
    lines = _receive_head(peer).split(b"\r\n")
    key = next(line[18:].strip() for line in lines if line.lower().startswith(b"sec-websocket-key"))
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    peer.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


def _main(what: str, name: str, size: str, *way: str) -> None:
    maker = by_name(name, MAKERS)
    raise_file_limit()

    async def measure() -> dict[str, float]:
        if what == "idle":
            return await _open_idle(maker, int(size))
        return await _receive_message(maker, int(size), *way)

    found = trio.run(measure) if maker.loop == "trio" else asyncio.run(measure())
    print(json.dumps(found))


# What runs in the process that reports


def is_possible() -> bool:
    """Return whether this system tells how much memory a process has."""
    return (PROCESS / "clear_refs").exists()


def _run(*arguments: object) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_idle(makers: Iterable[Maker], pairs: int) -> Iterator[Result]:
    """Measure the memory and the tasks of each idle open pair, both ends together."""
    memory = Result("idle-memory", "memory for each idle pair", "KiB", TCP)
    tasks = Result("idle-tasks", "tasks for each idle pair", "", TCP)
    for maker in makers:
        found = _run("idle", maker.name, pairs)
        memory.samples[maker.name] = [found["memory"]]
        tasks.samples[maker.name] = [found["tasks"]]
    yield memory
    yield tasks


def measure_message(makers: Iterable[Maker], size: int, way: str) -> Result:
    """Measure by how much memory rises at most while one message is received."""
    title = f"one message of {size // MIB} MiB, {WAYS[way]}: peak memory"
    result = Result(f"message-{way}", title, "MiB", TCP)
    for maker in makers:
        # These two need so little memory that the chance of the allocator shows: take a median.
        runs = 5 if maker.name in (TCP, OURS) else 1
        peaks = [_run("message", maker.name, size, way)["memory"] for _ in range(runs)]
        result.samples[maker.name] = [statistics.median(peaks)]
    return result


if __name__ == "__main__":
    _main(*sys.argv[1:])
