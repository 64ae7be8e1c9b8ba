"""Floods of input that costs a peer little. The work for it must grow only in proportion to it."""

from __future__ import annotations

from collections.abc import Callable

from trio_wsstream import StreamConfig, TextPolicy
from trio_wsstream._protocol import Protocol

from ..support.frames import BINARY, CONT, PING, PONG, TEXT, frame

READ = 4096
ROOMY = 1 << 26  # bytes that may be unread


def _frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    return frame(opcode, payload, fin=fin, masked=True)


def _in_reads(data: bytes, size: int = READ) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


FLOODS: dict[str, Callable[[int], list[bytes]]] = {
    "frames of one byte": lambda n: _in_reads(_frame(BINARY, b"x") * n),
    "empty frames": lambda n: _in_reads(_frame(BINARY) * n),
    "empty fragments": lambda n: _in_reads(_frame(BINARY, fin=False) + _frame(CONT, fin=False) * n),
    "fragments of one byte": lambda n: _in_reads(
        _frame(BINARY, fin=False) + _frame(CONT, b"x", fin=False) * n
    ),
    "text in fragments of one byte": lambda n: _in_reads(
        _frame(TEXT, b"\xf0", fin=False)
        + b"".join(_frame(CONT, b"\x9d\x84\x9e\xf0"[i % 4 :][:1], fin=False) for i in range(n))
    ),
    "text messages of one character": lambda n: _in_reads(_frame(TEXT, "é".encode()) * n),
    "pings": lambda n: _in_reads(_frame(PING, b"x" * 125) * n),
    "pongs": lambda n: _in_reads(_frame(PONG) * n),
    "frames of one byte, a byte for each read": lambda n: _in_reads(_frame(BINARY, b"x") * n, 1),
    "a long frame, a byte for each read": lambda n: _in_reads(_frame(BINARY, b"x" * n), 1),
    "a long text, a byte for each read": lambda n: _in_reads(
        _frame(TEXT, "aé€𝄞".encode() * (n // 10)), 1
    ),
    "pings, a byte for each read": lambda n: _in_reads(_frame(PING, b"x" * 125) * (n // 64), 1),
}
"""The floods by name. Each takes a count and returns the reads in which a server gets the flood."""


def endure(reads: list[bytes], text: TextPolicy) -> None:
    """Do with ``reads`` what a stream does whose caller receives now and then, but without I/O."""
    protocol = Protocol(client=False, config=StreamConfig(text=text, receive_buffer_size=ROOMY))
    for n, data in enumerate(reads):
        protocol.receive_data(data)
        while protocol.next_event() is not None:
            pass
        if n % 64 == 0:
            protocol.data_to_send()
            protocol.unread.take(READ)
    while protocol.unread.size:
        protocol.unread.take(READ)
