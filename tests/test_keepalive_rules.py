"""Keepalive's rules as arithmetic: times go in, actions come out, and no time passes."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_wsstream._keepalive import LAST_LOOK, Action, Keepalive, next_tick

PING, HEARTBEAT, GIVE_UP = Action.PING, Action.HEARTBEAT, Action.GIVE_UP
Done = list[tuple[float, Action]]


@attrs.define
class Run:
    """An owner of a `Keepalive`, as it should be: it asks when `due_at` has come.

    Attributes:
      can_send, is_held: what it says of itself.
      hears_at, sends_at: when bytes come, and go.
      done: what it was told to do, and when, until the peer was given up.
    """

    keepalive: Keepalive
    now: float = 0
    can_send: bool = True
    is_held: bool = False
    hears_at: list[float] = attrs.field(factory=list)
    sends_at: list[float] = attrs.field(factory=list)
    done: Done = attrs.field(factory=list)

    def ask(self) -> None:
        """Ask the rules now, and again until nothing is due."""
        heard = [at for at in self.hears_at if at <= self.now]
        sent = [at for at in self.sends_at if at <= self.now]
        keepalive = self.keepalive
        keepalive.last_heard_at = max([keepalive.last_heard_at, *heard])
        keepalive.last_sent_at = max([keepalive.last_sent_at, *sent])
        while (
            action := keepalive.next_action(self.now, can_send=self.can_send, is_held=self.is_held)
        ) is not None:
            self.done.append((round(self.now, 2), action))
            if action is GIVE_UP:
                break

    @property
    def is_given_up(self) -> bool:
        return bool(self.done) and self.done[-1][1] is GIVE_UP

    def until(self, end: float) -> Done:
        """Let the time pass, and ask the rules whenever something is due."""
        self.ask()
        while not self.is_given_up and self.keepalive.due_at <= end:
            assert self.keepalive.due_at > self.now
            self.now = self.keepalive.due_at
            self.ask()
        self.now = max(self.now, end)
        return self.done


def start(interval: float | None = 20, timeout: float | None = 5, **options: object) -> Run:
    return Run(Keepalive(interval, timeout, 0), **options)  # type: ignore[arg-type]


def test_a_silent_peer_is_asked_once_and_then_given_up() -> None:
    assert start().until(100) == [(20, PING), (25, GIVE_UP)]


def test_a_silent_peer_is_asked_each_interval_for_as_long_as_it_is_not_given_up() -> None:
    assert start(20, 50).until(100) == [(20, PING), (40, PING), (60, PING), (70, GIVE_UP)]
    assert start(20, None).until(70) == [(20, PING), (40, PING), (60, PING)]


def test_without_an_interval_nothing_is_ever_due() -> None:
    assert start(None, 5).until(1e9) == []


@pytest.mark.parametrize("timeout", [0.001, 0.05, 0.1, 5, 300])
def test_an_end_that_hears_but_does_not_send_sends_heartbeats(timeout: float) -> None:
    run = start(20, timeout, hears_at=[15, 30, 45, 60])
    assert run.until(64.9) == [(20, HEARTBEAT), (40, HEARTBEAT), (60, HEARTBEAT)]


def test_an_end_that_sends_but_does_not_hear_asks_and_gives_up() -> None:
    run = start(sends_at=[float(second) for second in range(100)])
    assert run.until(100) == [(20, PING), (25, GIVE_UP)]


def test_an_end_that_sends_and_hears_does_nothing() -> None:
    seconds = [float(second) for second in range(100)]
    assert start(sends_at=seconds, hears_at=seconds).until(100) == []


@pytest.mark.parametrize("answered_at", [20.001, 24.96, 25])
def test_a_sign_of_life_at_the_last_moment_counts(answered_at: float) -> None:
    run = start(hears_at=[answered_at])
    done = run.until(answered_at + 24.8)
    pinged_at = round(answered_at + 20, 2)
    assert done == [(20, PING), (40, HEARTBEAT), (pinged_at, PING)]
    assert run.until(100)[3:] == [(round(answered_at + 25, 2), GIVE_UP)]


def test_what_came_before_the_ping_is_no_answer_to_it() -> None:
    run = start(hears_at=[19])
    assert run.until(100) == [(20, HEARTBEAT), (39, PING), (44, GIVE_UP)]


def test_while_nothing_can_be_sent_a_silent_peer_is_given_up_all_the_same() -> None:
    assert start(can_send=False).until(100) == [(25, GIVE_UP)]


def test_while_reading_is_held_back_there_are_heartbeats_and_nobody_is_given_up() -> None:
    run = start(is_held=True)
    assert run.until(70) == [(20, HEARTBEAT), (40, HEARTBEAT), (60, HEARTBEAT)]
    run.is_held = False
    assert run.until(100)[3:] == [(80, HEARTBEAT), (90, PING), (95, GIVE_UP)]


@pytest.mark.parametrize("held_at", [1, 21, 24.97])
def test_the_silence_begins_anew_when_reading_is_no_longer_held_back(held_at: float) -> None:
    """This must hold after the Ping and during the last look too."""
    run = start()
    run.until(held_at)
    run.is_held = True
    run.until(held_at + 2)
    run.is_held = False
    run.until(held_at + 2 + 24.99)
    assert not run.is_given_up
    assert run.until(200)[-1] == (pytest.approx(held_at + 2 + 25), GIVE_UP)


@pytest.mark.parametrize("asked_at", [25, 26, 1000])
def test_an_owner_that_asks_late_is_made_to_look_before_it_gives_up(asked_at: float) -> None:
    run = start()
    run.until(20)
    run.now = asked_at
    run.ask()
    assert not run.is_given_up
    assert run.keepalive.is_looking
    assert run.keepalive.due_at == asked_at + LAST_LOOK
    run.until(asked_at + 1)
    assert run.done[-1] == (round(asked_at + LAST_LOOK, 2), GIVE_UP)


def test_an_answer_found_in_the_last_look_is_an_answer() -> None:
    run = start()
    run.until(20)
    run.now = 1000
    run.ask()
    assert run.keepalive.is_looking
    run.hears_at.append(1000.01)
    run.until(1010)
    assert not run.keepalive.is_looking
    assert not run.is_given_up


@pytest.mark.parametrize("timeout", [0.001, 0.01, 0.1, 1])
def test_who_asks_in_time_gives_up_in_time_with_the_look_included(timeout: float) -> None:
    run = start(20, timeout)
    assert run.until(100) == [(20, PING), (round(20 + timeout, 2), GIVE_UP)]


@given(
    interval=st.floats(1, 100),
    timeout=st.floats(0.001, 100),
    hears_at=st.lists(st.floats(0, 500), max_size=10),
    sends_at=st.lists(st.floats(0, 500), max_size=10),
)
def test_the_two_promises(
    interval: float, timeout: float, hears_at: list[float], sends_at: list[float]
) -> None:
    """No end is silent for longer than the interval, no peer for longer than both times."""
    run = start(interval, timeout, hears_at=hears_at, sends_at=sends_at)
    run.until(1000)
    assert run.is_given_up
    given_up_at, _ = run.done[-1]
    sent = sorted([0, *(at for at in sends_at if at < given_up_at), *(at for at, _ in run.done)])
    assert all(later - earlier <= interval + 0.02 for earlier, later in itertools.pairwise(sent))
    last_heard = max([0, *(at for at in hears_at if at <= given_up_at)])
    assert given_up_at == pytest.approx(last_heard + interval + timeout, abs=0.02)


def test_the_next_tick_is_never_before_the_time_nor_much_later() -> None:
    """Who is woken before its time would ask for the same tick again, and so for ever."""
    for milliseconds in range(100_000):
        time = milliseconds * 0.001 + 0.05
        assert time <= next_tick(time, 0.01) < time + 0.010001
