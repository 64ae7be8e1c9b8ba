"""Node: ``ws`` with ``createWebSocketStream``, and ``websocket-stream``."""

from __future__ import annotations

import os

from .checks import Checks, HalfClose, closed_with
from .conftest import Meet
from .peer import node_peer


class TestWs(Checks):
    ending = closed_with(1005, "")  # A Node stream can give no code.
    half_close = HalfClose(late="WebSocket is not open: readyState 3 (CLOSED)")
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return node_peer("ws_peer.js", "ws")


class TestWebsocketStream(Checks):
    """Its client loses what its program has not read when our Close comes."""

    ending = closed_with(1005, "")
    half_close = HalfClose(late="write after end")
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return node_peer("websocket_stream_peer.js", "websocket-stream")

    def close(self, code: int, reason: str) -> tuple[int, str]:
        # Its ws 3.3 leaves out a 1000 that comes with no reason.
        return (1005, "") if (code, reason) == (1000, "") else (code, reason)

    async def test_a_slow_reader_gets_everything(self, meet: Meet, role: str) -> None:
        data = os.urandom(1_000_003)
        async with meet("/receive", delay=0.01) as met:
            await met.stream.send_all(data)
            await met.stream.aclose()
            report = await met.report()
        assert (report.received == len(data)) is (role == "server")

    async def test_a_reader_that_pauses_gets_everything(self, meet: Meet, role: str) -> None:
        if role == "server":
            await super().test_a_reader_that_pauses_gets_everything(meet)
