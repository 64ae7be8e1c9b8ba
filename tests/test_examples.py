"""The examples: each of them runs, and the tunnel does what its help says."""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionRejected

from trio_wsstream import (
    ConnectionLost,
    PingReceived,
    StreamConfig,
    WsByteStream,
    WsListener,
    open_ws_stream,
    serve_ws,
)

from .support.pairs import stream_pair
from .support.programs import EXAMPLES, LIMIT, TUNNEL, Program, port_of, tunnel
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import AUTHORITY, reset

pytestmark = pytest.mark.slow  # as most of these tests start programs

DATA = bytes(range(256)) * 4000


async def run(
    *command: str | Path, status: int = 0, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run a Python script to its end; its output is text."""
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [sys.executable, *command],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    output = done.stdout.decode(), done.stderr.decode()
    print(*output, sep="\n")
    assert done.returncode == status
    return subprocess.CompletedProcess(done.args, done.returncode, *output)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
async def test_every_example_runs_with_no_arguments(example: Path) -> None:
    done = await run(example)
    assert done.stdout
    assert not done.stderr


async def test_framing_refuses_what_is_too_long() -> None:
    done = await run(EXAMPLES / "framing.py")
    assert done.stdout.splitlines() == [
        "client: three messages came back",
        "server: refused a message of 4294967295 bytes",
        "client: the peer closed with code 1009 and reason 'a message of 4294967295 bytes'",
        "client: three lines came back",
        "server: refused a line of 1000 characters or more",
        "client: the peer closed with code 1009 and reason 'a line of 1000 characters or more'",
    ]


async def test_shutdown_lets_the_open_connection_finish() -> None:
    done = await run(EXAMPLES / "shutdown.py")
    lines = done.stdout.splitlines()
    assert "client: StreamClosed(code=1000, reason='', clean=True, error=None)" in lines
    for line in lines:
        print(line)
    stopped = lines.index("server: accepting no more connections, and waiting for the open ones")
    assert stopped < lines.index("client: the server accepts no new connection")
    assert lines.index("client: received b'after'") > stopped
    assert lines[-1] == "server: has ended"


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("impatient", ["second signal", "no patience"])
async def test_shutdown_drops_connections_in_the_end(
    impatient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown = load("shutdown")
    if impatient == "no patience":
        monkeypatch.setattr(shutdown, "PATIENCE", 0)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                shutdown.serve_until_signal, shutdown.echo, "127.0.0.1", 0
            )
            async with open_ws_stream(url_of(listeners)) as stream:
                await stream.send_all(b"x")
                await stream.receive_some()
                signal.raise_signal(signal.SIGTERM)
                if impatient == "second signal":
                    signal.raise_signal(signal.SIGINT)
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await stream.receive_some()
    assert isinstance(broken.value.__cause__, ConnectionLost)


def url_of(listeners: list[WsListener]) -> str:
    port = listeners[0].port
    return f"ws://127.0.0.1:{port}/"


# The tunnel


class Ends:
    """A tunnel that carries one connection: its client, its target, and both its halves."""

    def __init__(
        self, client: Any, target: trio.SocketStream, serving: Program, listening: Program | None
    ) -> None:
        self.client = client
        self.target = target
        self.serving = serving
        self.listening = listening


@asynccontextmanager
async def target_listener(
    receive_buffer: int | None = None,
) -> AsyncGenerator[tuple[trio.SocketListener, str], None]:
    """What a tunnel connects to, and its address."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    if receive_buffer is not None:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    async with listener:
        yield listener, f"127.0.0.1:{listener.socket.getsockname()[1]}"


@asynccontextmanager
async def tcp_through_tunnel(receive_buffer: int | None = None) -> AsyncGenerator[Ends, None]:
    """With a TCP client, through both halves.

    Args:
      receive_buffer: of the target's kernel, in bytes.
    """
    async with (
        target_listener(receive_buffer) as (listener, address),
        tunnel("serve", "0", address) as serving,
        tunnel("listen", "0", f"ws://127.0.0.1:{await port_of(serving)}/") as listening,
        await trio.open_tcp_stream("127.0.0.1", await port_of(listening)) as client,
        await listener.accept() as target,
    ):
        await serving.says("#1: connected")
        yield Ends(client, target, serving, listening)


@asynccontextmanager
async def ws_through_tunnel() -> AsyncGenerator[Ends, None]:
    """With a WebSocket client, through ``serve``."""
    async with (
        target_listener() as (listener, address),
        tunnel("serve", "0", address) as serving,
        open_ws_stream(f"ws://127.0.0.1:{await port_of(serving)}/") as stream,
        await listener.accept() as target,
    ):
        await serving.says("#1: connected")
        yield Ends(stream, target, serving, None)


async def send_and_end(stream: trio.abc.HalfCloseableStream) -> None:
    await stream.send_all(DATA)
    await stream.send_eof()


async def expect_reset(stream: trio.abc.Stream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await receive_all(stream)


async def expect_reset_of_a_client_of(listening: Program) -> None:
    """Connect, and be reset: after that, or before it is known here that it has succeeded."""
    with trio.socket.socket() as client, pytest.raises(ConnectionResetError):
        await client.connect(("127.0.0.1", await port_of(listening)))
        await client.recv(1)


@pytest.mark.parametrize("first", ["client", "target"])
async def test_bytes_and_half_closes_pass_both_ways(first: str) -> None:
    async with tcp_through_tunnel() as ends:
        asking, answering = ends.client, ends.target
        if first == "target":
            asking, answering = answering, asking
        for sending, receiving in ((asking, answering), (answering, asking)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_and_end, sending)
                assert await receive_all(receiving) == DATA
        for half in (ends.serving, ends.listening):
            await half.says(f"#1: incoming ended after {len(DATA)} bytes")
            await half.says(f"#1: outgoing ended after {len(DATA)} bytes")
            await half.says("#1: closed")


async def test_what_is_on_its_way_at_the_end_still_arrives() -> None:
    """A closed connection is reset only if it did not end well."""
    async with tcp_through_tunnel(receive_buffer=4096) as ends:
        await ends.client.send_all(DATA[:10_000])
        await ends.client.send_eof()
        await ends.target.send_eof()
        await ends.serving.says("#1: closed")
        assert await receive_all(ends.target) == DATA[:10_000]


async def test_connections_do_not_disturb_each_other() -> None:
    async with tcp_through_tunnel() as first:
        port = await port_of(first.listening)
        async with await trio.open_tcp_stream("127.0.0.1", port) as second:
            await second.send_all(b"x")
            await first.serving.says("#2: a connection")
            reset(second)
            await first.serving.says("#2: reset")
        await first.client.send_all(b"still here")
        assert await first.target.receive_some() == b"still here"


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("who", ["client", "target"])
async def test_a_reset_on_one_side_resets_the_other(who: str, ended: bool) -> None:
    """Also when that other side's own half has ended before."""
    async with tcp_through_tunnel() as ends:
        dying, other = ends.client, ends.target
        if who == "target":
            dying, other = other, dying
        await dying.send_all(b"half of the da")
        assert await other.receive_some() == b"half of the da"
        if ended:
            await other.send_eof()
            assert await dying.receive_some() == b""
        reset(dying)
        await expect_reset(other)
        await ends.serving.says("#1: reset")
        await ends.listening.says("#1: reset")


@pytest.mark.parametrize("half", ["serving", "listening"])
async def test_a_killed_half_resets_both_sides(half: str) -> None:
    async with tcp_through_tunnel() as ends:
        await ends.client.send_all(b"ask")
        assert await ends.target.receive_some() == b"ask"
        getattr(ends, half).process.kill()
        await expect_reset(ends.client)
        await expect_reset(ends.target)


async def test_nothing_to_connect_to_resets_the_client() -> None:
    async with target_listener() as (_, address):
        pass  # nobody listens there any more
    async with (
        tunnel("serve", "0", address) as serving,
        tunnel("listen", "0", f"ws://127.0.0.1:{await port_of(serving)}/") as listening,
    ):
        await expect_reset_of_a_client_of(listening)
        await serving.says("#1: cannot connect: .*" + re.escape(address))
        await listening.says("code 1011 and reason 'cannot connect'")


async def test_a_name_that_no_host_can_have_is_told_and_ends_nothing_else() -> None:
    async with (
        tunnel("serve", "0", "a..b:80") as serving,
        tunnel("listen", "0", f"ws://127.0.0.1:{await port_of(serving)}/") as listening,
        tunnel("listen", "0", "ws://a..b/") as listening_too,
    ):
        for half in (listening, listening_too):
            for _ in range(2):
                port = await port_of(half)
                with pytest.raises((OSError, trio.BrokenResourceError)):  # reset at once, perhaps
                    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                        await receive_all(client)
        await serving.says("#2: cannot connect: .*label")
        await listening_too.says("#2: cannot open ws://a..b/: .*must have a host")


async def test_no_server_resets_the_client_and_the_next_one() -> None:
    async with target_listener() as (_, address):
        pass
    async with tunnel("listen", "0", f"ws://{address}/") as listening:
        for number in (1, 2):
            await expect_reset_of_a_client_of(listening)
            await listening.says(f"#{number}: cannot open ws://{address}/")


async def test_a_plain_close_ends_both_directions() -> None:
    """The peer has said that it receives no more: the target need not end by itself."""

    async def send_and_close(stream: WsByteStream) -> None:
        await stream.send_all(DATA)
        await stream.aclose()

    async with ws_through_tunnel() as ends:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_close, ends.client)
            assert await receive_all(ends.target) == DATA
        await ends.serving.says("#1: outgoing cut off after 0 bytes")
        await ends.serving.says("#1: closed")


async def test_a_plain_close_while_the_target_sends_resets_it() -> None:
    async with ws_through_tunnel() as ends:
        await ends.target.send_all(b"x")
        assert await ends.client.receive_some() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.client.aclose)
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await ends.target.send_all(DATA)


async def test_an_abnormal_close_resets_the_target() -> None:
    async with ws_through_tunnel() as ends:
        await ends.client.send_all(b"half of the da")
        await ends.client.aclose(4000)
        await expect_reset(ends.target)
        await ends.serving.says("#1: reset: .*4000")


async def test_a_websocket_lost_after_its_half_close_resets_the_target() -> None:
    async with ws_through_tunnel() as ends:
        await ends.client.send_eof()
        assert await ends.target.receive_some() == b""
        await trio.aclose_forcefully(ends.client)
        await ends.serving.says("#1: reset")
        with pytest.raises(trio.BrokenResourceError):
            await ends.target.send_all(b"x")


async def test_a_target_that_resets_leaves_the_websocket_without_a_close() -> None:
    async with ws_through_tunnel() as ends:
        reset(ends.target)
        with pytest.raises(trio.BrokenResourceError) as broken:
            await ends.client.receive_some()
        assert isinstance(broken.value.__cause__, ConnectionLost)


async def test_a_side_that_pauses_for_hours_is_not_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with background() as nursery:
        peer, ws = await stream_pair(nursery, "lockstep")
        sending, paused = trio.testing.memory_stream_pair(), trio.testing.lockstep_stream_pair()
        for number, stream, local in ((1, peer, sending[0]), (2, ws, paused[0])):
            nursery.start_soon(load("tunnel").Tunnel(number, stream, local).carry)
        nursery.start_soon(send_and_end, sending[1])
        await trio.sleep(10_000)
        assert await receive_all(paused[1]) == DATA


async def test_tls(tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = AUTHORITY.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    tls = ["--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    async with (
        target_listener() as (listener, address),
        tunnel("serve", "0", address, *tls) as serving,
    ):
        url = f"wss://localhost:{await port_of(serving)}/"
        async with tunnel("listen", "0", url, "--ca", str(tmp_path / "ca.pem")) as listening:
            port = await port_of(listening)
            async with (
                await trio.open_tcp_stream("127.0.0.1", port) as client,
                await listener.accept() as target,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(send_and_end, client)
                assert await receive_all(target) == DATA
        async with tunnel("listen", "0", url) as listening:  # which does not trust it
            await expect_reset_of_a_client_of(listening)
            await listening.says("certificate verify failed")


async def test_serve_admits_no_browsers_and_no_other_paths() -> None:
    async with (
        target_listener() as (_, address),
        tunnel("serve", "0", address, "--path", "/db", "--origin", "http://good") as serving,
    ):
        url = f"ws://127.0.0.1:{await port_of(serving)}"

        async def status(path: str, *headers: tuple[bytes, bytes]) -> int:
            try:
                async with open_ws_stream(url + path, extra_headers=headers):
                    return 101
            except ConnectionRejected as rejection:
                return rejection.status_code

        assert await status("/db") == 101
        assert await status("/other") == 404
        assert await status("/db", (b"Origin", b"http://evil")) == 403
        assert await status("/db", (b"Origin", b"http://good")) == 101


@asynccontextmanager
async def ws_server(
    handler: Callable[[WsByteStream], Awaitable[object]],
) -> AsyncGenerator[str, None]:
    """A server of ours; its URL."""
    async with trio.open_nursery() as nursery:
        yield url_of(await nursery.start(serve_ws, handler, "127.0.0.1", 0))
        nursery.cancel_scope.cancel()


async def test_connect_carries_stdin_and_stdout() -> None:
    async def answer(stream: WsByteStream) -> None:
        received = await receive_all(stream)  # up to the end of stdin
        await stream.send_all(received[::-1])
        assert (b"x-token", b"a: secret") in stream.handshake_headers

    async with ws_server(answer) as url:
        done = await run(
            *TUNNEL[1:], "connect", url, "--header", "X-Token: a: secret", stdin=b"abc" * 99999
        )
    assert done.stdout == "cba" * 99999
    assert "#1: closed" in done.stderr


@pytest.mark.parametrize("quiet", [False, True])
async def test_connect_fails_when_its_stream_breaks(quiet: bool) -> None:
    async def refuse(stream: WsByteStream) -> None:
        await stream.send_all(b"half of the da")
        await stream.aclose(4000)

    async with ws_server(refuse) as url:
        done = await run(*TUNNEL[1:], *(["-q"] if quiet else []), "connect", url, status=1)
    assert done.stdout == "half of the da"
    assert ("failed" in done.stderr) is not quiet


async def test_connect_keeps_alive_and_ends_when_the_server_does() -> None:
    async def wait_for_ping(stream: WsByteStream) -> None:
        assert isinstance(await stream.subscribe().receive(), PingReceived)

    async with ws_server(wait_for_ping) as url, trio.open_nursery() as nursery:
        command = [*TUNNEL, "--ping-interval", "0.01", "connect", url]
        with trio.fail_after(LIMIT):  # stdin does not end, and it exits with 0 nevertheless
            await nursery.start(partial(trio.run_process, command, stdin=subprocess.PIPE))


def test_the_command_lines_in_the_help_are_right() -> None:
    example = load("tunnel")
    commands = re.findall(r"tunnel\.py (.*?)(?:  +|'|$)", example.__doc__ or "", re.MULTILINE)
    serving, listening, connecting = [example.parse(command.split()) for command in commands]
    assert (serving.run, serving.bind, serving.port) == (example.serve, "0.0.0.0", 8000)
    assert serving.target == ("127.0.0.1", 5432)
    assert (listening.run, listening.bind, listening.port) == (example.listen, "127.0.0.1", 5432)
    assert listening.url == f"ws://gateway:{serving.port}/"
    assert (connecting.run, connecting.quiet) == (example.connect, True)


def test_keepalive_can_be_switched_off() -> None:
    parse = load("tunnel").parse
    off = parse(["--ping-interval", "0", "connect", "ws://localhost"])
    assert off.config == StreamConfig(ping_interval=None)
    assert parse(["connect", "ws://localhost"]).config == StreamConfig()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("carry", "invalid choice: 'carry'"),
        ("listen 80x ws://host", "'80x' is no port number"),
        ("listen 65536 ws://host", "'65536' is no port number"),
        ("listen 80 http://host", "'http://host' is no ws:// or wss:// URL"),
        ("connect ws://host:99999/", "invalid ws_url value: 'ws://host:99999/'"),
        ("connect ws://me@host/", "'ws://me@host/' is no ws:// or wss:// URL"),
        ("connect ws://host --header nonsense", "'nonsense' is not of the form NAME: VALUE"),
        ("connect ws://host --ca missing.pem", "cannot load .*No such file"),
        ("serve 80 host", "'host' is not of the form HOST:PORT"),
        ("serve 80 host:port", "'port' is no port number"),
        ("serve 80 host:80 --cert missing.pem", "cannot load .*No such file"),
        ("serve 80 host:80 --key key.pem", "--key needs --cert"),
        ("--ping-interval -1 serve 80 host:80", "ping_interval must be"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        load("tunnel").parse(arguments.split())
    assert exited.value.code == 2
    assert re.search(message, capsys.readouterr().err)


async def test_what_cannot_be_served_is_told() -> None:
    async with target_listener() as (_, address):
        port = address.partition(":")[2]
        taken = await run(*TUNNEL[1:], "listen", port, "ws://localhost", status=1)
        assert "cannot listen: [Errno" in taken.stderr
        taken = await run(*TUNNEL[1:], "serve", port, address, status=1)
        assert "cannot serve: [Errno" in taken.stderr
        wrong = await run(*TUNNEL[1:], "serve", "0", address, "--path", "db", status=1)
        assert "cannot serve: path must begin with /" in wrong.stderr
        assert "Traceback" not in taken.stderr + wrong.stderr


@pytest.mark.usefixtures("ctrl_c_is_heard")
async def test_ctrl_c_ends_it_and_resets_what_is_open() -> None:
    async with tcp_through_tunnel() as ends:
        ends.serving.process.send_signal(signal.SIGINT)
        assert await ends.serving.process.wait() == 130
        await expect_reset(ends.client)
        await expect_reset(ends.target)
        assert not any("Traceback" in line for line in ends.serving.lines)
