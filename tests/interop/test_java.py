"""Java: the JDK's ``java.net.http.WebSocket``, ``Java-WebSocket``, ``Netty``, ``OkHttp``."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import trio

from trio_wsstream import ConnectionLost, StreamConfig, WsByteStream

from .checks import Checks, HalfClose, greet, sha256
from .conftest import Meet
from .peer import built_peer

FAULTS = Path(__file__).parent / "faults"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        # A newer JDK than 17.0.15 may have mended it.
        ("JavaNetHttpDrop", "JDK .*: (not told of the end of connection|told of the end of) .*"),
        (
            "JavaWebSocketBlocked",
            "the other client before: served\nand while one blocks: not served",
        ),
        (
            "JavaWebSocketForgets",
            "the client: not served\nand when the server is reminded: served",
        ),
    ],
)
def test_a_program_without_us_looks_for_the_fault(program: str, expected: str) -> None:
    """What the program finds is told in docs/peers.rst."""
    java, *path, _ = built_peer("java", "JavaWebSocket")
    command = [java, *path, FAULTS / f"{program}.java"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert re.fullmatch(expected, output.strip())


class TestJavaNetHttp(Checks):
    roles = ("client",)
    half_close = HalfClose(late="ExecutionException: java.io.IOException: Output closed")
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("java", "JavaNetHttp")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return code, ""

    async def test_our_abrupt_end_is_no_clean_end_for_it(self, meet: Meet) -> None:
        """In 7 of 85 cases it has told its program nothing, so there may be no report."""
        async with meet("/echo") as met:
            await greet(met.stream)
            await trio.aclose_forcefully(met.stream)
            with trio.move_on_after(2):
                assert (await met.report()).code == 1006


class TestJavaWebSocket(Checks):
    """Its callbacks must not wait, so that it reads on whatever its program does."""

    half_close = HalfClose(late="WebsocketNotConnectedException")
    abrupt_code = None
    answers_while_paused = True

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("java", "JavaWebSocket")

    def check_end(self, stream: WsByteStream, code: int, reason: str) -> None:
        """Its client may end TCP before its answer to our Close is written: docs/peers.rst."""
        assert stream.closed is not None
        if stream.closed.code == 1006:
            assert not stream.closed.clean
        else:
            super().check_end(stream, code, reason)


class TestNettyServer(Checks):
    roles = ("server",)
    half_close = HalfClose(late="StacklessClosedChannelException")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("java", "Netty")

    async def test_it_takes_messages_of_64_kib(self, meet: Meet) -> None:
        """That is our default `max_message_size`. Netty drops TCP at a larger message."""
        config = StreamConfig(max_message_size=65537)
        async with meet("/receive", config=config) as met:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await met.stream.send_all(bytes(65537))
            report = await met.report()
        assert report.received == 0
        assert "65536" in report.end


class TestNettyClient(TestNettyServer):
    """It drops TCP upon a Close, without one of its own."""

    roles = ("client",)

    def check_end(self, stream: WsByteStream, code: int, reason: str) -> None:
        assert stream.closed is not None
        assert (stream.closed.code, stream.closed.clean) == (1006, False)

    async def test_a_half_close_loses_nothing_that_was_sent_before_it(self, meet: Meet) -> None:
        """No answer comes, so we cannot know that the peer had nothing more to say."""
        data = os.urandom(1_000_003)
        async with meet("/receive") as met:
            await met.stream.send_all(data)
            await met.stream.send_eof()
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            report = await met.report()
        assert isinstance(broken.value.__cause__, ConnectionLost)
        assert (report.received_sha256, report.code) == (sha256(data), 1000)


class TestOkHttp(Checks):
    roles = ("client",)
    cannot = frozenset({"/fragments", "/ping"})
    half_close = HalfClose(late="sent", received=b"late")
    abrupt_code = None
    answers_while_paused = True

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("java", "OkHttp")

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return 1000, ""

    async def test_it_answers_a_close_only_when_its_program_does(self, meet: Meet) -> None:
        """Until then `aclose` waits, at most for `close_timeout`."""
        async with meet("/receive", hold=1, config=StreamConfig(close_timeout=0.5)) as met:
            await met.stream.send_all(b"data")
            with trio.move_on_after(10) as scope:
                await met.stream.aclose()
            assert not scope.cancelled_caught
            assert met.stream.closed is not None
            assert not met.stream.closed.clean
            assert (await met.report()).code == 1000
