import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import WSMsgType, web
from behaviour import CLIENT_TLS, SERVER_TLS, behave, run, subprotocols_of, tell


class Adapter:
    """The `Connection` of a server or a client of aiohttp."""

    reason = None

    def __init__(self, connection: Any, subprotocol: str | None) -> None:
        self.connection = connection
        self.subprotocol = subprotocol
        self.send = connection.send_bytes

    async def receive(self) -> bytes | None:
        message = await self.connection.receive()
        if message.type is WSMsgType.CLOSE:
            self.reason = message.extra
        return message.data if message.type is WSMsgType.BINARY else None

    async def ping(self, payload: bytes) -> None:
        await self.connection.ping(payload)
        message = await self.connection.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, payload)

    async def close(self, code: int, reason: str) -> None:
        await self.connection.close(code=code, message=reason.encode())

    async def abort(self) -> None:
        self.connection.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    code = property(lambda self: self.connection.close_code)


def answers_pings(path: str) -> bool:
    """Whether aiohttp shall answer Pings itself. Then it hides Pongs."""
    return path != "/ping"


async def client(url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url,
            ssl=CLIENT_TLS,
            protocols=subprotocols_of(url) or (),
            autoping=answers_pings(urlsplit(url).path),
        ) as connection,
    ):
        await behave(url, Adapter(connection, connection.protocol))


async def server() -> None:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        connection = web.WebSocketResponse(
            protocols=["bytes"], autoping=answers_pings(request.path)
        )
        await connection.prepare(request)
        await behave(str(request.rel_url), Adapter(connection, connection.ws_protocol))
        return connection

    application = web.Application()
    application.router.add_get("/{path}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    ports = []
    for tls in (None, SERVER_TLS):
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        ports.append(runner.addresses[-1][1])
    tell(version=aiohttp.__version__, port=ports[0], tls_port=ports[1])
    await asyncio.Event().wait()


run(lambda function, *args: asyncio.run(function(*args)), server, client)
