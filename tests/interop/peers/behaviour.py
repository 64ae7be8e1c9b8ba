"""What every peer in Python does with a connection. The package `tests.interop` has the list."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.lowlevel

CERTIFICATE, AUTHORITY = sys.argv[1:3]
SERVER_TLS = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
SERVER_TLS.load_cert_chain(CERTIFICATE)
CLIENT_TLS = ssl.create_default_context(cafile=AUTHORITY)


class Connection(Protocol):
    """A WebSocket of any library."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes | None:
        """Return a message, or None at the end. Then the attributes tell how it ended."""

    async def send_fragments(self, fragments: list[bytes]) -> None:
        """Send one message, with a frame for each fragment."""

    async def ping(self, payload: bytes) -> None:
        """Send a Ping, and return when its Pong has come."""

    async def close(self, code: int, reason: str) -> None: ...
    async def abort(self) -> None: ...

    code: int | None
    reason: str | None
    subprotocol: str | None


def tell(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def subprotocols_of(url: str) -> list[str] | None:
    wanted = query_of(url).get("subprotocols")
    return wanted.split(",") if wanted else None


async def behave(url: str, connection: Connection) -> None:
    """Do what ``url`` asks for until the connection ends, and report what was seen."""
    query = query_of(url)
    received, sent = hashlib.sha256(), hashlib.sha256()
    counts = {"received": 0, "sent": 0}

    async def receive() -> bytes | None:
        data = await connection.receive()
        if data is not None:
            received.update(data)
            counts["received"] += len(data)
        return data

    async def send(data: bytes) -> None:
        sent.update(data)
        counts["sent"] += len(data)
        await connection.send(data)

    late: str | None = None
    match urlsplit(url).path:
        case "/echo":
            while (data := await receive()) is not None:
                await send(data)
        case "/receive":
            if "pause" in query:
                await receive()
                await send(b"paused")
                await anyio.sleep(float(query["pause"]))
            delay = float(query.get("delay", "0"))
            while await receive() is not None:  # noqa: ASYNC110  # it waits for no event
                await anyio.sleep(delay)
            try:
                await connection.send(b"late")
                late = "sent"
            except Exception as error:  # noqa: BLE001  # whatever it is, it is told
                late = type(error).__name__
        case "/send":
            for size in query["sizes"].split(","):
                await send(os.urandom(int(size)))
            await connection.close(1000, "")
        case "/fragments":
            fragments = [os.urandom(int(size)) for size in query["sizes"].split(",")]
            for fragment in fragments:
                sent.update(fragment)
                counts["sent"] += len(fragment)
            await connection.send_fragments(fragments)
            await connection.close(1000, "")
        case "/flood":
            scope = anyio.CancelScope()

            async def flood() -> None:
                nonlocal late
                late = "sent"  # It stands unless the library raises an error.
                with scope:
                    try:
                        while True:
                            await send(bytes(65536))
                            await anyio.lowlevel.checkpoint()
                    except Exception as error:  # noqa: BLE001  # whatever it is, it is told
                        late = type(error).__name__

            async with anyio.create_task_group() as group:
                group.start_soon(flood)
                while await receive() is not None:
                    pass
                scope.deadline = anyio.current_time() + 1
        case "/close":
            await receive()
            await connection.close(int(query["code"]), query.get("reason", ""))
        case "/ping":
            await receive()
            await connection.ping(query["payload"].encode())
            await send(b"pong")
        case "/abort":
            await receive()
            await connection.abort()
    while await receive() is not None:
        pass
    tell(
        id=query["id"],
        code=connection.code,
        reason=connection.reason,
        subprotocol=connection.subprotocol,
        received_sha256=received.hexdigest(),
        sent_sha256=sent.hexdigest(),
        late=late,
        **counts,
    )


def run(
    runner: Callable[..., Any],
    serve: Callable[[], Awaitable[None]],
    connect: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    """Serve, and connect to what comes on standard input, until that ends.

    Args:
      runner: runs an async function with arguments, as `trio.run` does. Each client has a
          thread and a run of its own.
    """

    def read_urls() -> None:
        for line in sys.stdin:
            threading.Thread(target=runner, args=(connect, line.strip()), daemon=True).start()
        os._exit(0)

    threading.Thread(target=read_urls, daemon=True).start()
    runner(serve)
