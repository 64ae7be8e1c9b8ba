"""What is shown: in the log, and by `repr`. Enough to find a fault by, and no more payload than
its first bytes.
"""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import HandshakeError

import trio_wsstream
from trio_wsstream import (
    ConnectionLost,
    ProtocolViolation,
    StreamConfig,
    TextPolicy,
    open_ws_stream,
)

from .support.frames import BINARY, PING, PONG, TEXT
from .support.raw_peer import raw_pair
from .support.tasks import background

SECRET = b"the password is: correct horse battery staple" * 2
HIDDEN = "battery"  # it begins after what may be shown


async def exchange() -> None:
    """Do everything that carries payload. All of this payload is secret."""
    config = StreamConfig(text=TextPolicy.AS_EVENTS)
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, config=config)
        events = stream.subscribe()
        await peer.send(BINARY, SECRET)
        assert await stream.receive_some() == SECRET
        await peer.send(TEXT, SECRET)
        await peer.send(PING, SECRET)
        for _ in range(2):
            assert HIDDEN not in repr(await events.receive())
        await peer.receive()
        async with trio.open_nursery() as pinging:
            pinging.start_soon(stream.ping, SECRET)
            await peer.receive()
            await peer.send(PONG, SECRET)
        await stream.send_all(SECRET)
        await peer.receive()
        assert HIDDEN not in repr(stream)
        await peer.transport.send_all(SECRET)  # which is no frame
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, ProtocolViolation)
        assert HIDDEN not in repr(caught.value) + repr(caught.value.__cause__)
        assert HIDDEN not in repr(stream)


async def test_at_debug_every_frame_and_turn_is_told_but_only_the_beginning_of_its_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    await exchange()
    records = [record for record in caplog.records if record.name.startswith("trio_wsstream.")]
    assert {record.levelno for record in records} == {logging.DEBUG}
    lines = [record.getMessage() for record in records]
    assert HIDDEN not in "\n".join(lines)
    name = lines[0].split(":")[0]
    shown = "b'the password is: correct horse b'... (90 in all)"
    wanted = [
        f"{name}: taken over, with 0 bytes to replay",
        f"{name} < 90 bytes of binary payload",
        f"{name} < TextReceived(text={shown[1:]})",
        f"{name} < PingReceived(payload={shown})",
        f"{name} > Pong({shown})",
        f"{name} > Ping({shown})",
        f"{name} > a binary message of 90 bytes",
        f"{name}: closing begins",
        f"{name} > Close(code=1002, ",
        f"{name}: StreamClosed(",
    ]
    for line in wanted:
        assert [each for each in lines if each.startswith(line)], line
    order = [f"{name} < PingReceived", f"{name} > Pong", f"{name} > Close", f"{name}: StreamC"]
    places = [next(i for i, each in enumerate(lines) if each.startswith(o)) for o in order]
    assert places == sorted(places)


async def test_the_turns_of_the_streams_own_task_and_of_senders_are_told(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "lockstep", StreamConfig(ping_interval=1))
        await trio.sleep(2)
        nursery.start_soon(stream.send_all, b"behind the keepalive ping")
        await wait_all_tasks_blocked()
        assert (await peer.receive())[0] == PING
        assert (await peer.receive())[0] == BINARY
    for line in (
        "no caller reads, so the stream's task does",
        "a keepalive ping",
        "a task has the turn to write what is owed",
        "a sender waits for its turn to write",
    ):
        assert line in caplog.text


async def test_nothing_is_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trio_wsstream")
    await exchange()
    assert not [record for record in caplog.records if record.name.startswith("trio_wsstream")]
    for module in vars(trio_wsstream).values():
        logger = getattr(module, "_logger", None)
        assert logger is None or logger.name == module.__name__


async def test_what_breaks_and_what_is_connected_to_is_told_without_the_query(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = "{}:{}".format(*listener.socket.getsockname())
    await listener.aclose()
    with pytest.raises(HandshakeError):
        async with open_ws_stream(f"ws://{address}/?token=secret"):
            pass
    assert f"connecting to {address}" in caplog.text
    assert "secret" not in caplog.text
    async with background() as nursery:
        stream, peer = await raw_pair(nursery, "tcp")
        await trio.aclose_forcefully(peer.transport)
        with pytest.raises(trio.BrokenResourceError) as caught:
            while True:
                await stream.send_all(bytes(100_000))
        assert isinstance(caught.value.__cause__, ConnectionLost)
    assert "nothing more can be sent: the transport broke: " in caplog.text


async def test_an_error_about_a_value_shows_only_its_beginning() -> None:
    async with background() as nursery:
        stream, _ = await raw_pair(nursery)  # with a peer that answers no Ping
        with pytest.raises(ValueError, match="125 bytes, not 1000") as long_ping:
            await stream.ping(SECRET + bytes(910))
        with pytest.raises(ValueError, match="123 bytes") as long_reason:
            await stream.aclose(1000, SECRET.decode() * 2)
        nursery.start_soon(stream.ping, SECRET)
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError, match="in flight") as twice:
            await stream.ping(SECRET)
        for caught in (long_ping, long_reason, twice):
            assert "the password is" in str(caught.value)
            assert HIDDEN not in str(caught.value)
