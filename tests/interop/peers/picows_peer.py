import asyncio
from functools import partial
from importlib.metadata import version

from behaviour import CLIENT_TLS, SERVER_TLS, behave, query_of, run, subprotocols_of, tell
from picows import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    WSUpgradeResponseWithListener,
    ws_connect,
    ws_create_server,
)


class Adapter(WSListener):
    """Answers a Close at once, as picows' examples do. With ``hold=1`` it first sends a message."""

    def __init__(self, url: str, subprotocol: str | None = None) -> None:
        self.url = url
        self.subprotocol = subprotocol
        self.code, self.reason = 1006, ""
        self.has_ended = False
        self.holds = "hold" in query_of(url)
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self.may_write = asyncio.Event()
        self.may_write.set()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self.task = asyncio.get_running_loop().create_task(behave(self.url, self))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            self.code, self.reason = int(frame.get_close_code()), frame.get_close_reason() or ""
            if self.holds:
                self.frames.put_nowait(None)
            else:
                self.answer()
        elif frame.msg_type == WSMsgType.PONG:
            self.pongs.put_nowait(frame.get_payload_as_bytes())
        else:
            self.frames.put_nowait(frame.get_payload_as_bytes())

    def answer(self) -> None:
        self.transport.send_close(self.code, self.reason.encode())
        self.transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.may_write.set()
        self.frames.put_nowait(None)

    async def send(self, data: bytes) -> None:
        await self.may_write.wait()
        self.transport.send(WSMsgType.BINARY, data)
        if self.holds:
            self.answer()

    async def send_fragments(self, fragments: list[bytes]) -> None:
        for index, fragment in enumerate(fragments):
            kind = WSMsgType.CONTINUATION if index else WSMsgType.BINARY
            self.transport.send(kind, fragment, fin=index == len(fragments) - 1)

    async def receive(self) -> bytes | None:
        data = None if self.has_ended else await self.frames.get()
        self.has_ended = data is None
        return data

    async def ping(self, payload: bytes) -> None:
        self.transport.send_ping(payload)
        assert await self.pongs.get() == payload

    async def close(self, code: int, reason: str) -> None:
        self.transport.send_close(code, reason.encode())

    async def abort(self) -> None:
        self.transport.disconnect(graceful=False)


async def client(url: str) -> None:
    offered = subprotocols_of(url)
    headers = {"Sec-WebSocket-Protocol": ", ".join(offered)} if offered else {}
    _, adapter = await ws_connect(
        lambda request, response: Adapter(url, response.headers.get("Sec-WebSocket-Protocol")),
        url,
        ssl_context=CLIENT_TLS if url.startswith("wss") else None,
        extra_headers=headers,
    )
    await adapter.task


async def server() -> None:
    def handle(request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        chosen = "bytes" if "bytes" in offered.split(", ") else None
        headers = {"Sec-WebSocket-Protocol": chosen} if chosen else {}
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_101_response(headers), Adapter(request.path.decode(), chosen)
        )

    serve = partial(ws_create_server, handle, "127.0.0.1", 0)
    plain, tls = await serve(), await serve(ssl=SERVER_TLS)
    ports = [server.sockets[0].getsockname()[1] for server in (plain, tls)]
    tell(version=version("picows"), port=ports[0], tls_port=ports[1])
    await plain.serve_forever()


run(lambda function, *args: asyncio.run(function(*args)), server, client)
