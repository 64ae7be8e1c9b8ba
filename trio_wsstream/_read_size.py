"""How many bytes a caller's read asks the transport for: one frame, or two.

Theory of operation. A read that brings two frames at once saves a system call and a wake-up for
each second frame, so callers ask for two as long as reads bring more than one. A peer that sends
one frame at a time makes the larger buffer a waste; then callers ask for one, and try two again
after `_PATIENCE` reads. Inside one very long frame no headers will come. A read of a round size
then stays aligned with the peer's writes; otherwise each read leaves a remainder of another size,
and malloc keeps all of those apart.

*Whole messages* take a shorter way to the caller than parts of them (`Decoder.decode_at_once`): a
large write takes a tenth less of Python. A read that found less than it had asked for may end
inside a frame, and then all others would, too. So the next read asks for the rest of that frame,
and for one more. If that ends inside a frame again, the messages are not of one length, and the
next read is as long as ever. No read asks for more than two frames, so that malloc has room for it
where the last one was.

*Where a `trio.SSLStream` itself is read* (`StreamWire`), a read brings one record at the most (RFC
8446, 5.1), but Python makes room for all that was asked for. So nobody asks for more than one.

*The heap.* A read of two frames takes 131,100 bytes, and as many are made of them for the caller.
When both are free they lie at the end of the heap, where glibc keeps 128 KiB at first, and gives
the rest back to the kernel. Then each read would fault in 32 pages again, and throughput would be a
third of that of TCP. glibc keeps more (`M_TRIM_THRESHOLD` in ``mallopt(3)``) after it has freed a
block that was so large that it had mapped it by itself. So a program that has once freed 1 MiB is
fast, and another is slow. This module frees 4 MiB when it is imported, so that all are fast, also
with writes of 1 MiB, of which TLS makes two copies. The block is never touched, so it takes no
memory. In other C libraries, and where the environment sets the threshold, this has no effect.
"""

from __future__ import annotations

from typing import Final

from ._frames import MAX_HEADER

PAYLOAD_SIZE: Final = 65536
"""The bytes of payload in one read, so that reads fit messages of the default size."""

TLS_RECORD: Final = 16384
"""The most bytes of payload in a record of TLS (RFC 8446, 5.1)."""

bytes(4 << 20)  # This frees 4 MiB: see "The heap" above.

_PATIENCE: Final = 16  # reads of one frame, before two are tried again
_ONE_FRAME: Final = PAYLOAD_SIZE + MAX_HEADER  # bytes
_LONG_FRAME: Final = 4 * PAYLOAD_SIZE  # bytes


class ReadSize:
    """The size of the next read.

    Args:
      client (bool): whether this side is the client, whose peer sends no masking keys.
      limit (int): the most bytes that may be read ahead.
      of_records (bool): whether a read of the transport brings a record of TLS.

    Attributes:
      of_caller (int): bytes, for a caller's read.
    """

    __slots__ = (
        "_frames",
        "_limit",
        "_most",
        "_one_frame",
        "_patience",
        "_was_filled",
        "of_caller",
    )

    def __init__(self, *, client: bool, limit: int, of_records: bool) -> None:
        one_frame = PAYLOAD_SIZE + (MAX_HEADER - 4 if client else MAX_HEADER)
        self._one_frame = TLS_RECORD if of_records else one_frame
        self._most = min(limit, TLS_RECORD if of_records else 2 * one_frame)
        self._limit = limit
        self._patience = 0
        self._was_filled = False  # the last read brought all that it had asked for
        self._frames = self.of_caller = self.of_task(unread=0)

    def of_task(self, unread: int) -> int:
        """Bytes, for a read of the stream's own task while so many bytes are unread."""
        return min(self._one_frame, max(1, self._limit - unread))

    def adapt(self, received: int, frame_left: int) -> None:
        """Learn from a caller's read that brought at least `PAYLOAD_SIZE` bytes.

        Args:
          received: how many bytes it brought.
          frame_left: how many bytes of the current frame are still to come.
        """
        self._was_filled = received == self.of_caller
        if frame_left > _LONG_FRAME:
            self._frames = 2 * PAYLOAD_SIZE
        elif received > _ONE_FRAME:
            self._frames = 2 * self._one_frame
            self._patience = 0
        elif self._frames > _ONE_FRAME:
            if not self._was_filled:  # There was no more.
                self._frames = self._one_frame
                self._patience = _PATIENCE
        elif self._patience:
            self._patience -= 1
        else:
            self._frames = 2 * self._one_frame
        self.of_caller = min(self._frames, self._most)

    def align(self, frame_left: int) -> None:
        """Let the next read of a caller end with a frame, now that all that came is decoded.

        Args:
          frame_left: how many bytes of the current frame are still to come.
        """
        wanted = self._frames
        if 0 < frame_left <= self._one_frame and not self._was_filled:
            wanted = frame_left + self._one_frame
        self.of_caller = min(wanted, self._most)
        self._was_filled = False
