"""``websockets``: its asyncio, Trio and threading ends."""

from __future__ import annotations

from .checks import Checks, HalfClose
from .peer import python_peer


class TestWebsocketsAsyncio(Checks):
    half_close = HalfClose(late="ConnectionClosedOK")
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return python_peer("websockets_asyncio.py", "websockets.asyncio")


class TestWebsocketsTrio(Checks):
    half_close = HalfClose(late="ConnectionClosedOK")
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return python_peer("websockets_trio.py", "websockets.trio")


class TestWebsocketsThreading(Checks):
    half_close = HalfClose(late="ConnectionClosedOK")
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return python_peer("websockets_sync.py", "websockets.sync")
