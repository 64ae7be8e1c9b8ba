"""Open, use, cut and close connections for minutes, and check that nothing is lost or left.

    python -m tests.soak [--minutes 15] [--seed N]

Clients and servers live in this process, on loopback. Half of the connections use TLS. What a
connection does is random, but the seed and the number of the connection determine it (`Talk`). Both
ends send at once, and each knows what the other sends. If the end is clean, all data must have
arrived, which its SHA-256 shows. If the end is not clean, a prefix of the data must have arrived.
No cut may look like a clean end, and nothing may hang.

Now and then all connections pause (`take_sample`). At that moment no task, file or object of a
connection may be left. After a warm-up, neither the memory of the process nor the number of its
Python objects may grow. The program exits with 1 and prints the reason if anything is wrong. It
reads ``/proc``, so it runs on Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import hashlib
import os
import random
import resource
import socket
import statistics
import struct
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import trio
from trio_websocket import ConnectionRejected, WebSocketConnection, WebSocketRequest

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    StreamClosed,
    WsByteStream,
    WsEvent,
    WsStreamError,
    open_ws_stream,
    serve_ws,
)
from trio_wsstream._subscriptions import _Subscription as Subscription

from .support.handshakes import CLIENT_HANDSHAKE
from .support.transports import SERVER_TLS, tls_for

WORKERS: Final = 48  # connections at a time
SAMPLES: Final = 30
WARM_UP: Final = 6  # samples
PATIENCE: Final = 60.0  # seconds. A connection that takes longer hangs.
MAX_SIZE: Final = 1_000_000  # bytes that one end sends
# How far the median of the last third of the samples may be above that of the first third:
MAX_MORE_MEMORY: Final = 8.0  # MiB
MAX_MORE_OBJECTS: Final = 200

OF_A_CONNECTION: Final = (
    *(WsByteStream, Subscription, WebSocketConnection),
    *(trio.SocketStream, trio.SSLStream, trio.MemoryReceiveChannel),
)
LISTENERS: Final = 2  # Trio's loop for each keeps the stream that it accepted last.
BLOCK: Final = random.Random(0).randbytes(2 * MAX_SIZE)

HALF_CLOSE, CLIENT_CLOSES, SERVER_CLOSES = "both half-close", "client closes", "server closes"
COMPLETE: Final = (HALF_CLOSE, CLIENT_CLOSES, SERVER_CLOSES)
ABNORMAL, CUT, CANCELLED = "client closes with 4000", "client's TCP is cut", "client is cancelled"
SERVER_DROPS, HANGS_UP, REFUSED = "server drops", "hangs up in the handshake", "is refused"
WAYS: Final = {  # how often each is chosen, and the code of the client's `StreamClosed` if any
    HALF_CLOSE: (6, 1000),
    CLIENT_CLOSES: (3, 1000),
    SERVER_CLOSES: (3, 1000),
    ABNORMAL: (2, 4000),
    CUT: (4, 1006),
    CANCELLED: (2, 1006),
    SERVER_DROPS: (2, 1006),
    HANGS_UP: (2, None),
    REFUSED: (1, None),
}


class Wrong(Exception):
    """Something that this program looks for has gone wrong."""


@attrs.define
class Talk:
    """What one connection does, chosen at random."""

    number: int
    chance: random.Random = attrs.field(repr=False)
    way: str = attrs.field(init=False)
    is_secure: bool = attrs.field(init=False)
    up: memoryview = attrs.field(init=False, repr=False)  # what the client sends
    down: memoryview = attrs.field(init=False, repr=False)  # what the server sends
    server_is_done: trio.Event = attrs.field(init=False, repr=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        weights = [weight for weight, _ in WAYS.values()]
        (self.way,) = self.chance.choices(list(WAYS), weights)
        self.is_secure = self.chance.random() < 0.5
        self.up, self.down = self._data(), self._data()

    def _data(self) -> memoryview:
        size = int(MAX_SIZE ** self.chance.random())
        start = self.chance.randrange(len(BLOCK) - size)
        return memoryview(BLOCK)[start : start + size]


# What both ends do


async def at_once(*jobs: Callable[[], Awaitable[object]]) -> None:
    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(job)


async def dawdle(chance: random.Random) -> None:
    if chance.random() < 0.03:
        await trio.sleep(chance.random() / 20)


async def send(stream: WsByteStream, data: memoryview, chance: random.Random) -> None:
    """Send in pieces, with pauses and pings. If the stream breaks, the receivers judge that."""
    with contextlib.suppress(trio.BrokenResourceError):
        while data:
            if chance.random() < 0.05:
                await ping(stream)
            size = int(len(data) ** chance.random()) + 1
            await stream.send_all(data[:size])
            data = data[size:]
            await dawdle(chance)


async def ping(stream: WsByteStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # The peer has half-closed.
        await stream.ping()


async def receive(stream: WsByteStream, expected: memoryview, chance: random.Random) -> None:
    """Receive exactly what is expected. The end of the stream may come later."""
    digest, size = hashlib.sha256(), 0
    while size < len(expected):
        chunk = await stream.receive_some(chance.choice([None, None, 1000, 70_000]))
        if not chunk:
            raise Wrong(f"a clean end after {size} of {len(expected)} bytes")
        digest.update(chunk)
        size += len(chunk)
        await dawdle(chance)
    if digest.digest() != hashlib.sha256(expected).digest():
        raise Wrong("other bytes than were sent")


async def receive_until_broken(stream: WsByteStream, expected: memoryview) -> WsStreamError:
    """Receive a prefix of what is expected, and return the error that ended it."""
    received = bytearray()
    try:
        async for chunk in stream:
            received += chunk
    except trio.BrokenResourceError as error:
        if received != expected[: len(received)]:
            raise Wrong("other bytes than were sent, before it broke") from error
        assert isinstance(error.__cause__, WsStreamError)
        return error.__cause__
    raise Wrong(f"a clean end after {len(received)} bytes, where there should be none")


async def exchange(
    stream: WsByteStream,
    outgoing: memoryview,
    incoming: memoryview,
    chance: random.Random,
    *,
    half_closes: bool,
    closes: bool,
) -> None:
    """Exchange all data both ways. Receive the peer's end too, unless this end closes."""

    async def send_all() -> None:
        await send(stream, outgoing, chance)
        if half_closes:
            await stream.send_eof()

    async def receive_all() -> None:
        await receive(stream, incoming, chance)
        if not closes and await stream.receive_some():
            raise Wrong("more than was sent")

    await at_once(send_all, receive_all)


async def exchange_until_broken(
    stream: WsByteStream,
    outgoing: memoryview,
    incoming: memoryview,
    chance: random.Random,
    *,
    error: type[WsStreamError] = ConnectionLost,
) -> None:
    """Exchange data until the stream breaks, and check that it broke with ``error``."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, outgoing, chance)
        reason = await receive_until_broken(stream, incoming)
        if not isinstance(reason, error):
            raise Wrong(f"it broke with {reason!r}")


def subscribe(stream: WsByteStream, chance: random.Random, nursery: trio.Nursery) -> None:
    """Add subscribers: some read all events, some leave early, and some never read."""
    for count in chance.sample([None, None, 1, 0], chance.randrange(4)):
        # With backpressure, a subscriber that never reads would rightly stop the connection.
        backpressure = count is None and chance.random() < 0.5
        channel = stream.subscribe(chance.choice([0, 1, 64]), backpressure=backpressure)
        if count != 0:
            nursery.start_soon(follow, channel, count)


async def follow(channel: trio.MemoryReceiveChannel[WsEvent], count: int | None) -> None:
    seen: list[WsEvent] = []
    async with channel:
        async for event in channel:
            seen.append(event)
            if len(seen) == count:
                return
    if [event for event in seen if isinstance(event, StreamClosed)] != seen[-1:]:
        raise Wrong(f"a subscriber saw {seen}")


# Each end, and the whole


class Soak:
    """All servers and clients, and counts of what they have done."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.count = 0
        self.talks: dict[int, Talk] = {}  # that are under way
        self.done: collections.Counter[str] = collections.Counter()
        self.checked = 0  # bytes
        self.is_wrong = False
        self.ports: dict[bool, int] = {}  # with TLS, and without

    async def run(self, minutes: float) -> None:
        """Run all connections, and raise `Wrong` if something has gone wrong."""
        async with trio.open_nursery() as nursery:
            for is_secure, context in [(False, None), (True, SERVER_TLS)]:
                serve = partial(serve_ws, self.serve, "127.0.0.1", 0, context, accept=judge)
                (listener,) = await nursery.start(serve)
                self.ports[is_secure] = port_of(listener)
            idle = count_tasks_and_files()
            samples: list[tuple[float, int]] = []
            print("sample  connections  bytes checked  memory (MiB)  Python objects")
            for number in range(1, SAMPLES + 1):
                until = trio.current_time() + minutes * 60 / SAMPLES
                await at_once(*[partial(self.work, until)] * WORKERS)
                samples.append(await take_sample(idle))
                print(
                    f"{number:6}{self.done.total():13,}{self.checked:15,}{{:14.1f}}{{:16,}}".format(
                        *samples[-1]
                    ),
                    flush=True,
                )
            check_growth(samples[WARM_UP:])
            nursery.cancel_scope.cancel()

    async def work(self, until: float) -> None:
        while trio.current_time() < until:
            self.count += 1
            talk = Talk(self.count, random.Random(f"{self.seed} {self.count}"))
            self.talks[talk.number] = talk
            with self.blaming(talk, "client"), trio.fail_after(PATIENCE):
                await self.connect(talk)
            del self.talks[talk.number]
            self.done[talk.way] += 1

    @contextlib.contextmanager
    def blaming(self, talk: Talk, side: str) -> Iterator[None]:
        """Print the first error at once, before the errors of all cancelled connections follow."""
        try:
            yield
        except Exception as error:
            if not self.is_wrong:
                self.is_wrong = True
                print(f"WRONG: the {side} of {talk}")
                traceback.print_exception(error)
            raise

    async def connect(self, talk: Talk) -> None:
        """Be the client of one connection."""
        tcp = await trio.open_tcp_stream("127.0.0.1", self.ports[talk.is_secure])
        scheme = "wss" if talk.is_secure else "ws"
        url = f"{scheme}://localhost/{talk.way == REFUSED}/{talk.number}"
        if talk.way == HANGS_UP:
            async with tcp:
                length = talk.chance.randrange(len(CLIENT_HANDSHAKE))
                await tcp.send_all(CLIENT_HANDSHAKE[:length])
            return
        opening = open_ws_stream(url, tls_for(url), transport=tcp)
        if talk.way == REFUSED:
            with contextlib.suppress(ConnectionRejected):
                async with opening:
                    raise Wrong("it was not refused")
            return
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with opening as stream:
                    subscribe(stream, talk.chance, nursery)
                    await self.be_client(stream, talk, tcp, scope)
        _, code = WAYS[talk.way]
        end = stream.closed
        if end is None or (end.code, end.clean) != (code, code != 1006):
            raise Wrong(f"the client's stream ended as {end}")
        await talk.server_is_done.wait()

    async def be_client(
        self, stream: WsByteStream, talk: Talk, tcp: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        data = (talk.up, talk.down, talk.chance)
        soon = talk.chance.random() / 5

        async def cut() -> None:
            await trio.sleep(soon)
            if talk.chance.random() < 0.5:
                reset = struct.pack("ii", 1, 0)
                tcp.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                await trio.aclose_forcefully(tcp)
            else:
                tcp.socket.shutdown(socket.SHUT_RDWR)

        if talk.way in COMPLETE:
            await exchange(
                stream,
                *data,
                half_closes=talk.way == HALF_CLOSE,
                closes=talk.way == CLIENT_CLOSES,
            )
            self.checked += len(talk.down)
        elif talk.way == ABNORMAL:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive, stream, talk.down, talk.chance)
                await send(stream, talk.up, talk.chance)
                nursery.cancel_scope.cancel()
            await stream.aclose(4000, "enough")
        elif talk.way == CANCELLED:
            scope.deadline = trio.current_time() + soon
            await exchange_until_broken(stream, *data)
        else:
            async with trio.open_nursery() as nursery:
                if talk.way == CUT:
                    nursery.start_soon(cut)
                await exchange_until_broken(stream, *data)

    async def serve(self, stream: WsByteStream) -> None:
        """Be the server of one connection: the handler of both servers."""
        assert stream.path
        talk = self.talks[int(stream.path.rpartition("/")[2])]
        chance = random.Random(f"{self.seed} {talk.number} server")
        with self.blaming(talk, "server"):
            async with trio.open_nursery() as nursery:
                subscribe(stream, chance, nursery)
                async with stream:
                    await self.be_server(stream, talk, chance)
        talk.server_is_done.set()

    async def be_server(self, stream: WsByteStream, talk: Talk, chance: random.Random) -> None:
        data = (talk.down, talk.up, chance)
        if talk.way in COMPLETE:
            await exchange(
                stream,
                *data,
                half_closes=talk.way == HALF_CLOSE,
                closes=talk.way == SERVER_CLOSES,
            )
            self.checked += len(talk.up)
        elif talk.way == SERVER_DROPS:
            with trio.move_on_after(chance.random() / 5):
                await exchange_until_broken(stream, *data)
            await trio.aclose_forcefully(stream)
        else:
            error = AbnormalClosure if talk.way == ABNORMAL else ConnectionLost
            await exchange_until_broken(stream, *data, error=error)


async def judge(request: WebSocketRequest) -> None:
    if request.path.startswith("/True/"):
        raise ConnectionRejected(403, (), b"Not you.")
    await trio.lowlevel.checkpoint()


def port_of(listener: Any) -> int:
    while hasattr(listener, "transport_listener"):
        listener = listener.transport_listener
    port: int = listener.socket.getsockname()[1]
    return port


# Checks of what is left over


def count_tasks_and_files() -> tuple[int, int]:
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))


async def take_sample(idle: tuple[int, int]) -> tuple[float, int]:
    """Return the memory in MiB and the number of Python objects while no connection is open.

    Raises:
      Wrong: A task, a file or an object of a connection is left.
    """
    with trio.move_on_after(PATIENCE):
        while count_tasks_and_files() != idle:  # noqa: ASYNC110
            await trio.sleep(0.01)  # The servers are about to end.
    if (now := count_tasks_and_files()) != idle:
        raise Wrong(f"tasks and files: there were {idle}, and now there are {now}")
    gc.collect()
    objects = gc.get_objects()
    left = collections.Counter(type(o).__name__ for o in objects if type(o) in OF_A_CONNECTION)
    if max(left.values(), default=0) > LISTENERS:
        raise Wrong(f"objects that are left of connections: {dict(left)}")
    return memory(), len(objects)


def memory() -> float:
    """Return the memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def check_growth(samples: list[tuple[float, int]]) -> None:
    third = len(samples) // 3
    for name, values, limit in zip(
        ("memory (MiB)", "Python objects"),
        zip(*samples, strict=True),
        (MAX_MORE_MEMORY, MAX_MORE_OBJECTS),
        strict=True,
    ):
        growth = statistics.median(values[-third:]) - statistics.median(values[:third])
        print(f"{name}: growth {growth:+.1f}, of which up to {limit} is tolerated")
        if growth > limit:
            raise Wrong(f"{name}: grows, by {growth:.1f} from the first third to the last")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    arguments = parser.parse_args()
    print(f"soak of {arguments.minutes:g} minutes, --seed {arguments.seed}")
    trio._core._run._r.seed(arguments.seed)  # the order of tasks
    soak = Soak(arguments.seed)
    try:
        trio.run(soak.run, arguments.minutes)
    except ExceptionGroup as group:
        if not soak.is_wrong:
            traceback.print_exception(group)
        sys.exit("WRONG: see above")
    finally:
        for way, (_, code) in WAYS.items():
            print(f"{soak.done[way]:9,}  {way}" + (f": ended with {code}" if code else ""))
    print("Nothing was lost, and nothing is left over.")


if __name__ == "__main__":
    main()
