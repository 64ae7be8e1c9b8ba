"""How much is written at once where writes have to wait: arithmetic. No I/O, no clock, no Trio.

Theory of operation. A Ping or a Pong waits behind what was written before it. On a fast line that
takes no time, and large writes are cheap. On a line of 1 Mbit/s a message of 64 KiB takes half a
second. So once a write had to wait for `SLOW` seconds, there is a limit to the size of a frame, and
to what the kernel may hold unsent. Longer messages go out in fragments (RFC 6455, 5.4), and control
frames between these. From then on a wait takes about as long as a fragment does. A long wait halves
the limit, and a short one doubles it. A short wait at the largest limit ends it.
"""

from __future__ import annotations

from typing import Final

SLOW: Final = 0.05
"""Seconds: a wait of this length begins to limit."""
LARGEST: Final = 65536
"""Bytes: the limit that it begins with."""
SMALLEST: Final = 1024
"""Bytes: somewhat less than a segment of TCP carries."""

_LONG: Final = 0.006  # seconds
_SHORT: Final = 0.0015  # seconds


def next_limit(limit: int | None, seconds: float) -> int | None:
    """The limit in bytes after a write had to wait for so many seconds; None is no limit."""
    if limit is None:
        return LARGEST if seconds >= SLOW else None
    if seconds > _LONG:
        return max(SMALLEST, limit // 2)
    if seconds < _SHORT:
        return 2 * limit if limit < LARGEST else None
    return limit
