"""The list of the Autobahn Testsuite's cases that docs/autobahn.rst shows."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LIST = Path(__file__).parent.parent.parent / "docs" / "autobahn.rst"


class Case(NamedTuple):
    """What is done about one case.

    Attributes:
      number: the suite's.
      echo: how the suite's is answered: ``each read``, ``nothing``, or how many bytes together;
          empty if it is not run.
      result: what the suite says then.
      is_rewritten: whether tests/test_autobahn.py has one of ours.
      why: it is not run, or rewritten as well.
    """

    number: str
    echo: str
    result: str
    is_rewritten: bool
    why: str


def read_cases() -> list[Case]:
    """All cases, in the order of the list."""
    lines = [line.strip() for line in LIST.read_text().splitlines() if line.startswith('   "')]
    return [
        Case(number, echo, result, rewritten == "yes", why)
        for numbers, _, echo, result, rewritten, why in csv.reader(lines, skipinitialspace=True)
        for number in _expand(numbers)
    ]


def _expand(numbers: str) -> Iterator[str]:
    """``1.1 2.1-2.3`` is 1.1, 2.1, 2.2 and 2.3."""
    for span in numbers.split():
        first, _, last = span.partition("-")
        section, _, start = first.rpartition(".")
        stop = (last or first).rpartition(".")[2]
        for n in range(int(start), int(stop) + 1):
            yield f"{section}.{n}"
