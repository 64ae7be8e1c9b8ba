"""``trio-wsstream`` as a program: stdin and stdout, signals, exit codes, several processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import socket
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_wsstream import PingReceived, WsByteStream, bridge, open_ws_stream, serve_ws
from trio_wsstream.command import client
from trio_wsstream.command.check import Report, check
from trio_wsstream.command.options import parse

from .support.echoing import DATA, ask, assert_echoes, echo_server
from .support.pages import blocks_of
from .support.programs import LIMIT, TUNNEL, Program, port_of, running, tunnel
from .support.receiving import receive_all
from .support.tasks import background
from .support.transports import AUTHORITY, CLIENT_TLS, SERVER_TLS

pytestmark = pytest.mark.slow


async def run(
    *arguments: str, code: int = 0, stdin: Any = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [*TUNNEL, *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, **(env or {})},
        )
    print(done.stderr.decode())
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    return done


@asynccontextmanager
async def ws_server(handler: Any) -> AsyncGenerator[str, None]:
    """A server of ours; its URL."""
    async with background() as nursery:
        (listener,) = await nursery.start(
            partial(serve_ws, handler, "127.0.0.1", 0, on_error=lambda *_: None)
        )
        yield f"ws://127.0.0.1:{listener.port}/"


async def answer_backwards(stream: WsByteStream) -> None:
    received = await receive_all(stream)  # It ends with the end of stdin.
    await stream.send_all(received[::-1])


# connect: stdin, stdout, exit codes


async def test_connect_carries_stdin_and_stdout_and_says_nothing() -> None:
    async with ws_server(answer_backwards) as url:
        done = await run("connect", url, stdin=DATA)
    assert done.stdout == DATA[::-1]
    assert not done.stderr


async def test_stdin_and_stdout_may_be_files_or_closed(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(DATA)
    async with ws_server(answer_backwards) as url:
        command = " ".join([*TUNNEL, "connect", url])
        for given, expected in (
            (f"<{tmp_path}/in", DATA[::-1]),
            ("</dev/null", b""),
            ("<&-", b""),
        ):
            with trio.fail_after(LIMIT):
                shell = f"exec {command} {given} >{tmp_path}/out"
                await trio.run_process(["sh", "-c", shell])
            assert (tmp_path / "out").read_bytes() == expected


async def test_a_file_is_read_from_where_it_stands_and_appended_to(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"header\n" + DATA)
    (tmp_path / "out").write_bytes(b"before\n")
    async with ws_server(answer_backwards) as url:
        command = " ".join([*TUNNEL, "connect", url])
        shell = f"(head -c 7 >/dev/null; exec {command}) <{tmp_path}/in >>{tmp_path}/out"
        with trio.fail_after(LIMIT):
            await trio.run_process(["sh", "-c", shell])
    assert (tmp_path / "out").read_bytes() == b"before\n" + DATA[::-1]


@pytest.mark.parametrize("options", [[], ["-q"], ["--log-format=json"]])
async def test_a_stream_that_breaks_is_exit_code_1_and_is_told(options: list[str]) -> None:
    async def refuse(stream: WsByteStream) -> None:
        await stream.send_all(b"half of the da")
        await stream.aclose(4000, "tired")

    async with ws_server(refuse) as url:
        done = await run(*options, "connect", url, code=1)
    assert done.stdout == b"half of the da"
    assert b"the server failed: the peer closed with code 4000" in done.stderr
    if options == ["--log-format=json"]:
        assert json.loads(done.stderr)["failed"] is True
    else:
        assert done.stderr.startswith(b"trio-wsstream: ")


async def test_what_cannot_be_connected_to_is_exit_code_3_and_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = await run("connect", f"ws://127.0.0.1:{port}/?secret", code=3)
    assert f"cannot connect to ws://127.0.0.1:{port}/: ".encode() in done.stderr
    assert b"refused; nothing listens there" in done.stderr
    assert b"secret" not in done.stderr


async def test_connect_imports_nothing_that_it_does_not_use() -> None:
    """Its start is a part of each ssh."""
    others = ["http", "json", "mmap", "shlex", "urllib.request", "websockets.client"]
    others += [f"trio_wsstream.{name}" for name in ("_proxy", "_serve", "command.tls")]
    code = (
        "import sys, trio_websocket; needed = {*sys.modules}\n"
        "from trio_wsstream.command import main\n"
        "assert main(['connect', 'ws://127.0.0.1:1/']) == 3\n"
        f"sys.exit(' '.join({{*{others}}} & (sys.modules.keys() - needed)) or 0)"
    )
    env = {name: value for name, value in os.environ.items() if not name.endswith("proxy")}
    with trio.fail_after(LIMIT):
        await trio.run_process([sys.executable, "-c", code], env=env)


@pytest.mark.parametrize("job", [["connect"], ["listen", "0"], ["check"], ["check", "--json"]])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--proxy=foo://u:hidden@x", b"proxy must begin with"),
        ("--header=Connection: hidden", b"Connection must not be among"),
    ],
)
async def test_a_value_that_only_the_library_can_judge_is_exit_code_2(
    option: str, message: bytes, job: list[str]
) -> None:
    done = await run(*job, "ws://127.0.0.1:1/", option, code=2)
    assert message in done.stderr
    assert b"hidden" not in done.stderr


@pytest.mark.parametrize("how", ["option", "environment"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_a_proxy_that_cannot_be_reached_is_named(scheme: str, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    proxy = f"{scheme}://me:hidden@127.0.0.1:{port}"
    option = ["--proxy", proxy] if how == "option" else []
    env = {"no_proxy": "", "https_proxy": proxy if how == "environment" else ""}
    place = "--proxy" if how == "option" else "the environment (https_proxy ...)"
    for job in ("connect", "check"):
        done = await run(job, *option, "wss://server.invalid/", code=3, env=env)
        said = done.stdout + done.stderr
        assert f"cannot connect to the proxy 127.0.0.1:{port}: ".encode() in said
        assert f"is the proxy in {place} the right one?".encode() in said
        assert b"hidden" not in said
    report = await run("check", "--json", *option, "wss://server.invalid/", code=3, env=env)
    assert json.loads(report.stdout)["failed"] == "proxy"


@pytest.mark.parametrize("how", ["option", "file", "https_proxy", "all_proxy"])
@pytest.mark.parametrize("answer", [b"403 Forbidden", b"407 Proxy Authentication Required", b"200"])
async def test_the_password_of_a_proxy_is_sent_and_never_written(
    how: str, answer: bytes, tmp_path: Path
) -> None:
    asked = b""

    async def refuse(stream: trio.SocketStream) -> None:
        nonlocal asked
        while b"\r\n\r\n" not in asked:
            asked += await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 " + answer + b"\r\nContent-Length: 0\r\n\r\n")

    async with background() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
        proxy = f"http://me:hidden@127.0.0.1:{listener.socket.getsockname()[1]}"
        env, option = {"no_proxy": ""}, []
        if how == "option":
            option = ["--proxy", proxy]
        elif how == "file":
            (tmp_path / "options").write_text(f"--proxy {proxy}\n")
            option = [f"@{tmp_path}/options"]
        else:
            env[how] = proxy
        url = "wss://server.invalid/"
        for job in (["connect"], ["check"], ["check", "--json"]):
            asked = b""
            done = await run("-vv", *job, *option, url, code=3, env=env)
            assert b64encode(b"me:hidden") in asked
            for secret in (b"hidden", b64encode(b"me:hidden")):
                assert secret not in done.stdout + done.stderr
            if answer.startswith(b"403"):
                assert b"many proxies allow port 443 only" in done.stdout + done.stderr


async def test_connect_ends_when_the_server_does_and_stdin_need_not() -> None:
    async def wait_for_ping(stream: WsByteStream) -> None:
        assert isinstance(await stream.subscribe().receive(), PingReceived)

    async with ws_server(wait_for_ping) as url, trio.open_nursery() as nursery:
        command = [*TUNNEL, "--ping-interval=10ms", "--half-close=auto", "connect", url]
        with trio.fail_after(LIMIT):
            await nursery.start(partial(trio.run_process, command, stdin=subprocess.PIPE))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 0), (signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
async def test_a_signal_ends_connect_and_sighup_well(number: int, code: int) -> None:
    """ssh sends SIGHUP to its ProxyCommand when it has ended."""

    async def greet(stream: WsByteStream) -> None:
        await stream.send_all(b"hello\n")
        await receive_all(stream)

    async with ws_server(greet) as url:
        with trio.fail_after(LIMIT):
            process = await trio.lowlevel.open_process(
                [*TUNNEL, "connect", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdin is not None
            async with process.stdin, process.stdout:
                assert await process.stdout.receive_some(6) == b"hello\n"
                process.send_signal(number)
                assert await process.wait() == code


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, None])
async def test_a_terminal_is_as_it_was(end: signal.Signals | None) -> None:
    async def greet(stream: WsByteStream) -> None:
        await stream.send_all(b"hello\n")
        if end is not None:
            await receive_all(stream)

    controller, terminal = pty.openpty()
    try:
        async with ws_server(greet) as url:
            with trio.fail_after(LIMIT):
                process = await trio.lowlevel.open_process(
                    [*TUNNEL, "--half-close=auto", "connect", url],
                    stdin=terminal,
                    stdout=terminal,
                )
                await trio.lowlevel.wait_readable(controller)
                assert os.get_blocking(terminal), "even while it runs"
                assert os.read(controller, 100) == b"hello\r\n"
                if end is not None:
                    process.send_signal(end)
                await process.wait()
        assert os.get_blocking(terminal)
    finally:
        os.close(controller)
        os.close(terminal)


async def test_sockets_as_stdin_and_stdout_are_blocking_afterwards() -> None:
    """Sockets cannot be opened again, as pipes and terminals can."""
    async with ws_server(answer_backwards) as url:
        ours, theirs = socket.socketpair()
        with ours, theirs, trio.fail_after(LIMIT):
            process = await trio.lowlevel.open_process(
                [*TUNNEL, "connect", url], stdin=theirs, stdout=theirs
            )
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours.dup()))
            async with stream:
                await stream.send_all(b"abc")
                await stream.send_eof()
                assert await stream.receive_some() == b"cba"
                assert await process.wait() == 0
            assert theirs.getblocking()
            assert os.get_blocking(theirs.fileno())


async def test_an_output_that_nobody_reads_any_more_ends_it() -> None:
    async def flood(stream: WsByteStream) -> None:
        while True:
            await stream.send_all(bytes(65536))

    async with ws_server(flood) as url:
        with trio.fail_after(LIMIT):
            process = await trio.lowlevel.open_process(
                [*TUNNEL, "connect", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdin is not None
            assert process.stdout is not None
            async with process.stdin:
                async with process.stdout:
                    await process.stdout.receive_some(1)
                assert await process.wait() == 1


async def test_the_version_is_that_of_the_package() -> None:
    pytest.importorskip("importlib.metadata")
    from importlib import metadata

    try:
        version = metadata.version("trio-wsstream")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    assert (await run("--version")).stdout == f"trio-wsstream {version}\n".encode()


async def test_what_cannot_be_listened_on_is_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = await run("listen", str(port), "ws://localhost", code=1)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use".encode() in done.stderr


async def test_an_open_relay_is_refused_with_exit_code_2_and_its_socket_is_removed(
    tmp_path: Path,
) -> None:
    done = await run("serve", "0.0.0.0:0", "localhost:1", code=2)
    assert b"Give --token-file or --client-ca to say who may, or --open" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [("--origin=http://host/", b"no path"), ("--subprotocol=a", b"must be named once")],
)
async def test_what_no_client_can_send_is_exit_code_2(option: str, message: bytes) -> None:
    command = ["serve", "0", "localhost:1", option, "--subprotocol=a"]
    assert message in (await run(*command, code=2)).stderr
    assert message in (await run(*command, "--workers=2", code=2)).stderr


# check


async def test_check_tells_each_step() -> None:
    async with ws_server(receive_all) as url:
        done = await run("check", url + "?secret")
        steps = [line.split()[0] for line in done.stdout.decode().splitlines()]
        assert steps == ["name", "tcp", "status", "subprotocol", "ping", "half-close", "It"]
        report = json.loads((await run("check", "--json", url)).stdout)
        assert report["ok"] is True
        assert report["url"] == url
        assert [step["name"] for step in report["steps"]] == steps[:-1]
        assert all(step["ok"] for step in report["steps"])
        assert report["steps"][-1]["facts"] == {"is_ws_byte_stream": True}


async def test_check_tells_whose_certificate_it_is_and_how_long_it_lasts(tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with background() as nursery:
        (listener,) = await nursery.start(
            partial(serve_ws, receive_all, "127.0.0.1", 0, SERVER_TLS)
        )
        url = f"wss://localhost:{listener.port}/"
        report = json.loads((await run("check", "--json", url, f"--ca={tmp_path}/ca.pem")).stdout)
        (tls,) = (step["facts"] for step in report["steps"] if step["name"] == "tls")
        assert "trustme" in tls["issuer"]
        assert tls["days_left"] > 0
        done = await run("check", url, code=3)
        assert b"It cannot be reached: tls: certificate verify failed" in done.stdout
        assert (
            b"What to do: if it is your own authority's, trust that with --ca FILE" in done.stdout
        )
        assert b"was not checked (--insecure)" in (await run("check", "--insecure", url)).stdout


async def test_check_tells_the_first_step_that_failed_and_what_to_do() -> None:
    async def drop(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async def send_away(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(
            b"HTTP/1.1 302 Found\r\nLocation: https://login.example/?hidden\r\n\r\n"
        )

    async def serve(handler: Any) -> str:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        return f"127.0.0.1:{listener.socket.getsockname()[1]}/"

    async with background() as nursery:
        dropping, silent, away = [await serve(each) for each in (drop, say_nothing, send_away)]
        for url, step, words in (
            ("ws://nowhere.invalid/", "name", "cannot be resolved"),
            ("ws://127.0.0.1:1/", "tcp", "is the server running, and is the port right?"),
            (f"ws://{dropping}", "status", ""),
            (f"wss://{dropping}", "tls", ""),
            (f"ws://{silent}", "status", "something listens there and is silent"),
            (f"wss://{silent}", "tls", "something listens there and is silent"),
            (f"ws://{away}", "status", "302 Found, Location: https://login.example/."),
        ):
            command = ["check", url, "--connect-timeout=2"]
            done = await run(*command, code=3)
            assert f"It cannot be reached: {step}: ".encode() in done.stdout
            assert words.encode() in done.stdout
            assert b"hidden" not in done.stdout
            report = json.loads((await run(*command, "--json", code=3)).stdout)
            assert report["failed"] == step


async def test_check_tells_each_step_through_a_proxy(tmp_path: Path) -> None:
    async def connect(stream: trio.SocketStream) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        port = int(head.split()[1].rpartition(b":")[2])
        there = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        await bridge(stream, there)

    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with background() as nursery:
        (proxy,) = await nursery.start(partial(trio.serve_tcp, connect, 0, host="127.0.0.1"))
        (server,) = await nursery.start(partial(serve_ws, receive_all, "127.0.0.1", 0, SERVER_TLS))
        port = proxy.socket.getsockname()[1]
        options = [f"--ca={tmp_path}/ca.pem", f"--proxy=http://127.0.0.1:{port}"]
        done = await run("check", f"wss://localhost:{server.port}/", *options)
    lines = done.stdout.decode().splitlines()
    names = ["proxy", "tls", "status", "subprotocol", "ping", "half-close", "It"]
    assert [line.split()[0] for line in lines] == names
    assert f"127.0.0.1 port {port}, and through it" in lines[0]


@pytest.mark.parametrize(
    ("host", "resolved", "checked"),
    [
        ("faß.de", "xn--fa-hia.de", "xn--fa-hia.de"),
        ("Gateway.internal.", "gateway.internal.", "gateway.internal"),
        ("[fe80::1%25eth0]", "fe80::1%eth0", "fe80::1"),
    ],
)
async def test_check_connects_to_the_host_of_the_url_and_checks_its_certificate(
    host: str, resolved: str, checked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `open_ws_stream` does."""
    asked = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async def open_tcp(host: str, port: int) -> trio.SocketStream:
        asked.append(host)
        return await open_tcp_stream("127.0.0.1", port)

    open_tcp_stream = trio.open_tcp_stream
    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp)
    monkeypatch.setattr("trio_wsstream.command.check._resolve", resolve)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert(checked).configure_cert(context)
    async with background() as nursery:
        (listener,) = await nursery.start(partial(serve_ws, receive_all, "127.0.0.1", 0, context))
        options = parse(["check", f"wss://{host}:{listener.port}/"])
        client.prepare(options)
        AUTHORITY.configure_trust(options.tls)
        report = Report(options, tells=False)
        await check(options, report)
    assert report.ok, report.steps
    assert asked == [resolved, resolved]


# Servers


@asynccontextmanager
async def serving(*arguments: str, **options: Any) -> AsyncGenerator[tuple[Program, str], None]:
    async with running([*TUNNEL, "serve", "0", *arguments], "listening on", **options) as program:
        yield program, f"ws://127.0.0.1:{await port_of(program)}/"


async def test_a_killed_half_resets_both_sides() -> None:
    listener: trio.SocketListener
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with (
        listener,
        serving(f"127.0.0.1:{listener.socket.getsockname()[1]}") as (gateway, url),
        tunnel("listen", "0", url) as listening,
        await trio.open_tcp_stream("127.0.0.1", await port_of(listening)) as client,
        await listener.accept() as far,
    ):
        await client.send_all(b"ask")
        assert await far.receive_some() == b"ask"
        gateway.process.kill()
        for stream in (client, far):
            with pytest.raises(trio.BrokenResourceError):
                await receive_all(stream)


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_signal_drains_and_nothing_is_cut(number: int, workers: str) -> None:
    async with echo_server() as address, serving(address, "--workers", workers) as (program, url):
        async with open_ws_stream(url) as client:
            await assert_echoes(client)
            program.process.send_signal(number)
            await program.says("stopping: 1 open")
            assert await ask(client) == DATA
        assert await program.process.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_connection_fails_while_the_certificate_is_replaced(
    workers: int, tmp_path: Path
) -> None:
    """Connections that begin after the program has said so get the new certificate."""
    certificates = [AUTHORITY.issue_cert("localhost") for _ in range(2)]
    ders = [
        ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
        for certificate in certificates
    ]
    pem = tmp_path / "server.pem"
    certificates[0].private_key_and_cert_chain_pem.write_to_path(pem)
    seen: list[bytes] = []
    under_load = trio.Event()

    async def open_many(port: int, count: int, expected: set[bytes]) -> None:
        for _ in range(count):
            tcp = await trio.open_tcp_stream("127.0.0.1", port)
            tls = trio.SSLStream(tcp, CLIENT_TLS, server_hostname="localhost")
            async with open_ws_stream("ws://localhost/", transport=tls) as client:
                await assert_echoes(client)
                certificate = tls.getpeercert(binary_form=True)
                assert certificate in expected
                seen.append(certificate)
                if len(seen) == 50:
                    under_load.set()

    options = [f"--cert={pem}", f"--workers={workers}"]
    async with echo_server() as address, serving(address, *options) as (program, url):
        port = int(url.rpartition(":")[2].rstrip("/"))
        async with trio.open_nursery() as clients:
            for _ in range(8):
                clients.start_soon(open_many, port, 25, set(ders))
            await under_load.wait()
            certificates[1].private_key_and_cert_chain_pem.write_to_path(pem)
            program.process.send_signal(signal.SIGHUP)
            await program.says("have been read again", workers)
            clients.start_soon(open_many, port, 25, {ders[1]})
        assert len(seen) == 225
        assert not any("failed" in line or "handshake" in line for line in program.lines)


async def test_a_worker_that_dies_is_started_again() -> None:
    async with echo_server() as address, serving(address, "--workers=2") as (program, url):
        first = int((await program.says(r"worker 1 is process (\d+)"))[1])
        await program.says(r"worker 2 is process (\d+)")
        os.kill(first, signal.SIGKILL)
        await program.says(rf"worker 1 \(process {first}\) has died: signal 9")
        program.lines.clear()
        await program.says(r"worker 1 is process (\d+)")
        for _ in range(4):
            async with open_ws_stream(url) as client:
                await assert_echoes(client)
        program.process.terminate()
        assert await program.process.wait() == 0


async def test_workers_stop_when_their_parent_is_killed() -> None:
    async with echo_server() as address, serving(address, "--workers=2") as (program, url):
        workers = [
            int((await program.says(rf"worker {number} is process (\d+)"))[1]) for number in (1, 2)
        ]
        program.process.kill()
        for worker in workers:
            while is_running(worker):  # noqa: ASYNC110  # no event tells this
                await trio.sleep(0.01)
        assert url


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


async def test_workers_share_the_limit_of_connections() -> None:
    async with (
        echo_server() as address,
        serving(address, "--workers=2", "--max-connections=3") as (_, url),
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            client = await stack.enter_async_context(open_ws_stream(url))
            await assert_echoes(client)
        for _ in range(4):
            with pytest.raises(Exception, match="503"):
                async with open_ws_stream(url):
                    pass


async def test_out_of_descriptors_it_says_so_once_and_goes_on() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    async with echo_server() as address, serving(address, preexec_fn=limit) as (program, url):
        port = int(url.rpartition(":")[2].rstrip("/"))
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(40)]
        await program.says("Too many open files; going on when there are some")
        for stream in silent:
            await stream.aclose()
        async with open_ws_stream(url) as client:
            await assert_echoes(client)
        assert sum("cannot accept" in line for line in program.lines) == 1
        assert not any("Traceback" in line for line in program.lines)


async def test_the_dockerfile_of_the_docs_starts_it_and_knows_its_health() -> None:
    page = Path(__file__).parents[1] / "docs" / "tunnel-service.rst"
    (dockerfile,) = [block.code for block in blocks_of(page) if block.language == "docker"]
    lines = dict(line.split(maxsplit=1) for line in dockerfile.splitlines())
    assert json.loads(lines["ENTRYPOINT"]) == ["trio-wsstream"]
    options = parse(json.loads(lines["CMD"]))
    assert lines["STOPSIGNAL"] == "SIGTERM"
    health = json.loads(lines["HEALTHCHECK"].removeprefix("CMD "))
    assert f"127.0.0.1:{options.address.port}{options.health}'" in health[-1]
    check = [sys.executable, *health[1:-1]]
    async with echo_server() as address, serving(address, "--health", options.health) as (it, url):
        code = health[-1].replace(str(options.address.port), str(await port_of(it)))
        async with open_ws_stream(url) as client:
            await assert_echoes(client)
            await trio.run_process([*check, code])
            it.process.terminate()
            await it.says("stopping")
            done = await trio.run_process([*check, code], check=False, capture_stderr=True)
            assert b"503" in done.stderr
            assert done.returncode == 1


async def test_json_lines_are_json(socket_folder: Path) -> None:
    async with (
        echo_server() as address,
        running(
            [*TUNNEL, "--log-format=json", "serve", f"unix:{socket_folder}/sock", address],
            "listening",
        ) as program,
    ):
        transport = await trio.open_unix_socket(socket_folder / "sock")
        async with open_ws_stream("ws://x/db?secret", transport=transport) as client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
        line = json.loads((await program.says('"event": "end"'))[0] and program.lines[-1])
        assert (line["path"], line["target"], line["client"]) == ("/db", address, "unix")
        assert (line["bytes_to_target"], line["bytes_from_target"]) == (5, 5)
        assert line["failed"] is False
        assert not any("secret" in each for each in program.lines)
    assert not (socket_folder / "sock").exists()
