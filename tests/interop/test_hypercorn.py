"""``wsproto`` under ``hypercorn``, whose applications see little of how a connection ends."""

from __future__ import annotations

import pytest
import trio

from trio_wsstream import AbnormalClosure, PingReceived

from .checks import Checks, HalfClose, prompt
from .conftest import Meet
from .peer import python_peer


class TestHypercorn(Checks):
    roles = ("server",)
    cannot = frozenset({"/fragments"})
    half_close = HalfClose(late="sent")  # It is dropped silently.
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return python_peer("hypercorn_peer.py", "hypercorn")

    def told(self, code: int, reason: str) -> tuple[int, None]:
        return 1006, None  # It tells this of each Close.

    def told_of_our_answer(self, code: int, reason: str) -> tuple[int, None]:
        return 1000, None

    async def test_its_pings_arrive_and_are_answered(self, meet: Meet) -> None:
        """It pings by itself, with no payload, and does not look for Pongs."""
        async with meet("/echo") as met:
            pings = met.stream.subscribe(kinds=PingReceived)
            assert await pings.receive() == PingReceived(b"")
            assert await pings.receive() == PingReceived(b"")

    async def test_its_abrupt_end_is_no_clean_end_for_us(self, meet: Meet) -> None:
        """It cannot drop TCP; when an application fails, its Close says so."""
        async with meet("/abort") as met:
            await prompt(met.stream)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            await met.stream.aclose()
        assert broken.value.__cause__ == AbnormalClosure(1011, "")
        assert met.stream.closed is not None  # It may drop TCP before our answer.
        assert met.stream.closed.error == AbnormalClosure(1011, "")
