"""Every wait has a clock: docs/waits.rst, line by line.

A call waits on a peer that never says another word. It takes bytes and says nothing (*silent*), or
takes no bytes either (*clogged*). The clock is a mock, so each wait is measured exactly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock
from trio_websocket import ConnectionTimeout

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    KeepaliveTimeout,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    open_ws_stream,
    serve_ws,
)
from trio_wsstream.testing import MemoryListener

from .support.frames import CLOSE, close_payload
from .support.raw_peer import RawPeer, raw_pair
from .support.receiving import all_events
from .support.tasks import background
from .support.transports import TRANSPORTS

INTERVAL, TIMEOUT, CLOSE_TIMEOUT = 20, 5, 10
KEEPALIVE = INTERVAL + TIMEOUT
NEVER = 100_000
ON = StreamConfig(ping_interval=INTERVAL, ping_timeout=TIMEOUT, close_timeout=CLOSE_TIMEOUT)
OFF = attrs.evolve(ON, ping_interval=None, ping_timeout=None)
PINGS_ONLY = attrs.evolve(ON, ping_timeout=None)

Prepare = Callable[[WsByteStream, RawPeer], Awaitable[object]]
Call = Callable[[WsByteStream], Awaitable[object]]


async def nothing(stream: WsByteStream, peer: RawPeer) -> None:
    pass


async def the_peer_half_closes(stream: WsByteStream, peer: RawPeer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, CLOSE, close_payload(1000, "half-close"))
        assert await stream.receive_some() == b""
        await peer.receive()  # that the answer is deferred


async def the_peer_closes(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.send(CLOSE, close_payload(1000))
    await trio.sleep(0.1)  # until the stream's own task has read it


async def the_peer_breaks_the_protocol(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.send(3)


async def both_close(stream: WsByteStream, peer: RawPeer) -> None:
    """The stream is a client, which waits for the server to end TCP."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, CLOSE, close_payload(1000))
        nursery.start_soon(peer.receive)
        assert await stream.receive_some() == b""


async def writing_breaks(stream: WsByteStream, peer: RawPeer) -> None:
    async def break_at_once(_: object) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    stream._transport.send_all = break_at_once  # type: ignore[method-assign]


async def nothing_ends_the_transport(stream: WsByteStream, peer: RawPeer) -> None:
    """As TLS does not, whose goodbye is not taken."""
    real = stream._transport.aclose

    async def close_slowly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            await real()

    stream._transport.aclose = close_slowly  # type: ignore[method-assign]


async def we_half_close(stream: WsByteStream, peer: RawPeer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_eof)
        await peer.receive()


async def receive(stream: WsByteStream) -> object:
    return await stream.receive_some()


async def send(stream: WsByteStream) -> None:
    await stream.send_all(b"x")


async def wait_to_send(stream: WsByteStream) -> None:
    await stream.wait_send_all_might_not_block()


async def half_close(stream: WsByteStream) -> None:
    await stream.send_eof()


async def ping(stream: WsByteStream) -> None:
    await stream.ping()


async def close(stream: WsByteStream) -> None:
    await stream.aclose()


async def close_twice(stream: WsByteStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        nursery.start_soon(stream.aclose)


async def leave(stream: WsByteStream) -> None:
    async with stream:
        pass


async def leave_with_an_error(stream: WsByteStream) -> None:
    with pytest.raises(KeyError):
        async with stream:
            raise KeyError


async def receive_while_another_task_closes(stream: WsByteStream) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await stream.receive_some()


async def send_while_another_task_closes(stream: WsByteStream) -> None:
    async with trio.open_nursery() as nursery:

        async def close_soon() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()

        nursery.start_soon(close_soon)
        await stream.send_all(b"x")


async def wait_for_the_last_event(stream: WsByteStream) -> None:
    events = await all_events(stream.subscribe())
    assert isinstance(events[-1], StreamClosed)


@attrs.frozen
class Line:
    """A call, and after how many seconds it ends, with what cause.

    Attributes:
      silent, clogged, off_silent, off_clogged: with keepalive, and without it.
      cause: of the BrokenResourceError with keepalive; None where the call returns, or raises
          ClosedResourceError.
      client: whether the stream is the client.
    """

    prepare: Prepare
    call: Call
    silent: float
    clogged: float
    off_silent: float
    off_clogged: float
    silent_cause: Any = None
    clogged_cause: Any = None
    client: bool = False


DEAD = KeepaliveTimeout
LINES = {
    "receive_some": Line(nothing, receive, KEEPALIVE, KEEPALIVE, NEVER, NEVER, DEAD, DEAD),
    "send_all": Line(nothing, send, 0, KEEPALIVE, 0, NEVER, None, DEAD),
    "wait_send_all_might_not_block": Line(
        nothing, wait_to_send, 0, KEEPALIVE, 0, NEVER, None, DEAD
    ),
    "send_eof": Line(nothing, half_close, 0, KEEPALIVE, 0, CLOSE_TIMEOUT, None, DEAD),
    "ping": Line(nothing, ping, KEEPALIVE, KEEPALIVE, NEVER, NEVER, DEAD, DEAD),
    "aclose": Line(nothing, close, *[CLOSE_TIMEOUT] * 4),
    "aclose twice": Line(nothing, close_twice, *[CLOSE_TIMEOUT] * 4),
    "leaving the block": Line(nothing, leave, *[CLOSE_TIMEOUT] * 4),
    "leaving the block with an error": Line(nothing, leave_with_an_error, *[CLOSE_TIMEOUT] * 4),
    "the last event": Line(nothing, wait_for_the_last_event, KEEPALIVE, KEEPALIVE, NEVER, NEVER),
    "receive_some while closing": Line(
        nothing, receive_while_another_task_closes, *[CLOSE_TIMEOUT] * 4
    ),
    "send_all while closing": Line(
        nothing, send_while_another_task_closes, CLOSE_TIMEOUT, CLOSE_TIMEOUT, 10, 10
    ),
    "aclose, and the transport does not end": Line(
        nothing_ends_the_transport, close, *[CLOSE_TIMEOUT] * 4
    ),
    "aclose of a client, and TCP does not end": Line(
        both_close, close, *[CLOSE_TIMEOUT] * 4, client=True
    ),
    "the last event of a client, and TCP does not end": Line(
        both_close, wait_for_the_last_event, *[CLOSE_TIMEOUT] * 4, client=True
    ),
    "send_all, and writing breaks": Line(
        writing_breaks, send, 1, 1, 1, 1, ConnectionLost, ConnectionLost
    ),
    "send_eof, and writing breaks": Line(
        writing_breaks, half_close, 1, 1, 1, 1, ConnectionLost, ConnectionLost
    ),
    "ping, and writing breaks": Line(
        writing_breaks, ping, 1, 1, 1, 1, ConnectionLost, ConnectionLost
    ),
    "receive_some after our half-close": Line(
        we_half_close, receive, KEEPALIVE, KEEPALIVE, NEVER, NEVER, DEAD, DEAD
    ),
    "aclose after our half-close": Line(we_half_close, close, *[CLOSE_TIMEOUT] * 4),
    "send_all, the answer deferred": Line(
        the_peer_half_closes, send, 0, KEEPALIVE, 0, NEVER, None, DEAD
    ),
    "wait_send_all_might_not_block, the answer deferred": Line(
        the_peer_half_closes, wait_to_send, 0, KEEPALIVE, 0, NEVER, None, DEAD
    ),
    "send_eof, the answer deferred": Line(
        the_peer_half_closes, half_close, 0, KEEPALIVE, 0, CLOSE_TIMEOUT, None, DEAD
    ),
    "ping, the answer deferred": Line(
        the_peer_half_closes, ping, KEEPALIVE, KEEPALIVE, NEVER, NEVER, DEAD, DEAD
    ),
    "aclose, the answer deferred": Line(the_peer_half_closes, close, *[CLOSE_TIMEOUT] * 4),
    "the last event, the answer deferred": Line(
        the_peer_half_closes, wait_for_the_last_event, KEEPALIVE, KEEPALIVE, NEVER, NEVER
    ),
    "receive_some, our answer owed": Line(the_peer_closes, receive, 0, CLOSE_TIMEOUT, 0, 10),
    "send_all, our answer owed": Line(
        the_peer_closes, send, 0, 0, 0, 0, AbnormalClosure, AbnormalClosure
    ),
    "the last event, our answer owed": Line(the_peer_closes, wait_for_the_last_event, 0, 10, 0, 10),
    "the last event after a violation": Line(
        the_peer_breaks_the_protocol, wait_for_the_last_event, *[CLOSE_TIMEOUT] * 4
    ),
}


@pytest.mark.parametrize("config", [ON, OFF, PINGS_ONLY], ids=["keepalive", "off", "pings only"])
@pytest.mark.parametrize("peer_kind", ["silent", "clogged"])
@pytest.mark.parametrize("name", LINES)
async def test_what_ends_a_wait(
    name: str, peer_kind: str, config: StreamConfig, autojump_clock: MockClock
) -> None:
    line = LINES[name]
    prefix = "" if config is ON else "off_"
    expected = getattr(line, prefix + peer_kind)
    cause = getattr(line, f"{peer_kind}_cause")
    async with background() as nursery:
        transport = "memory" if peer_kind == "silent" else "lockstep"
        stream, peer = await raw_pair(nursery, transport, config, client=line.client)
        await line.prepare(stream, peer)
        started = trio.current_time()
        raised: BaseException | None = None
        with trio.move_on_after(2000) as scope:
            try:
                await line.call(stream)
            except* (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                (raised,) = error.exceptions
        if expected is NEVER:
            assert scope.cancelled_caught
        else:
            assert trio.current_time() - started == pytest.approx(expected, abs=0.2)
            if config is ON:
                assert cause is None or isinstance(raised.__cause__, cause)  # type: ignore[union-attr]


@pytest.mark.parametrize("config", [OFF, PINGS_ONLY], ids=["off", "pings only"])
async def test_a_half_close_that_nobody_takes_is_an_error_after_close_timeout(
    config: StreamConfig, autojump_clock: MockClock
) -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "lockstep", config)
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.send_eof()
            assert isinstance(broken.value.__cause__, ConnectionLost)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await all_events(stream.subscribe())
        assert trio.current_time() == pytest.approx(CLOSE_TIMEOUT)


async def test_a_sender_that_waits_for_its_turn_ends_with_the_connection(
    autojump_clock: MockClock,
) -> None:
    """A Pong that the peer does not read has the turn."""
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", ON)
        await peer.send(9)
        await trio.sleep(1)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.send_all(b"x")
        assert isinstance(broken.value.__cause__, KeepaliveTimeout)
        assert trio.current_time() == pytest.approx(KEEPALIVE, abs=0.1)


async def test_a_client_that_gets_no_answer_to_its_handshake_waits_for_connect_timeout(
    autojump_clock: MockClock,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        host, port = listener.socket.getsockname()
        with pytest.raises(Exception, match=r".") as error:
            async with open_ws_stream(f"ws://{host}:{port}", connect_timeout=7):
                pass
        assert trio.current_time() == pytest.approx(7)
        assert "Timeout" in type(error.value).__name__


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("peer_kind", ["silent", "clogged"])
async def test_a_handshake_over_a_transport_of_the_caller_takes_connect_timeout(
    peer_kind: str, scheme: str, autojump_clock: MockClock
) -> None:
    transport = "memory" if peer_kind == "silent" else "lockstep"
    ours, theirs = await TRANSPORTS[transport]()
    with pytest.raises(ConnectionTimeout):
        async with open_ws_stream(f"{scheme}://host", transport=ours, connect_timeout=7):
            pass
    assert trio.current_time() == pytest.approx(7)
    await trio.aclose_forcefully(theirs)


@pytest.mark.parametrize("url", ["http://proxy", "https://proxy", "socks5h://proxy"])
async def test_a_proxy_that_does_not_answer_takes_connect_timeout(
    url: str, autojump_clock: MockClock
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        proxy = f"{url.partition('://')[0]}://127.0.0.1:{port}"
        with pytest.raises(ConnectionTimeout):
            async with open_ws_stream("ws://host", proxy=proxy, connect_timeout=7):
                pass
        assert trio.current_time() == pytest.approx(7)


@pytest.mark.parametrize("peer_kind", ["silent", "clogged"])
async def test_a_refused_client_has_two_seconds_to_read_and_connect_timeout_to_take_it(
    peer_kind: str, autojump_clock: MockClock
) -> None:
    listener = MemoryListener()
    ours, theirs = await TRANSPORTS["memory" if peer_kind == "silent" else "lockstep"]()
    await listener._connect.send(ours)
    async with background() as nursery:
        await nursery.start(partial(serve_ws, receive, listeners=[listener], connect_timeout=7))
        await theirs.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await theirs.send_all(b"x")
                await trio.sleep(0.1)
        assert trio.current_time() == pytest.approx(2 if peer_kind == "silent" else 7, abs=0.1)


async def test_a_server_drops_a_client_that_does_not_finish_its_handshake(
    autojump_clock: MockClock,
) -> None:
    async with background() as nursery:

        async def handle(stream: WsByteStream) -> None:
            raise AssertionError("no handshake was made")

        (listener,) = await nursery.start(
            lambda task_status: serve_ws(
                handle, "127.0.0.1", 0, connect_timeout=7, task_status=task_status
            )
        )
        port = listener.transport_listener.socket.getsockname()[1]
        client = await trio.open_tcp_stream("127.0.0.1", port)
        async with client:
            await client.send_all(b"GET / HTTP/1.1\r\n")
            while await client.receive_some():
                pass
        assert trio.current_time() == pytest.approx(7, abs=0.1)
