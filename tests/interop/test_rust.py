"""Rust: ``ws_stream_tungstenite``, the original; ``tokio-tungstenite``; ``fastwebsockets``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from trio_wsstream import (
    ErrorOccurred,
    ProtocolViolation,
    StreamConfig,
    TextRejected,
)

from ..support.receiving import receive_all
from .checks import Checks, HalfClose, closed_with, echo_through_pumps, prompt, sha256
from .conftest import Meet
from .peer import built_peer


class TestWsStreamTungstenite(Checks):
    """The original. It can neither ping nor send fragments, and its Closes have no codes."""

    cannot = frozenset({"/fragments", "/ping"})
    half_close = HalfClose(late="not connected")
    ending = closed_with(1005, "")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("rust", "ws_stream_tungstenite")

    def close(self, code: int, reason: str) -> tuple[int, str]:
        return 1005, ""

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        return code, reason

    def told_of_our_answer(self, code: int, reason: str) -> tuple[int, str]:
        return 1005, ""

    async def test_it_closes_with_a_code_that_is_no_end(self, meet: Meet) -> None:
        """It has no such codes, so its program cannot tell us of an error."""
        async with meet("/close", code=4002) as met:
            await prompt(met.stream)
            assert await met.stream.receive_some() == b""

    # What its program takes for a plain end

    async def test_our_drop_is_a_plain_end_for_it(self, meet: Meet) -> None:
        """Only an observer of the original can know."""
        async with meet("/receive") as met:
            await met.stream.send_all(b"half of the da")
            await trio.aclose_forcefully(met.stream)
            report = await met.report()
        assert (report.received, report.end, report.code) == (14, None, None)
        assert report.events[0].startswith("Error ")

    @pytest.mark.parametrize("code", [1000, 1001, 1011, 4000])
    async def test_each_code_is_a_plain_end_for_it(self, meet: Meet, code: int) -> None:
        async with meet("/receive") as met:
            await met.stream.send_all(b"half of the da")
            await met.stream.aclose(code)
            report = await met.report()
        assert (report.received, report.end) == (14, None)
        assert f"CloseFrame {code}" in report.events

    # What it does with large frames and blocked writes

    async def test_it_takes_no_frame_of_more_than_16_mib(self, meet: Meet) -> None:
        limit = 16 * 2**20
        config = StreamConfig(max_message_size=limit)
        async with meet("/receive", config=config) as met:
            await met.stream.send_all(bytes(limit))
            await met.stream.aclose()
            assert (await met.report()).received == limit
        config = StreamConfig(max_message_size=limit + 1, close_timeout=1)
        async with meet("/receive", config=config) as met:
            try:
                await met.stream.send_all(bytes(limit + 1))
            except trio.BrokenResourceError:
                pass
            await met.stream.aclose()
            report = await met.report()
        assert (report.received, report.end) == (0, None)
        assert "Message too long" in report.events[0]

    async def test_our_close_in_the_middle_of_its_data(self, meet: Meet, role: str) -> None:
        """Its client panics, if its program writes between our Close and the end of TCP (0.14)."""
        async with meet("/flood") as met:
            await met.stream.receive_some()
            await met.stream.aclose()
            report = await met.report()
        if role == "client":
            assert "Sending after closing is not allowed" in report.panic
        else:
            assert (report.late, report.code) == ("not connected", 1000)

    # The scenarios of its own tests: docs/ws_stream_tungstenite.rst

    @pytest.mark.parametrize("codec", ["asynchronous", "tokio"])
    async def test_lines_through_its_codec(self, meet: Meet, codec: str) -> None:
        """The lines come whole or in parts. Where our writes end means nothing to the codec."""
        lines = b"A line\nA second line\n"
        async with meet("/lines", codec=codec) as met:
            for part in [lines, *(lines[i : i + 1] for i in range(len(lines)))]:
                await met.stream.send_all(part)
            received = b""
            while len(received) < 2 * len(lines):
                received += await met.stream.receive_some()
            await met.stream.aclose()
            report = await met.report()
        assert received == 2 * lines
        assert [line.rstrip("\n") for line in report.lines] == ["A line", "A second line"] * 2

    async def test_lines_in_parts_from_its_codec(self, meet: Meet) -> None:
        items = ["A ", "line\n", "A second line\n"]
        async with meet("/lines", items=",".join(items)) as met:
            for item in items:
                await met.stream.send_all(b"next\n")
                assert await met.stream.receive_some() == item.encode()
            await met.stream.send_all(b"end\n")
            assert await met.stream.receive_some() == b""
            await met.stream.aclose()
            assert (await met.report()).lines == ["next\n"] * 3 + ["end\n"]
        assert met.stream.closed == closed_with(1005, "")

    @pytest.mark.parametrize("channel", ["unbounded", "bounded"])
    async def test_its_observer_is_told_of_our_pings_and_our_close(
        self, meet: Meet, channel: str
    ) -> None:
        delay = 0.02 if channel == "bounded" else 0
        async with meet("/receive", observe=channel, observe_delay=delay) as met:
            for payload in (b"1", b"2", b"3"):
                await met.stream.ping(payload)
            await met.stream.send_all(b"data")
            await met.stream.aclose(1000, "bye")
            report = await met.report()
        assert report.received == len(b"data")
        assert report.events[:4] == ["Ping 1", "Ping 2", "Ping 3", "CloseFrame 1000"]


class TestWsStreamTungsteniteWithASmallBuffer:
    """This is a client only, because only a client can be told the size of the buffer in time."""

    roles = ("client",)
    command = TestWsStreamTungstenite.command

    async def test_it_waits_for_room_and_loses_nothing(self, meet: Meet) -> None:
        async with meet("/send", write_buffer=1000, sizes=",".join(["900"] * 100)) as met:
            received = await receive_all(met.stream)
            await met.stream.aclose()
            report = await met.report()
        assert sha256(received) == report.sent_sha256

    async def test_it_panics_at_a_write_that_fills_it(self, meet: Meet) -> None:
        """Version 0.14 leaves no room for the header of the frame."""
        async with meet("/send", write_buffer=1000, sizes="1000") as met:
            with pytest.raises(trio.BrokenResourceError):
                await met.stream.receive_some()
            assert "WriteBufferFull" in (await met.report()).panic


class TestTokioTungstenite(Checks):
    half_close = HalfClose(late="Trying to work with closed connection")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("rust", "tokio_tungstenite")

    # In the tests of ws_stream_tungstenite this is the other end. Here we are in its place.

    async def test_its_text_is_refused_with_the_words_of_the_original(self, meet: Meet) -> None:
        async with meet("/text") as met:
            errors = met.stream.subscribe(kinds=ErrorOccurred)
            await met.stream.send_all(b"hello")
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            await met.stream.aclose()
            report = await met.report()
        assert isinstance(broken.value.__cause__, TextRejected)
        assert (report.code, report.reason) == (1003, "Text messages are not supported.")
        assert isinstance(errors.receive_nowait().error, TextRejected)

    async def test_its_text_is_refused_while_our_sending_waits(self, meet: Meet) -> None:
        """It reads nothing at first; then our frame that was under way, then our Close."""
        async with meet("/text", pause=0.5) as met:
            with pytest.raises(trio.BrokenResourceError) as broken:
                while True:
                    await met.stream.send_all(os.urandom(1_000_003))
            await met.stream.aclose()
            report = await met.report()
        assert isinstance(broken.value.__cause__, TextRejected)
        assert report.received > 0
        assert (report.code, report.reason) == (1003, "Text messages are not supported.")

    async def test_its_violation_fails_the_connection(self, meet: Meet) -> None:
        """It sends a Ping of 126 bytes."""
        async with meet("/ping", payload="x" * 126) as met:
            errors = met.stream.subscribe(kinds=ErrorOccurred)
            await met.stream.send_all(b"ping")
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            await met.stream.aclose()
            report = await met.report()
        assert isinstance(broken.value.__cause__, ProtocolViolation)
        assert report.code == 1002
        assert isinstance(errors.receive_nowait().error, ProtocolViolation)


class TestFastwebsockets(Checks):
    half_close = HalfClose(late="Connection is closed")
    abrupt_code = None
    answers_while_paused = False

    @staticmethod
    def command() -> list[str | Path]:
        return built_peer("rust", "fastwebsockets")


async def test_a_tunnel_of_the_original_in_front_of_tcp() -> None:
    await echo_through_pumps(built_peer("rust", "pumps"))
