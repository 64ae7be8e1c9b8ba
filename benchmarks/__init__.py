"""Measure how fast a `WsByteStream` is, beside the streams that a user would choose otherwise.

Run ``python -m benchmarks --help`` in the project's directory.

How it works. A `Maker` (in `makers` and `asyncio_makers`) knows how to connect two ends of one kind
of stream. A case (in `cases`, `memory` and `imports`) is given a maker, so every kind of stream
runs the same code. The cases that measure time run in one process over loopback, with both ends on
one event loop. The kinds of stream take turns: each round measures every kind once, so that other
work on the machine slows all of them alike. The report gives the median of each kind, and the
quartiles of the ratios within the rounds (`results`, `report`).

The asyncio makers run on an asyncio loop in the same process. The Trio task that measures runs that
loop and waits for it, so only one of the two loops runs at any time.
"""
