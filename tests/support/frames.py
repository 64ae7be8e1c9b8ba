"""Frames that are encoded here, valid or not, and the mark `SIDES`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from trio_wsstream._frames import FIN, MASKED, apply_mask, encode_header

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

SIDES = pytest.mark.parametrize("client", [True, False], ids=["client", "server"])
"""Runs a test twice: with the stream as the client, and with the stream as the server."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool) -> bytes:
    """Return the bytes of one frame, which need not be valid."""
    first = (FIN if fin else 0) | opcode
    if not masked:
        return encode_header(first, len(payload)) + payload
    key = b"\x01\x23\x45\x67"
    return encode_header(first, len(payload), MASKED) + key + apply_mask(payload, key)


def close_payload(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()


def chop(data: bytes, positions: Iterable[int]) -> list[bytes]:
    """Return ``data`` in pieces, cut at ``positions``."""
    ends = sorted({position for position in positions if position < len(data)} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(ends)]
