"""The list of the Autobahn Testsuite's cases that docs/autobahn.rst shows."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).parent.parent.parent / "docs" / "autobahn.rst"


class Case(NamedTuple):
    """How one case is run.

    Attributes:
      number: the number that the suite gives the case.
      echo: how the echo answers: ``each read``, ``nothing``, or a number of bytes that it gathers
          and sends as one message; empty if the suite's case is not run.
      result: the word with which the suite judges the case.
      is_rewritten: whether tests/test_autobahn.py has a test with this number.
      why: the reason why the case is not run, or is also written again.
    """

    number: str
    echo: str
    result: str
    is_rewritten: bool
    why: str


def read_cases() -> list[Case]:
    """Return all cases, in the order of the list."""
    lines = [line.strip() for line in LIST.read_text().splitlines() if line.startswith('   "')]
    return [
        Case(number, echo, result, rewritten == "yes", why)
        for numbers, _, echo, result, rewritten, why in csv.reader(lines, skipinitialspace=True)
        for number in _expand(numbers)
    ]


def _expand(numbers: str) -> Iterator[str]:
    """Yield the numbers in a list such as ``1.1 2.1-2.3``: 1.1, 2.1, 2.2 and 2.3."""
    for span in numbers.split():
        first, _, last = span.partition("-")
        section, _, start = first.rpartition(".")
        stop = (last or first).rpartition(".")[2]
        for n in range(int(start), int(stop) + 1):
            yield f"{section}.{n}"
