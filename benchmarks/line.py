"""A slow line, made in user space: ``make`` in a network namespace of its own.

A TUN device hands every packet that goes to one of the two *far* addresses to a process. That holds
the packet as a line would: for its turn in a queue, for the time that its bytes take, and for the
delay.
Then the process writes the packet back with both addresses changed from near to far and from far
to near. So a connection from NEAR[0] to FAR[1] arrives at NEAR[1], from FAR[0]. The sum of the
two addresses stays as it was, and with it the checksums. Each direction has a queue of its own.

A kernel's own means (``tc``) are not used: netem, which delays, is missing in some kernels. And a
queue in the sender's own kernel holds back the sender itself, as no router far away does.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Final

NEAR: Final = ("10.9.0.1", "10.9.1.1")
FAR: Final = ("10.9.0.2", "10.9.1.2")
_DEVICE: Final = "line"
_TUNSETIFF: Final = 0x400454CA  # of linux/if_tun.h
_TUN_WITHOUT_HEADER: Final = 0x1001


@contextlib.contextmanager
def make(bits: float, round_trip: float, queue: int) -> Iterator[None]:
    """Make the line for the time of a block.

    Args:
      bits (float): bits a second.
      round_trip (float): seconds there and back, while the line is empty.
      queue (int): bytes that wait in each direction at the most.
    """
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH14x", _DEVICE.encode(), _TUN_WITHOUT_HEADER))
    commands = [f"ip addr add {near}/32 dev {_DEVICE}" for near in NEAR]
    commands += ["ip link set lo up", f"ip link set {_DEVICE} up mtu 1500"]
    commands += [
        f"ip route add {far} dev {_DEVICE} src {near}"
        for far, near in zip(FAR, reversed(NEAR), strict=True)
    ]
    for command in commands:
        subprocess.run(command.split(), check=True)
    process = os.fork()
    if not process:
        with contextlib.suppress(KeyboardInterrupt):
            _pass_on(device, bits, round_trip / 2, queue)
        os._exit(0)
    os.close(device)
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)  # With it the device goes.


def _pass_on(device: int, bits: float, delay: float, queue: int) -> None:
    free_at = {b"\0": 0.0, b"\1": 0.0}  # when the last bytes of a direction have left its queue
    on_the_way: list[tuple[float, bytes]] = []
    while True:
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            os.write(device, heapq.heappop(on_the_way)[1])
        patience = on_the_way[0][0] - now if on_the_way else None
        if not select.select([device], [], [], patience)[0]:
            continue
        packet = os.read(device, 2000)
        source, target = packet[12:16], packet[16:20]
        side = source[2:3]
        if side not in free_at or packet[0] >> 4 != 4:
            continue  # IPv6 looks for neighbours
        now = time.monotonic()
        waits = max(0.0, free_at[side] - now)
        if waits * bits / 8 + len(packet) > queue:
            continue
        free_at[side] = now + waits + len(packet) * 8 / bits
        there = packet[:12] + source[:3] + b"\2" + target[:3] + b"\1" + packet[20:]
        heapq.heappush(on_the_way, (free_at[side] + delay, there))
