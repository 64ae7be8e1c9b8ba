"""``trio-wsstream`` as functions, in this process: who is let in, what is carried, how it ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from trio_websocket import ConnectionRejected

from trio_wsstream import AbnormalClosure, WsByteStream, open_ws_stream, serve_ws
from trio_wsstream.command import life, listen, log, serve
from trio_wsstream.command.addresses import (
    connect_to,
    is_local,
    listen_on,
    parse_listening,
    parse_target,
)
from trio_wsstream.command.connections import Counters
from trio_wsstream.command.options import UsageError, parse

from .support.echoing import DATA, ask, assert_echoes, echo_server
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import AUTHORITY, CLIENT_TLS, reset


@pytest.fixture(autouse=True)
def _hear_all(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream.command.log")
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


class Running:
    """A server that runs in this process.

    Attributes:
      server (life.Server): it.
      port (int): where it listens; 0 on a Unix socket.
      code (int or None): its exit code, once it has ended.
    """

    def __init__(self, server: life.Server, port: int) -> None:
        self.server = server
        self.port = port
        self.code: int | None = None
        self.ended = trio.Event()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    async def run(self, sockets: list[socket.socket]) -> None:
        self.code = await life.live(self.server, sockets)
        self.ended.set()

    async def wait(self) -> int | None:
        with trio.fail_after(10):
            await self.ended.wait()
        return self.code


@asynccontextmanager
async def running(*arguments: str, prepared: Any = None) -> AsyncGenerator[Running, None]:
    """Run ``serve`` or ``listen``, as the arguments say."""
    options = parse(arguments)
    sockets = listen_on(options.address)
    name = sockets[0].getsockname()
    if options.job == "serve":
        serve.check_open(options, sockets)
        server: life.Server = serve.Gateway(options, Counters(1), None)
    else:
        listen.client.prepare(options)
        server = listen.LocalServer(options, Counters(1), None)
    program = Running(server, name[1] if isinstance(name, tuple) else 0)
    with trio.fail_after(20):
        async with background() as nursery:
            nursery.start_soon(program.run, sockets)
            await trio.testing.wait_all_tasks_blocked()
            yield program


@asynccontextmanager
async def target() -> AsyncGenerator[tuple[trio.SocketListener, str], None]:
    """What is connected to, and its address."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener, f"127.0.0.1:{listener.socket.getsockname()[1]}"


async def status_of(url: str, *headers: tuple[bytes, bytes], **more: Any) -> tuple[int, str]:
    """The status of the answer to an opening handshake, and the body of a refusal."""
    try:
        async with open_ws_stream(url, extra_headers=headers, **more):
            return 101, ""
    except ConnectionRejected as rejection:
        return rejection.status_code, (rejection.body or b"").decode()


async def http(port: int, request: bytes) -> bytes:
    """The answer to a plain HTTP request."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        return await receive_all(stream)


async def said(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Wait for a line with ``text`` in it; the line."""
    with trio.fail_after(30):
        while True:
            for line in caplog.messages:
                if text in line:
                    return line
            await trio.sleep(0.01)


# What is carried


async def test_bytes_and_half_closes_go_through_both_halves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address) as serving,
        running("listen", "0", serving.url) as listening,
        await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
    ):
        assert await ask(client) == DATA
        line = await said(caplog, f"/ to {address}: {len(DATA)} bytes there, {len(DATA)} back")
        assert line.startswith("#1 127.0.0.1:")
        assert line.endswith(" s: both directions ended")
        await said(caplog, f"to {serving.url}: {len(DATA)} bytes there, {len(DATA)} back")


async def test_unix_sockets_at_both_ends(
    socket_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = socket_folder / "target.sock"
    sockets = listen_on(parse_listening(f"unix:{path}"))
    async with (
        trio.SocketListener(trio.socket.from_stdlib_socket(sockets[0])) as listener,
        running("serve", f"unix:{socket_folder}/gateway.sock", f"unix:{path}"),
        open_ws_stream(
            "ws://localhost/", transport=await trio.open_unix_socket(socket_folder / "gateway.sock")
        ) as client,
        await listener.accept() as far,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(far.send_all, b"hello")
        assert await client.receive_some() == b"hello"
        await far.send_eof()
        await client.send_eof()
        assert await receive_all(far) == b""
        await said(caplog, f"#1 unix / to unix:{path}: 0 bytes there, 5 back")


async def test_a_socket_that_was_there_before_is_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with (
            echo_server() as address,
            running("serve", f"fd:{os.dup(sock.fileno())}", address),
            open_ws_stream(f"ws://127.0.0.1:{port}/") as client,
        ):
            assert await ask(client) == DATA


def test_an_abandoned_unix_socket_is_replaced_and_one_in_use_is_not(socket_folder: Path) -> None:
    address = parse_listening(f"unix:{socket_folder}/sock")
    (first,) = listen_on(address)
    with pytest.raises(
        OSError, match=f"cannot listen on unix:{socket_folder}/sock: Address already"
    ):
        listen_on(address)
    first.close()
    (second,) = listen_on(address)
    second.close()


def test_a_descriptor_that_does_not_listen_is_told() -> None:
    with pytest.raises(OSError, match="cannot listen on fd:999: Bad file descriptor; is it passed"):
        listen_on(parse_listening("fd:999"))
    with socket.socket() as sock, pytest.raises(OSError, match="it is not listening"):
        listen_on(parse_listening(f"fd:{sock.fileno()}"))


@pytest.mark.parametrize("half", ["serve", "listen"])
async def test_the_kernel_looks_after_a_tcp_side_that_may_vanish(half: str) -> None:
    async with (
        target() as (listener, address),
        running("serve", "0", address) as serving,
        running("listen", "0", serving.url) as listening,
        await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
        await listener.accept() as far,
    ):
        await client.send_all(b"x")
        await far.receive_some()
        program = serving if half == "serve" else listening
        (connection,) = program.server.connections.open
        assert connection.ws is not None
        peer = (far if half == "serve" else client).socket.getsockname()
        assert keepalive_of_sockets_connected_to(peer) == [(1, 60)]


def keepalive_of_sockets_connected_to(name: Any) -> list[tuple[int, int]]:
    """Return for each socket to that peer: is keepalive on, and after how many idle seconds."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(entry))) as sock:
                if sock.getpeername() == name:
                    is_on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    idle = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                    found.append((is_on, idle))
        except OSError:
            pass  # It is no socket, or is not connected.
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_an_ip_address_and_a_name_are_connected_to(host: str) -> None:
    try:
        (sock, *_) = listen_on(parse_listening(f"{host}:0"))
    except OSError:
        pytest.skip("no IPv6 here")
    async with trio.SocketListener(trio.socket.from_stdlib_socket(sock)) as listener:
        port = sock.getsockname()[1]
        async with (
            await connect_to(parse_target(f"{host}:{port}")) as stream,
            await listener.accept() as far,
        ):
            await far.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_a_connection_to_an_ip_address_that_fails_or_is_cancelled_leaves_no_socket() -> None:
    with pytest.raises(OSError, match="refused"):
        await connect_to(parse_target("127.0.0.1:1"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await connect_to(parse_target("127.0.0.1:1"))
    assert scope.cancelled_caught  # An open socket would be a ResourceWarning, which fails a test.


# Target before answer


async def test_a_target_that_refuses_is_told_by_502_and_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with target() as (_, address):
        pass  # Nobody listens there any more.
    async with running("serve", "0", address) as serving:
        assert await status_of(serving.url) == (502, "connection refused by the target\n")
        line = await said(caplog, "refused with 502: connection refused by the target")
        assert f" / to {address}: refused" in line
        async with (
            running("listen", "0", serving.url) as listening,
            await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
        ):
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(client)
            line = await said(caplog, "cannot connect: ")
            assert "the server answered 502: connection refused by the target" in line


async def test_a_name_that_no_host_can_have_is_told_by_502(socket_folder: Path) -> None:
    for name in ("a..b:80", "nowhere.invalid:80", f"unix:{socket_folder}/nothing"):
        async with running("serve", "0", name) as serving:
            status, body = await status_of(serving.url)
            assert status == 502
            assert body.startswith("the target cannot be reached: ")


async def test_a_target_that_does_not_answer_is_told_by_504(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(serve.addresses, "connect_to", never)
    async with running("serve", "0", "x:1", "--connect-timeout", "50ms") as serving:
        assert await status_of(serving.url) == (504, "the target did not answer within 0.05 s\n")


async def test_routes_pick_the_target_by_the_path() -> None:
    async with echo_server() as address, echo_server() as elsewhere:
        routes = ["--route", f"/db={address}"]
        async with running("serve", "0", *routes) as serving:
            assert (await status_of(serving.url))[0] == 404
            async with open_ws_stream(serving.url + "db?x=1") as client:
                assert await ask(client, b"hello") == b"hello"
        async with running("serve", "0", elsewhere, *routes) as serving:
            assert (await status_of(serving.url))[0] == 101
            async with open_ws_stream(serving.url + "db") as client:
                assert await ask(client, b"hello") == b"hello"


# No open relay


@pytest.mark.parametrize("address", ["0.0.0.0:0", "*:0", "[::]:0"])
def test_serve_is_no_open_relay_by_mistake(address: str) -> None:
    options = parse(["serve", address, "db:5432"])
    try:
        sockets = listen_on(options.address)
    except OSError:
        pytest.skip("no IPv6 here")
    with pytest.raises(UsageError, match=r"--token-file or --client-ca .* --open"):
        serve.check_open(options, sockets)
    for sock in sockets:
        sock.close()


def test_an_operator_may_say_that_everybody_may_and_is_warned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = parse(["serve", "0.0.0.0:0", "db:5432", "--open"])
    (sock,) = listen_on(options.address)
    with sock:
        serve.check_open(options, [sock])
    assert "everybody who reaches 0.0.0.0:" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("family", "host", "expected"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.5.0.1", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
    ],
)
def test_what_is_loopback(family: int, host: str, expected: bool) -> None:
    try:
        with socket.socket(family) as sock:
            sock.bind((host, 0))
            assert is_local(sock) is expected
    except OSError:
        pytest.skip("no IPv6 here")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("alice secret-of-alice\nbob secret-of-bob\n")
    return path


def bearer(token: bytes) -> tuple[bytes, bytes]:
    return b"Authorization", b"Bearer " + token


async def test_a_token_is_demanded_and_its_name_is_logged(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address, f"--token-file={tokens}") as it,
    ):
        assert await status_of(it.url) == (401, "a bearer token is needed\n")
        for wrong in (b"secret", b"x", b"secret-of-alicex", "sécret".encode("latin-1")):
            assert (await status_of(it.url, bearer(wrong)))[0] == 401
        basic = (b"Authorization", b"Basic secret-of-bob")
        assert (await status_of(it.url, basic))[0] == 401
        twice = [bearer(b"secret-of-bob")] * 2
        assert (await status_of(it.url, *twice))[0] == 401
        async with open_ws_stream(it.url, extra_headers=[bearer(b"secret-of-bob")]) as client:
            assert await ask(client, b"hello") == b"hello"
        await said(caplog, f"(bob) / to {address}: 5 bytes there")
    assert "secret" not in caplog.text


async def test_a_client_sends_the_token_in_its_file(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("secret-of-alice\n")
    async with (
        echo_server() as address,
        running("serve", "0", address, f"--token-file={tokens}") as serving,
        running("listen", "0", serving.url, f"--token-file={tmp_path}/mine") as listening,
        await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
    ):
        assert await ask(client, b"hello") == b"hello"


async def test_sighup_has_a_client_read_its_token_again(
    tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = trio.Path(tmp_path / "mine")
    await mine.write_text("not-known\n")
    async with (
        echo_server() as address,
        running("serve", "0", address, f"--token-file={tokens}") as serving,
        running("listen", "0", serving.url, f"--token-file={mine}") as listening,
    ):
        async with await trio.open_tcp_stream("127.0.0.1", listening.port) as client:
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(client)
        assert (
            "is the one in --token-file, or in TRIO_WSSTREAM_TOKEN, the right one?" in caplog.text
        )
        await mine.write_text("secret-of-alice\n")
        signal.raise_signal(signal.SIGHUP)
        await said(caplog, "have been read again")
        async with await trio.open_tcp_stream("127.0.0.1", listening.port) as client:
            assert await ask(client, b"hello") == b"hello"


async def test_listen_finishes_opening_what_it_has_accepted_before_sigterm() -> None:
    may_answer = trio.Event()

    async def accept(_: object) -> None:
        await may_answer.wait()

    async def answer(stream: WsByteStream) -> None:
        await stream.send_all((await receive_all(stream))[::-1])

    async with background() as nursery:
        (far,) = await nursery.start(partial(serve_ws, answer, "127.0.0.1", 0, accept=accept))
        async with (
            running("listen", "0", f"ws://127.0.0.1:{far.port}/") as listening,
            await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
        ):
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            may_answer.set()
            assert await ask(client, b"abc") == b"cba"
            assert await listening.wait() == 0


async def test_sighup_reads_the_tokens_again_and_keeps_them_if_they_are_wrong(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address, f"--token-file={tokens}") as it,
    ):
        await trio.Path(tokens).write_text("carol secret-of-carol\n")
        signal.raise_signal(signal.SIGHUP)
        await said(caplog, "have been read again")
        assert (await status_of(it.url, bearer(b"secret-of-bob")))[0] == 401
        assert (await status_of(it.url, bearer(b"secret-of-carol")))[0] == 101
        await trio.Path(tokens).write_text("carol\n")
        signal.raise_signal(signal.SIGHUP)
        await said(caplog, "what was read before stays: line 1 of")
        assert (await status_of(it.url, bearer(b"secret-of-carol")))[0] == 101
    assert "secret" not in caplog.text


def write_certificate(folder: Path, authority: trustme.CA = AUTHORITY) -> list[str]:
    """A server's, with its options."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(b.bytes() for b in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return [f"--cert={folder}/cert.pem", f"--key={folder}/key.pem"]


async def test_a_client_certificate_is_demanded_and_its_subject_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = write_certificate(tmp_path)
    clients = trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    alice = clients.issue_cert("alice@example.com", common_name="alice")
    alice.private_key_and_cert_chain_pem.write_to_path(tmp_path / "alice.pem")
    client_ca = f"--client-ca={tmp_path}/clients.pem"
    async with echo_server() as address, running("serve", "0", address, *tls, client_ca) as it:
        url = f"wss://localhost:{it.port}/"
        ca = f"--ca={tmp_path}/ca.pem"
        for own, is_admitted in ((f"--cert={tmp_path}/alice.pem", True), ("-v", False)):
            async with (
                running("listen", "0", url, ca, own) as listening,
                await trio.open_tcp_stream("127.0.0.1", listening.port) as client,
            ):
                if is_admitted:
                    assert await ask(client, b"hello") == b"hello"
                    line = await said(caplog, f"to {address}: 5 bytes there")
                    assert "CN=alice" in line
                else:
                    with pytest.raises(trio.BrokenResourceError):
                        await receive_all(client)


async def test_sighup_replaces_the_certificate_for_new_connections_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = write_certificate(tmp_path)
    async with echo_server() as address, running("serve", "0", address, *tls) as it:
        url = f"wss://localhost:{it.port}/"
        async with open_ws_stream(url, CLIENT_TLS) as before:
            other = trustme.CA()
            write_certificate(tmp_path, other)
            signal.raise_signal(signal.SIGHUP)
            await said(caplog, "have been read again")
            trusting = ssl.create_default_context()
            other.configure_trust(trusting)
            async with open_ws_stream(url, trusting) as after:
                assert await ask(after, b"new") == b"new"
            assert await ask(before, b"old") == b"old"
            (tmp_path / "key.pem").write_text("nonsense")
            signal.raise_signal(signal.SIGHUP)
            await said(caplog, "what was read before stays: cannot use --key ")
            async with open_ws_stream(url, trusting) as after:
                assert await ask(after, b"still") == b"still"


async def test_the_certificate_may_have_another_name_than_the_url(tmp_path: Path) -> None:
    tls = write_certificate(tmp_path)
    async with (
        echo_server() as address,
        running("serve", "0", address, *tls) as it,
        running(
            "listen",
            "0",
            f"wss://127.0.0.2:{it.port}/",
            f"--ca={tmp_path}/ca.pem",
            "--server-name=localhost",
        ) as listening,
    ):
        # 127.0.0.2 is this machine too, but the server listens on 127.0.0.1 only.
        assert listening.server.options.tls.server_name == "localhost"  # type: ignore[attr-defined]
        assert address


async def test_browsers_are_admitted_only_from_the_origins_that_are_named() -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address, "--origin=http://good") as it,
    ):
        assert (await status_of(it.url))[0] == 101
        assert (await status_of(it.url, (b"Origin", b"http://evil")))[0] == 403
        assert (await status_of(it.url, (b"Origin", b"http://good")))[0] == 101


# Life and death


async def test_sigterm_lets_what_is_open_go_on_and_admits_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address) as serving,
        open_ws_stream(serving.url) as client,
    ):
        await client.send_all(b"before")
        assert await client.receive_some() == b"before"
        signal.raise_signal(signal.SIGTERM)
        await said(caplog, "stopping: 1 open, for 30 s at most")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", serving.port)
        assert await ask(client) == DATA
        assert await serving.wait() == 0


@pytest.mark.parametrize("half", ["serve", "listen"])
async def test_what_is_open_for_too_long_is_closed_with_1001(
    half: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with target() as (listener, address), background() as nursery:
        handled: list[WsByteStream] = []

        async def keep(stream: WsByteStream) -> None:
            handled.append(stream)
            await stream.receive_some()

        if half == "listen":
            (far,) = await nursery.start(
                partial(serve_ws, keep, "127.0.0.1", 0, on_error=lambda *_: None)
            )
            arguments = ["listen", "0", f"ws://127.0.0.1:{far.port}/"]
        else:
            arguments = ["serve", "0", address]
        async with running(*arguments, "--drain-timeout", "100ms") as it:
            if half == "serve":
                async with open_ws_stream(it.url) as client, await listener.accept() as tcp:
                    signal.raise_signal(signal.SIGTERM)
                    with pytest.raises(trio.BrokenResourceError) as broken:
                        await client.receive_some()
                    await client.aclose()
                    with pytest.raises(trio.BrokenResourceError):
                        await tcp.receive_some()
                assert broken.value.__cause__ == AbnormalClosure(1001, "")
            else:
                async with await trio.open_tcp_stream("127.0.0.1", it.port) as tcp:
                    await said(caplog, ": open")
                    signal.raise_signal(signal.SIGTERM)
                    with pytest.raises(trio.BrokenResourceError):
                        await tcp.receive_some()
            assert await it.wait() == 0
            await said(caplog, "closed with 1001: stopping")


async def test_a_drain_ends_although_a_target_takes_nothing() -> None:
    async with (
        target() as (listener, address),
        running("serve", "0", address, "--drain-timeout", "100ms") as serving,
        open_ws_stream(serving.url) as client,
        await listener.accept(),
    ):
        with trio.move_on_after(0.5):
            await client.send_all(bytes(30_000_000))
        signal.raise_signal(signal.SIGTERM)
        assert await serving.wait() == 0


async def test_a_second_signal_ends_it_at_once() -> None:
    async with (
        target() as (listener, address),
        running("serve", "0", address) as serving,
        open_ws_stream(serving.url) as client,
        await listener.accept() as far,
    ):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert await serving.wait() == 1
        for stream in (client, far):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_no_more_than_the_limit_are_open_and_a_place_becomes_free() -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address, "--max-connections=1") as it,
    ):
        async with open_ws_stream(it.url) as client:
            assert await ask(client, b"x") == b"x"
        for _ in range(2):
            async with open_ws_stream(it.url) as client:
                await assert_echoes(client)
                status, body = await status_of(it.url)
                assert (status, body) == (503, "1 connections are open, and no more are allowed\n")
                assert await ask(client, b"x") == b"x"
            await trio.testing.wait_all_tasks_blocked()


async def test_a_client_that_leaves_while_it_is_let_in_takes_no_place() -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address, "--max-connections=1") as it,
    ):
        for _ in range(3):
            async with await trio.open_tcp_stream("127.0.0.1", it.port) as client:
                await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n")
                await client.send_all(b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n")
                await client.send_all(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
                reset(client)
            await trio.testing.wait_all_tasks_blocked(0.02)
        async with open_ws_stream(it.url) as client:
            assert await ask(client, b"x") == b"x"


async def test_a_client_whose_reset_has_come_is_not_taken_for_one_of_a_unix_socket() -> None:
    """Its socket has no address any more."""
    options = parse(["serve", "0", "db:1", "--trust-forwarded=unix"])
    gateway = serve.Gateway(options, Counters(1), None)
    assert gateway._who("<trio.SocketStream object>") == "a client that has left"
    assert not serve._is_trusted("a client that has left", options.trust_forwarded)
    gateway._is_unix = True
    assert gateway._who("<trio.SocketStream object>") == "unix"
    assert serve._is_trusted("unix", options.trust_forwarded)


async def test_health_is_200_and_while_draining_503() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with (
        echo_server() as address,
        running("serve", "0", address, "--health=/healthz") as serving,
        open_ws_stream(serving.url) as client,
    ):
        answer = await http(serving.port, request)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\nok\n")
        signal.raise_signal(signal.SIGTERM)
        await trio.testing.wait_all_tasks_blocked()
        assert (await http(serving.port, request)).startswith(b"HTTP/1.1 503 ")
        assert await status_of(serving.url) == (503, "this server is stopping\n")
        assert await ask(client, b"x") == b"x"
        assert await serving.wait() == 0


async def test_a_health_check_that_resets_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """haproxy resets its health checks once it has read the status."""
    async with (
        echo_server() as address,
        running("serve", "0", address, "--health=/healthz") as serving,
    ):
        async with await trio.open_tcp_stream("127.0.0.1", serving.port) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            reset(stream)
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with open_ws_stream(serving.url) as client:
            assert await ask(client, b"x") == b"x"
        await said(caplog, "both directions ended")
    assert "handshake" not in caplog.text


async def test_sigusr1_writes_a_table_of_what_is_open(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        echo_server() as address,
        running("serve", "0", address) as serving,
        open_ws_stream(serving.url + "db?secret") as client,
    ):
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        signal.raise_signal(signal.SIGUSR1)
        await said(caplog, "1 connection open")
        line = await said(caplog, f"/db to {address}: 5 bytes there, 5 back, 0.")
        assert line.startswith("#1 127.0.0.1:")
        assert "secret" not in caplog.text


async def test_a_shortage_of_descriptors_is_told_once_and_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = trio.SocketListener.accept
    async with echo_server() as address, running("serve", "0", address) as serving:
        left = 4

        async def fail_often(self: trio.SocketListener) -> trio.SocketStream:
            nonlocal left
            if left and self.socket.getsockname()[1] == serving.port:
                left -= 1
                if left == 1:  # One fits in between.
                    return await accept(self)
                raise OSError(errno.EMFILE, "Too many open files")
            return await accept(self)

        monkeypatch.setattr(trio.SocketListener, "accept", fail_often)
        for _ in range(2):
            async with open_ws_stream(serving.url) as client:
                assert await ask(client, b"x") == b"x"
    assert not left
    assert caplog.text.count("Too many open files") == 1


# What it says


@pytest.mark.parametrize(
    ("trusted", "forwarded", "expected"),
    [
        ([], "1.2.3.4", "127.0.0.1:"),
        (["10.0.0.0/8"], "1.2.3.4", "127.0.0.1:"),
        (["127.0.0.0/8"], "1.2.3.4", "1.2.3.4 through 127.0.0.1:"),
        (["127.0.0.0/8"], "6.6.6.6, 1.2.3.4:567", "1.2.3.4 through 127.0.0.1:"),
        (["127.0.0.0/8", "10.0.0.0/8"], "1.2.3.4, 10.0.0.1", "1.2.3.4 through 127.0.0.1:"),
        (["127.0.0.1"], "[2001:db8::1]:5", "2001:db8::1 through 127.0.0.1:"),
        (["127.0.0.1"], "nonsense, unknown", "127.0.0.1:"),
    ],
)
async def test_a_forwarded_address_is_believed_of_trusted_proxies_only(
    trusted: list[str], forwarded: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = [f"--trust-forwarded={each}" for each in trusted]
    header = (b"X-Forwarded-For", forwarded.encode())
    async with echo_server() as address, running("serve", "0", address, *options) as serving:
        async with open_ws_stream(serving.url, extra_headers=[header]) as client:
            assert await ask(client, b"x") == b"x"
        assert (await said(caplog, "1 bytes there")).startswith(f"#1 {expected}")


async def test_a_refusal_is_told_with_the_forwarded_address_and_the_path(
    caplog: pytest.LogCaptureFixture, tokens: Path
) -> None:
    options = [f"--token-file={tokens}", "--trust-forwarded=127.0.0.1"]
    async with running("serve", "0", "db:1", *options) as serving:
        header = (b"X-Forwarded-For", b"1.2.3.4")
        assert (await status_of(serving.url + "db?secret", header))[0] == 401
        line = await said(caplog, " /db: refused with 401: a bearer token is needed")
        assert line.startswith("1.2.3.4 through 127.0.0.1:")
        assert "secret" not in caplog.text
        async with await trio.open_tcp_stream("127.0.0.1", serving.port) as stream:
            await stream.send_all(b"nonsense\r\n\r\n")
            await receive_all(stream)
        assert (await said(caplog, "refused with 400")).startswith("127.0.0.1:")


@pytest.mark.parametrize("who", ["client", "target"])
async def test_the_line_says_who_has_failed(who: str, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        target() as (listener, address),
        running("serve", "0", address) as serving,
        open_ws_stream(serving.url) as client,
        await listener.accept() as far,
    ):
        if who == "client":
            await client.aclose(4000, "tired")
            await said(caplog, "the client failed: the peer closed with code 4000 and reason")
        else:
            reset(far)
            await said(caplog, "the target failed: Connection reset by peer")


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    assert log.escape("a\nb\x1b[31m\x85\u2028é") == r"a\nb\x1b[31m\x85\u2028é"


def test_json_lines_have_the_facts_and_text_lines_the_words() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "%s", ("a\nline",), None)
    record.event, record.facts = "end", {"bytes_to_target": 5}
    said = json.loads(log._Json().format(record))
    assert said["event"] == "end"
    assert said["message"] == "a\nline"
    assert said["bytes_to_target"] == 5
    assert said["level"] == "info"
    assert said["time"].endswith("Z")
    assert log._Text(has_time=False).format(record) == r"trio-wsstream: a\nline"
