"""How many bytes a caller's read asks the transport for: one frame, or two.

Theory of operation. A read that brings two frames at once saves a system call and a wake-up for
each second frame, so callers ask for two as long as reads bring more than one. A peer that sends
one frame at a time makes the larger buffer a waste; then callers ask for one, and try two again
after `_PATIENCE` reads. Inside one very long frame no headers will come. A read of a round size
then stays aligned with the peer's writes; otherwise each read leaves a remainder of another size,
and malloc keeps all of those apart.
"""

from __future__ import annotations

from typing import Final

from ._frames import MAX_HEADER

PAYLOAD_SIZE: Final = 65536
"""The bytes of payload in one read, so that reads fit messages of the default size."""

_PATIENCE: Final = 16  # reads of one frame, before two are tried again
_ONE_FRAME: Final = PAYLOAD_SIZE + MAX_HEADER  # bytes
_LONG_FRAME: Final = 4 * PAYLOAD_SIZE  # bytes


class ReadSize:
    """The size of the next read.

    Args:
      client (bool): whether this side is the client, whose peer sends no masking keys.
      limit (int): the most bytes that may be read ahead.

    Attributes:
      of_caller (int): bytes, for a caller's read.
    """

    __slots__ = ("_limit", "_one_frame", "_patience", "of_caller")

    def __init__(self, *, client: bool, limit: int) -> None:
        self._one_frame = PAYLOAD_SIZE + (MAX_HEADER - 4 if client else MAX_HEADER)
        self._limit = limit
        self._patience = 0
        self.of_caller = self.of_task(unread=0)

    def of_task(self, unread: int) -> int:
        """Bytes, for a read of the stream's own task while so many bytes are unread."""
        return min(self._one_frame, max(1, self._limit - unread))

    def adapt(self, received: int, frame_left: int) -> None:
        """Learn from a caller's read that brought at least `PAYLOAD_SIZE` bytes.

        Args:
          received: how many bytes it brought.
          frame_left: how many bytes of the current frame are still to come.
        """
        if frame_left > _LONG_FRAME:
            self.of_caller = min(2 * PAYLOAD_SIZE, self._limit)
        elif received > _ONE_FRAME:
            self._patience = 0
        elif self.of_caller > _ONE_FRAME:
            self.of_caller = self.of_task(unread=0)
            self._patience = _PATIENCE
        elif self._patience:
            self._patience -= 1
        else:
            self.of_caller = min(2 * self.of_task(unread=0), self._limit)
