import asyncio
import socket
import threading
from functools import partial

import websockets
from behaviour import CLIENT_TLS, SERVER_TLS, behave, run, subprotocols_of, tell
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.sync.server import ServerConnection, serve


class Adapter:
    """Its methods block, so each call has a thread."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.connection.send, data)

    async def send_fragments(self, fragments: list[bytes]) -> None:
        self.connection.send(fragments)

    async def receive(self) -> bytes | None:
        try:
            return await asyncio.to_thread(self.connection.recv, decode=False)
        except websockets.ConnectionClosed:
            return None

    async def ping(self, payload: bytes) -> None:
        self.connection.ping(payload).wait()

    async def close(self, code: int, reason: str) -> None:
        self.connection.close(code, reason)

    async def abort(self) -> None:
        self.connection.socket.shutdown(socket.SHUT_RDWR)

    code = property(lambda self: self.connection.close_code)
    reason = property(lambda self: self.connection.close_reason)
    subprotocol = property(lambda self: self.connection.subprotocol)


async def client(url: str) -> None:
    tls = CLIENT_TLS if url.startswith("wss") else None
    with connect(url, ssl=tls, subprotocols=subprotocols_of(url)) as connection:
        await behave(url, Adapter(connection))


async def server() -> None:
    def handle(connection: ServerConnection) -> None:
        asyncio.run(behave(connection.request.path, Adapter(connection)))

    def choose(connection: ServerConnection, offered: list[str]) -> str | None:
        return "bytes" if "bytes" in offered else None  # The library would insist on one.

    serve_it = partial(serve, handle, "127.0.0.1", 0, select_subprotocol=choose)
    with serve_it() as plain, serve_it(ssl=SERVER_TLS) as tls:
        threading.Thread(target=tls.serve_forever, daemon=True).start()
        ports = [server.socket.getsockname()[1] for server in (plain, tls)]
        tell(version=websockets.__version__, port=ports[0], tls_port=ports[1])
        plain.serve_forever()


run(lambda function, *args: asyncio.run(function(*args)), server, client)
