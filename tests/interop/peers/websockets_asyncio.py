import asyncio
from functools import partial

import websockets
from behaviour import CLIENT_TLS, SERVER_TLS, behave, run, subprotocols_of, tell
from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve


class Adapter:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.send = self.send_fragments = connection.send
        self.close = connection.close

    async def receive(self) -> bytes | None:
        try:
            return await self.connection.recv(decode=False)
        except websockets.ConnectionClosed:
            return None

    async def ping(self, payload: bytes) -> None:
        await (await self.connection.ping(payload))

    async def abort(self) -> None:
        self.connection.transport.abort()

    code = property(lambda self: self.connection.close_code)
    reason = property(lambda self: self.connection.close_reason)
    subprotocol = property(lambda self: self.connection.subprotocol)


async def client(url: str) -> None:
    tls = CLIENT_TLS if url.startswith("wss") else None
    async with connect(url, ssl=tls, subprotocols=subprotocols_of(url)) as connection:
        await behave(url, Adapter(connection))


async def server() -> None:
    async def handle(connection: ServerConnection) -> None:
        await behave(connection.request.path, Adapter(connection))

    def choose(connection: ServerConnection, offered: list[str]) -> str | None:
        return "bytes" if "bytes" in offered else None  # The library would insist on one.

    serve_it = partial(serve, handle, "127.0.0.1", 0, select_subprotocol=choose)
    async with serve_it() as plain, serve_it(ssl=SERVER_TLS) as tls:
        ports = [server.sockets[0].getsockname()[1] for server in (plain, tls)]
        tell(version=websockets.__version__, port=ports[0], tls_port=ports[1])
        await plain.serve_forever()


run(lambda function, *args: asyncio.run(function(*args)), server, client)
