"""TLS over a socket: what the peer's TLS may do, and what only `TlsWire` has to care about."""

from __future__ import annotations

import gc
import os
import select
import shutil
import socket
import ssl
import subprocess
import weakref
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from tricycle import TextReceiveStream
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    ConnectionLost,
    StreamConfig,
    WsByteStream,
    WsListener,
    open_ws_stream,
)
from trio_wsstream._read_size import TLS_RECORD as RECORD
from trio_wsstream._tls import TlsWire, adapt
from trio_wsstream._transport import StreamWire

from .support.pairs import connection_pair, stream_pair
from .support.tasks import background, cancel_when_all_is_blocked
from .support.transports import (
    AUTHORITY,
    CLIENT_TLS,
    SERVER_TLS,
    memory_transport,
    old_tls_transport,
    over_tls,
    tcp_transport,
    tls_transport,
    unix_transport,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from pathlib import Path

MUCH = bytes(range(256)) * 40_000
"""More than a connection takes while its peer does not read."""


@asynccontextmanager
async def closed_in_the_end(
    opening: Awaitable[tuple[trio.abc.Stream, trio.abc.Stream]],
) -> AsyncGenerator[Any]:
    """Yield both ends of a transport, and close them after the block."""
    ends = await opening
    try:
        yield ends
    finally:
        for end in ends:
            await trio.aclose_forcefully(end)


@asynccontextmanager
async def tls_ends(
    *, small: bool = False, server_side: bool = False
) -> AsyncGenerator[tuple[TlsWire, trio.SSLStream[Any]]]:
    """Yield a wire over TLS, and the `trio.SSLStream` at the other end."""
    beneath = await (unix_transport if small else tcp_transport)()
    async with closed_in_the_end(over_tls(beneath)) as ends:
        ours, theirs = reversed(ends) if server_side else ends
        wire = adapt(ours)
        assert isinstance(wire, TlsWire)
        with trio.fail_after(30):
            yield wire, theirs


# Which transports have it


async def test_tls_1_3_over_a_socket_is_read_and_written_directly() -> None:
    """If this fails, the insides of `trio.SSLStream` have changed, and wss is slow."""
    for ends in await tls_transport(), await over_tls(await unix_transport()):
        for end in ends:
            assert isinstance(adapt(end), TlsWire)
            await trio.aclose_forcefully(end)


@pytest.mark.parametrize("kind", ["TLS 1.2", "memory", "before the handshake", "TLS in TLS"])
async def test_other_tls_goes_through_the_ssl_stream(kind: str) -> None:
    if kind == "TLS 1.2":
        ends = await old_tls_transport()
    elif kind == "memory":
        ends = await over_tls(await memory_transport())
    elif kind == "TLS in TLS":
        ends = await over_tls(await tls_transport())
    else:
        client, server = await tcp_transport()
        ends = (
            trio.SSLStream(client, CLIENT_TLS, server_hostname="localhost"),
            trio.SSLStream(server, SERVER_TLS, server_side=True),
        )
    for end in ends:
        assert type(adapt(end)) is StreamWire
        await trio.aclose_forcefully(end)


async def test_an_ssl_stream_that_is_broken_stays_broken() -> None:
    async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
        client, server = await connection_pair(nursery, ends)
        WsByteStream(server, nursery)  # It reads nothing but a little ahead.
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_all_is_blocked, scope)
            await client.send_message(MUCH)
        stream = WsByteStream(client, nursery)
        assert type(stream._wire) is StreamWire
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"inside the record that was cut off")


async def test_nothing_is_written_before_the_reader_of_trio_websocket_has_left_the_tls() -> None:
    async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
        client, _ = await connection_pair(nursery, ends)
        await wait_all_tasks_blocked(0.05)
        stream = WsByteStream(client, nursery)
        assert type(stream._wire) is TlsWire
        assert stream._writer.turn_is_taken
        await wait_all_tasks_blocked(0.01)
        assert not stream._writer.turn_is_taken


async def test_where_trio_websocket_is_still_sending_it_goes_through_the_ssl_stream() -> None:
    async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
        client, server = await connection_pair(nursery, ends)
        WsByteStream(server, nursery)  # It reads nothing but a little ahead.
        nursery.start_soon(client.send_message, MUCH)
        await wait_all_tasks_blocked(0.05)
        stream = WsByteStream(client, nursery)
        assert type(stream._wire) is StreamWire
        nursery.cancel_scope.cancel()


# Reading


@pytest.mark.parametrize("size", [1, 100, RECORD, RECORD + 1, 3 * RECORD, 10 * RECORD])
async def test_a_read_gives_all_records_that_have_come_but_no_more_than_was_asked_for(
    size: int,
) -> None:
    data = bytes(range(256)) * 250  # four records, of which the last is not full
    async with tls_ends(server_side=True) as (wire, peer):
        await peer.send_all(data)
        await wait_all_tasks_blocked(0.05)
        pieces = []
        while sum(map(len, pieces)) < min(len(data), 100 * size):
            pieces.append(await wire.receive_some(size))
        assert data.startswith(b"".join(pieces))
        assert max(map(len, pieces)) <= size
        assert len(pieces[0]) >= min(size, len(data)) // RECORD * RECORD


async def test_a_record_that_is_left_in_a_buffer_is_readable() -> None:
    async with tls_ends(server_side=True) as (wire, peer):
        assert not wire.is_readable()
        await peer.send_all(b"12")
        await peer.send_all(b"34")
        await wait_all_tasks_blocked(0.05)
        assert wire.is_readable()
        received = await wire.receive_some(1)
        while len(received) < 4:
            assert wire.is_readable()
            received += await wire.receive_some(1)
        assert received == b"1234"
        assert not wire.is_readable()


async def test_what_the_ssl_stream_has_read_and_not_returned_is_read_first() -> None:
    async with closed_in_the_end(tls_transport()) as (ours, theirs):
        await theirs.send_all(b"1234")
        assert await ours.receive_some(2) == b"12"
        wire = adapt(ours)
        assert isinstance(wire, TlsWire)
        assert wire.is_readable()
        with trio.fail_after(30):
            assert await wire.receive_some(100) == b"34"


@pytest.mark.parametrize("has_said_goodbye", [True, False])
async def test_the_end_comes_after_the_data_and_stays(has_said_goodbye: bool) -> None:
    async with tls_ends() as (wire, peer):
        await peer.send_all(b"data")
        peer._https_compatible = not has_said_goodbye
        await peer.aclose()
        await wait_all_tasks_blocked(0.05)
        assert await wire.receive_some(100) == b"data"
        assert wire.is_readable()
        assert await wire.receive_some(100) == b""
        assert await wire.receive_some(100) == b""


async def test_an_end_of_tcp_alone_is_an_error_where_the_ssl_stream_has_it_so() -> None:
    async with tls_ends() as (wire, peer):
        wire._stream._https_compatible = False
        await peer.send_all(b"data")
        await peer.transport_stream.aclose()
        assert await wire.receive_some(100) == b"data"
        for _ in range(2):
            with pytest.raises(ssl.SSLEOFError):
                await wire.receive_some(100)


async def test_bytes_that_are_no_tls_are_an_error_after_the_data_before_them() -> None:
    async with tls_ends() as (wire, peer):
        await peer.send_all(b"data")
        await peer.transport_stream.send_all(b"no record of TLS" * 10)
        await wait_all_tasks_blocked(0.05)
        assert await wire.receive_some(100) == b"data"
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match="WRONG_VERSION_NUMBER"):
                await wire.receive_some(100)
        with pytest.raises(trio.BrokenResourceError) as told:
            await peer.receive_some()
        assert "alert" in str(told.value.__cause__).lower()


@pytest.mark.parametrize("https_compatible", [True, False])
async def test_an_error_of_reading_does_not_keep_the_stream(https_compatible: bool) -> None:
    async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
        for end in ends:
            end._https_compatible = https_compatible
        client, _ = await connection_pair(nursery, ends)
        stream = WsByteStream(client, nursery)
        await wait_all_tasks_blocked(0.05)
        ends[1].transport_stream.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        gc.disable()
        try:
            reference = weakref.ref(stream)
            del stream, client
            await wait_all_tasks_blocked(0.01)
            assert reference() is None
        finally:
            gc.enable()


async def test_records_without_data_leave_other_tasks_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = 0
    wait_readable = trio.lowlevel.wait_readable

    async def count(sock: Any) -> None:
        nonlocal waits
        waits += 1
        await wait_readable(sock)

    async with tls_ends(server_side=True) as (wire, peer):
        await peer.send_all(bytes(100_000))
        read, reads = os.read, []
        monkeypatch.setattr(TlsWire, "_decrypt", lambda *_: None if reads[-1] else b"")
        monkeypatch.setattr(os, "read", lambda *how: reads.append(read(*how)) or reads[-1])
        monkeypatch.setattr(trio.lowlevel, "wait_readable", count)
        await peer.aclose()
        wire._has_more = False
        assert await wire.receive_some(1000) == b""
        assert len(reads) > 5
        assert waits >= len(reads) - 1


class WatchedBuffer:
    """An `ssl.MemoryBIO`, and the most bytes that were ever in it. Its memory never shrinks."""

    def __init__(self, buffer: ssl.MemoryBIO) -> None:
        self._buffer = buffer
        self.write_eof = buffer.write_eof
        self.most = 0

    @property
    def pending(self) -> int:
        self.most = max(self.most, self._buffer.pending)
        return self._buffer.pending

    def write(self, data: Any) -> int:
        count = self._buffer.write(data)
        assert self.pending
        return count

    def read(self) -> bytes:
        return self._buffer.read(self.pending)


@pytest.mark.parametrize("chunk", [1000, 65536, 1_000_000])
async def test_no_more_than_two_records_are_in_a_buffer_of_tls_at_once(chunk: int) -> None:
    data = bytes(range(256)) * 4000
    async with tls_ends() as (wire, peer), trio.open_nursery() as nursery:
        wire._incoming = incoming = WatchedBuffer(wire._incoming)  # type: ignore[assignment]
        wire._outgoing = outgoing = WatchedBuffer(wire._outgoing)  # type: ignore[assignment]

        async def echo() -> None:
            with memoryview(data) as view:
                for start in range(0, len(view), chunk):
                    await peer.send_all(view[start : start + chunk])
            received = b""
            while len(received) < len(data):
                received += await peer.receive_some()
            assert received == data

        nursery.start_soon(echo)
        received = b""
        while len(received) < len(data):
            received += await wire.receive_some(100_000)
        assert received == data
        with memoryview(data) as view:
            for start in range(0, len(view), chunk):
                await wire.write((b"", view[start : start + chunk]))
    assert 0 < incoming.most <= 2 * RECORD + 150  # with what each record adds
    assert 0 < outgoing.most <= 2 * RECORD + 150


# What TLS has to say itself


async def test_a_client_answers_when_the_server_asks_for_its_certificate() -> None:
    """The handshake is over, and the client need not write anything by itself (RFC 8446, 4.6.2)."""
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client_tls = ssl.create_default_context()
    AUTHORITY.configure_trust(server_tls)
    AUTHORITY.configure_trust(client_tls)
    AUTHORITY.issue_cert("localhost").configure_cert(server_tls)
    AUTHORITY.issue_cert("client.example").configure_cert(client_tls)
    client_tls.post_handshake_auth = server_tls.post_handshake_auth = True
    server_tls.verify_mode = ssl.CERT_OPTIONAL
    ours, theirs = await tcp_transport()
    client = trio.SSLStream(ours, client_tls, server_hostname="localhost")
    server: Any = trio.SSLStream(theirs, server_tls, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    wire = adapt(client)
    assert isinstance(wire, TlsWire)
    server_tls.verify_mode = ssl.CERT_REQUIRED
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.receive_some, 100)
            server._ssl_object.verify_client_post_handshake()
            nursery.start_soon(server.receive_some)  # sends the question, and takes the answer
            certificate = None
            while not certificate:
                await wait_all_tasks_blocked(0.01)
                with suppress(ValueError):  # It has not come yet.
                    certificate = server.getpeercert()
            nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl program")
@pytest.mark.parametrize("is_blocked", [False, True])
async def test_new_keys_of_the_peer_are_taken_and_answered(
    is_blocked: bool, tmp_path: Path
) -> None:
    """OpenSSL's program can ask for other keys (RFC 8446, 4.6.3), which Python's ssl cannot."""
    certificate = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate.write_to_path(str(tmp_path / "certificate.pem"))
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-msg"]
    command += ["-cert", "certificate.pem"]
    start = partial(trio.run_process, command, cwd=tmp_path, check=False)
    async with background() as nursery:
        with trio.fail_after(30):
            process = await nursery.start(
                partial(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            said = TextReceiveStream(process.stdout)
            while not (line := await said.receive_line()).startswith("ACCEPT "):
                assert line
            tcp = await trio.open_tcp_stream("127.0.0.1", int(line.rpartition(":")[2]))
            client = trio.SSLStream(tcp, CLIENT_TLS, server_hostname="localhost")
            await client.do_handshake()
            wire = adapt(client)
            assert isinstance(wire, TlsWire)
            await process.stdin.send_all(b"hello\n")
            assert await wire.receive_some(100) == b"hello\n"  # after the session tickets
            if is_blocked:
                (wire.rest,) = wire._encrypt(b"what was not sent yet\n")
            await process.stdin.send_all(b"K\n")
            await trio.lowlevel.wait_readable(tcp.socket)
            await process.stdin.send_all(b"there\n")
            assert await wire.receive_some(100) == b"there\n"
            await wire.write((b"header", b" and payload\n"))
            await client.aclose()
            # The program says this only when it ends, because its output is buffered.
            words = ("not sent yet", "KeyUpdate", "payload")
            lines = [line.strip() async for line in said if any(word in line for word in words)]
            expected = [">>> TLS 1.3, Handshake [length 0005], KeyUpdate"]
            expected += ["what was not sent yet"] * is_blocked
            expected += ["<<< TLS 1.3, Handshake [length 0005], KeyUpdate"]
            assert lines == [*expected, "header and payload"]


@pytest.mark.parametrize("small", [False, True])
async def test_a_server_sends_its_session_tickets_with_its_first_frame(small: bool) -> None:
    async with tls_ends(server_side=True, small=small) as (wire, peer):
        assert not peer.session.has_ticket
        assert wire.write_now(b"a frame") == b""
        assert await peer.receive_some() == b"a frame"
        assert peer.session.has_ticket


async def test_an_answer_of_tls_that_does_not_fit_into_the_socket_goes_before_the_next_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with tls_ends(server_side=True) as (wire, peer):
        wire._tls.write(b"an answer, ")
        await peer.send_all(b"a question")
        with monkeypatch.context() as full:
            write = os.write
            full.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
            assert await wire.receive_some(100) == b"a question"
        assert not wire.rest
        await wire.write((b"a ", b"frame"))
        received = b""
        while not received.endswith(b"frame"):
            received += await peer.receive_some()
        assert received == b"an answer, a frame"


async def test_a_peer_that_asks_and_takes_no_answers_is_given_up() -> None:
    async with tls_ends(server_side=True) as (wire, peer):
        wire.rest = b"what the socket does not take"
        wire._outgoing.write(bytes(100_000))
        await peer.send_all(b"data")
        for _ in range(2):
            with pytest.raises(ssl.SSLError, match="asks for new keys"):
                await wire.receive_some(100)


# Writing


async def test_what_does_not_fit_into_the_socket_is_kept_and_goes_out_in_order() -> None:
    async with tls_ends(small=True) as (wire, peer), trio.open_nursery() as nursery:
        assert wire.write_now(MUCH) == b""
        assert wire.rest
        assert wire.write_now(b"another") == b"another"
        nursery.start_soon(wire.write, (b"header", b"payload"))
        received = b""
        while len(received) < len(MUCH) + 13:
            received += await peer.receive_some()
        assert received == MUCH + b"headerpayload"
        assert not wire.rest


@pytest.mark.parametrize("size", [RECORD - 6, RECORD - 5, 4 * RECORD, 5 * RECORD - 6])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_a_frame_fills_records(size: int, kind: Any) -> None:
    payload = (bytes(range(256)) * 400)[:size]
    async with tls_ends() as (wire, peer), trio.open_nursery() as nursery:
        nursery.start_soon(wire.write, (b"header", kind(payload), b"second", kind(payload)))
        pieces = []
        while sum(map(len, pieces)) < 2 * (size + 6):
            pieces.append(await peer.receive_some(100_000))
        assert b"".join(pieces) == (b"header" + payload + b"second" + payload)
        full, rest = divmod(size + 6, RECORD)
        assert [len(piece) for piece in pieces] == 2 * ([RECORD] * full + [rest] * bool(rest))


async def test_on_a_slow_line_nothing_is_encrypted_before_the_socket_takes_it() -> None:
    async with tls_ends(small=True) as (wire, peer):
        wire.limit = 1000
        written = 0
        with trio.move_on_after(0.05):
            while True:
                await wire.write((b"header", b"payload"))
                written += 13
        assert not wire.rest
        with trio.move_on_after(0.01) as scope:
            await wire.write((b"not", b"begun"))
        assert scope.cancelled_caught
        received = b""
        while len(received) < written:
            received += await peer.receive_some()
        assert received == b"headerpayload" * (written // 13)
        await wire.write((b"the", b"next"))
        assert await peer.receive_some() == b"thenext"


async def test_a_socket_that_is_closed_on_a_slow_line_is_a_failure() -> None:
    async with tls_ends() as (wire, _):
        wire.limit = 1000
        await wire.aclose_forcefully()
        with pytest.raises(trio.BrokenResourceError, match="Bad file descriptor"):
            await wire.write((b"header", b"payload"))
        assert not wire.rest


# The stream


async def test_what_the_reader_of_trio_websocket_leaves_in_a_buffer_is_received() -> None:
    """It may have been woken before the takeover, and it takes only a part of what it reads."""
    for _ in range(8):  # In some of them it has not been woken yet.
        async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
            client, server = await connection_pair(nursery, ends)
            await wait_all_tasks_blocked(0.02)
            peer = WsByteStream(server, nursery)
            await wait_all_tasks_blocked(0.02)
            await peer.send_all(bytes(20_000))
            # The bytes arrive while no task runs, unless the reader has them already.
            select.select([ends[0].transport_stream.socket], [], [], 0.02)
            stream = WsByteStream(client, nursery)
            received = 0
            with trio.fail_after(30):
                while received < 20_000:
                    received += len(await stream.receive_some())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["end of TCP", "no TLS"])
async def test_a_long_message_that_is_blocked_when_tls_breaks_raises_what_trio_raises(
    how: str,
) -> None:
    async with closed_in_the_end(tls_transport()) as ends, background() as nursery:
        client, server = await connection_pair(nursery, ends)
        WsByteStream(server, nursery)  # It reads nothing but a little ahead.
        stream = WsByteStream(client, nursery, StreamConfig(max_message_size=1 << 30))
        beneath = ends[1].transport_stream

        async def break_tls() -> None:
            await wait_all_tasks_blocked(0.05)
            await (beneath.send_eof() if how == "end of TCP" else beneath.send_all(b"no TLS" * 20))

        nursery.start_soon(break_tls)
        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError) as told:
            await stream.send_all(MUCH)
        assert isinstance(told.value.__cause__, ConnectionLost)


@pytest.mark.parametrize("how", ["open_ws_stream", "wrap_websocket"])
@pytest.mark.parametrize("size", [60_000, 10_000_000])
async def test_a_cancelled_send_over_tls_leaves_the_stream_whole(size: int, how: str) -> None:
    async with pair_over_tls(how) as (client, server), trio.open_nursery() as nursery:
        data = (bytes(range(256)) * 40_000)[:size]
        sent = 0
        while True:
            with trio.move_on_after(0.05) as scope:
                await client.send_all(data)
            if scope.cancelled_caught:
                break
            sent += size
        nursery.start_soon(client.send_all, b"after")
        received = b""
        with trio.fail_after(30):
            while not received.endswith(b"after"):
                received += await server.receive_some()
            assert await client.ping() > 0
            await client.aclose()
        whole = received[: -len(b"after")]
        assert len(whole) >= sent
        assert whole == (data * (len(whole) // size + 1))[: len(whole)]
        assert client.closed is not None
        assert client.closed.clean


@asynccontextmanager
async def pair_over_tls(how: str) -> AsyncGenerator[tuple[WsByteStream, WsByteStream]]:
    """Yield both ends of a WebSocket over TLS: the client, and the server."""
    async with background() as nursery:
        if how == "wrap_websocket":
            yield await stream_pair(nursery, "tls")
            return
        (listener,) = await trio.open_ssl_over_tcp_listeners(0, SERVER_TLS, host="127.0.0.1")
        ws_listener = WsListener(listener, nursery)
        accepted = []

        async def accept() -> None:
            accepted.append(await ws_listener.accept())

        async with trio.open_nursery() as opening:
            opening.start_soon(accept)
            url = f"wss://127.0.0.1:{ws_listener.port}/"
            async with open_ws_stream(url, CLIENT_TLS) as client:
                await wait_all_tasks_blocked(0.05)
                yield client, accepted[0]
        await ws_listener.aclose()
