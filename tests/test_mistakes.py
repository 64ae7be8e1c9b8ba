"""What callers get wrong, and what they are told: the argument, its value, and what to do."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    PingReceived,
    StreamConfig,
    TakeoverError,
    WsByteStream,
    WsListener,
    bridge,
    open_ws_stream,
    serve_ws,
    wrap_websocket,
)
from trio_wsstream.anyio import ByteStream
from trio_wsstream.testing import FaultyStream, MemoryListener, ws_server, ws_stream_pair

from .support.handshakes import CLIENT_HANDSHAKE
from .support.pairs import connection_pair
from .support.servers import echo
from .support.tasks import background

Mistake = Callable[[WsByteStream], Awaitable[object]]


async def handler(stream: WsByteStream) -> None:
    raise AssertionError


async def subscribe(stream: WsByteStream, *args: Any, **options: Any) -> None:
    stream.subscribe(*args, **options)


async def new_stream(nursery: Any, config: Any = StreamConfig()) -> None:
    async with trio.open_nursery() as opening:
        client, _ = await connection_pair(opening)
        try:
            WsByteStream(client, nursery, config)
        finally:
            opening.cancel_scope.cancel()


async def enter(manager: Any) -> None:
    async with manager:
        raise AssertionError


async def listener(transport_listener: Any = None, nursery: Any = None, **options: Any) -> None:
    async with trio.open_nursery() as ours:
        WsListener(transport_listener or MemoryListener(), nursery or ours, **options)


def a_server(**options: Any) -> Any:
    return serve_ws(handler, listeners=[MemoryListener()], **options)


def plain(*_: object) -> None:
    """A function that is not async."""


# Each is what a caller does, the kind of the error, and its text, whole.
MISTAKES: list[tuple[Callable[[WsByteStream], Any], type[Exception], str]] = [
    (lambda s: s.receive_some("5"), TypeError, "max_bytes must be an int, not '5'"),
    (lambda s: s.receive_some(1.5), TypeError, "max_bytes must be an int, not 1.5"),
    (lambda s: s.receive_some(0), ValueError, "max_bytes must be at least 1, not 0"),
    (
        lambda s: s.send_all("s3cret"),
        TypeError,
        "data must be bytes or another buffer, not of type str: encode it first",
    ),
    (lambda s: s.send_all(5), TypeError, "data must be bytes or another buffer, not of type int"),
    (
        lambda s: s.send_all(None),
        TypeError,
        "data must be bytes or another buffer, not of type NoneType",
    ),
    (
        lambda s: s.send_all(memoryview(b"abcd")[::2]),
        BufferError,
        "data must be a contiguous buffer",
    ),
    (
        lambda s: s.ping("text"),
        TypeError,
        "payload must be bytes or another buffer, not of type str: encode it first",
    ),
    (lambda s: s.ping(5), TypeError, "payload must be bytes or another buffer, not of type int"),
    (
        lambda s: s.ping(bytes(126)),
        ValueError,
        f"payload must be at most 125 bytes, not 126: {bytes(32)}... (126 in all)",
    ),
    (lambda s: s.aclose("1000"), TypeError, "code must be an int, not '1000'"),
    (lambda s: s.aclose(None), TypeError, "code must be an int, not None"),
    (
        lambda s: s.aclose(1006),
        ValueError,
        "code must be 1000-1003, 1007-1014 or 3000-4999, not 1006",
    ),
    (lambda s: s.aclose(1000, None), TypeError, "reason must be a str, not None"),
    (lambda s: s.aclose(1000, b"why"), TypeError, "reason must be a str, not b'why'"),
    (
        lambda s: s.aclose(1000, "\ud800"),
        ValueError,
        r"reason must be text that UTF-8 can encode, not '\ud800'",
    ),
    (
        lambda s: s.aclose(1000, "half-close"),
        ValueError,
        "reason must not be 'half-close': that is what send_eof says",
    ),
    (
        lambda s: subscribe(s, "x"),
        TypeError,
        "max_buffer_size must be an int or math.inf, not 'x'",
    ),
    (
        lambda s: subscribe(s, PingReceived),
        TypeError,
        "max_buffer_size must be an int or math.inf, not "
        "<class 'trio_wsstream.PingReceived'>; kinds are given by name, kinds=",
    ),
    (
        lambda s: subscribe(s, -1),
        ValueError,
        "max_buffer_size must be at least 0 events, not -1",
    ),
    (
        lambda s: subscribe(s, math.nan),
        TypeError,
        "max_buffer_size must be an int or math.inf, not nan",
    ),
    *[
        (
            lambda s, kinds=kinds: subscribe(s, kinds=kinds),
            TypeError,
            f"kinds must be WsEvent classes, not {wrong!r}",
        )
        for kinds, wrong in [
            ("x", "x"),
            (5, 5),
            (None, None),
            ([5], 5),
            (int, int),
            (PingReceived(b""), PingReceived(b"")),
            ([PingReceived, "x"], "x"),
        ]
    ],
    *[
        (
            lambda _, nursery=nursery: new_stream(nursery),
            TypeError,
            f"nursery must be a trio.Nursery, not {nursery!r}: "
            "async with trio.open_nursery() as nursery",
        )
        for nursery in (None, 5, "x", trio.open_nursery)
    ],
    (
        lambda s: new_stream(trio.lowlevel.current_task().parent_nursery, None),
        TypeError,
        "config must be a StreamConfig, not None",
    ),
    (
        lambda s: enter(wrap_websocket("ws://x")),
        TypeError,
        "connection must be a WebSocketConnection, not 'ws://x'",
    ),
    (
        lambda s: enter(wrap_websocket(s.connection)),
        TakeoverError,
        "the connection has been taken over before",
    ),
    (
        lambda s: bridge(s, None),
        TypeError,
        "b must be a trio.abc.HalfCloseableStream, not None",
    ),
    (
        lambda s: bridge("127.0.0.1:80", s),
        TypeError,
        "a must be a trio.abc.HalfCloseableStream, not '127.0.0.1:80'",
    ),
    (
        lambda _: enter(open_ws_stream("https://user:s3cret@localhost/s3cret")),
        ValueError,
        "url must begin with ws:// or wss://, not with https://",
    ),
    (
        lambda _: enter(open_ws_stream("ws://localhost:1", config=5)),
        TypeError,
        "config must be a StreamConfig, not 5",
    ),
    (
        lambda _: enter(open_ws_stream("ws://localhost:1", subprotocols="chat")),
        TypeError,
        "subprotocols must be an iterable of strings, not the single string 'chat'",
    ),
    (
        lambda _: enter(open_ws_stream("ws://localhost:1", subprotocols=5)),
        TypeError,
        "subprotocols must be an iterable of strings, not 5",
    ),
    (
        lambda _: enter(open_ws_stream("wss://localhost:1", "x")),
        TypeError,
        "ssl_context must be an ssl.SSLContext or None, not 'x'",
    ),
    *[
        (
            lambda _, wrong=wrong: listener(wrong),
            TypeError,
            f"transport_listener must be a trio.abc.Listener, not {wrong!r}; a listening socket "
            "becomes one by trio.SocketListener(trio.socket.from_stdlib_socket(sock))",
        )
        for wrong in (8000, ["x"], "127.0.0.1")
    ],
    (
        lambda _: listener(nursery=5),
        TypeError,
        "nursery must be a trio.Nursery, not 5: async with trio.open_nursery() as nursery",
    ),
    (
        lambda _: listener(subprotocols=None),
        TypeError,
        "subprotocols must be an iterable of strings, not None",
    ),
    (
        lambda _: listener(allowed_origins="https://example.com"),
        TypeError,
        "allowed_origins must be an iterable of strings, not the single string "
        "'https://example.com'",
    ),
    (
        lambda _: listener(allowed_origins=5),
        TypeError,
        "allowed_origins must be an iterable of strings, not 5",
    ),
    (lambda _: listener(path=b"/"), TypeError, "path must be a str or None, not b'/'"),
    (lambda _: listener(max_pending="5"), TypeError, "max_pending must be an int, not '5'"),
    (lambda _: listener(max_pending=0), ValueError, "max_pending must be at least 1, not 0"),
    (
        lambda _: listener(max_header_size=None),
        TypeError,
        "max_header_size must be an int, not None",
    ),
    (
        lambda _: listener(connect_timeout="5"),
        TypeError,
        "connect_timeout must be a number of seconds, not '5'",
    ),
    (lambda _: listener(config={}), TypeError, "config must be a StreamConfig, not {}"),
    (lambda _: listener(accept=5), TypeError, "accept must be an async function, not 5"),
    (lambda _: listener(http="x"), TypeError, "http must be an async function, not 'x'"),
    (lambda _: listener(on_refused=5), TypeError, "on_refused must be a function, not 5"),
    (
        lambda _: listener(on_refused=handler),
        TypeError,
        f"on_refused must be a plain function, not the async function {handler!r}",
    ),
    (
        lambda _: serve_ws(None, "127.0.0.1", 0),
        TypeError,
        "handler must be an async function, not None",
    ),
    (
        lambda _: serve_ws(handler, 8000),
        TypeError,
        "serve_ws needs a port (0: any free one), or listeners=[...]",
    ),
    (lambda _: serve_ws(handler, "127.0.0.1", "80"), TypeError, "port must be an int, not '80'"),
    *[
        (
            lambda _, port=port: serve_ws(handler, "127.0.0.1", port),
            ValueError,
            f"port must be from 0 to 65535 (0: any free one), not {port}",
        )
        for port in (-1, 65536, 70000)
    ],
    (
        lambda _: serve_ws(handler, 5, 8000),
        TypeError,
        "host must be a str, bytes or None, not 5",
    ),
    (
        lambda _: a_server(ssl_context="x"),
        TypeError,
        "ssl_context must be an ssl.SSLContext or None, not 'x'",
    ),
    (
        lambda _: a_server(ssl_context=ssl.create_default_context()),
        ValueError,
        "ssl_context must be one for a server, not of PROTOCOL_TLS_CLIENT: "
        "ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), with a certificate",
    ),
    (
        lambda _: a_server(handler_nursery=5),
        TypeError,
        "handler_nursery must be a trio.Nursery, not 5: async with trio.open_nursery() as nursery",
    ),
    (lambda _: a_server(on_error="x"), TypeError, "on_error must be a function, not 'x'"),
    (
        lambda _: serve_ws(handler, listeners=5),
        TypeError,
        "listeners must be an iterable of trio.abc.Listeners, not 5",
    ),
    (
        lambda _: enter(ws_stream_pair(transports=(1, 2))),
        TypeError,
        "transports must be two trio.abc.Streams, not (1, 2)",
    ),
]


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


@pytest.mark.parametrize(
    ("mistake", "kind", "text"), MISTAKES, ids=[text[:40] for _, _, text in MISTAKES]
)
async def test_a_mistake_is_told_in_a_sentence(
    mistake: Mistake, kind: type[Exception], text: str
) -> None:
    async with ws_stream_pair() as (stream, peer):
        with trio.fail_after(30):
            with pytest.raises(Exception) as caught:  # noqa: PT011  # compared below
                await mistake(stream)
        error = leaf(caught.value)
        assert (type(error), str(error)) == (kind, text)
        await peer.send_all(b"the stream is whole")  # as nothing was sent or touched
        assert await stream.receive_some() == b"the stream is whole"
        await stream.send_all(b"both ways")
        assert await peer.receive_some() == b"both ways"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (ByteStream, "stream must be a WsByteStream, not 5"),
        (FaultyStream, "transport must be a trio.abc.HalfCloseableStream, not 5"),
    ],
)
def test_a_wrapper_of_the_wrong_thing_is_told_in_a_sentence(what: Any, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        what(5)
    assert str(caught.value) == text


async def test_a_listener_of_a_listener_says_which() -> None:
    async with background() as nursery:
        inner = WsListener(MemoryListener(), nursery)
        text = f"transport_listener must be a listener of transports, not {inner!r}"
        with pytest.raises(TypeError, match=re.escape(text)):
            WsListener(inner, nursery)  # type: ignore[arg-type]


async def test_a_handler_that_was_called_by_mistake_is_told() -> None:
    async with ws_stream_pair() as (stream, _):
        with pytest.raises(TypeError, match="not what calling it gives, <coroutine object handler"):
            await serve_ws(handler(stream), "127.0.0.1", 0)  # type: ignore[arg-type]


async def test_a_handler_that_is_not_async_is_told() -> None:
    text = f"handler must be an async function, but {plain!r} has returned None"
    errors: list[Exception] = []
    async with (
        ws_server(plain, on_error=lambda _, error: errors.append(error)) as server,
        server.open_ws_stream() as stream,
    ):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
    assert [str(error) for error in errors] == [text]


@pytest.mark.parametrize("hook", ["accept", "http"])
async def test_a_hook_that_is_not_async_is_told_in_the_log(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ws_server(echo, **{hook: plain}) as server:
        transport = await server.connect()
        plain_get = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await transport.send_all(CLIENT_HANDSHAKE if hook == "accept" else plain_get)
        assert (await transport.receive_some()).startswith(b"HTTP/1.1 500 ")
        await transport.aclose()
    text = f"{hook} must be an async function, but {plain!r} has returned None"
    assert text in caplog.text


async def test_what_comes_too_late_or_twice_is_told_in_a_sentence() -> None:
    async with ws_stream_pair() as (stream, peer):
        await stream.send_eof()
        text = "this side has ended its sending with send_eof"
        for call in (lambda: stream.send_all(b"x"), stream.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError, match=text):
                await call()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_some)
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="another task is receiving"):
                await stream.receive_some()
            nursery.cancel_scope.cancel()
        await peer.aclose()
        await stream.aclose()
        for call in (lambda: stream.send_all(b"x"), stream.receive_some, stream.ping):
            with pytest.raises(trio.ClosedResourceError, match="this side has closed the stream"):
                await call()


@pytest.mark.parametrize(
    "use",
    [
        lambda _: open_ws_stream("ws://localhost:1").__aenter__(),
        lambda _: serve_ws(handler, "127.0.0.1", 0),
        lambda connection: wrap_websocket(connection).__aenter__(),
        lambda connection: new_without_trio(connection),
        lambda _: ws_stream_pair().__aenter__(),
        lambda _: ws_server(handler).__aenter__(),
    ],
)
def test_outside_of_trio_an_error_says_that_trio_is_needed(use: Any) -> None:
    async def connect() -> Any:
        async with trio.open_nursery() as nursery:
            client, _ = await connection_pair(nursery)
            nursery.cancel_scope.cancel()
        return client

    connection = trio.run(connect)

    async def mistake() -> None:
        with pytest.raises(RuntimeError, match=r"needs Trio: run this by trio\.run\(\)"):
            await use(connection)

    asyncio.run(mistake())


def test_a_listener_outside_of_trio_says_that_trio_is_needed() -> None:
    async def make() -> WsListener:
        async with trio.open_nursery() as nursery:
            return WsListener(MemoryListener(), nursery)

    listener = trio.run(make)
    with pytest.raises(RuntimeError, match="needs Trio"):
        asyncio.run(listener.accept())


async def new_without_trio(connection: Any) -> WsByteStream:
    return WsByteStream(connection, None)  # type: ignore[arg-type]
