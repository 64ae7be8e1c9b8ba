"""`trio_wsstream.testing`, used as users of the library use it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionRejected

from trio_wsstream import (
    ConnectionLost,
    KeepaliveTimeout,
    StreamConfig,
    WsByteStream,
    WsListener,
    WsRequest,
)
from trio_wsstream.testing import FaultyStream, MemoryListener, ws_server, ws_stream_pair

from .support.servers import echo


async def test_a_pair_is_connected_and_each_end_has_its_own_settings() -> None:
    small, large = StreamConfig(max_message_size=1), StreamConfig(close_timeout=3)
    async with ws_stream_pair(small, large, path="/chat?x", subprotocol="mqtt") as (client, server):
        assert (client.config, server.config) == (small, large)
        for stream in (client, server):
            assert (stream.path, stream.subprotocol) == ("/chat?x", "mqtt")
        await client.send_all(b"there")
        assert await server.receive_some() == b"there"
        await server.send_all(b"back")
        assert await client.receive_some() == b"back"
        await client.send_eof()
        assert await server.receive_some() == b""
        await server.aclose()
        await client.aclose()
        for stream in (client, server):
            assert stream.closed is not None
            assert stream.closed.clean


async def test_leaving_a_pair_waits_for_nothing_and_leaves_no_task(mock_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with ws_stream_pair() as (client, server):
        await client.send_all(b"unread")
    for stream in (client, server):
        assert stream.closed is not None
        assert not stream.closed.clean
    await wait_all_tasks_blocked()  # The timer of the run ends after its last stream.
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_an_exception_comes_out_of_a_pair_as_it_was() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with ws_stream_pair():
            raise LookupError("mine")


async def test_the_block_of_a_pair_keeps_streams_that_have_no_name(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """They are no garbage while it runs, whenever the garbage collector comes."""
    async with ws_stream_pair():
        gc.collect()
        await wait_all_tasks_blocked()
        gc.collect()
    assert not recwarn.list


async def test_keepalive_and_pings_of_a_pair_follow_a_mock_clock(autojump_clock: MockClock) -> None:
    async with ws_stream_pair() as (client, server):
        assert await client.ping() == pytest.approx(0, abs=0.1)
        await trio.sleep(3600)
        await server.send_all(b"still there")
        assert await client.receive_some() == b"still there"


async def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="config must be a StreamConfig, not None"):
        async with ws_stream_pair(None):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match="config must be a StreamConfig, not 5"):
        async with ws_stream_pair(server_config=5):  # type: ignore[arg-type]
            pass


async def test_a_server_in_memory_has_its_hooks() -> None:
    told: list[object] = []

    async def accept(request: WsRequest) -> None:
        if b"authorization" not in dict(request.headers):
            raise ConnectionRejected(401, (), b"Who are you?")
        request.state.user = "me"

    async def handler(stream: WsByteStream) -> None:
        assert stream.state is not None
        await stream.send_all(f"{stream.state.user} at {stream.path}".encode())
        raise LookupError("a bug")

    async with ws_server(
        handler,
        accept=accept,
        subprotocols=["b"],
        on_refused=lambda *args: told.append(args[1]),
        on_error=lambda stream, error: told.append(str(error)),
    ) as listener:
        with pytest.raises(ConnectionRejected, match="401"):
            async with listener.open_ws_stream():
                pass
        async with listener.open_ws_stream(
            "ws://example.com/x?y",
            subprotocols=["a", "b"],
            extra_headers=[(b"Authorization", b"secret")],
        ) as stream:
            assert stream.subprotocol == "b"
            assert await stream.receive_some() == b"me at /x?y"
            with pytest.raises(trio.BrokenResourceError, match="1011"):
                await stream.receive_some()
    assert told == [401, "a bug"]


async def test_what_ends_a_server_in_memory_comes_out_of_its_block() -> None:
    async def handler(stream: WsByteStream) -> None:
        raise LookupError("a bug")

    with pytest.raises(BaseExceptionGroup) as caught:
        async with ws_server(handler) as listener, listener.open_ws_stream():
            await trio.sleep_forever()
    assert caught.value.subgroup(LookupError) is not None


async def test_many_clients_of_a_server_in_memory() -> None:
    async def client(listener: MemoryListener, data: bytes) -> None:
        async with listener.open_ws_stream() as stream:
            await stream.send_all(data)
            assert await stream.receive_some() == data

    async with ws_server(echo) as listener, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(client, listener, str(number).encode())


async def test_a_memory_listener_that_is_closed_refuses_and_drops_its_clients() -> None:
    listener = MemoryListener()
    early = await listener.connect()
    await listener.aclose()
    assert await early.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await listener.connect()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_ws_listener_over_memory_accepts_what_connected_before() -> None:
    memory = MemoryListener()
    async with trio.open_nursery() as nursery:
        listener = WsListener(memory, nursery)
        accepted: list[WsByteStream] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        nursery.start_soon(accept)
        async with memory.open_ws_stream() as client:
            await client.send_all(b"x")
            assert await accepted[0].receive_some() == b"x"
            nursery.start_soon(accepted[0].aclose)
        await listener.aclose()


# Faults


def faulty_pair() -> tuple[FaultyStream, trio.abc.Stream]:
    client, server = trio.testing.memory_stream_pair()
    return FaultyStream(client), server


async def ended(stream: WsByteStream) -> BaseException | None:
    with pytest.raises(trio.BrokenResourceError) as caught:
        while await stream.receive_some():
            pass
    return caught.value.__cause__


@pytest.mark.parametrize("count", [0, 1, 2, 6, 8])
async def test_a_transport_can_be_cut_after_some_bytes(count: int) -> None:
    transport, other = faulty_pair()
    async with ws_stream_pair(transports=(transport, other)) as (client, server):
        await client.send_all(b"before")
        assert await server.receive_some() == b"before"
        transport.cut_after(count)
        received: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError) as caught:
                    while True:
                        received.append(bytes(await server.receive_some()))
                assert isinstance(caught.value.__cause__, ConnectionLost)

            nursery.start_soon(receive)
            with pytest.raises(trio.BrokenResourceError, match="cut"):
                await client.send_all(b"after")
            assert isinstance(await ended(client), ConnectionLost)
        assert b"".join(received) == b"after"[: max(count - 6, 0)]  # behind a header of 6 bytes


async def test_a_transport_that_falls_silent_is_found_dead(autojump_clock: MockClock) -> None:
    transport, other = faulty_pair()
    async with ws_stream_pair(transports=(transport, other)) as (client, server):
        transport.silence()
        await client.send_all(b"into the void")
        started_at = trio.current_time()
        assert isinstance(await ended(client), KeepaliveTimeout)
        assert trio.current_time() - started_at == pytest.approx(40, abs=1)
        assert isinstance(await ended(server), ConnectionLost | KeepaliveTimeout)


async def test_after_a_silence_everything_arrives(autojump_clock: MockClock) -> None:
    transport, other = faulty_pair()
    async with ws_stream_pair(transports=(transport, other)) as (client, server):
        transport.silence()
        await client.send_all(b"one")
        await server.send_all(b"two")
        for stream in (client, server):
            with trio.move_on_after(5) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
        await transport.resume()
        assert await server.receive_some() == b"one"
        assert await client.receive_some() == b"two"


async def test_a_second_silence_is_the_same_silence() -> None:
    transport, other = faulty_pair()
    transport.silence()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive_some)
            await wait_all_tasks_blocked()
            transport.silence()
            await other.send_all(b"x")
            await transport.resume()


async def test_a_slow_transport_takes_its_time(autojump_clock: MockClock) -> None:
    transport, other = faulty_pair()
    async with ws_stream_pair(transports=(transport, other)) as (client, server):
        transport.slow_down(2, chunk=4)
        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, b"hello")  # 11 bytes with their header
            received = b""
            while len(received) < 5:
                received += await server.receive_some()
        assert received == b"hello"
        assert trio.current_time() - started_at == pytest.approx(6)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda transport: transport.cut_after(-1),
        lambda transport: transport.cut_after(1.5),
        lambda transport: transport.slow_down(-1),
        lambda transport: transport.slow_down(1, chunk=0),
    ],
)
def test_a_fault_that_cannot_be_is_refused(mistake: object) -> None:
    assert callable(mistake)
    with pytest.raises(ValueError, match="at least"):
        mistake(faulty_pair()[0])


async def test_a_faulty_stream_without_a_fault_is_as_any_stream() -> None:
    async def make() -> tuple[FaultyStream, FaultyStream]:
        client, server = trio.testing.memory_stream_pair()
        return FaultyStream(client), FaultyStream(server)

    await trio.testing.check_half_closeable_stream(make, None)


async def test_who_waits_on_a_silent_transport_is_freed_by_its_close() -> None:
    transport, _ = faulty_pair()
    transport.silence()
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive_some()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        await transport.aclose()


def test_the_package_does_not_import_its_testing_module() -> None:
    code = "import sys, trio_wsstream; sys.exit('trio_wsstream.testing' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
