"""``aiohttp``, whose Close in answer to ours is always 1000."""

from __future__ import annotations

from .checks import Checks, HalfClose
from .peer import python_peer


class TestAiohttp(Checks):
    cannot = frozenset({"/fragments"})
    half_close = HalfClose(late="ClientConnectionResetError")
    answers_while_paused = False

    @staticmethod
    def command() -> list[str]:
        return python_peer("aiohttp_peer.py", "aiohttp")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return 1000, ""

    def told_of_our_answer(self, code: int, reason: str) -> tuple[int, None]:
        return code, None
