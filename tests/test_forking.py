"""TCP ends with the stream, also while a process that was forked meanwhile has the socket, too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from trio_wsstream import StreamClosed, WsByteStream

from .support.frames import CLOSE, TEXT, close_payload
from .support.handshakes import handshake
from .support.pairs import stream_pair
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background
from .support.transports import CLIENT_TLS, SERVER_TLS, tcp_transport

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


@contextmanager
def forked_child() -> Iterator[None]:
    """A child that lives as long as this block, and has all files that were open before it."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads: the child does next to nothing
        pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    try:
        yield
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)


async def closes(stream: WsByteStream, peer: RawPeer) -> None:
    with trio.move_on_after(0.05):  # the peer never answers
        await stream.aclose()


async def is_dropped(stream: WsByteStream, peer: RawPeer) -> None:
    await trio.aclose_forcefully(stream)


async def is_dropped_by_its_connection(stream: WsByteStream, peer: RawPeer) -> None:
    await stream.connection.aclose()


async def fails(stream: WsByteStream, peer: RawPeer) -> None:
    await peer.send(TEXT)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with trio.move_on_after(0.05):
        await stream.aclose()


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("end", [closes, is_dropped, is_dropped_by_its_connection, fails])
async def test_the_peer_sees_the_end_of_tcp_however_the_stream_ends(
    end: Callable[[WsByteStream, RawPeer], Awaitable[None]], transport: str, client: bool
) -> None:
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, transport, client=client)
        with forked_child(), trio.fail_after(4):
            await end(stream, peer)
            await until_tcp_ends(peer.transport)


async def until_tcp_ends(transport: Any) -> None:
    try:
        while await transport.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("closer", ["client", "server", "both"])
async def test_both_ends_close_without_waiting_for_a_child_of_either(
    closer: str, transport: str
) -> None:
    async with background() as nursery:
        client, server = await stream_pair(nursery, transport)
        await client.send_all(b"before")
        with forked_child(), trio.fail_after(4):
            async with trio.open_nursery() as closing:
                if closer != "server":
                    closing.start_soon(client.aclose)
                if closer != "client":
                    closing.start_soon(server.aclose)
            async for _ in client.subscribe(kinds=()):
                pass
        assert client.closed == StreamClosed(1000, "", True, None)


async def test_no_descriptor_is_needed_to_end_tcp_over_a_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dup(_: object) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(trio._socket._SocketType, "dup", dup)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp")
        with forked_child(), trio.fail_after(4):
            await trio.aclose_forcefully(stream)
            await until_tcp_ends(peer.transport)


async def test_tls_says_goodbye_before_its_tcp_is_shut_down() -> None:
    client_end, server_end = await tcp_transport()
    client_tls = trio.SSLStream(client_end, CLIENT_TLS, server_hostname="localhost")
    server_tls = trio.SSLStream(server_end, SERVER_TLS, server_side=True)
    async with background() as nursery:
        connection = await handshake(nursery, server_tls, client_tls, client=False)
        stream = WsByteStream(connection, nursery)
        peer = RawPeer(client_tls, masked=True)
        with forked_child(), trio.fail_after(4):
            nursery.start_soon(stream.aclose)
            assert await peer.receive() == (CLOSE, close_payload(1000))
            await peer.send(CLOSE, close_payload(1000))
            await peer.expect_eof()  # not a BrokenResourceError, which says that it is truncated
        await trio.aclose_forcefully(client_tls)
