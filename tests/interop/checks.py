"""The tests that every peer must pass. A peer's test class inherits them and sets its traits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import trio

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    PingReceived,
    PongReceived,
    StreamClosed,
    StreamConfig,
    WsByteStream,
    open_ws_stream,
)

from ..support.programs import port_of, running
from ..support.receiving import receive_all
from .conftest import Meet

# Around the lengths where a frame's header and our messages change their sizes.
SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 1_000_003]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def greet(stream: WsByteStream) -> None:
    """Wait until the peer's ``/echo`` runs. Some peers never start it if a Close comes first."""
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"


async def echo_odd_sizes(stream: WsByteStream, far: trio.abc.Stream) -> None:
    """Send messages of odd sizes to the TCP end beyond the peer, which sends all of it back."""
    messages = [os.urandom(size) for size in SIZES]
    echoed = bytearray()

    async def send() -> None:
        for message in messages:
            await stream.send_all(message)

    async def echo() -> None:
        async for data in far:
            await far.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(echo)
        while len(echoed) < sum(SIZES):
            echoed += await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert echoed == b"".join(messages)


async def echo_through_pumps(command: list[str | Path]) -> None:
    """Do `echo_odd_sizes` through a program that joins each WebSocket to a TCP connection."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    command = [*command, "serve", f"127.0.0.1:{listener.socket.getsockname()[1]}"]
    async with listener, running(command, "listening on") as pumps:
        url = f"ws://127.0.0.1:{await port_of(pumps)}/"
        async with open_ws_stream(url) as stream, await listener.accept() as tcp:
            await echo_odd_sizes(stream, tcp)


async def prompt(stream: WsByteStream) -> None:
    """Send the message that makes the peer end the connection, which may break this send."""
    try:
        await stream.send_all(b"end it")
    except trio.BrokenResourceError:
        pass


def closed_with(code: int, reason: str) -> StreamClosed:
    """Return how a stream ends when the peer has sent this Close and we have sent ours."""
    error = None if code in (1000, 1005) else AbnormalClosure(code, reason)
    return StreamClosed(code, reason, clean=True, error=error)


@attrs.frozen
class HalfClose:
    """What a peer does when we half-close. The table in ``docs/peers.rst`` says the same.

    Attributes:
      late: the exception with which the peer's library refuses to send after it, or ``"sent"``.
      received: what comes of a message that the peer sends after it.
    """

    late: str
    received: bytes = b""


class Checks:
    """Tests of a peer. Each test runs in all ``roles`` of the peer."""

    roles: ClassVar[tuple[str, ...]] = ("server", "client")
    half_close: ClassVar[HalfClose]
    cannot: ClassVar[frozenset[str]] = frozenset()  # behaviours that its library is unable to do
    answers_while_paused: ClassVar[bool]  # whether it answers pings while its program does not read
    ending: ClassVar = closed_with(1000, "")  # how the stream ends after ``/send``
    abrupt_code: ClassVar[int | None] = 1006  # the code that it reports if TCP ends without a Close
    ping_payload: ClassVar[bytes] = b"payload"  # the payload of its Pings

    @staticmethod
    def command() -> Sequence[str | Path]:
        """Return the command that starts the peer. The test is skipped if it is not installed."""
        raise NotImplementedError

    def answer(self, code: int, reason: str) -> tuple[int, str]:
        """Return the Close with which the peer answers ours (RFC 6455, 5.5.1: the same code)."""
        return self.close(code, reason)

    def check_end(self, stream: WsByteStream, code: int, reason: str) -> None:
        """Return how a stream ends that we have closed."""
        closed = stream.closed
        assert closed is not None
        assert (closed.code, closed.reason, closed.clean) == (*self.answer(code, reason), True)

    def close(self, code: int, reason: str) -> tuple[int, str]:
        """Return the Close that the peer sends when it is told to close."""
        return code, reason

    def told(self, code: int, reason: str) -> tuple[int, str | None]:
        """Return what the peer's program sees of our Close."""
        return code, reason

    def told_of_our_answer(self, code: int, reason: str) -> tuple[int, str | None]:
        """Return what the peer's program sees when it has closed and we have answered."""
        return code, reason

    def need(self, behaviour: str) -> None:
        if behaviour in self.cannot:
            pytest.skip(f"its library has no means for {behaviour}")

    async def test_bytes_to_the_peer_in_odd_sizes(self, meet: Meet) -> None:
        messages = [os.urandom(size) for size in SIZES]
        async with meet("/receive") as met:
            for message in messages:
                await met.stream.send_all(message)
            await met.stream.aclose()
            report = await met.report()
        assert report.received == sum(SIZES)
        assert report.received_sha256 == sha256(b"".join(messages))

    @pytest.mark.parametrize("behaviour", ["/send", "/fragments"])
    async def test_bytes_from_the_peer_in_odd_sizes(self, meet: Meet, behaviour: str) -> None:
        self.need(behaviour)
        async with meet(behaviour, sizes=",".join(map(str, SIZES))) as met:
            received = await receive_all(met.stream)
            await met.stream.aclose()
            report = await met.report()
        assert len(received) == report.sent == sum(SIZES)
        assert sha256(received) == report.sent_sha256
        assert met.stream.closed == self.ending

    @pytest.mark.parametrize("tls", [False, True])
    async def test_bytes_both_ways_at_once(self, meet: Meet, tls: bool) -> None:
        data = os.urandom(3_000_003)
        received = bytearray()

        async def send() -> None:
            for start in range(0, len(data), 99_991):
                await met.stream.send_all(data[start : start + 99_991])

        async with meet("/echo", tls=tls) as met, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(received) < len(data):
                received += await met.stream.receive_some()
        assert received == data
        report = await met.report()
        assert (report.received, report.sent) == (len(data), len(data))

    async def test_the_peer_answers_our_pings(self, meet: Meet) -> None:
        async with meet("/echo") as met:
            assert 0 < await met.stream.ping(b"") < 20
            assert 0 < await met.stream.ping(b"x" * 125) < 20
            await met.stream.aclose()

    async def test_its_pings_arrive_and_are_answered(self, meet: Meet) -> None:
        self.need("/ping")
        async with meet("/ping", payload=self.ping_payload.decode()) as met:
            pings = met.stream.subscribe(kinds=PingReceived)
            await met.stream.send_all(b"ping")
            assert await met.stream.receive_some() == b"pong"
            assert pings.receive_nowait() == PingReceived(self.ping_payload)

    async def test_keepalive_holds_the_connection(self, meet: Meet) -> None:
        config = StreamConfig(ping_interval=0.01, ping_timeout=10)
        async with meet("/echo", config=config) as met:
            pongs = met.stream.subscribe(kinds=PongReceived)
            for _ in range(3):
                assert isinstance(await pongs.receive(), PongReceived)
            await met.stream.send_all(b"alive")
            assert await met.stream.receive_some() == b"alive"

    async def test_a_subprotocol_is_agreed_on(self, meet: Meet) -> None:
        async with meet("/echo", subprotocols=["other", "bytes"]) as met:
            await greet(met.stream)
            assert met.stream.subprotocol == "bytes"
            await met.stream.aclose()
            assert (await met.report()).subprotocol == "bytes"

    @pytest.mark.parametrize(
        ("code", "reason"),
        [(1000, ""), (1001, "going away"), (1011, "error"), (4002, "gr\u00fc\u00dfe \u2713")],
    )
    async def test_we_close_with_a_code(self, meet: Meet, code: int, reason: str) -> None:
        async with meet("/echo") as met:
            await greet(met.stream)
            await met.stream.aclose(code, reason)
            report = await met.report()
        assert (report.code, report.reason) == self.told(code, reason)
        self.check_end(met.stream, code, reason)

    @pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, "that is all")])
    async def test_it_closes_and_the_stream_ends(self, meet: Meet, code: int, reason: str) -> None:
        async with meet("/close", code=code, reason=reason) as met:
            await prompt(met.stream)
            assert await met.stream.receive_some() == b""
            await met.stream.aclose()
            report = await met.report()
        assert met.stream.closed == closed_with(*self.close(code, reason))
        assert (report.code, report.reason) == self.told_of_our_answer(code, reason)

    @pytest.mark.parametrize(
        ("code", "reason"),
        [(1001, "going away"), (1011, "error"), (4002, "gr\u00fc\u00dfe \u2713")],
    )
    async def test_it_closes_with_a_code_that_is_no_end(
        self, meet: Meet, code: int, reason: str
    ) -> None:
        async with meet("/close", code=code, reason=reason) as met:
            closes = met.stream.subscribe(kinds=CloseReceived)
            await prompt(met.stream)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            await met.stream.aclose()
            report = await met.report()
        assert broken.value.__cause__ == AbnormalClosure(code, reason)
        events = [event async for event in closes]
        assert events == [CloseReceived(code, reason), closed_with(code, reason)]
        assert (report.code, report.reason) == self.told_of_our_answer(code, reason)

    async def test_our_abrupt_end_is_no_clean_end_for_it(self, meet: Meet) -> None:
        async with meet("/echo") as met:
            await greet(met.stream)
            await trio.aclose_forcefully(met.stream)
            report = await met.report()
        assert report.code == self.abrupt_code

    async def test_its_abrupt_end_is_no_clean_end_for_us(self, meet: Meet) -> None:
        async with meet("/abort") as met:
            await prompt(met.stream)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await met.stream.receive_some()
            await met.stream.aclose()
        assert isinstance(broken.value.__cause__, ConnectionLost)
        assert met.stream.closed is not None
        assert (met.stream.closed.code, met.stream.closed.clean) == (1006, False)

    async def test_a_slow_reader_gets_everything(self, meet: Meet) -> None:
        data = os.urandom(1_000_003)
        async with meet("/receive", delay=0.01) as met:
            await met.stream.send_all(data)
            await met.stream.aclose()
            report = await met.report()
        assert report.received_sha256 == sha256(data)

    async def test_a_reader_that_pauses_gets_everything(self, meet: Meet) -> None:
        data = os.urandom(3_000_003)
        async with meet("/receive", pause=0.5, config=StreamConfig(ping_timeout=None)) as met:
            await met.stream.send_all(b"pause")
            assert await met.stream.receive_some() == b"paused"
            await met.stream.send_all(data)
            await met.stream.aclose()
            report = await met.report()
        assert report.received_sha256 == sha256(b"pause" + data)

    async def test_pings_while_its_program_reads_nothing(self, meet: Meet) -> None:
        """Some libraries answer pings at once, others only when their program reads again."""
        pause = 2.0
        async with meet("/receive", pause=pause) as met:
            await met.stream.send_all(b"pause")
            assert await met.stream.receive_some() == b"paused"
            answered_at_once = await met.stream.ping() < pause / 2
            await met.stream.aclose()
            await met.report()
        assert answered_at_once is self.answers_while_paused

    async def test_our_close_in_the_middle_of_its_data(self, meet: Meet) -> None:
        self.need("/flood")
        async with meet("/flood") as met:
            await met.stream.receive_some()
            await met.stream.aclose(1000, "enough")
            report = await met.report()
        assert report.late  # An exception tells its program that not all data has arrived.
        assert (report.code, report.reason) == self.told(1000, "enough")
        self.check_end(met.stream, 1000, "enough")

    async def test_a_half_close_loses_nothing_that_was_sent_before_it(self, meet: Meet) -> None:
        data = os.urandom(1_000_003)
        async with meet("/receive") as met:
            await met.stream.send_all(data)
            await met.stream.send_eof()
            received = await receive_all(met.stream)
            await met.stream.aclose()
            report = await met.report()
        assert report.received_sha256 == sha256(data)
        assert (report.code, report.reason) == self.told(1000, "half-close")
        assert (
            met.stream.half_close_honoured is False
        )  # The peer cannot say that it defers its answer.
        assert HalfClose(report.late, received) == self.half_close
        assert met.stream.closed == closed_with(*self.answer(1000, "half-close"))
