"""Measure how long a flood takes, and a flood of twice the size: ``python -m benchmarks.linear``.

The tests count function calls, because a count is the same on every machine. This program measures
time on the machine at hand. The ratio should be near 2. A ratio far above 2 means that some code
copies the same bytes again and again.
"""

from __future__ import annotations

import time
from typing import Final

from tests.fuzz.floods import FLOODS, endure
from trio_wsstream import TextPolicy

COUNT: Final = 20_000
ROUNDS: Final = 5


def seconds(reads: list[bytes]) -> float:
    """Return the shortest processor time of `ROUNDS` runs."""
    results = []
    for _ in range(ROUNDS):
        start = time.process_time()
        endure(reads, TextPolicy.AS_BYTES)
        results.append(time.process_time() - start)
    return min(results)


def main() -> None:
    print(f"{'flood':45} {COUNT:>9,} {2 * COUNT:>9,}     ratio")
    for name, flood in FLOODS.items():
        once, twice = seconds(flood(COUNT)), seconds(flood(2 * COUNT))
        print(f"{name:45} {once * 1e3:6.1f} ms {twice * 1e3:6.1f} ms {twice / once:9.2f}")


if __name__ == "__main__":
    main()
