"""How many bytes a caller's read asks for."""

from __future__ import annotations

import pytest

from trio_wsstream._read_size import TLS_RECORD, ReadSize

from .support.frames import SIDES

LIMIT = 262_144


def read_size(*, client: bool = False, limit: int = LIMIT, of_records: bool = False) -> ReadSize:
    return ReadSize(client=client, limit=limit, of_records=of_records)


def one_frame(client: bool) -> int:
    return 65_536 + (10 if client else 14)


@SIDES
def test_a_read_asks_for_two_frames_as_long_as_reads_bring_more_than_one(client: bool) -> None:
    size = read_size(client=client)
    assert size.of_caller == one_frame(client)
    size.adapt(one_frame(client), 0)
    assert size.of_caller == 2 * one_frame(client)
    size.adapt(100_000, 0)
    assert size.of_caller == 2 * one_frame(client)
    size.adapt(one_frame(client), 0)
    assert size.of_caller == one_frame(client)


@SIDES
@pytest.mark.parametrize("left", [1, 30_000, 65_536])
def test_after_a_short_read_that_ended_inside_a_frame_the_next_ends_with_a_frame(
    left: int, client: bool
) -> None:
    size = read_size(client=client)
    size.adapt(one_frame(client), 0)
    size.adapt(100_000, 0)
    size.align(left)
    assert size.of_caller == left + one_frame(client)
    size.adapt(size.of_caller, left)
    size.align(0)
    assert size.of_caller == 2 * one_frame(client)
    size.align(left)  # after a read so short that there was nothing to learn from it
    assert size.of_caller == left + one_frame(client)


@SIDES
def test_a_read_that_was_filled_and_ended_inside_a_frame_all_the_same_ends_that(
    client: bool,
) -> None:
    size = read_size(client=client)
    size.adapt(one_frame(client), 0)
    size.align(30_000)
    size.adapt(size.of_caller, 30_000)
    size.align(30_000)
    assert size.of_caller == 2 * one_frame(client)
    size.adapt(size.of_caller - 1, 30_000)
    size.align(30_000)
    assert size.of_caller == 30_000 + one_frame(client)


def test_inside_one_very_long_frame_reads_have_a_round_size() -> None:
    size = read_size()
    size.adapt(65_550, 1_000_000)
    size.align(900_000)
    assert size.of_caller == 131_072


@pytest.mark.parametrize("limit", [1, 65_550, 100_000])
def test_a_read_asks_for_no_more_than_may_be_read_ahead(limit: int) -> None:
    size = read_size(limit=limit)
    for left in (0, 65_536, 1_000_000):
        size.adapt(65_550, left)
        size.align(left)
        assert 1 <= size.of_caller <= limit


def test_a_read_of_records_asks_for_one() -> None:
    size = read_size(of_records=True)
    assert size.of_caller == TLS_RECORD
    size.align(16_000)
    assert size.of_caller == TLS_RECORD
