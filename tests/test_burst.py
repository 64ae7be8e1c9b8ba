"""Many clients at once: more of them slow a server down, and keep nobody out.

The clock is a mock one, and the distances are times that bytes take. One test at the end has real
sockets and TLS.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked
from trio_websocket import HandshakeError

from trio_wsstream import WsByteStream, WsListener, _serve, open_ws_stream, serve_ws

from .support.handshakes import CLIENT_HANDSHAKE, receive_head
from .support.servers import MemoryListener, assert_works, echo, memory_server
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS

pytestmark = pytest.mark.slow


class Distant(trio.abc.Stream):
    """A client's end of ``inner``. Bytes need ``delay`` seconds in each direction."""

    def __init__(self, inner: trio.abc.Stream, delay: float) -> None:
        self.inner = inner
        self.delay = delay

    async def send_all(self, data: Any) -> None:
        await trio.sleep(self.delay)
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self.inner.receive_some(max_bytes)
        await trio.sleep(self.delay)
        return data

    async def aclose(self) -> None:
        await self.inner.aclose()


class Crowd:
    """Clients that connect at a rate, and how long each of them took.

    Args:
      listener: what they connect to.
      round_trip (float): seconds.
      url (str), ssl_context: as of `open_ws_stream`.
    """

    def __init__(
        self,
        listener: MemoryListener,
        round_trip: float,
        url: str = "ws://localhost/",
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.took: list[float] = []
        self.failed: list[HandshakeError] = []
        self._listener = listener
        self._delay = round_trip / 2
        self._url = url
        self._ssl_context = ssl_context

    async def arrive(self, count: int, rate: float) -> None:
        """Let ``count`` clients come, ``rate`` in a second, and wait for all of them."""
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(self._connect)
                await trio.sleep(1 / rate)

    async def _connect(self) -> None:
        began_at = trio.current_time()
        transport = Distant(await self._listener.connect(), self._delay)
        try:
            async with open_ws_stream(self._url, self._ssl_context, transport=transport) as stream:
                self.took.append(trio.current_time() - began_at)
                await trio.aclose_forcefully(stream)
        except HandshakeError as error:
            self.failed.append(error)


async def say_nothing(listener: MemoryListener, count: int, rate: float) -> None:
    for _ in range(count):
        await listener.connect()
        await trio.sleep(1 / rate)


async def wait(stream: WsByteStream) -> None:
    await stream.receive_some()


def quietly(handler: Callable[[WsByteStream], Awaitable[None]]) -> Any:
    async def handle(stream: WsByteStream) -> None:
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            pass

    return handle


async def test_1200_clients_at_300_a_second_and_half_a_second_away_all_get_in(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(quietly(wait)) as listener:
        crowd = Crowd(listener, round_trip=0.5)
        await crowd.arrive(1200, rate=300)
        assert not crowd.failed
        assert len(crowd.took) == 1200
        assert max(crowd.took) == pytest.approx(0.5)


@pytest.mark.parametrize("rate", [300, 1e9], ids=["as often", "all at once, before them"])
async def test_1200_silent_clients_delay_1200_others_by_a_few_seconds(
    rate: float, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_server(quietly(wait)) as listener:
        crowd = Crowd(listener, round_trip=0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_nothing, listener, 1200, rate)
            await wait_all_tasks_blocked()
            await crowd.arrive(1200, rate=300)
        assert not crowd.failed
        assert len(crowd.took) == 1200
        assert max(crowd.took) < 3


async def test_500_wss_clients_at_once_are_all_served_in_their_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The listener has room for an eighth of them, and each handshake takes several round trips."""
    memory = MemoryListener()
    async with background() as nursery:
        tls = trio.SSLListener(memory, SERVER_TLS, https_compatible=True)
        listener = WsListener(tls, nursery, max_pending=64)
        await nursery.start(trio.serve_listeners, quietly(wait), [listener])
        crowd = Crowd(memory, 0.1, "wss://localhost/", CLIENT_TLS)
        await crowd.arrive(500, rate=1e9)
        assert not crowd.failed
        assert len(crowd.took) == 500
        assert max(crowd.took) < 5


async def test_no_more_transports_are_accepted_than_may_be_pending(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(max_pending=2) as listener:
        clients = [await listener.connect() for _ in range(5)]
        await wait_all_tasks_blocked()
        assert listener._accept.statistics().current_buffer_used == 3
        for transport in clients:  # each that is done lets the next in, and nobody is dropped
            await transport.send_all(CLIENT_HANDSHAKE)
        for transport in clients:
            assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")
        assert trio.current_time() == 0


async def test_a_silent_client_is_dropped_for_another_after_a_fair_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(max_pending=2, connect_timeout=math.inf) as listener:
        silent = [await listener.connect() for _ in range(10)]
        for number, transport in enumerate(silent[:8]):
            assert await transport.receive_some() == b""
            assert trio.current_time() == 2 * (number // 2 + 1)
        await trio.sleep(100)
        for transport in silent[8:]:  # for these nobody had to be let in
            await transport.send_all(CLIENT_HANDSHAKE)
            assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")
        await assert_works(listener)


async def test_a_client_that_ends_early_makes_room_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_server(max_pending=1) as listener:
        leaving, refused, waiting = [await listener.connect() for _ in range(3)]
        await waiting.send_all(CLIENT_HANDSHAKE)
        await leaving.aclose()
        await refused.send_all(b"no HTTP\r\n\r\n")
        while await refused.receive_some():
            pass
        await refused.aclose()
        assert (await receive_head(waiting)).startswith(b"HTTP/1.1 101 ")
        assert trio.current_time() == 0


async def test_where_all_take_long_nobody_is_dropped_who_takes_no_longer_than_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """This is like a machine with too much to do. The fair time grows with the usual time."""

    async def slow(request: object) -> None:
        await trio.sleep(1.9 if trio.current_time() < 5 else 3.5)

    async with memory_server(quietly(wait), max_pending=10, accept=slow) as listener:
        crowd = Crowd(listener, round_trip=0)
        await crowd.arrive(100, rate=1e9)
        assert not crowd.failed
        assert len(crowd.took) == 100


@pytest.mark.parametrize("attempt", range(8))
async def test_a_client_is_not_dropped_before_what_it_has_sent_is_looked_at(
    attempt: int, mock_clock: trio.testing.MockClock
) -> None:
    """The event loop may have been held up for longer than the fair time."""
    (transport_listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with background() as nursery:
        listener = WsListener(transport_listener, nursery, connect_timeout=3600, max_pending=2)
        await nursery.start(trio.serve_listeners, quietly(wait), [listener])
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", listener.port)
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(3)]
            await wait_all_tasks_blocked()
            for client in clients:
                client.sendall(CLIENT_HANDSHAKE)
            mock_clock.jump(60)
            await wait_all_tasks_blocked()
            for client in clients:
                assert client.recv(13) == b"HTTP/1.1 101 "


async def test_a_process_that_is_out_of_files_drops_those_who_had_a_fair_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The files may run out before ``max_pending`` is reached."""
    memory = MemoryListener()
    async with background() as nursery:
        listener = WsListener(memory, nursery)
        await nursery.start(trio.serve_listeners, echo, [listener])
        old = await memory.connect()
        await trio.sleep(2)
        new = await memory.connect()
        await wait_all_tasks_blocked()
        await memory.fail(OSError(errno.EMFILE, "too many open files"))
        assert await old.receive_some() == b""
        await new.send_all(CLIENT_HANDSHAKE)
        assert (await receive_head(new)).startswith(b"HTTP/1.1 101 ")
        assert trio.current_time() == 2


async def test_a_listener_that_is_closed_while_it_is_full_lets_accept_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    memory = MemoryListener()
    async with background() as nursery:
        listener = WsListener(memory, nursery, max_pending=1)
        silent = await memory.connect()

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept)
            await wait_all_tasks_blocked()
            await listener.aclose()
        assert await silent.receive_some() == b""
        assert trio.current_time() == 0


async def test_a_burst_of_wss_clients_over_real_sockets_waits_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The listener has room for a twentieth of them.

    On any machine all are served in their order.
    """
    monkeypatch.setattr(_serve, "_FAIR_TIME", math.inf)
    most = 0
    served = 0

    async def look(request: object) -> None:
        nonlocal most
        most = max(most, len(listener._pending))

    async with background() as nursery:
        serve = partial(
            serve_ws, wait, "127.0.0.1", 0, SERVER_TLS, max_pending=10, connect_timeout=60
        )
        (listener,) = await nursery.start(partial(serve, accept=look))

        async def connect() -> None:
            nonlocal served
            async with open_ws_stream(f"wss://localhost:{listener.port}", CLIENT_TLS):
                served += 1

        async with trio.open_nursery() as clients:
            for _ in range(200):
                clients.start_soon(connect)
    assert served == 200
    assert most == 10
