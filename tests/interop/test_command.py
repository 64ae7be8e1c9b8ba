"""Real programs through ``trio-wsstream``, and between its two halves."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_wsstream import open_ws_stream

from ..support.echoing import DATA, ask, echo_server
from ..support.pages import blocks_of
from ..support.programs import LIMIT, TUNNEL, free_port, port_of, running, tunnel, tunnel_to
from ..support.transports import AUTHORITY
from .peer import built_peer, missing, need_module, need_program
from .proxies import microsocks, squid, tinyproxy

SERVICE_PAGE = Path(__file__).parents[2] / "docs" / "tunnel-service.rst"


async def output(command: Sequence[str | Path], stdin: bytes = b"") -> bytes:
    """What a program writes to stdout; it must end well."""
    with trio.fail_after(LIMIT):
        return (await trio.run_process(command, stdin=stdin, capture_stdout=True)).stdout


async def test_http_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    server = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    fetch = (
        "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1]).read())"
    )
    async with running(server, "Serving HTTP", cwd=tmp_path) as http:
        port = int((await http.says(r"port (\d+)"))[1])
        async with tunnel_to(port) as local:
            url = f"http://127.0.0.1:{local}/data"
            assert await output([sys.executable, "-c", fetch, url]) == DATA


async def test_redis() -> None:
    server = need_program("redis-server")
    client = need_program("redis-cli", "redis-tools")
    port = free_port()
    command = [server, "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    async with running(command, "Ready to accept connections"), tunnel_to(port) as local:
        redis = [client, "-p", str(local)]
        assert await output([*redis, "-x", "SET", "key"], stdin=DATA) == b"OK\n"
        assert await output([*redis, "GET", "key"]) == DATA + b"\n"
        # redis-cli sends many commands at once, through one connection.
        commands = b"".join(b"RPUSH list %d\r\n" % number for number in range(10_000))
        assert b"errors: 0, replies: 10000" in await output([*redis, "--pipe"], stdin=commands)
        assert await output([*redis, "LRANGE", "list", "-2", "-1"]) == b"9998\n9999\n"


def need_postgresql() -> Path:
    """The folder of the newest server's programs, which Debian keeps off everybody's path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        missing("PostgreSQL server", "apt-get install postgresql")
    return folders[-1]


async def test_postgresql() -> None:
    client = need_program("psql", "postgresql-client")
    programs = need_postgresql()
    # PostgreSQL refuses to run as root, and pytest's own folders are closed to others.
    user = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, **user)
        initialize = [programs / "initdb", "-D", folder, "-U", "me", "-A", "trust"]
        initialize += ["--no-sync", "--locale=C"]
        await trio.run_process(initialize, cwd=folder, capture_stdout=True, **user)
        port = free_port()
        serve = [programs / "postgres", "-D", folder, "-h", "127.0.0.1", "-p", str(port)]
        async with (
            running([*serve, "-k", "", "-F"], "ready to accept", cwd=folder, **user),
            tunnel_to(port) as local,
        ):
            where = ["-h", "127.0.0.1", "-p", str(local), "-U", "me", "-d", "postgres"]
            psql = [client, "--no-psqlrc", "-q", "-A", "-t", *where, "-c"]
            assert await output([*psql, "SELECT 6 * 7"]) == b"42\n"
            lines = b"".join(b"%d\n" % number for number in range(200_000))
            await output([*psql, "CREATE TABLE numbers (n int)"])
            await output([*psql, "COPY numbers FROM STDIN"], stdin=lines)
            assert await output([*psql, "COPY numbers TO STDOUT"]) == lines


@asynccontextmanager
async def ssh_server(folder: Path) -> AsyncGenerator[list[str], None]:
    """Run sshd. Yield the options with which ssh gets to ``somewhere`` through both halves."""
    server = need_program("sshd", "openssh-server")
    need_program("ssh", "openssh-client")
    for key in ("host_key", "user_key"):
        generate = [need_program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", ""]
        await output([*generate, "-f", folder / key])
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"somewhere {host_key}")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # The service of sshd does this.
    port = free_port()
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "Subsystem": "sftp internal-sftp",
    }
    serve = [server, "-D", "-e", "-f", "/dev/null", *options(settings)]
    async with (
        running(serve, "Server listening"),
        tunnel("serve", "0", f"127.0.0.1:{port}") as serving,
    ):
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        yield options(
            {
                "ProxyCommand": shlex.join([*TUNNEL, "connect", url]),
                "IdentityFile": folder / "user_key",
                "IdentitiesOnly": "yes",
                "UserKnownHostsFile": folder / "known_hosts",
                "BatchMode": "yes",
            }
        )


HOST = f"{getpass.getuser()}@somewhere"


async def test_ssh(tmp_path: Path) -> None:
    async with ssh_server(tmp_path) as how:
        ssh = ["ssh", "-F", "none", *how, HOST]
        assert await output([*ssh, "cat"], stdin=DATA) == DATA
        with pytest.raises(subprocess.CalledProcessError) as failed:
            await output([*ssh, "exit 7"])
        assert failed.value.returncode == 7


async def test_ssh_shows_why_the_server_cannot_be_reached() -> None:
    need_program("ssh", "openssh-client")
    command = shlex.join([*TUNNEL, "connect", "ws://127.0.0.1:1/"])
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            ["ssh", "-F", "none", f"-oProxyCommand={command}", HOST],
            capture_stderr=True,
            check=False,
        )
    assert b"cannot connect to 127.0.0.1:1: connection refused" in done.stderr


async def test_scp(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    async with ssh_server(tmp_path) as how:
        scp = ["scp", "-q", "-F", "none", *how]
        await output([*scp, tmp_path / "data", f"{HOST}:{tmp_path}/there"])
        await output([*scp, f"{HOST}:{tmp_path}/there", tmp_path / "back"])
    assert (tmp_path / "back").read_bytes() == DATA


async def test_rsync(tmp_path: Path) -> None:
    need_program("rsync")
    (tmp_path / "from").mkdir()
    for number in range(20):
        (tmp_path / "from" / f"{number}").write_bytes(DATA[number * 1000 : number * 100_000])
    async with ssh_server(tmp_path) as how:
        rsync = ["rsync", "-a", "-e", shlex.join(["ssh", "-F", "none", *how])]
        await output([*rsync, f"{tmp_path}/from/", f"{HOST}:{tmp_path}/to"])
        await output([*rsync, f"{HOST}:{tmp_path}/to/", f"{tmp_path}/back"])
    for number in range(20):
        sent = (tmp_path / "from" / f"{number}").read_bytes()
        assert (tmp_path / "back" / f"{number}").read_bytes() == sent


async def test_git(tmp_path: Path) -> None:
    git = need_program("git")
    there = tmp_path / "there"
    me = ["-c", "user.name=me", "-c", "user.email=me@somewhere"]
    await output([git, "init", "-q", there])
    (there / "data").write_bytes(DATA)
    await output([git, "-C", there, "add", "data"])
    await output([git, "-C", there, *me, "commit", "-q", "-m", "data"])
    async with ssh_server(tmp_path) as how:
        ssh = f"core.sshCommand={shlex.join(['ssh', '-F', 'none', *how])}"
        await output([git, "-c", ssh, "clone", "-q", f"ssh://{HOST}{there}", tmp_path / "clone"])
    assert (tmp_path / "clone" / "data").read_bytes() == DATA


def options(settings: dict[str, object]) -> list[str]:
    return [f"-o{name}={value}" for name, value in settings.items()]


# How it is started


async def test_systemd_gives_it_its_socket(tmp_path: Path) -> None:
    activate = need_program("systemd-socket-activate", "systemd")
    async with echo_server() as address:
        port = free_port()
        command = [activate, f"--listen=127.0.0.1:{port}", *TUNNEL, "serve", "fd:3", address]
        async with (
            running(command, "Listening on"),
            open_ws_stream(f"ws://127.0.0.1:{port}/") as stream,
        ):
            assert await ask(stream) == DATA


def test_systemd_understands_the_units_of_the_docs(tmp_path: Path) -> None:
    """systemd is content with what they allow: 0 is nothing, 10 is everything."""
    analyze = need_program("systemd-analyze", "systemd")
    blocks = [block.code for block in blocks_of(SERVICE_PAGE) if block.language == "ini"]
    units = [tmp_path / "tunnel.socket", tmp_path / "tunnel.service"]
    for unit, text in zip(units, blocks, strict=True):
        unit.write_text(text.replace("/opt/tunnel/bin/trio-wsstream", sys.executable))
    verified = subprocess.run([analyze, "verify", *units], capture_output=True, check=True)
    assert not verified.stdout + verified.stderr
    security = [analyze, "security", "--offline=true", "--threshold=20", units[1]]
    assert b"exposure level" in subprocess.run(security, capture_output=True, check=True).stdout


async def test_a_shell_in_tmux_goes_on_after_it(tmp_path: Path) -> None:
    """The terminal is as it was, also when the program was killed."""
    tmux = need_program("tmux")
    async with echo_server() as address, tunnel("-v", "serve", "0", address) as serving:
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        session = [tmux, "-L", f"trio-wsstream-{os.getpid()}", "-f", "/dev/null"]
        try:
            await output([*session, "new-session", "-d", "-s", "it", "sh"])

            async def type_in(*keys: str) -> None:
                await output([*session, "send-keys", "-t", "it", *keys])

            async def shows(text: str) -> None:
                shown = ""
                with trio.fail_after(LIMIT):
                    while text not in shown:  # No event tells this.
                        await trio.sleep(0.05)
                        capture = [*session, "capture-pane", "-p", "-t", "it"]
                        shown = (await output(capture)).decode()

            for number, name in enumerate(("KILL", "TERM", "INT", "HUP"), 1):
                command = shlex.join([*TUNNEL, "connect", url])
                await type_in(f"clear; sh -c 'echo $$ >{tmp_path}/pid; exec {command}'", "Enter")
                await serving.says(f"#{number} .*: open")
                await type_in("hello", "Enter")
                await shows("hello\nhello")
                process = int((tmp_path / "pid").read_text())
                os.kill(process, getattr(signal, f"SIG{name}"))
                await serving.says(f"#{number} .* there")
                while await trio.Path(f"/proc/{process}").exists():  # noqa: ASYNC110
                    await trio.sleep(0.01)
                await type_in("echo still $((40 + 2)); cat", "Enter")
                await shows("still 42")  # The shell reads, and echoes.
                await type_in("and a program", "Enter")
                await shows("and a program\nand a program")
                await type_in("C-d")
        finally:
            await trio.run_process([*session, "kill-server"], check=False, capture_stderr=True)


# What stands between its halves


async def ask_through(url: str, *more: str, connections: int = 1) -> None:
    """Everything comes back through ``listen``, and the end of each direction passes on its own."""
    async with tunnel("listen", "0", url, *more) as listening:
        for _ in range(connections):
            port = await port_of(listening)
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                assert await ask(client) == DATA


HAPROXY = """
global
    log stderr format raw daemon
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    option forwardfor
frontend tunnel
    bind 127.0.0.1:{port} ssl crt {folder}/haproxy.pem
    default_backend gateways
backend gateways
    option httpchk GET /healthz
    http-check expect status 200
    server one 127.0.0.1:{server_port} check inter 100ms fall 1 rise 1
"""


async def test_haproxy_in_front_with_tls_and_health_checks(tmp_path: Path) -> None:
    haproxy = need_program("haproxy")
    pem = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
    pem.write_to_path(tmp_path / "haproxy.pem")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    health = ["--health=/healthz", "--trust-forwarded=127.0.0.0/8"]
    async with echo_server() as address, tunnel("serve", "0", address, *health) as serving:
        (tmp_path / "haproxy.cfg").write_text(
            HAPROXY.format(port=port, folder=tmp_path, server_port=await port_of(serving))
        )
        command = [haproxy, "-W", "-db", "-f", tmp_path / "haproxy.cfg"]
        async with running(command, "Loading success"):
            url = f"wss://localhost:{port}/"
            ca = f"--ca={tmp_path}/ca.pem"
            check, code = [*TUNNEL, "check", url, ca], 3
            with trio.fail_after(LIMIT):
                while code:  # It is 0 once haproxy's own check has succeeded.
                    done = await trio.run_process(check, check=False, capture_stdout=True)
                    code = done.returncode
            await ask_through(url, ca, connections=3)
            await serving.says("127.0.0.1 through 127.0.0.1:")


NGINX = """
daemon off;
pid {folder}/pid;
error_log stderr notice;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/nginx.pem;
        ssl_certificate_key {folder}/nginx.pem;
        location / {{
            proxy_pass http://127.0.0.1:{server_port};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_buffering off;
        }}
    }}
}}
"""


async def test_nginx_in_front_with_tls(tmp_path: Path) -> None:
    nginx = need_program("nginx", "nginx-light")
    pem = AUTHORITY.issue_cert("localhost").private_key_and_cert_chain_pem
    pem.write_to_path(tmp_path / "nginx.pem")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()
    trusted = "--trust-forwarded=127.0.0.1"
    async with echo_server() as address, tunnel("serve", "0", address, trusted) as serving:
        (tmp_path / "nginx.conf").write_text(
            NGINX.format(port=port, folder=tmp_path, server_port=await port_of(serving))
        )
        command = [nginx, "-e", "stderr", "-c", tmp_path / "nginx.conf", "-p", tmp_path]
        async with running(command, "start worker process "):
            await ask_through(f"wss://localhost:{port}/", f"--ca={tmp_path}/ca.pem", connections=3)
            await serving.says("127.0.0.1 through 127.0.0.1:")


@pytest.mark.parametrize("proxy", [tinyproxy, squid, microsocks])
async def test_a_proxy_between(proxy: Any) -> None:
    scheme = "socks5" if proxy is microsocks else "http"
    async with (
        echo_server() as address,
        tunnel("serve", "0", address) as serving,
        proxy() as (proxy_address, _),
    ):
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        option = f"--proxy={scheme}://{proxy_address}"
        await ask_through(url, option, connections=2)
        assert b"It can be reached." in await output([*TUNNEL, "check", url, option])


async def test_a_proxy_that_lets_nobody_through_but_to_port_443(tmp_path: Path) -> None:
    """squid does this unless it is told otherwise."""
    tls = AUTHORITY.issue_cert("localhost", "127.0.0.43").private_key_and_cert_chain_pem
    tls.write_to_path(tmp_path / "server.pem")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ["serve", f"--cert={tmp_path}/server.pem"]
    client = f"--ca={tmp_path}/ca.pem"
    async with (
        echo_server() as address,
        tunnel(*server, "0", address) as elsewhere,
        squid(only_443=True) as (proxy_address, _),
    ):
        proxy = f"--proxy=http://{proxy_address}"
        url = f"wss://127.0.0.1:{await port_of(elsewhere)}/"
        with trio.fail_after(LIMIT):
            done = await trio.run_process(
                [*TUNNEL, "check", url, client, proxy], check=False, capture_stdout=True
            )
        assert done.returncode == 3
        assert b"many proxies allow port 443 only" in done.stdout
        try:
            with socket.create_server(("127.0.0.43", 443)):
                pass
        except OSError:
            pytest.skip("this user may not listen on port 443")
        async with tunnel(*server, "127.0.0.43:443", address):
            await ask_through("wss://127.0.0.43/", client, proxy, connections=2)


# Other tunnels at the other end


def websocat() -> list[str | Path]:
    return built_peer("rust", "websocat")


async def test_websocat_serves() -> None:
    async with echo_server() as address:
        port = free_port()
        command = [*websocat(), "--binary", f"ws-l:127.0.0.1:{port}", f"tcp:{address}"]
        async with running([*command, "-v"], "Listening|serving"):
            await ask_through(f"ws://127.0.0.1:{port}/")


async def test_websocat_connects() -> None:
    async with echo_server() as address, tunnel("serve", "0", address) as serving:
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        port = free_port()
        command = [*websocat(), "-v", "--binary", f"tcp-l:127.0.0.1:{port}", url]
        async with (
            running(command, ("127.0.0.1", port)),
            await trio.open_tcp_stream("127.0.0.1", port) as client,
        ):
            assert await ask(client) == DATA


async def test_websockify_serves() -> None:
    """It has no half-close: so what comes back is awaited before the end is sent."""
    need_module("websockify")
    async with echo_server() as address:
        port = free_port()
        command = [sys.executable, "-m", "websockify", f"127.0.0.1:{port}", address]
        async with (
            running(command, "proxying from"),
            tunnel("listen", "0", f"ws://127.0.0.1:{port}/") as listening,
            await trio.open_tcp_stream("127.0.0.1", await port_of(listening)) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.send_all, DATA)
            received = b""
            while len(received) < len(DATA):
                received += await client.receive_some()
            assert received == DATA
