"""How fast is a `WsByteStream`, next to what a user would have otherwise?

Run ``python -m benchmarks --help`` in the project's directory.

How it works. A `Maker` (`makers`, `asyncio_makers`) knows how to connect two ends of one kind of
stream. A case (`cases`, `memory`, `imports`) is given a maker, so that every kind of stream
runs the same code. Cases that measure time run in one process over loopback, both ends on one
event loop, and take turns: each round measures every kind once, so that whatever else the
machine does happens to all of them. What is reported is the median, and the quartiles of the
ratios within the rounds (`results`, `report`).

Makers for asyncio run on a loop of their own in the same process, inside of the Trio task that
measures: while one loop runs, the other stands still.
"""
