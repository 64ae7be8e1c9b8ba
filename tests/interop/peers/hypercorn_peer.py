"""Hypercorn, over wsproto, on Trio: a server only. Its applications can neither ping nor abort."""

from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import trio
from behaviour import CERTIFICATE, behave, run, tell
from hypercorn.config import Config
from hypercorn.trio import serve


class Adapter:
    """An ASGI application's view of a WebSocket."""

    code = None
    reason = None

    def __init__(self, receive: Any, send: Any, subprotocol: str | None) -> None:
        self._receive = receive
        self._send = send
        self.subprotocol = subprotocol

    async def send(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": data})

    async def receive(self) -> bytes | None:
        if self.code is None:
            event = await self._receive()
            if event["type"] == "websocket.receive":
                return event["bytes"]
            self.code, self.reason = event["code"], event.get("reason")
        return None

    async def ping(self, payload: bytes) -> None:
        """Hypercorn pings by itself."""

    async def close(self, code: int, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": code, "reason": reason})


async def application(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "websocket"
    assert (await receive())["type"] == "websocket.connect"
    chosen = "bytes" if "bytes" in scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen})
    url = f"{scope['path']}?{scope['query_string'].decode()}"
    await behave(url, Adapter(receive, send, chosen))


async def server() -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.insecure_bind = ["127.0.0.1:0"]
    config.certfile = config.keyfile = CERTIFICATE
    config.websocket_ping_interval = 0.05
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve, application, config)
        ports = {url.scheme: url.port for url in map(urlsplit, urls)}
        tell(version=version("hypercorn"), port=ports["http"], tls_port=ports["https"])


run(trio.run, server)
