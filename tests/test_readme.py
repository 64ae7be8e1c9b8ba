"""What the README and the page on logging show as output is what the code prints.

`test_docs` runs the code blocks of all pages.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
import trio.testing

from .support.pairs import stream_pair
from .support.tasks import background

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.rst").read_text()


async def test_the_first_example_of_the_readme_prints_what_is_shown() -> None:
    (shown,) = re.findall(r"examples/echo\.py\n.*?text\n\n(.*?)\n(?=\S)", README, re.DOTALL)
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, str(ROOT / "examples" / "echo.py")], capture_stdout=True
        )
    lines = [
        sorted(re.sub(r"took \S+", "took ...", text).splitlines())
        for text in (textwrap.dedent(shown).strip(), done.stdout.decode())
    ]
    assert lines[0] == lines[1]


async def test_the_log_of_the_readme_is_what_is_logged(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.DEBUG, "trio_wsstream")
    async with background() as nursery:
        stream, peer = await stream_pair(nursery)
        await stream.send_all(b"hello\n")
        await stream.send_eof()
        await peer.aclose()
        async for _ in stream.subscribe():
            pass  # The channel ends when the stream is closed, although nobody receives.
    name = str(stream.connection)
    said = [f"{each.levelname}:{each.name}:{each.getMessage()}" for each in caplog.records]
    page = (ROOT / "docs" / "logging.rst").read_text()
    shown = re.findall(r"^    (DEBUG:.*)$", page, re.MULTILINE)
    assert shown
    for line in shown:
        assert line.replace("client-0", name) in said


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_the_package_imports_without_a_warning() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", "import trio_wsstream"], check=True)
