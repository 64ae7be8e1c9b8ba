"""Measure how fast a `WsByteStream` is, beside the streams that a user would choose otherwise.

``python -m benchmarks`` measures time, page faults and memory, with client and server in fresh
processes, as everybody has them. A `Kind` (in `kinds`) knows how a library serves and connects. A
process of `ends` runs such a server or client. `cases` starts the processes, and `report` makes the
tables and the plot.

``python -m benchmarks --check`` counts work in one process (`counts`). `memory` and `many` have one
process, too, and tell what streams allocate, and whether thousands of them work. One process cannot
tell how fast a stream is: there the order in which the two ends run decides that.
"""
