"""One operation of a transport goes wrong: each of them, in each way, at each end.

What must hold then is in `tests.faults.check`. Time is Trio's `MockClock`, so that all timeouts
run out at once, and none by accident.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from unittest.mock import AsyncMock

import pytest
import trio
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from trio_websocket import HandshakeError

from trio_wsstream import StreamConfig, open_ws_stream

from .support.faults import Fault, Kind, Outcome, Plan, exchange, exchange_through_sockets
from .support.frames import BINARY, CLOSE, frame
from .support.handshakes import server_handshake
from .support.receiving import end_of
from .support.transports import unix_transport

CONFIG = StreamConfig(max_message_size=3)
CLIENT, SERVER = [b"ab", b"cdefghi"], [b"1", b"23456", b"789"]
PLANS = {
    "half-close": Plan(CLIENT, SERVER, config=CONFIG),
    "close": Plan(CLIENT, SERVER, half_close=False, config=CONFIG),
    "hasty": Plan(CLIENT, SERVER, is_hasty=True, config=CONFIG),
    "late": Plan(CLIENT, SERVER, is_late=True, config=CONFIG),
    "late close": Plan(CLIENT, SERVER, half_close=False, is_late=True, config=CONFIG),
}
ALL_PLANS = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
ALL_TIMEOUTS = 20 + 20 + 10  # seconds: keepalive's two, and closing


def run(exchange: Callable[..., Awaitable[Outcome]], *args: object) -> Outcome:
    return trio.run(exchange, *args, clock=MockClock(autojump_threshold=0))


def until_it_does_not_strike(attempt: Callable[[int], Outcome]) -> list[Outcome]:
    """Return the outcomes for a fault at step 0, at step 1, and so on to the end."""
    outcomes = []
    for at in itertools.count():
        outcome = attempt(at)
        if not outcome.has_struck:
            return outcomes
        outcomes.append(outcome)
    raise AssertionError


def check_times(outcomes: list[Outcome]) -> None:
    """Check that everything ends within the timeouts if nothing had to be given up."""
    for outcome in outcomes:
        if not (outcome.client.gave_up or outcome.server.gave_up):
            assert outcome.seconds <= ALL_TIMEOUTS


@ALL_PLANS
async def test_nothing_is_lost_without_a_fault(plan: Plan, autojump_clock: MockClock) -> None:
    assert (await exchange(plan, None, True)).seconds == 0
    assert (await exchange_through_sockets(plan, None)).seconds == 0


@pytest.mark.slow
@pytest.mark.parametrize("at_client", [True, False], ids=["client", "server"])
@pytest.mark.parametrize("operation", ["receive", "send"])
@pytest.mark.parametrize("kind", Kind)
@ALL_PLANS
def test_any_operation_of_a_transport_may_go_wrong(
    plan: Plan, kind: Kind, operation: str, at_client: bool
) -> None:
    outcomes = until_it_does_not_strike(
        lambda at: run(exchange, plan, Fault(kind, operation, at), at_client)
    )
    assert len(outcomes) >= 3
    if not kind.garbles:
        check_times(outcomes)


@pytest.mark.parametrize("at_client", [True, False], ids=["client", "server"])
@pytest.mark.parametrize("kind", [Kind.ERROR, Kind.STALL])
@ALL_PLANS
def test_the_closing_of_a_transport_may_go_wrong(plan: Plan, kind: Kind, at_client: bool) -> None:
    outcome = run(exchange, plan, Fault(kind, "close", 0), at_client)
    assert outcome.has_struck
    check_times([outcome])
    for side in (outcome.client, outcome.server):
        assert side.received == side.expected
        assert side.error is None


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["receive", "send"])
@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in (Kind.ERROR, Kind.PARTIAL)])
@ALL_PLANS
def test_sockets_may_be_cut_or_garbled_at_any_byte(plan: Plan, kind: Kind, operation: str) -> None:
    outcomes = until_it_does_not_strike(
        lambda at: run(exchange_through_sockets, plan, Fault(kind, operation, at))
    )
    assert len(outcomes) >= 30
    if not kind.garbles:
        check_times(outcomes)


@pytest.mark.parametrize("kind", [Kind.EOF, Kind.STALL])
async def test_a_server_may_stop_at_any_byte_of_the_opening_handshake_and_after(
    kind: Kind, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = frame(BINARY, b"hello", masked=False) + frame(CLOSE, masked=False)
    for size in itertools.count():
        ours, theirs = await unix_transport()
        monkeypatch.setattr(trio, "open_tcp_stream", AsyncMock(return_value=ours))
        answer = b""

        async def serve(theirs: trio.SocketStream, size: int) -> None:
            nonlocal answer
            answer = server_handshake(bytes(await theirs.receive_some()))
            await theirs.send_all((answer + after)[:size])
            if kind is Kind.EOF:
                await theirs.aclose()

        started_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, theirs, size)
            try:
                async with open_ws_stream("ws://localhost/") as stream:
                    received, error = await end_of(stream)
            except HandshakeError:
                assert size < len(answer)
            else:
                payload = (answer + after)[:size][len(answer) + 2 :]
                assert received == payload[:5]
                assert (error is None) == (size >= len(answer + after))
        assert trio.current_time() - started_at <= 60 + ALL_TIMEOUTS
        assert ours.socket.fileno() == -1
        await theirs.aclose()
        if size == len(answer + after):
            break


SIZES = st.sampled_from([1, 2, 5, 100, 125, 126, 1000, 5000])
PIECES = st.lists(
    SIZES.map(lambda size: bytes(i % 251 for i in range(size))), min_size=1, max_size=10
)
CONFIGS = st.builds(
    StreamConfig,
    max_message_size=st.sampled_from([100, 1000, 65536]),
    receive_buffer_size=st.sampled_from([10, 100, 262144]),
)


@pytest.mark.slow
@settings(deadline=None)
@given(
    plan=st.builds(
        Plan,
        client=PIECES,
        server=PIECES,
        half_close=st.booleans(),
        is_late=st.booleans(),
        pings=st.integers(0, 5),
        config=CONFIGS,
    ),
    kind=st.sampled_from(Kind),
    operation=st.sampled_from(["receive", "send"]),
    at=st.integers(0, 100),
    at_client=st.booleans(),
    order=st.random_module(),
)
def test_a_long_exchange_may_be_cut_anywhere(
    plan: Plan, kind: Kind, operation: str, at: int, at_client: bool, order: object
) -> None:
    # A half-close that came before the takeover, trio-websocket has answered.
    assume(not (plan.is_late and plan.half_close))
    outcome = run(exchange, plan, Fault(kind, operation, at), at_client)
    if not kind.garbles:
        check_times([outcome])


@pytest.mark.slow
@settings(deadline=None)
@given(
    plan=st.builds(Plan, client=PIECES, server=PIECES, half_close=st.booleans(), config=CONFIGS),
    kind=st.sampled_from([kind for kind in Kind if kind not in (Kind.ERROR, Kind.PARTIAL)]),
    operation=st.sampled_from(["receive", "send"]),
    at=st.integers(0, 20_000),
    order=st.random_module(),
)
def test_sockets_may_be_cut_or_garbled_in_a_long_exchange(
    plan: Plan, kind: Kind, operation: str, at: int, order: object
) -> None:
    outcome = run(exchange_through_sockets, plan, Fault(kind, operation, at))
    if not kind.garbles:
        check_times([outcome])
