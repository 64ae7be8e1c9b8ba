"""Programs in processes of their own, until a test is done with them."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import trio

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
TUNNEL: Final = [sys.executable, "-m", "trio_wsstream"]

LIMIT: Final = 30  # seconds: a bound against hanging


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Program:
    """A process that runs, and what it has written.

    Attributes:
      process (trio.Process): it.
      lines (list of str): what it has written to stdout and stderr.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._news = trio.lowlevel.ParkingLot()
        self._has_ended = False

    async def read(self) -> None:
        assert isinstance(self.process.stdout, trio.lowlevel.FdStream)
        rest = b""
        async with self.process.stdout:
            async for data in self.process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                self.lines += [line.decode(errors="replace") for line in lines]
                self._news.unpark_all()
        self._has_ended = True
        self._news.unpark_all()

    async def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until it has written ``times`` lines in which ``pattern`` is found."""
        while True:
            matches = [match for line in self.lines if (match := re.search(pattern, line))]
            if len(matches) >= times:
                return matches[times - 1]
            assert not self._has_ended, f"it has ended without {pattern!r}: {self.lines}"
            await self._news.park()


@asynccontextmanager
async def running(
    command: Sequence[str | Path], ready: str | tuple[str, int], **options: Any
) -> AsyncGenerator[Program, None]:
    """A program, from when it says that it is ready until the block is left.

    Args:
      ready: what it says then, as in `Program.says`; or a host and a port where it takes
          connections then, for one that says nothing.
      options: of `subprocess.Popen`.
    """
    with trio.fail_after(LIMIT):
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )
        program = Program(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(program.read)
                if isinstance(ready, str):
                    await program.says(ready)
                else:
                    await takes_connections(*ready)
                yield program
                process.terminate()
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            print(f"{command[0]}:", *program.lines, sep="\n    ")


async def takes_connections(host: str, port: int) -> None:
    """Wait until something listens there."""
    while True:
        try:
            await (await trio.open_tcp_stream(host, port)).aclose()
            return
        except OSError:
            await trio.sleep(0.01)


def free_port() -> int:
    """A port for a server that cannot choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def tunnel(*arguments: str) -> AbstractAsyncContextManager[Program]:
    """``trio-wsstream serve`` or ``listen``."""
    return running([*TUNNEL, *arguments], "listening on")


async def port_of(program: Program) -> int:
    """The port that a tunnel listens on."""
    return int((await program.says(r"listening on \S+:(\d+)"))[1])


@asynccontextmanager
async def tunnel_to(port: int) -> AsyncGenerator[int, None]:
    """Both halves of a tunnel; the local port that leads to ``port``."""
    async with tunnel("serve", "0", f"127.0.0.1:{port}") as serving:
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        async with tunnel("listen", "0", url) as listening:
            yield await port_of(listening)
