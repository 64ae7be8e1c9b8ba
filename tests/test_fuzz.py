"""The fuzz targets on what they start from and on what they have found, without a fuzzer.

And that what a peer says costs work in proportion. It is counted, not timed: calls of Python and
of C, and bytes that are kept from one read to the next, which is what could be copied each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import trio

from trio_wsstream import TextPolicy, WsByteStream
from trio_wsstream._frames import Decoder

from .fuzz.floods import FLOODS, endure
from .fuzz.targets import MAX_UNDECODED, TARGETS, corpus, seeds
from .support.frames import BINARY, SIDES
from .support.raw_peer import raw_pair
from .support.tasks import background


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_fuzz_target_accepts_its_corpus(name: str) -> None:
    inputs = seeds() + corpus(name)
    assert len(inputs) > 150
    for data in inputs:
        TARGETS[name](data)


def calls(function: Callable[[], object]) -> int:
    """Return how many Python and C functions are called."""
    count = 0

    def on_event(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("text", TextPolicy)
def test_twice_as_many_bytes_take_twice_as_many_calls(flood: str, text: TextPolicy) -> None:
    once, twice = FLOODS[flood](2000), FLOODS[flood](4000)
    work = calls(lambda: endure(once, text))
    assert calls(lambda: endure(twice, text)) <= 2 * work + 100


@pytest.mark.parametrize("flood", FLOODS)
def test_little_is_kept_from_one_read_to_the_next(flood: str) -> None:
    decoder = Decoder(client=False)
    for data in FLOODS[flood](2000):
        decoder.feed(data)
        assert len(decoder._data) <= MAX_UNDECODED + len(data)
        while decoder.decode([]) is not None:
            pass


@SIDES
@pytest.mark.parametrize("transport", ["memory", "lockstep"])
def test_twice_as_many_frames_take_a_stream_twice_the_calls(client: bool, transport: str) -> None:
    async def exchange(count: int) -> None:
        async with background() as nursery:
            stream, peer = await raw_pair(nursery, transport, client=client)
            nursery.start_soon(send, peer.transport, peer.frame(BINARY, b"x") * count)
            await receive(stream, count)

    async def send(transport: trio.abc.SendStream, data: bytes) -> None:
        for n in range(0, len(data), 3):
            await transport.send_all(data[n : n + 3])

    async def receive(stream: WsByteStream, count: int) -> None:
        while count:
            count -= len(await stream.receive_some(100))

    def work(count: int) -> int:
        return calls(lambda: trio.run(exchange, count))

    small = work(10)
    assert work(810) - small <= 2.2 * (work(410) - small)
