"""What an opening handshake says, what it accepts, and how it refuses, on either side."""

from __future__ import annotations

import contextlib
import logging
import pickle
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
from trio_websocket import HandshakeError

from trio_wsstream import _handshake, open_ws_stream
from trio_wsstream._handshake import WsRequest, accept, make_request
from trio_wsstream._http import ConnectionRejected, reason_of, refusal

from .support.frames import BINARY, frame
from .support.handshakes import CLIENT_HANDSHAKE, receive_head, request, server_handshake
from .support.raw_peer import RawPeer
from .support.receiving import receive_all
from .support.transports import AUTHORITY

PLAIN = b"GET /health?deep HTTP/1.1\r\nHost: a\r\n\r\n"


async def welcome(request: WsRequest) -> tuple[str | None, list[tuple[bytes, bytes]]]:
    await trio.lowlevel.checkpoint()
    return None, []


async def answer_to(
    data: bytes,
    judge: _handshake.Judge = welcome,
    *,
    piece: int = 1_000_000,
    max_header_size: int = 16384,
    http: Any = None,
) -> tuple[bytes, Any]:
    """Return what the client receives for ``data``, and the result of `accept`."""
    ours, theirs = trio.testing.memory_stream_pair()
    outcome: Any = None

    async def serve() -> None:
        nonlocal outcome
        try:
            outcome = await accept(theirs, judge, max_header_size=max_header_size, http=http)
        except (HandshakeError, trio.ClosedResourceError) as error:
            outcome = error
        await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for start in range(0, len(data), piece):
            await ours.send_all(data[start : start + piece])
            await trio.testing.wait_all_tasks_blocked()
        response = await receive_all(ours)
    return response, outcome


# What a server accepts


@pytest.mark.parametrize(
    "host",
    [
        b"xn--e1afmkfd.xn--p1ai:8000",
        b"xn--strae-oqa.de",
        b"xn--fa-hia.de",
        b"xn--bcher-kva:8000",
        b"a" * 60 + b":8000",
        b"a" * 63 + b"." + b"b" * 63,
        b"EXAMPLE.org.",
        b"[::1]:8000",
        b"[fe80::1%25eth0]",
        b"a_b.internal:1",
        b"127.0.0.1:",
    ],
)
async def test_any_host_that_a_url_can_name_is_accepted(host: bytes) -> None:
    response, outcome = await answer_to(request(b"Host: " + host, leave_out=b"Host"))
    assert response.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert (b"host", host) in outcome[1].headers


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"a:b", b"[::1]x", b"me@a", b"a,b/", b"a..b"])
async def test_an_invalid_host_header_is_refused(host: bytes) -> None:
    response, _ = await answer_to(request(b"Host: " + host, leave_out=b"Host"))
    assert response.startswith(b"HTTP/1.1 400 ")


CONNECTIONS = [
    [b"Connection: Upgrade", b"Connection: keep-alive"],
    [b"Connection: keep-alive", b"Connection: Upgrade"],
    [b"Connection: TE", b"Connection: Upgrade", b"TE: trailers"],
    [b"Connection: Upgrade", b"Connection: TE", b"TE: trailers"],
    [b"Connection: keep-alive, Upgrade"],
    [b"Connection: UPGRADE,keep-alive"],
    [b"Connection: ,upgrade ,"],
]


@pytest.mark.parametrize("lines", CONNECTIONS)
async def test_the_elements_of_connection_may_be_in_several_lines(lines: list[bytes]) -> None:
    response, _ = await answer_to(request(*lines, leave_out=b"Connection"))
    assert response.startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("lines", CONNECTIONS)
async def test_a_servers_connection_header_may_be_in_several_lines(lines: list[bytes]) -> None:
    def edit(response: bytes) -> bytes:
        return response.replace(b"Connection: Upgrade", b"\r\n".join(lines))

    async with client_of(edit) as peer:
        await peer.send(BINARY, b"hello")


@pytest.mark.parametrize(
    "lines",
    [
        [b"Upgrade: h2c, websocket"],
        [b"Upgrade: WebSocket,h2c"],
        [b"Upgrade: h2c", b"Upgrade: websocket"],
        [b"Upgrade: websocket", b"Upgrade: h2c"],
    ],
)
async def test_the_upgrade_header_may_be_a_list(lines: list[bytes]) -> None:
    response, _ = await answer_to(request(*lines, leave_out=b"Upgrade"))
    assert response.startswith(b"HTTP/1.1 101 ")


@contextlib.asynccontextmanager
async def client_of(
    edit: Callable[[bytes], bytes] = bytes, head: list[bytes] | None = None, **options: Any
) -> Any:
    """Run `open_ws_stream` with a raw server whose response is edited."""
    ours, theirs = trio.testing.memory_stream_pair()
    url = options.pop("url", "ws://localhost/")

    async def connect(task_status: trio.TaskStatus[object]) -> None:
        async with open_ws_stream(url, transport=ours, **options) as stream:
            task_status.started(stream)
            with contextlib.suppress(trio.BrokenResourceError):
                await receive_all(stream)

    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            received = await receive_head(theirs)
            if head is not None:
                head.append(received)
            await theirs.send_all(edit(server_handshake(received)))

        nursery.start_soon(serve)
        await nursery.start(connect)
        yield RawPeer(theirs, masked=False)
        nursery.cancel_scope.cancel()


# How long a request may be


@pytest.mark.parametrize("piece", [1, 7, 1000, 4096, 1_000_000])
@pytest.mark.parametrize("excess", [0, 1])
async def test_the_limit_of_a_head_does_not_depend_on_how_it_is_cut(
    piece: int, excess: int
) -> None:
    limit = 2000
    cookie = b"Cookie: " + b"a" * 5000
    data = request(cookie[: limit - len(request(b""))])
    assert len(data) == limit
    glued = frame(BINARY, b"b" * 5000, masked=True)
    response, _ = await answer_to(data + glued, piece=piece, max_header_size=limit - excess)
    assert response.startswith(b"HTTP/1.1 431 " if excess else b"HTTP/1.1 101 ")


async def test_long_cookies_are_accepted_if_the_limit_says_so() -> None:
    data = request(*[b"Cookie: " + b"a" * 4000] * 15)
    response, _ = await answer_to(data, max_header_size=65536)
    assert response.startswith(b"HTTP/1.1 101 ")
    response, _ = await answer_to(data)
    assert response.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


@pytest.mark.parametrize(("size", "is_accepted"), [(60_000, True), (66_000, False)])
async def test_a_client_takes_a_head_of_64_kib(size: int, is_accepted: bool) -> None:
    def edit(response: bytes) -> bytes:
        return response[:-2] + b"Set-Cookie: " + b"a" * size + b"\r\n\r\n"

    if is_accepted:
        async with client_of(edit) as peer:
            await peer.send(BINARY, b"hello")
    else:
        with pytest.RaisesGroup(HandshakeError, flatten_subgroups=True):
            async with client_of(edit):
                raise AssertionError("it was opened")


# What is no opening handshake


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_a_browser_is_told_in_a_sentence_what_this_is(method: bytes) -> None:
    response, outcome = await answer_to(PLAIN.replace(b"GET", method))
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in head
    assert b"\r\nConnection: upgrade\r\n" in head
    assert b"text/plain" in head
    assert (b"WebSocket" in body) is (method == b"GET")
    assert isinstance(outcome, trio_websocket.ConnectionRejected)
    assert "426 Upgrade Required: This server speaks WebSocket only" in str(outcome)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leave_out": b"Connection"}, b"Connection: Upgrade is missing"),
        ({"leave_out": b"Upgrade"}, b"Upgrade: websocket is missing"),
        ({"leave_out": b"Sec-WebSocket-Key"}, b"Sec-WebSocket-Key"),
        ({"line": b"POST / HTTP/1.1"}, b"GET"),
    ],
)
async def test_a_malformed_handshake_is_told_what_is_wrong(
    change: dict[str, bytes], words: bytes
) -> None:
    response, _ = await answer_to(request(**change))
    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert words in response.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_http_hook_answers_what_is_no_opening_handshake(version: bytes) -> None:
    async def http(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Any:
        await trio.lowlevel.checkpoint()
        assert (method, path) == ("GET", "/health?deep")
        assert (b"host", b"a") in headers
        return 200, [(b"X-Load", b"0.5")], b"I am well.\n"

    response, outcome = await answer_to(PLAIN.replace(b"1.1", version), http=http)
    assert response == (
        b"HTTP/1.1 200 OK\r\nX-Load: 0.5\r\nConnection: close\r\nContent-Length: 11\r\n\r\n"
        b"I am well.\n"
    )
    assert isinstance(outcome, _handshake.HttpAnswered)
    assert outcome.status_code == 200


async def test_the_answer_of_a_hook_to_head_has_no_body() -> None:
    async def http(*_: object) -> Any:
        return 200, (), b"I am well.\n"

    response, _ = await answer_to(PLAIN.replace(b"GET", b"HEAD"), http=http)
    assert response.endswith(b"Content-Length: 11\r\n\r\n")


async def test_an_http_hook_that_returns_none_leaves_the_usual_answer() -> None:
    async def http(*_: object) -> None:
        return None

    response, _ = await answer_to(PLAIN, http=http)
    assert response.startswith(b"HTTP/1.1 426 ")


async def test_an_http_hook_is_not_asked_about_opening_handshakes() -> None:
    async def http(*_: object) -> Any:
        raise AssertionError("it was asked")

    for data, status in [
        (CLIENT_HANDSHAKE, b"101"),
        (request(leave_out=b"Sec-WebSocket-Version"), b"400"),
    ]:
        response, _ = await answer_to(data, http=http)
        assert response.split(b" ")[1] == status


@pytest.mark.parametrize(
    "answer",
    [
        LookupError("a bug"),
        5,
        (200, {}, b""),
        (0, (), b""),
        (101, (), b""),
        (200, (), "text"),
        (200, [(b"a", "b")], b""),
        (200, [(b"a", b"b\r\nc: d")], b""),
    ],
    ids=repr,
)
async def test_an_http_hook_with_a_bug_is_logged_and_gives_500(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def http(*_: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    response, _ = await answer_to(PLAIN, http=http)
    assert response.startswith(b"HTTP/1.1 500 ")
    (record,) = caplog.records
    assert record.exc_info


async def test_a_server_whose_tls_has_agreed_on_http_2_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_handshake, "_warned_of", set())
    contexts = [ssl.create_default_context(purpose) for purpose in ssl.Purpose]
    AUTHORITY.configure_trust(contexts[0])
    AUTHORITY.issue_cert("localhost").configure_cert(contexts[1])
    for context in contexts:
        context.set_alpn_protocols(["h2", "http/1.1"])
    for _ in range(2):
        ours, theirs = trio.testing.memory_stream_pair()
        client = trio.SSLStream(ours, contexts[0], server_hostname="localhost")
        server = trio.SSLStream(theirs, contexts[1], server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            with pytest.raises(trio_websocket.ConnectionRejected):
                await accept(server, welcome, max_header_size=16384)
    (record,) = caplog.records
    assert "'h2'" in record.getMessage()


HEADS = [
    request(),
    request(b"A:", b"B:b", b"C:  c c \t ", b"D: \xff", b"A: a,b"),
    request(b"Content-Length: 0"),
    request(line=b"GET http://a/b?c HTTP/1.1"),
]


@pytest.mark.parametrize("data", HEADS)
async def test_a_plain_head_is_read_as_h11_reads_it(data: bytes) -> None:
    """A head in one piece is read without h11, and a head in two pieces is read with it."""
    outcomes = [await answer_to(data, piece=piece) for piece in (len(data), len(data) - 1)]
    requests = [each[1][1] for each in outcomes]
    assert requests[0].headers == requests[1].headers
    assert requests[0].path == requests[1].path
    assert outcomes[0][0] == outcomes[1][0]


# What accept= gives


@pytest.mark.parametrize(
    "headers",
    [
        "X-A: b",
        b"X-A: b",
        {b"a": b"b"},
        (b"X-A", b"b"),
        [("X-A", "b")],
        [(b"X-A", "b")],
        [(b"X-A", b"b\r\nX-B: c")],
        [(b"X-A", b"b\n")],
        [(b"X-A", b"\0")],
        [(b"X A", b"b")],
        [(b"", b"b")],
        [(b"X-A",)],
        [(b"Content-Length", b"0")],
        [(b"Transfer-Encoding", b"chunked")],
        [(b"sec-websocket-accept", b"a")],
        [(b"Sec-WebSocket-Extensions", b"permessage-deflate")],
        [(b"Sec-WebSocket-Protocol", b"not-offered")],
        5,
    ],
    ids=repr,
)
async def test_headers_that_cannot_be_sent_are_logged_and_give_500(
    headers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def judge(request: WsRequest) -> Any:
        return None, headers

    response, outcome = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 500 ")
    assert response.count(b"HTTP/1.1") == 1
    assert isinstance(outcome, trio_websocket.ConnectionRejected)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info


@pytest.mark.parametrize("status", [0, 101, 100, 199, 600, 1000, -1, "403", None, True], ids=repr)
async def test_a_refusal_with_an_invalid_status_is_logged_and_gives_500(
    status: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def judge(request: WsRequest) -> Any:
        raise trio_websocket.ConnectionRejected(status, (), None)

    response, outcome = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 500 ")
    assert outcome.status_code == 500
    assert caplog.records


@pytest.mark.parametrize(
    ("headers", "body"), [([(b"a", b"b\r\n")], None), ("a", None), ((), "text"), (None, None)]
)
async def test_a_refusal_that_cannot_be_sent_is_logged_and_gives_500(
    headers: Any, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def judge(request: WsRequest) -> Any:
        raise trio_websocket.ConnectionRejected(403, headers, body)

    response, _ = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 500 ")
    assert caplog.records


async def test_a_refusal_frames_itself_whatever_headers_it_has() -> None:
    async def judge(request: WsRequest) -> Any:
        headers = ((b"Content-Length", b"9"), (b"connection", b"keep-alive"), (b"A", b"b"))
        raise trio_websocket.ConnectionRejected(403, headers, b"No")

    response, _ = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response == (
        b"HTTP/1.1 403 Forbidden\r\nA: b\r\nConnection: close\r\nContent-Length: 2\r\n\r\nNo"
    )


async def test_a_refusal_in_a_group_of_the_hooks_nursery_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def judge(request: WsRequest) -> Any:
        async with trio.open_nursery(strict_exception_groups=True):
            raise ExceptionGroup("", [refusal(402, "Pay first.")])

    response, outcome = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 402 Payment Required\r\n")
    assert response.endswith(b"Pay first.\n")
    assert str(outcome) == "402 Payment Required: Pay first."
    assert not caplog.records


async def test_a_bug_beside_a_refusal_in_a_group_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def judge(request: WsRequest) -> Any:
        raise ExceptionGroup("", [LookupError("a bug"), refusal(402, "Pay first.")])

    response, _ = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 402 ")
    (record,) = caplog.records
    assert record.exc_info


@pytest.mark.parametrize("chosen", [None, "a"])
async def test_a_subprotocol_that_a_hook_names_in_a_header_is_the_connections(
    chosen: str | None,
) -> None:
    async def judge(request: WsRequest) -> Any:
        return chosen, [(b"sec-websocket-protocol", b"b")]

    response, (connection, _) = await answer_to(request(b"Sec-WebSocket-Protocol: a, b"), judge)
    assert response.lower().count(b"sec-websocket-protocol: b\r\n") == 1
    assert response.lower().count(b"sec-websocket-protocol") == 1
    assert connection.subprotocol == "b"


async def test_a_hook_that_answers_by_itself_and_then_fails_ends_the_handshake(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def judge(request: WsRequest) -> Any:
        await request.accept()
        raise LookupError("a bug")

    response, outcome = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.count(b"HTTP/1.1") == 1
    assert isinstance(outcome, HandshakeError)
    assert caplog.records


async def test_a_request_is_answered_only_once() -> None:
    async def judge(request: WsRequest) -> Any:
        await request.reject(403, body=b"No")
        for again in (request.reject(404), request.accept()):
            with pytest.raises(RuntimeError, match="has been answered"):
                await again
        return None, []

    response, outcome = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.count(b"HTTP/1.1") == 1
    assert (outcome.status_code, outcome.body) == (403, b"No")


async def test_a_request_can_be_answered_after_an_answer_that_cannot_be_sent() -> None:
    async def judge(request: WsRequest) -> Any:
        wrong: Awaitable[object]
        for wrong in (
            request.accept(subprotocol="not-offered"),
            request.accept(extra_headers=[(b"a b", b"c")]),
            request.reject(101),
            request.reject(403, extra_headers=[(b"a", b"\r\n")]),
        ):
            with pytest.raises(ValueError, match=r"."):
                await wrong
        return None, []

    response, _ = await answer_to(CLIENT_HANDSHAKE, judge)
    assert response.startswith(b"HTTP/1.1 101 ")


async def test_each_request_has_a_state_of_its_own() -> None:
    async def judge(request: WsRequest) -> Any:
        request.state.user = "me"
        return None, []

    _, (connection, first) = await answer_to(CLIENT_HANDSHAKE, judge)
    _, (_, second) = await answer_to(CLIENT_HANDSHAKE)
    assert first.state.user == "me"
    assert not hasattr(second.state, "user")
    assert isinstance(first, trio_websocket.WebSocketRequest)
    assert isinstance(connection, trio_websocket.WebSocketConnection)
    assert connection.path == "/"
    assert (b"host", b"localhost") in connection.handshake_headers


# What a client says


async def head_of(url: str = "ws://localhost/", **options: Any) -> bytes:
    head: list[bytes] = []
    async with client_of(head=head, url=url, **options):
        pass
    return head[0]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("ws://h/", b"h"),
        ("ws://h:80/", b"h"),
        ("ws://h:443/", b"h:443"),
        ("ws://h:/", b"h"),
        ("WS://H:8000/", b"h:8000"),
        ("ws://пример.рф:8000/", b"xn--e1afmkfd.xn--p1ai:8000"),
        ("ws://faß.de/", b"xn--fa-hia.de"),
        ("ws://straße.de:80/", b"xn--strae-oqa.de"),
        ("ws://BÜCHER/", b"xn--bcher-kva"),
        ("ws://" + "a" * 60 + ":8000/", b"a" * 60 + b":8000"),
        ("ws://db.internal.:81/", b"db.internal.:81"),
        ("ws://[::1]:8000/", b"[::1]:8000"),
        ("ws://[fe80::1%25eth0]:8000/", b"[fe80::1]:8000"),
        ("ws://[fe80::1%eth0]/", b"[fe80::1]"),
    ],
)
async def test_host_is_the_host_and_a_port_only_if_it_is_not_the_schemes(
    url: str, host: bytes
) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in await head_of(url)


async def test_a_user_agent_is_sent_unless_one_is_given() -> None:
    assert b"\r\nUser-Agent: trio-wsstream/" in await head_of()
    head = await head_of(extra_headers=[(b"user-agent", b"mine")])
    assert head.lower().count(b"user-agent") == 1
    assert b"\r\nuser-agent: mine\r\n" in head


async def test_a_host_among_the_headers_replaces_ours() -> None:
    head = await head_of(extra_headers=[(b"host", b"virtual:1")])
    assert head.lower().count(b"\r\nhost:") == 1
    assert b"\r\nhost: virtual:1\r\n" in head


@pytest.mark.parametrize(
    "name",
    [
        b"Upgrade",
        b"connection",
        b"Sec-WebSocket-Key",
        b"Sec-WebSocket-Version",
        b"Sec-WebSocket-Protocol",
        b"Sec-WebSocket-Extensions",
        b"SEC-WEBSOCKET-ACCEPT",
        b"Sec-WebSocket-Anything",
        b"Content-Length",
        b"Transfer-Encoding",
    ],
)
async def test_a_header_of_the_handshake_itself_is_refused_by_name(name: bytes) -> None:
    with pytest.raises(ValueError, match=f"{name.decode()} must not be among extra_headers: "):
        make_request("a", "/", (), [(name, b"secret")])


@pytest.mark.parametrize(
    "subprotocols", [["a b"], ["a,b"], [""], ["ä"], ["a\r\nb"], [1], ["a", "a"], ["a/b"]]
)
async def test_a_subprotocol_that_is_no_token_is_refused(subprotocols: Any) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="subprotocol"):
        async with open_ws_stream("ws://a/", transport=ours, subprotocols=subprotocols):
            raise AssertionError("it was opened")
    assert await theirs.receive_some() == b""  # it was closed, and nothing was sent


@pytest.mark.parametrize(
    "header",
    [
        (b"X-Token", b"secret\r\n"),
        (b"X-Token", b"secret\0"),
        (b"X-Token", "secret"),
        (b"X Token", b"secret"),
        (b"X-Token", b" secret"),
        ("X-Token", b"secret"),
        b"X-Token: secret",
    ],
)
async def test_an_error_about_a_header_does_not_tell_its_value(header: Any) -> None:
    with pytest.raises(ValueError, match="subprotocols or extra_headers") as caught:
        make_request("a", "/", (), [header])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", [b"secret a", b"secret/a", b"me:secret@a", b"[::1]secret"])
async def test_a_host_among_the_headers_must_be_a_host(host: bytes) -> None:
    with pytest.raises(ValueError, match=r"Host must be a host, or a host and a port") as caught:
        make_request("a", "/", (), [(b"Host", host)])
    assert "secret" not in str(caught.value)


# What a refusal says


@pytest.mark.parametrize(
    ("rejection", "text"),
    [
        (trio_websocket.ConnectionRejected(403, (), None), "403 Forbidden"),
        (trio_websocket.ConnectionRejected(499, (), b"secret"), "499"),
        (refusal(403, "No."), "403 Forbidden: No."),
        (ConnectionRejected(403, (), b"", "Go Away"), "403 Go Away"),
        (
            ConnectionRejected(
                302, ((b"location", b"https://me:secret@a/login?token=secret#secret"),), b""
            ),
            "302 Found, Location: https://a/login",
        ),
    ],
)
def test_a_refusal_is_told_in_words(
    rejection: trio_websocket.ConnectionRejected, text: str
) -> None:
    assert reason_of(rejection) == text


def test_a_refusal_can_be_pickled() -> None:
    before = ConnectionRejected(403, ((b"a", b"b"),), b"c", "Go Away")
    after = pickle.loads(pickle.dumps(before))
    assert str(after) == str(before) == "403 Go Away"
    assert (after.status_code, after.headers, after.body) == (403, ((b"a", b"b"),), b"c")
