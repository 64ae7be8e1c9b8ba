from functools import partial

import trio
import websockets
from behaviour import CLIENT_TLS, SERVER_TLS, behave, run, subprotocols_of, tell
from websockets.trio.client import connect
from websockets.trio.connection import Connection
from websockets.trio.server import ServerConnection, serve


class Adapter:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.send = self.send_fragments = connection.send
        self.close = connection.aclose

    async def receive(self) -> bytes | None:
        try:
            return await self.connection.recv(decode=False)
        except websockets.ConnectionClosed:
            return None

    async def ping(self, payload: bytes) -> None:
        await (await self.connection.ping(payload)).wait()

    async def abort(self) -> None:
        await trio.aclose_forcefully(self.connection.stream)

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

    serve_it = partial(serve, handle, 0, host="127.0.0.1", select_subprotocol=choose)
    async with trio.open_nursery() as nursery:
        plain = await nursery.start(serve_it)
        tls = await nursery.start(partial(serve_it, ssl=SERVER_TLS))
        ports = [server.listeners[0].socket.getsockname()[1] for server in (plain, tls)]
        tell(version=websockets.__version__, port=ports[0], tls_port=ports[1])


run(trio.run, server, client)
