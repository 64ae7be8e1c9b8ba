"""Node: ``ws`` with ``createWebSocketStream``, and ``websocket-stream``."""

from __future__ import annotations

from .checks import Checks, HalfClose, closed_with
from .peer import node_peer


class TestWs(Checks):
    ending = closed_with(1005, "")  # a Node stream can give no code
    half_close = HalfClose(late="WebSocket is not open: readyState 3 (CLOSED)")

    @staticmethod
    def command() -> list[str]:
        return node_peer("ws_peer.js", "ws")


class TestWebsocketStream(Checks):
    ending = closed_with(1005, "")
    half_close = HalfClose(late="write after end")

    @staticmethod
    def command() -> list[str]:
        return node_peer("websocket_stream_peer.js", "websocket-stream")

    def close(self, code: int, reason: str) -> tuple[int, str]:
        # Its ws, 3.3, leaves away a 1000 that comes with no reason.
        return (1005, "") if (code, reason) == (1000, "") else (code, reason)
