"""How long a ping takes on a slow line that is full: ``python -m benchmarks.slow_line``.

One end sends as fast as it can, and pings all the while. Each Ping, like each Pong, waits behind
what was written before: behind what stands in the queue of the line, behind what the kernel holds
back, and behind whole frames of this library. The first is the same for every connection over that
line. So the program measures it with one byte that goes to and fro over a second TCP connection.

The line is made in user space (`benchmarks.line`). This works on Linux with Debian's ``iproute2``,
as root or where users may have namespaces.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trio_wsstream import StreamConfig, WsByteStream, open_ws_stream, serve_ws

from . import line

LINES: Final = {
    "1 Mbit/s, 40 ms": (1e6, 0.040, 20_000),
    "10 Mbit/s, 20 ms": (1e7, 0.020, 100_000),
}
"""Bits a second, seconds of a round trip while it is empty, bytes that its queue holds."""
SECONDS: Final = 12
WARM_UP: Final = 3
CONGESTION_CONTROL: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_INSIDE: Final = "TRIO_WSSTREAM_SLOW_LINE"


async def _echo_bytes(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _through_the_queue(seconds: float) -> list[float]:
    """The round trips of one byte over a connection of its own."""
    took = []
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, _echo_bytes, 0, host=line.NEAR[1])
        (listener,) = await nursery.start(serve)
        async with await trio.open_tcp_stream(
            line.FAR[1], listener.socket.getsockname()[1]
        ) as probe:
            end = trio.current_time() + seconds
            while trio.current_time() < end:
                start = trio.current_time()
                await probe.send_all(b"x")
                await probe.receive_some()
                took.append(trio.current_time() - start)
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    return took


async def measure(max_message_size: int, chunk: int) -> dict[str, float]:
    """Seconds that pings take, of the sender and of the receiver, and that the line's queue takes;
    and the bytes a second that arrive.
    """
    received = 0
    far: list[WsByteStream] = []
    took: dict[str, list[float]] = {"sender": [], "receiver": []}

    async def receive(stream: WsByteStream) -> None:
        nonlocal received
        far.append(stream)
        async for data in stream:
            received += len(data)

    async def send(stream: WsByteStream) -> None:
        data = bytes(chunk)
        while True:
            await stream.send_all(data)

    async def ping(stream: WsByteStream, name: str) -> None:
        while True:
            took[name].append(await stream.ping())
            await trio.sleep(0.2)

    config = StreamConfig(max_message_size=max_message_size)
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(
            partial(serve_ws, receive, line.NEAR[1], 0, config=config)
        )
        port = listener.transport_listener.socket.getsockname()[1]
        async with open_ws_stream(f"ws://{line.FAR[1]}:{port}", config=config) as client:
            nursery.start_soon(send, client)
            await trio.sleep(WARM_UP)
            nursery.start_soon(ping, client, "sender")
            nursery.start_soon(ping, far[0], "receiver")
            before, start = received, trio.current_time()
            queue = await _through_the_queue(SECONDS)
            rate = (received - before) / (trio.current_time() - start)
            nursery.cancel_scope.cancel()
    return {
        "queue": statistics.median(queue),
        "sender": statistics.median(took["sender"]),
        "receiver": statistics.median(took["receiver"]),
        "rate": rate,
    }


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_line")
    parser.add_argument("--message", type=int, default=65536, help="max_message_size, in bytes")
    parser.add_argument("--chunk", type=int, default=1_000_000, help="bytes for each send_all")
    parser.add_argument("--congestion", metavar="NAME", help="of TCP: bbr, reno ...")
    arguments = parser.parse_args()
    if not os.environ.get(_INSIDE):
        if not shutil.which("ip"):
            sys.exit("There is no ip: apt-get install iproute2")
        os.environ[_INSIDE] = "1"
        command = ["unshare", "-rn", sys.executable, "-m", "benchmarks.slow_line", *sys.argv[1:]]
        os.execvp(command[0], command)
    if arguments.congestion:
        CONGESTION_CONTROL.write_text(arguments.congestion)
    print(f"TCP's congestion control: {CONGESTION_CONTROL.read_text().strip()}")
    for name, numbers in LINES.items():
        with line.make(*numbers):
            found = trio.run(measure, arguments.message, arguments.chunk)
        print(f"{name}: a byte over it takes {found['queue'] * 1e3:.0f} ms there and back")
        for end in ("sender", "receiver"):
            print(
                f"  a ping of the {end}: {found[end] * 1e3:.0f} ms,"
                f" {found[end] / found['queue']:.2f} times that"
            )
        print(f"  payload: {found['rate'] * 8 / 1e6:.2f} Mbit/s")


if __name__ == "__main__":
    main()
