"""The transport alone: how much is written, what a cancellation leaves, what breaks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from trio_wsstream import _transport
from trio_wsstream._masking import apply_mask
from trio_wsstream._tls import TlsWire, adapt
from trio_wsstream._transport import SocketWire, StreamWire, why_broken

from .support.tasks import CancelAtStep
from .support.transports import memory_transport, over_tls, tls_transport, unix_transport

LONG = bytes(range(256)) * 200
"""More than a socket of `unix_transport` takes at once."""


async def socket_and_peer() -> tuple[SocketWire, trio.SocketStream]:
    ours, theirs = await unix_transport()
    wire = adapt(ours)
    assert type(wire) is SocketWire
    return wire, theirs


async def tls_and_peer() -> tuple[SocketWire, trio.SSLStream[Any]]:
    ours, theirs = await over_tls(await unix_transport())
    wire = adapt(ours)
    assert type(wire) is TlsWire
    return wire, theirs


async def receive_for_ever(peer: trio.abc.ReceiveStream) -> None:
    while True:
        await peer.receive_some()


async def receive_late(wire: SocketWire, peer: trio.abc.SendStream) -> None:
    """Receive a byte that comes only when the wire waits for it."""

    async def receive() -> None:
        assert await wire.receive_some(10) == b"x"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(b"x")


async def patient_socket_and_peer() -> tuple[SocketWire, trio.SocketStream]:
    wire, peer = await socket_and_peer()
    await receive_late(wire, peer)
    return wire, peer


async def patient_tls_and_peer() -> tuple[SocketWire, trio.SSLStream[Any]]:
    wire, peer = await tls_and_peer()
    await receive_late(wire, peer)
    return wire, peer


SOCKETS = pytest.mark.parametrize("wire_and_peer", [socket_and_peer, tls_and_peer])
"""A wire that loses nothing when it is cancelled, and the other end of its transport."""

READERS = pytest.mark.parametrize(
    "wire_and_peer",
    [socket_and_peer, tls_and_peer, patient_socket_and_peer, patient_tls_and_peer],
)
"""The same, and wires whose next reads wait first."""


class Faulty(trio.abc.Stream):
    """A stream that raises ``error`` when it sends, and needs ``seconds`` to close."""

    def __init__(self, error: Exception | None = None, seconds: float = 0) -> None:
        self.error = error
        self.seconds = seconds
        self.has_closed_well = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.error is None:
            await trio.sleep_forever()
        else:
            raise self.error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return b""

    async def aclose(self) -> None:
        await trio.sleep(self.seconds)
        self.has_closed_well = True


# Any stream


@pytest.mark.parametrize("error", [trio.BrokenResourceError("x"), trio.ClosedResourceError("x")])
async def test_a_stream_that_breaks_has_cut_off_nothing_that_could_have_gone_on(
    error: Exception,
) -> None:
    wire = adapt(Faulty(error))
    with pytest.raises(type(error)):
        await wire.write((b"header", b"payload"))
    assert wire.failure == f"the transport broke: {error!r}"
    assert not wire.is_truncated


async def test_a_bug_of_a_stream_comes_out_and_has_cut_off_a_frame() -> None:
    wire = adapt(Faulty(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        await wire.write((b"header", b"payload"))
    assert (bool(wire.failure), wire.is_truncated) == (True, True)


async def test_a_cancelled_write_to_a_stream_is_cancelled_and_has_cut_off_a_frame() -> None:
    wire = adapt(Faulty())
    with trio.CancelScope() as scope:
        trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, 0))
        await wire.write((b"header", b"payload"))
    trio.lowlevel.remove_instrument(instrument)
    assert scope.cancelled_caught
    assert (bool(wire.failure), wire.is_truncated) == (True, True)


KEYS = pytest.mark.parametrize("key", [b"", b"\x01\x23\x45\x67"], ids=["unmasked", "masked"])


@KEYS
async def test_a_long_frame_to_a_stream_is_cut_off_if_cancelled_once_it_has_begun(
    key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_PIECE", 8192)
    whole = b"header" + (apply_mask(LONG, key) if key else LONG)
    outcomes = set()
    for step in itertools.count(-1):
        ours, theirs = await memory_transport()
        wire, payload = adapt(ours), bytearray(LONG)
        with trio.CancelScope() as scope, memoryview(payload) as view:
            trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, step))
            if step < 0:
                scope.cancel()
            await wire.write_long(b"header", view, key)
        trio.lowlevel.remove_instrument(instrument)
        payload.clear()  # it is the caller's again
        await ours.aclose()
        received = b"".join([data async for data in theirs])
        if not scope.cancelled_caught:
            assert received == whole
            break
        assert whole.startswith(received)
        assert wire.is_truncated is bool(wire.failure)
        assert wire.is_truncated or not received
        outcomes.add(wire.is_truncated)
    assert outcomes == {False, True}


class Shielded(Faulty):
    """A stream that sends also if it is cancelled, and then calls a function."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then
        self.taken = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.taken += data
        self.then()
        await trio.lowlevel.cancel_shielded_checkpoint()


async def test_a_long_frame_to_a_stream_is_cut_off_between_two_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_transport, "_PIECE", 8192)
    with trio.CancelScope() as scope, memoryview(LONG) as view:
        wire = adapt(stream := Shielded(scope.cancel))
        await wire.write_long(b"header", view, b"")
    assert stream.taken == b"header" + LONG[:8192]
    assert (bool(wire.failure), wire.is_truncated) == (True, True)


async def test_a_stream_that_breaks_in_a_long_frame_has_cut_off_nothing_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def break_in_the_second_piece() -> None:
        if len(stream.taken) > 10_000:
            raise trio.BrokenResourceError("x")

    monkeypatch.setattr(_transport, "_PIECE", 8192)
    wire = adapt(stream := Shielded(break_in_the_second_piece))
    with pytest.raises(trio.BrokenResourceError), memoryview(LONG) as view:
        await wire.write_long(b"header", view, b"")
    assert (bool(wire.failure), wire.is_truncated) == (True, False)


@pytest.mark.parametrize(("seconds", "well"), [(2, True), (4, False)])
async def test_a_stream_may_take_its_time_to_be_closed_but_no_more(
    seconds: float, well: bool, autojump_clock: trio.testing.MockClock
) -> None:
    stream = Faulty(seconds=seconds)
    started_at = trio.current_time()
    await adapt(stream).aclose(started_at + 3)
    assert stream.has_closed_well is well
    assert trio.current_time() - started_at == min(3, seconds)


def test_a_broken_transport_is_described_by_the_cause_of_its_error() -> None:
    error = trio.BrokenResourceError("in Trio's words")
    assert why_broken(error) == 'the transport broke: BrokenResourceError("in Trio\'s words")'
    error.__cause__ = ConnectionResetError(104, "reset")
    assert why_broken(error) == "the transport broke: ConnectionResetError(104, 'reset')"


async def test_without_os_writev_a_socket_is_written_like_any_other_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "writev")
    ours, theirs = await unix_transport()
    async with ours, theirs:
        assert isinstance(adapt(ours), StreamWire)


async def test_a_write_that_is_cancelled_while_it_waits_to_begin_did_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = await tls_transport()
    wire = adapt(ours, is_shared=True)
    assert isinstance(wire, StreamWire)
    wire.limit = 1000  # as of a slow line

    async def wait_for_ever(_: object) -> None:
        await trio.sleep_forever()

    with monkeypatch.context() as clogged, trio.move_on_after(0.01) as scope:
        clogged.setattr(trio.SSLStream, "wait_send_all_might_not_block", wait_for_ever)
        await wire.write((b"header", b"payload"))
    assert scope.cancelled_caught
    assert not wire.failure
    await wire.write((b"header", b"payload"))
    assert await theirs.receive_some() == b"headerpayload"
    await trio.aclose_forcefully(ours)
    await trio.aclose_forcefully(theirs)


# Sockets: reading


@READERS
async def test_the_interruption_of_a_write_does_not_end_a_read(wire_and_peer: Any) -> None:
    wire, peer = await wire_and_peer()
    received: list[bytes] = []

    async def read() -> None:
        received.append(await wire.receive_some(10))

    async def write() -> None:
        with pytest.raises(trio.BrokenResourceError, match="takes no more"):
            while True:
                await wire.write((b"header", LONG))

    async with peer, wire._stream, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        wire.interrupt()
        await trio.testing.wait_all_tasks_blocked()
        assert wire.rest
        assert not wire.failure
        assert not received
        await peer.send_all(b"data")
    assert received == [b"data"]


@READERS
@pytest.mark.parametrize("how", ["write", "wait_might_not_block"])
async def test_who_is_woken_and_was_not_meant_waits_again(wire_and_peer: Any, how: str) -> None:
    wire, peer = await wire_and_peer()
    has_read, has_written = trio.Event(), trio.Event()

    async def read() -> None:
        assert await wire.receive_some(10) == b"data"
        has_read.set()

    async def write() -> None:
        await (wire.write((b"header", LONG)) if how == "write" else wire.wait_might_not_block())
        has_written.set()

    async with peer, wire._stream, trio.open_nursery() as nursery:
        while wire.write_now(LONG) == b"" and not wire.rest:
            pass  # until the socket is full
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            wire.wake()
            await trio.testing.wait_all_tasks_blocked()
        assert not has_read.is_set()
        await peer.send_all(b"data")
        await has_read.wait()
        assert not has_written.is_set()
        nursery.start_soon(receive_for_ever, peer)
        with trio.fail_after(30):
            await has_written.wait()
        assert not wire.failure
        nursery.cancel_scope.cancel()


@READERS
async def test_closing_ends_a_read_and_a_write_that_wait(wire_and_peer: Any) -> None:
    wire, peer = await wire_and_peer()

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wire.receive_some(10)

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            while True:
                await wire.write((b"header", LONG))

    async with peer, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        wire.socket.close()


@READERS
async def test_a_socket_gives_as_many_bytes_as_were_asked_for(wire_and_peer: Any) -> None:
    wire, peer = await wire_and_peer()
    async with peer, wire._stream:
        await peer.send_all(b"1234567")
        for count, data in ((1, b"1"), (3, b"234"), (4, b"567")):
            assert await wire.receive_some(count) == data


@READERS
@pytest.mark.parametrize("comes_late", [False, True])
@pytest.mark.parametrize("steps", range(4))
async def test_a_cancelled_read_of_a_socket_loses_nothing(
    wire_and_peer: Any, steps: int, comes_late: bool
) -> None:
    wire, peer = await wire_and_peer()
    data = b""
    async with peer, wire._stream, trio.open_nursery() as nursery:
        if comes_late:
            nursery.start_soon(peer.send_all, b"data")
        else:
            await peer.send_all(b"data")
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, steps))
            data = await wire.receive_some(10)
        trio.lowlevel.remove_instrument(instrument)
        with trio.fail_after(30):
            assert data or await wire.receive_some(10) == b"data"


@READERS
async def test_a_read_of_a_socket_is_a_checkpoint_and_reads_nothing_if_cancelled_before(
    wire_and_peer: Any,
) -> None:
    wire, peer = await wire_and_peer()
    async with peer, wire._stream:
        await peer.send_all(b"12")
        with trio.testing.assert_checkpoints():
            assert await wire.receive_some(1) == b"1"
        with trio.CancelScope() as scope:
            scope.cancel()
            await wire.receive_some(1)
        assert scope.cancelled_caught
        assert await wire.receive_some(1) == b"2"


@pytest.mark.parametrize("wire_and_peer", [patient_socket_and_peer, patient_tls_and_peer])
async def test_after_a_read_that_found_nothing_some_reads_wait_first(
    wire_and_peer: Any, reads: list[int]
) -> None:
    wire, peer = await wire_and_peer()
    async with peer, wire._stream:
        for takes in 8 * [1] + [2] + 8 * [1] + [2]:
            reads.clear()
            await receive_late(wire, peer)
            assert len(reads) == takes


async def test_after_a_read_that_was_filled_no_read_waits_first(reads: list[int]) -> None:
    wire, peer = await patient_socket_and_peer()
    async with peer, wire._stream:
        await peer.send_all(b"data")
        assert await wire.receive_some(4) == b"data"
        reads.clear()
        await receive_late(wire, peer)
        assert len(reads) == 2


@READERS
async def test_a_socket_that_is_closed_gives_an_error_and_no_wait(wire_and_peer: Any) -> None:
    wire, peer = await wire_and_peer()
    async with peer:
        wire.socket.close()
        with trio.fail_after(30), pytest.raises(OSError, match="Bad file descriptor"):
            await wire.receive_some(10)


async def test_a_socket_that_was_readable_for_nothing_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire, peer = await socket_and_peer()
    wait_readable, calls = trio.lowlevel.wait_readable, []

    async def wake_for_nothing(socket: Any) -> None:
        calls.append(socket)
        if len(calls) == 1:
            await trio.lowlevel.checkpoint()
            return
        await peer.send_all(b"data")
        await wait_readable(socket)

    async with peer, wire._stream:
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wake_for_nothing)
        assert await wire.receive_some(10) == b"data"
    assert len(calls) == 2


# Sockets: writing


@SOCKETS
@pytest.mark.parametrize("steps", range(3))
async def test_what_a_cancelled_write_to_a_socket_leaves_goes_out_before_the_next(
    wire_and_peer: Any,
    steps: int,
) -> None:
    wire, peer = await wire_and_peer()
    received = bytearray()
    async with peer, trio.open_nursery() as nursery:

        async def write() -> None:
            with trio.CancelScope() as scope:
                trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, steps))
                await wire.write((b"header", LONG))
            trio.lowlevel.remove_instrument(instrument)
            assert scope.cancelled_caught
            await wire.write((b"next", b""))
            await wire.aclose(0)

        nursery.start_soon(write)
        async for data in peer:
            received += data
    assert received == b"header" + LONG + b"next"


@SOCKETS
@KEYS
async def test_a_long_frame_to_a_socket_cancelled_at_any_step_goes_out_whole_or_not_at_all(
    wire_and_peer: Any, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transport, "_PIECE", 8192)
    whole = b"header" + (apply_mask(LONG, key) if key else LONG)
    outcomes = set()
    for step in itertools.count():
        wire, peer = await wire_and_peer()
        scope = trio.CancelScope()

        async def write(step: int, wire: SocketWire, scope: trio.CancelScope) -> None:
            with trio.CancelScope() as earlier, trio.CancelScope():
                trio.lowlevel.add_instrument(instrument := CancelAtStep(earlier, 0))
                await wire.write((b"earlier", LONG))
            trio.lowlevel.remove_instrument(instrument)
            payload = bytearray(LONG)
            with scope, memoryview(payload) as view:
                trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, step))
                await wire.write_long(b"header", view, key)
            trio.lowlevel.remove_instrument(instrument)
            payload.clear()  # it is the caller's again
            await wire.write((b"next", b""))
            await wire.aclose(0)

        async with peer, trio.open_nursery() as nursery:
            nursery.start_soon(write, step, wire, scope)
            received = b"".join([data async for data in peer])
        if not scope.cancelled_caught:
            assert received == b"earlier" + LONG + whole + b"next"
            break
        assert received in (b"earlier" + LONG + b"next", b"earlier" + LONG + whole + b"next")
        outcomes.add(whole in received)
    assert outcomes == {False, True}


@SOCKETS
async def test_a_long_frame_to_a_socket_that_is_cancelled_before_it_begins_is_forgotten(
    wire_and_peer: Any,
) -> None:
    wire, peer = await wire_and_peer()
    async with peer:
        with trio.CancelScope() as scope, memoryview(LONG) as view:
            scope.cancel()
            await wire.write_long(b"header", view, b"")
        await wire.write((b"next", b""))
        await wire.aclose(0)
        assert b"".join([data async for data in peer]) == b"next"


@SOCKETS
async def test_a_long_frame_to_a_socket_that_breaks_leaves_nothing_to_write(
    wire_and_peer: Any,
) -> None:
    wire, peer = await wire_and_peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.aclose)
        with pytest.raises(trio.BrokenResourceError), memoryview(LONG) as view:
            while True:
                await wire.write_long(b"header", view, b"")
    assert wire.failure
    with pytest.raises(trio.BrokenResourceError):
        await wire.write((b"next", b""))
    await wire.aclose(0)


@SOCKETS
async def test_a_socket_that_was_closed_is_a_failure_and_leaves_nothing_to_write(
    wire_and_peer: Any,
) -> None:
    wire, peer = await wire_and_peer()
    async with peer:
        await wire.aclose(0)
        with pytest.raises(trio.BrokenResourceError, match="Bad file descriptor"):
            await wire.write((b"header", b"payload"))
        assert "Bad file descriptor" in wire.failure
        assert wire.write_now(b"a frame") == b""


@SOCKETS
async def test_a_socket_whose_peer_has_gone_fails_at_once(wire_and_peer: Any) -> None:
    wire, peer = await wire_and_peer()
    await peer.aclose()
    async with wire._stream:
        assert wire.write_now(b"a frame") == b""
        assert "Broken pipe" in wire.failure
        assert not wire.is_truncated
