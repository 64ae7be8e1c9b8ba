"""A half-closed end whose link dies: ``unshare -rn python -m tests.support.dying_link``.

The link is the loopback device of a network namespace of its own, so that it can go down. The peer
defers its answer without saying so. It is alive for three times as long as keepalive has patience.
"""

from __future__ import annotations

import subprocess

import trio

from trio_wsstream import HalfClose, StreamConfig

from .raw_peer import raw_pair
from .tasks import background

CONFIG = StreamConfig(ping_interval=1, ping_timeout=1, half_close=HalfClose.ALWAYS)


def set_link(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


async def main() -> None:
    """Say that the stream lives, and then what has ended it."""
    async with background() as nursery:
        stream, _ = await raw_pair(nursery, "tcp", CONFIG)
        await stream.send_eof()
        with trio.move_on_after(6):
            await stream.receive_some()
        print("lives" if stream.closed is None else stream.closed)
        set_link("down")
        with trio.fail_after(30):
            try:
                await stream.receive_some()
            except trio.BrokenResourceError as error:
                print(type(error.__cause__).__name__)


if __name__ == "__main__":
    set_link("up")
    trio.run(main)
