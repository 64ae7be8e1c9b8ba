"""The code blocks of the README and of docs/."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """Code of a page.

    Attributes:
      language: the argument of ``code-block``; or ``python`` (a literal block), ``run`` (a
      comment). code: the code, with no indentation. line: the number of its line in the page.
    """

    language: str
    code: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if match := re.match(r"( *)\.\. run: (.*)", line):
            yield Block("run", match[2], number + 1)
        directive = re.match(r"( *)\.\. code-block:: ?(\w*)", line)
        is_literal = line.endswith("::") and not re.match(r" *\.\. ", line)
        if not (directive or is_literal):
            continue
        indent = len(line) - len(line.lstrip())
        code = []
        for each in lines[number + 1 :]:
            if each.strip() and len(each) - len(each.lstrip()) <= indent:
                break
            code.append(each)
        while code and (not code[0].strip() or re.match(r" *:[\w-]+:", code[0])):
            code.pop(0)
        language = directive[2] if directive else "python"
        yield Block(language, textwrap.dedent("\n".join(code)).strip() + "\n", number + 1)
