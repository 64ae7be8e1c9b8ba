"""Opening handshakes with peers that mean harm: see also the bad requests in `tests.test_serve`."""

from __future__ import annotations

import gc
import math
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked
from trio_websocket import (
    ConnectionRejected,
    ConnectionTimeout,
    HandshakeError,
    WebSocketConnection,
    WebSocketRequest,
)

from trio_wsstream import ProtocolViolation, WsByteStream, open_ws_stream

from .support.frames import BINARY, CLOSE, close_payload, frame
from .support.handshakes import CLIENT_HANDSHAKE, receive_head, request, server_handshake
from .support.raw_peer import RawPeer
from .support.receiving import receive_all
from .support.servers import assert_works, memory_server


def count_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


# Clients that mean harm


@pytest.mark.slow
async def test_thousands_of_half_open_handshakes_cost_little_and_keep_nobody_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gc.collect()
    before = [type(each) for each in gc.get_objects()].count(WebSocketConnection)
    async with memory_server(max_pending=20, connect_timeout=math.inf) as listener:
        await assert_works(listener)
        tasks = count_tasks()
        half_open = []
        for number in range(3000):
            transport = await listener.connect()
            await transport.send_all(CLIENT_HANDSHAKE[: number % len(CLIENT_HANDSHAKE)])
            half_open.append(transport)
            if number % 500 == 499:  # it waits until those that are silent had a fair time
                await assert_works(listener)
                await wait_all_tasks_blocked()
                assert count_tasks() <= tasks + 20
                gc.collect()
                connections = [type(each) for each in gc.get_objects()].count(WebSocketConnection)
                assert connections <= before + 20 + 3  # those that were served are near
        for transport in half_open[:-20]:
            assert await transport.receive_some() == b""
            await transport.aclose()
        for number, transport in list(enumerate(half_open))[-19:]:
            await transport.send_all(CLIENT_HANDSHAKE[number % len(CLIENT_HANDSHAKE) :])
            assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("piece", [b"A: " + b"a" * 100 + b"\r\n", b"a"], ids=["many", "one"])
async def test_endless_headers_are_read_for_20_kib_at_the_most(piece: bytes) -> None:
    """A handshake that was not refused by then can hold no more than that."""
    async with memory_server() as listener:
        transport = await listener.connect()
        await transport.send_all(request()[:-2] + b"Endless: ")
        responses: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                responses.append(await receive_all(transport))

            nursery.start_soon(receive)
            sent = 0
            while not responses:
                await transport.send_all(piece * (1000 // len(piece)))
                sent += 1000
                await wait_all_tasks_blocked()
        assert responses[0].startswith(b"HTTP/1.1 431 ")
        assert sent <= 20 * 1024


SMUGGLED: Final = {
    "a list of lengths": request(b"Content-Length: 5, 5") + b"12345",
    "a length of 0 and another": request(b"Content-Length: 0", b"Content-Length: 5") + b"12345",
    "a list of 0 and another": request(b"Content-Length: 0, 5") + b"12345",
    "a negative length": request(b"Content-Length: -1"),
    "a length with a sign": request(b"Content-Length: +5") + b"12345",
    "a hexadecimal length": request(b"Content-Length: 0x5") + b"12345",
    "a length before a space": request(b"Content-Length : 5") + b"12345",
    "a folded length": request(b"Content-Length:\r\n 5") + b"12345",
    "chunks in capitals": request(b"TRANSFER-ENCODING: CHUNKED") + b"0\r\n\r\n",
    "chunks before a space": request(b"Transfer-Encoding : chunked") + b"0\r\n\r\n",
    "chunks after a vertical tab": request(b"Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n",
    "folded chunks": request(b"Transfer-Encoding:\r\n\tchunked") + b"0\r\n\r\n",
    "chunks after identity": request(b"Transfer-Encoding: identity, chunked") + b"0\r\n\r\n",
    "no chunks": request(b"Transfer-Encoding: identity"),
    "chunks after a bare LF": request(b"A: b\nTransfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunks after a bare CR": request(b"A: b\rTransfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunks after two CRs": request(b"A: b\r\r\nTransfer-Encoding: chunked") + b"0\r\n\r\n",
    "a fold with nothing before": CLIENT_HANDSHAKE.replace(b"\r\n", b"\r\n A: b\r\n", 1),
    "a line with no colon": request(b"Transfer-Encoding"),
    "a header with no name": request(b": chunked"),
    "NUL in a name": request(b"A\0: b"),
    "NUL in a value": request(b"A: \0"),
    "NUL in a target": request(line=b"GET /\0 HTTP/1.1"),
    "a bare CR in the first line": request(line=b"GET /\r HTTP/1.1"),
    "a tab in the first line": request(line=b"GET\t/ HTTP/1.1"),
    "two spaces in the first line": request(line=b"GET  / HTTP/1.1"),
    "more in the first line": request(line=b"GET / HTTP/1.1 HTTP/1.1"),
    "HTTP/0.9": request(line=b"GET /"),
    "a version in small letters": request(line=b"GET / http/1.1"),
    "a host that is too long": request(b"Host: " + b"a" * 64, leave_out=b"Host"),
    "a host of many dots": request(b"Host: " + b"." * 9000, leave_out=b"Host"),
    # What is no path and no URL (RFC 6455, 4.2.1; RFC 9112, 3.2):
    "an asterisk": request(line=b"GET * HTTP/1.1"),
    "an authority": request(line=b"GET localhost:80 HTTP/1.1"),
    "a tunnel": request(line=b"CONNECT localhost:80 HTTP/1.1"),
    "a question": request(line=b"OPTIONS * HTTP/1.1"),
    "a relative path": request(line=b"GET chat HTTP/1.1"),
    "a query only": request(line=b"GET ?a HTTP/1.1"),
    "a fragment": request(line=b"GET /#a HTTP/1.1"),
    "a fragment of a URL": request(line=b"GET http://localhost/#a HTTP/1.1"),
    "a URL of something else": request(line=b"GET file:///etc/passwd HTTP/1.1"),
    "a URL with no host": request(line=b"GET http:///chat HTTP/1.1"),
    "a URL that is none": request(line=b"GET http://[ HTTP/1.1"),
}


@pytest.mark.parametrize("glued", [b"", CLIENT_HANDSHAKE], ids=["alone", "and another request"])
@pytest.mark.parametrize("kind", SMUGGLED)
async def test_what_a_proxy_may_read_otherwise_gets_400_once_and_an_end(
    kind: str, glued: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_server(path="/") as listener:
        await assert_works(listener)
        await wait_all_tasks_blocked()
        tasks = count_tasks()
        transport = await listener.connect()
        await transport.send_all(SMUGGLED[kind] + glued)
        response = await receive_all(transport)
        assert response.startswith(b"HTTP/1.1 400 ")
        assert response.count(b"HTTP/") == 1
        assert b"connection: close\r\n" in response.lower()
        await transport.aclose()
        await wait_all_tasks_blocked()
        assert count_tasks() == tasks
        await assert_works(listener)
    assert not caplog.records  # a client must not fill the log


async def test_a_second_request_in_the_first_is_no_frame_and_gets_no_response() -> None:
    failed: list[BaseException | None] = []

    async def handler(stream: WsByteStream) -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        failed.append(caught.value.__cause__)
        await stream.aclose()

    async with memory_server(handler) as listener:
        transport = await listener.connect()
        await transport.send_all(CLIENT_HANDSHAKE * 2)
        assert (await receive_head(transport)).startswith(b"HTTP/1.1 101 ")
        peer = RawPeer(transport, masked=True)
        opcode, payload = await peer.receive()
        assert (opcode, payload[:2]) == (CLOSE, close_payload(1002))
        await transport.aclose()
        await wait_all_tasks_blocked()
    assert [type(error) for error in failed] == [ProtocolViolation]


async def test_what_comes_before_the_101_waits_and_is_not_lost() -> None:
    """If there is too much of it, the rest waits at the client."""
    may_accept = trio.Event()

    async def hook(request: WebSocketRequest) -> None:
        await may_accept.wait()

    data = bytes(range(256)) * 4000
    async with memory_server(accept=hook) as listener:
        ours, theirs = trio.testing.lockstep_stream_pair()
        await listener.arrive(theirs)
        async with trio.open_nursery() as nursery:
            early = CLIENT_HANDSHAKE + frame(BINARY, data, masked=True)
            nursery.start_soon(ours.send_all, early)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1  # still sending
            may_accept.set()
            assert (await receive_head(ours)).startswith(b"HTTP/1.1 101 ")
            peer, received = RawPeer(ours, masked=True), b""
            while len(received) < len(data):
                opcode, payload = await peer.receive()
                assert opcode == BINARY
                received += payload
        assert received == data
        await ours.aclose()


# Servers that mean harm

Answer = Callable[[Any, bytes], Awaitable[None]]


def answer(*pieces: bytes, ends: bool = False) -> Answer:
    """Return an answer in pieces, and after them silence or the end of the transport."""

    async def run(transport: Any, head: bytes) -> None:
        for piece in pieces:
            await transport.send_all(piece)
            await trio.sleep(0.01)
        if ends:
            await transport.send_eof()

    return run


def for_ever(start: bytes, piece: bytes, pause: float = 0.001) -> Answer:
    async def run(transport: Any, head: bytes) -> None:
        await transport.send_all(start)
        while True:
            await transport.send_all(piece)
            await trio.sleep(pause)

    return run


def accepting(old: bytes = b"", new: bytes = b"") -> Answer:
    """Return the right answer, in which ``old`` is replaced."""

    async def run(transport: Any, head: bytes) -> None:
        right = server_handshake(head)
        assert old in right
        await transport.send_all(right.replace(old, new))

    return run


def also(header: bytes) -> Answer:
    return accepting(b"\r\nUpgrade:", b"\r\n" + header + b"\r\nUpgrade:")


async def a_byte_a_second(transport: Any, head: bytes) -> None:
    for byte in server_handshake(head):
        await transport.send_all(bytes([byte]))
        await trio.sleep(1)


CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSAL: Final = b"HTTP/1.1 403 Forbidden\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"

BAD_ANSWERS: Final[dict[str, Answer]] = {
    "endless headers": for_ever(b"HTTP/1.1 101 A\r\n", b"A: b\r\n" * 100),
    "an endless header": for_ever(b"HTTP/1.1 101 A\r\nA: ", b"a" * 1000),
    "an endless line": for_ever(b"HTTP/1.1 101 ", b"a" * 1000),
    "garbage": answer(bytes(range(256)) * 100),
    "garbage with a line": answer(b"\xff\xfe\r\n\r\n"),
    "TLS": answer(b"\x15\x03\x03\x00\x02\x02\x28"),
    "NUL": also(b"A: \0"),
    "a bare CR": also(b"A: b\rC: d"),
    "no name": also(b": b"),
    "another key": accepting(b"Accept: ", b"Accept: a"),
    "no key": accepting(b"Sec-WebSocket-Accept", b"Accept"),
    "no upgrade": accepting(b"Upgrade: websocket\r\n"),
    "another upgrade": accepting(b"websocket", b"h2c"),
    "no connection": accepting(b"Connection: Upgrade\r\n"),
    "a subprotocol": also(b"Sec-WebSocket-Protocol: mqtt"),
    "a subprotocol that is not ASCII": also(b"Sec-WebSocket-Protocol: \xff"),
    "an extension": also(b"Sec-WebSocket-Extensions: permessage-deflate"),
    "an extension that is not ASCII": also(b"Sec-WebSocket-Extensions: \xff"),
    "HTTP/1.0": accepting(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/2": accepting(b"HTTP/1.1", b"HTTP/2"),
    "an end in the headers": answer(b"HTTP/1.1 101 A\r\nUpgrade: ", ends=True),
    "an end after a 100": answer(CONTINUE, ends=True),
}
SLOW_ANSWERS: Final[dict[str, Answer]] = {
    "nothing": answer(),
    "a byte a second": a_byte_a_second,
    "a byte a minute": for_ever(b"HTTP/1.1 101 A\r\nA: ", b"a", 60),
    "a 100 and nothing": answer(CONTINUE),
    "endless 100s": for_ever(b"", CONTINUE, 0.1),
}
REFUSALS: Final[dict[str, tuple[Answer, int, bytes]]] = {
    "a redirect": (
        answer(b"HTTP/1.1 302 A\r\nLocation: ws://evil/\r\nContent-Length: 0\r\n\r\n"),
        302,
        b"",
    ),
    "a redirect to the end": (
        answer(b"HTTP/1.1 301 A\r\nLocation: ws://evil/\r\n\r\nThere.", ends=True),
        301,
        b"There.",
    ),
    "a page": (answer(b"HTTP/1.1 200 OK\r\n\r\n", b"<p>", b"Hi", ends=True), 200, b"<p>Hi"),
    "HTTP/1.0": (answer(b"HTTP/1.0 400 Bad\r\n\r\nWhat?", ends=True), 400, b"What?"),
    "chunks": (answer(REFUSAL + CHUNKED, b"2\r\nNo\r\n", b"1\r\n.\r\n0\r\n\r\n"), 403, b"No."),
    "a 100 before": (answer(CONTINUE, REFUSAL + b"Content-Length: 0\r\n\r\n"), 403, b""),
    "a body that is cut": (answer(REFUSAL + b"Content-Length: 9\r\n\r\nNo", ends=True), 403, b"No"),
    "chunks that are none": (answer(REFUSAL + CHUNKED + b"2\r\nNo\r\n", b"what?\r\n"), 403, b"No"),
}


def server(nursery: trio.Nursery, run: Answer) -> trio.abc.Stream:
    """Return a client's transport to a server that ends when the client has closed it."""
    ours, theirs = trio.testing.memory_stream_pair()

    async def serve() -> None:
        async with theirs:
            try:
                await run(theirs, await receive_head(theirs))
                await receive_all(theirs)
            except trio.BrokenResourceError:
                pass  # the client has left

    nursery.start_soon(serve)
    return ours


async def error_of(run: Answer, **options: Any) -> HandshakeError:
    """Return the error of a client of such a server that has closed its transport."""
    tasks = count_tasks()
    async with trio.open_nursery() as nursery:
        with pytest.raises(HandshakeError) as caught:
            async with open_ws_stream("ws://localhost/", transport=server(nursery, run), **options):
                raise AssertionError("it was opened")
    assert count_tasks() == tasks
    return caught.value


@pytest.mark.parametrize("kind", BAD_ANSWERS)
async def test_a_bad_answer_is_a_handshake_error_at_once(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    started_at = trio.current_time()
    assert type(await error_of(BAD_ANSWERS[kind])) is HandshakeError
    assert trio.current_time() < started_at + 1


@pytest.mark.parametrize("kind", SLOW_ANSWERS)
async def test_a_slow_answer_is_a_timeout_in_time(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    started_at = trio.current_time()
    error = await error_of(SLOW_ANSWERS[kind], connect_timeout=30)
    assert type(error) is ConnectionTimeout
    assert started_at + 30 <= trio.current_time() < started_at + 91


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_tells_its_status_and_what_came_of_its_body(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A redirect is a refusal too, because it is not followed."""
    run, status, body = REFUSALS[kind]
    started_at = trio.current_time()
    error = await error_of(run)
    assert isinstance(error, ConnectionRejected)
    assert (error.status_code, error.body) == (status, body)
    assert trio.current_time() < started_at + 1


PARTIAL: Final[dict[str, tuple[Answer, int, bytes]]] = {
    "a body that does not come": (
        answer(REFUSAL + b"Content-Length: 5\r\n\r\nNo"),
        403,
        b"No",
    ),
    "no length, on a connection that is kept": (answer(REFUSAL + b"\r\n", b"No"), 403, b"No"),
    "a redirect that is kept": (answer(b"HTTP/1.1 302 A\r\nLocation: /\r\n\r\n"), 302, b""),
    "no capacity": (answer(b"HTTP/1.1 503 A\r\nContent-Length: 9\r\n\r\n"), 503, b""),
    "chunks that stop": (answer(REFUSAL + CHUNKED, b"2\r\nNo\r\n", b"5\r\nt"), 403, b"Not"),
    "events": (answer(b"HTTP/1.1 200 OK\r\n\r\n", b":\n", b":\n"), 200, b":\n:\n"),
}


@pytest.mark.parametrize("connect_timeout", [1, 60])
@pytest.mark.parametrize("kind", PARTIAL)
async def test_a_refusal_whose_body_does_not_end_is_told_after_two_seconds(
    kind: str, connect_timeout: float, autojump_clock: trio.testing.MockClock
) -> None:
    run, status, body = PARTIAL[kind]
    started_at = trio.current_time()
    error = await error_of(run, connect_timeout=connect_timeout)
    assert isinstance(error, ConnectionRejected)
    assert (error.status_code, error.body) == (status, body)
    assert trio.current_time() <= started_at + 2.01


async def test_an_endless_line_in_the_body_of_a_refusal_is_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    error = await error_of(for_ever(REFUSAL + CHUNKED + b"2;", b"a" * 10_000, 0))
    assert isinstance(error, ConnectionRejected)
    assert (error.status_code, error.body) == (403, b"")


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"Set-Cookie: secret\0\r\n", "illegal header line"),
        (b"Content-Length: secret\r\n", "bad Content-Length"),
        (b"Transfer-Encoding: secret\r\n", "Only Transfer-Encoding: chunked is supported"),
        (b"secret\r\n", "illegal header line"),
    ],
)
async def test_a_response_that_is_not_valid_tells_its_status_and_no_header(
    head: bytes, text: str
) -> None:
    error = await error_of(answer(b"HTTP/1.1 503 Busy\r\n" + head + b"\r\n"))
    assert str(error) == f"the server's response with status 503 is not valid HTTP/1.1: {text}"
    assert "secret" not in "".join(traceback.format_exception(error))


async def test_what_does_not_speak_http_is_told_by_how_it_begins() -> None:
    error = await error_of(answer(b"SSH-2.0-OpenSSH_9.6\r\n"))
    assert str(error) == (
        "the server does not speak HTTP/1.1: its answer begins b'SSH-2.0-OpenSSH_'"
    )


async def test_the_text_of_a_refusal_tells_status_phrase_and_location() -> None:
    run = answer(b"HTTP/1.1 302 Over There\r\nLocation: /login?a=b\r\nContent-Length: 0\r\n\r\n")
    assert str(await error_of(run)) == "302 Over There, Location: /login"


@pytest.mark.parametrize("start", [b"Content-Length: 9999999999\r\n\r\n", b"\r\n", CHUNKED])
async def test_of_an_endless_refusal_64_kib_are_kept(
    start: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    piece = b"No. " * 1000
    started_at = trio.current_time()
    if start is CHUNKED:
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    error = await error_of(for_ever(REFUSAL + start, piece))
    assert isinstance(error, ConnectionRejected)
    assert error.status_code == 403
    assert error.body is not None
    assert error.body == (b"No. " * 16384)[:65536]
    assert trio.current_time() < started_at + 1


@pytest.mark.parametrize("before", [CONTINUE, b"HTTP/1.1 103 Early\r\nLink: </>\r\n\r\n", b""])
@pytest.mark.parametrize("pieces", ["in one", "apart"])
async def test_a_101_may_come_after_a_100_and_before_a_frame(
    before: bytes, pieces: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Interim responses say nothing (RFC 9110, 15.2)."""

    async def run(transport: Any, head: bytes) -> None:
        said = [before * 3, server_handshake(head), frame(BINARY, b"glued", masked=False)]
        if pieces == "in one":
            said = [b"".join(said)]
        await answer(*said)(transport, head)

    async with trio.open_nursery() as nursery:
        transport = server(nursery, run)
        async with open_ws_stream("ws://localhost/", transport=transport) as stream:
            assert await stream.receive_some() == b"glued"
            await trio.aclose_forcefully(stream)


async def test_a_second_101_response_is_not_taken_for_a_frame() -> None:
    async def run(transport: Any, head: bytes) -> None:
        await transport.send_all(server_handshake(head) * 2)

    async with trio.open_nursery() as nursery:
        transport = server(nursery, run)
        async with open_ws_stream("ws://localhost/", transport=transport) as stream:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.receive_some()
            assert isinstance(caught.value.__cause__, ProtocolViolation)
            await trio.aclose_forcefully(stream)
