"""Every code block of the README and of docs/ runs, and the pages name only what exists.

A page is read from the top, as by a person who types its Python blocks into one file. A block that
ends with ``trio.run(...)`` is a program: if it serves, it goes on serving while the next blocks
run, on a free port in the place of 8000; else it must end. A block with ``await`` at its top level
runs in a task. In each block the names ``stream`` and ``peer`` are the two ends of a new
connection. The name ``nursery`` is a nursery, and ``handler`` echoes. A comment ``.. run: CODE``
below a block runs more code, which readers of the page do not see.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import attrs
import pytest
import trio

import trio_wsstream
from trio_wsstream import StreamConfig, WsEvent, WsStreamError

from .support.pages import Block, blocks_of
from .support.pairs import stream_pair
from .support.tasks import background

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.rst")), *sorted((ROOT / "docs").rglob("*.rst"))]
LIMIT = 20  # seconds that a block may take
FRAGMENTS = {"proxies.rst", "servers.rst", "command.rst"}
"""Pages whose blocks need other hosts or programs. Here they are only compiled."""


def compiled(page: Path, block: Block, code: str) -> CodeType:
    where = "\n" * (block.line + 1) + code  # so that a traceback names the page's own line
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    result = compile(where, str(page), "exec", flags=flags)
    assert isinstance(result, CodeType)
    return result


class Reader:
    """Runs the blocks of one page, one after the other."""

    def __init__(self, page: Path, nursery: trio.Nursery, names: dict[str, Any]) -> None:
        self.page = page
        self.nursery = nursery
        self.names = names
        self.port = 8000

    async def run(self, block: Block) -> None:
        code, _, program = block.code.partition("\ntrio.run(")
        code = re.sub(r"\b8000\b", str(self.port), code)
        with trio.fail_after(LIMIT):
            await self._execute(block, code)
            if program:
                function, *arguments = self._eval(program.rpartition(")")[0] + ",")
                if 8000 in arguments:
                    await self._serve(function, arguments)
                else:
                    await function(*arguments)

    def _eval(self, arguments: str) -> tuple[Any, ...]:
        result: tuple[Any, ...] = eval(f"({arguments})", self.names)
        return result

    async def _execute(self, block: Block, code: str) -> None:
        compiled_code = compiled(self.page, block, code)
        if compiled_code.co_flags & inspect.CO_COROUTINE:
            await eval(compiled_code, self.names)
        else:
            exec(compiled_code, self.names)

    async def _serve(self, function: Any, arguments: list[Any]) -> None:
        arguments = [0 if argument == 8000 else argument for argument in arguments]

        async def serve(task_status: trio.TaskStatus[Any]) -> None:
            await function(*arguments, task_status=task_status)

        started = await self.nursery.start(serve)
        listener = started[0] if isinstance(started, list) else started
        while hasattr(listener, "transport_listener"):
            listener = listener.transport_listener
        self.port = listener.port if hasattr(listener, "port") else port_of(listener)


def port_of(listener: trio.SocketListener) -> int:
    return int(listener.socket.getsockname()[1])


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_the_python_blocks_of_a_page_run(page: Path) -> None:
    blocks = [block for block in blocks_of(page) if block.language in ("python", "run")]
    if page.name in FRAGMENTS:
        for block in blocks:
            compiled(page, block, block.code)
        return
    async with background() as nursery:
        names = {"nursery": nursery, "handler": echo}
        reader = Reader(page, nursery, names)
        pairs = []  # A stream that nobody holds gives a warning.
        for block in blocks:
            if block.language == "python":
                pairs.append(await stream_pair(nursery))
                names["stream"], names["peer"] = pairs[-1]
            await reader.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_a_page_exists(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\b((?:docs|examples|tests|benchmarks)/[\w./-]+\w|\.ci/[\w-]+)", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"<(?!https?:)(\S+\.\w+)>`__", text):
        assert (page.parent / path).exists(), path
    noxfile = (ROOT / "noxfile.py").read_text()
    sessions = re.findall(r"^def (\w+)\(session: nox", noxfile, re.MULTILINE)
    for session in re.findall(r"nox -s (\w+)", text):
        assert session in sessions
    for name in re.findall(r"``trio_wsstream\.(\w+)``", text):
        assert hasattr(trio_wsstream, name) or (ROOT / "trio_wsstream" / f"{name}.py").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_settings_that_exist(page: Path) -> None:
    settings = {field.name for field in attrs.fields(StreamConfig)}
    for arguments in re.findall(r"StreamConfig\(([\w=., ]+)\)", page.read_text()):
        assert {each.partition("=")[0].strip() for each in arguments.split(",")} <= settings


def kinds_of(base: type) -> dict[str, Any]:
    """Return the public classes below ``base``, by name."""
    public = {name: getattr(trio_wsstream, name) for name in trio_wsstream.__all__}
    return {name: each for name, each in public.items() if base in getattr(each, "__mro__", ())[1:]}


def test_the_page_on_settings_has_every_setting_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.rst").read_text()
    shown = dict(re.findall(r"^``(\w+)``  +(\S+(?: \S+)*)$", page, re.MULTILINE))
    for field in attrs.fields(StreamConfig):
        default = field.default
        text = str(sorted(default))[1:-1] if isinstance(default, frozenset) else str(default)
        assert shown.pop(field.name).strip("`") == text
    assert not shown


def test_the_page_on_events_has_every_event_with_its_fields() -> None:
    page = (ROOT / "docs" / "events.rst").read_text()
    assert dict(re.findall(r"^``(\w+)\((.*?)\)``  ", page, re.MULTILINE)) == {
        name: ", ".join(field.name for field in attrs.fields(kind))
        for name, kind in kinds_of(WsEvent).items()
    }


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference.rst").read_text()
    directive = r"^ *\.\. auto(?:class|function|exception):: (\w+)(?:\(\))?$"
    shown = re.findall(directive, page, re.MULTILINE)
    assert sorted(shown) == sorted(name for name in trio_wsstream.__all__ if name[0] != "_")


def test_the_changelog_has_every_public_name_but_those_of_events_and_errors() -> None:
    changelog = (ROOT / "CHANGELOG.rst").read_text()
    for name in set(trio_wsstream.__all__) - {*kinds_of(WsEvent), *kinds_of(WsStreamError)}:
        assert name[0] == "_" or f"``{name}``" in changelog


def test_every_page_is_in_a_table_of_contents() -> None:
    """No reader finds a page that is in no table of contents. Sphinx only warns about it."""
    docs = ROOT / "docs"
    listed = set(re.findall(r"^   ([\w-]+)$", (docs / "index.rst").read_text(), re.MULTILINE))
    pages = {page.stem for page in docs.glob("*.rst")} - {"index"}
    assert listed == pages
