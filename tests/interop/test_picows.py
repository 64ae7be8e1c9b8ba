"""``picows``, whose programs answer a Close themselves."""

from __future__ import annotations

from trio_wsstream import StreamClosed

from ..support.receiving import receive_all
from .checks import Checks, HalfClose
from .conftest import Meet
from .peer import python_peer


class TestPicows(Checks):
    half_close = HalfClose(late="sent")  # It is dropped silently.
    answers_while_paused = True

    @staticmethod
    def command() -> list[str]:
        return python_peer("picows_peer.py", "picows")

    async def test_it_can_hold_its_answer_back_and_send_on(self, meet: Meet) -> None:
        async with meet("/receive", hold=1) as met:
            await met.stream.send_all(b"all that there is")
            await met.stream.send_eof()
            assert await receive_all(met.stream) == b"late"
            await met.stream.aclose()
            assert (await met.report()).received == len(b"all that there is")
        assert met.stream.closed == StreamClosed(1000, "half-close", clean=True, error=None)
