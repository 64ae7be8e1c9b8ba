"""Real programs through both halves of ``examples/tunnel.py``."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from ..support.programs import LIMIT, TUNNEL, free_port, port_of, running, tunnel, tunnel_to
from .peer import missing, need_program

DATA = os.urandom(3_000_000)


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
        # Many commands at once, through one connection.
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
    # It refuses to run as root; pytest's own folders are closed to others.
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


async def test_ssh(tmp_path: Path) -> None:
    """Through ``tunnel.py connect`` as its ProxyCommand."""
    server = need_program("sshd", "openssh-server")
    client = need_program("ssh", "openssh-client")
    for key in ("host_key", "user_key"):
        generate = [need_program("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", ""]
        await output([*generate, "-f", tmp_path / key])
    host_key = (tmp_path / "host_key.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"somewhere {host_key}")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # as its service does
    port = free_port()
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": tmp_path / "host_key",
        "AuthorizedKeysFile": tmp_path / "user_key.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
    }
    serve = [server, "-D", "-e", "-f", "/dev/null", *options(settings)]
    async with (
        running(serve, "Server listening"),
        tunnel("serve", "0", f"127.0.0.1:{port}") as serving,
    ):
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        settings = {
            "ProxyCommand": shlex.join([*TUNNEL, "-q", "connect", url]),
            "IdentityFile": tmp_path / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": tmp_path / "known_hosts",
            "BatchMode": "yes",
        }
        ssh = [client, "-F", "none", *options(settings), f"{getpass.getuser()}@somewhere"]
        assert await output([*ssh, "cat"], stdin=DATA) == DATA


def options(settings: dict[str, object]) -> list[str]:
    return [f"-o{name}={value}" for name, value in settings.items()]
