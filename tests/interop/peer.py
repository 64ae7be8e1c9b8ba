"""A peer's process, and connections between it and a stream of ours."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import select
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast
from urllib.parse import urlencode

import pytest
import trio
from cryptography.hazmat.primitives import serialization

from trio_wsstream import StreamConfig, WsByteStream, open_ws_stream, serve_ws

from ..support.transports import AUTHORITY, CLIENT_TLS, SERVER_TLS
from .build import BUILDS

HERE = Path(__file__).parent
LIMIT = 20  # seconds. A connection that takes longer hangs.


# What must be installed


def missing(what: str, install: str) -> NoReturn:
    """Skip the test, or fail it if ``TRIO_WSSTREAM_ALL_PEERS=1`` is set, as in CI."""
    message = f"no {what}: {install}"
    if os.environ.get("TRIO_WSSTREAM_ALL_PEERS") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def need_module(name: str) -> None:
    """Skip the test unless a Python module is installed."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # Not even the package of the module is installed.
        found = None
    if found is None:
        missing(name, "pip install '.[interop]'")


def need_program(name: str, package: str | None = None) -> str:
    """Return the path of a program. ``package`` is its Debian package, if the name differs."""
    # Debian installs servers into folders that only the search path of root has.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing(name, f"apt-get install {package or name}")
    return path


def need_node(package: str) -> str:
    """Return the path of Node, after checking that a package of ``package.json`` is installed."""
    node = need_program("node", "nodejs npm")
    if not (HERE / "node_modules" / package).exists():
        missing(f"Node package {package}", "npm install, in tests/interop")
    return node


def python_peer(script: str, *modules: str) -> list[str]:
    """Return the command of a peer in Python that needs ``modules``."""
    for module in modules:
        need_module(module)
    return [sys.executable, str(HERE / "peers" / script)]


def node_peer(script: str, package: str) -> list[str]:
    """Return the command of a peer in Node that needs ``package``."""
    return [need_node(package), str(HERE / "peers" / script)]


def built_peer(language: str, program: str) -> list[str | Path]:
    """Return the command of a program that `tests.interop.build` builds, or of one beside it."""
    build = BUILDS[language]
    if tool := build.missing_tool():
        missing(tool[0], f"install {tool[1]}, then nox -s interop")
    built, command = build.find(build.target, program)
    if not built.exists():
        missing(program, f"nox -s interop, or python -m tests.interop.build {language}")
    return command


# Meeting it


def certificate_pem() -> bytes:
    """Return a new certificate for localhost, with its key in the form PKCS 8 for Java."""
    certificate = AUTHORITY.issue_cert("localhost", "127.0.0.1")
    key = serialization.load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem + b"".join(part.bytes() for part in certificate.cert_chain_pems)


class Peer:
    """A peer's process. pytest shows what it writes to stderr when a test fails.

    Args:
      command: the command that starts it, without the arguments that every peer takes.
      folder: the folder for the PEM files that it is given.
    """

    def __init__(self, command: Sequence[str | Path], folder: Path) -> None:
        AUTHORITY.cert_pem.write_to_path(folder / "authority.pem")
        (folder / "certificate.pem").write_bytes(certificate_pem())
        self._process = subprocess.Popen(
            [*command, folder / "certificate.pem", folder / "authority.pem"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._data = b""
        self._reports: dict[int, SimpleNamespace] = {}
        self._ids = itertools.count(1)

        try:
            self.facts = self._read_facts()
        except BaseException:
            self.__exit__()
            raise

    def _read_facts(self) -> dict[str, Any]:
        assert self._process.stdout
        assert select.select([self._process.stdout], [], [], LIMIT)[0], "the peer does not begin"
        line = self._process.stdout.readline()
        assert line, "the peer's process has ended before it began"
        print("peer:", line.decode(), end="")
        return cast(dict[str, Any], json.loads(line))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        with self._process:  # This waits for the process and closes the pipes.
            pass

    async def _report(self, number: int) -> SimpleNamespace:
        assert self._process.stdout
        async with trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno())) as pipe:
            while number not in self._reports:
                data = await pipe.receive_some()
                assert data, "the peer's process has ended"
                *lines, self._data = (self._data + data).split(b"\n")
                for line in lines:
                    print("peer:", line.decode())
                    report = json.loads(line)
                    self._reports[int(report["id"])] = SimpleNamespace(**report)
        return self._reports.pop(number)

    @asynccontextmanager
    async def meet(
        self,
        role: str,
        path: str,
        *,
        tls: bool = False,
        subprotocols: Sequence[str] = (),
        config: StreamConfig = StreamConfig(),
        **query: object,
    ) -> AsyncGenerator[Meeting, None]:
        """Connect to the peer, in its role ``"server"`` or ``"client"``, and yield the connection.

        Args:
          path: what the peer does, together with ``query``.
          subprotocols: the subprotocols that the client offers.
          config: the settings of our stream.
        """
        number = next(self._ids)
        if role == "client" and subprotocols:
            query["subprotocols"] = ",".join(subprotocols)
        resource = f"{path}?{urlencode({'id': number, **query})}"
        scheme = "wss" if tls else "ws"
        with trio.fail_after(LIMIT):
            if role == "server":
                port = self.facts["tls_port" if tls else "port"]
                url = f"{scheme}://localhost:{port}{resource}"
                async with open_ws_stream(
                    url,
                    CLIENT_TLS if tls else None,
                    subprotocols=subprotocols,
                    config=config,
                ) as stream:
                    yield Meeting(stream, self, number)
            else:
                async with serve_streams(SERVER_TLS if tls else None, config) as (port, streams):
                    assert self._process.stdin
                    url = f"{scheme}://localhost:{port}{resource}"
                    self._process.stdin.write(url.encode() + b"\n")
                    async with await streams.receive() as stream:
                        yield Meeting(stream, self, number)


class Meeting:
    """A connection between ``stream`` and a peer."""

    def __init__(self, stream: WsByteStream, peer: Peer, number: int) -> None:
        self.stream = stream
        self._peer = peer
        self._number = number

    async def report(self) -> Any:
        """Wait until the connection has ended for the peer, and return what the peer saw."""
        return await self._peer._report(self._number)


@asynccontextmanager
async def serve_streams(
    ssl_context: ssl.SSLContext | None = None, config: StreamConfig = StreamConfig()
) -> AsyncGenerator[tuple[int, trio.MemoryReceiveChannel[WsByteStream]], None]:
    """Run a server of ours on loopback, and yield its port and a channel of its streams."""
    send, receive = trio.open_memory_channel[WsByteStream](0)
    listener: Any

    async def handle(stream: WsByteStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_ws, handle, "127.0.0.1", 0, ssl_context, subprotocols=["bytes"], config=config
        )
        (listener,) = await nursery.start(serve)
        listener = listener.transport_listener
        if ssl_context is not None:
            listener = listener.transport_listener
        yield listener.socket.getsockname()[1], receive
        nursery.cancel_scope.cancel()
