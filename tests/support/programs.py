"""Programs that run in processes of their own while a test uses them."""

from __future__ import annotations

import importlib.util
import random
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
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Program:
    """A running process and its output.

    Attributes:
      process (trio.Process): the process.
      lines (list of str): the lines that it has written to stdout and stderr.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._has_ended = False

    async def read(self) -> None:
        """Read the output until the process ends."""
        assert isinstance(self.process.stdout, trio.lowlevel.FdStream)
        rest = b""
        async with self.process.stdout:
            async for data in self.process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                self.lines += [line.decode(errors="replace") for line in lines]
                self._changed.unpark_all()
        self._has_ended = True
        self._changed.unpark_all()

    async def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until ``pattern`` is found in ``times`` lines, and return the last match."""
        while True:
            matches = [match for line in self.lines if (match := re.search(pattern, line))]
            if len(matches) >= times:
                return matches[times - 1]
            assert not self._has_ended, (
                f"the program has ended and did not say {pattern!r}: {self.lines}"
            )
            await self._changed.park()


@asynccontextmanager
async def running(
    command: Sequence[str | Path], ready: str | tuple[str, int], **options: Any
) -> AsyncGenerator[Program, None]:
    """Run a program while the block runs. The block begins when the program is ready.

    Args:
      command: the program and its arguments.
      ready: a pattern that the program's output contains when it is ready; or, for a program that
          writes nothing, the host and the port on which it accepts connections then.
      options: arguments of `subprocess.Popen`.
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
    """Wait until a program listens on ``host`` and ``port``."""
    while True:
        try:
            await (await trio.open_tcp_stream(host, port)).aclose()
            return
        except OSError:
            await trio.sleep(0.01)


def free_port() -> int:
    """Return a free port, for a program that cannot let the kernel choose one.

    The kernel never chooses a port of this range itself. So no other program gets the port before
    the test's own program listens on it, also if many tests run at the same time.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            pass  # The port is not free, so try another one.


def tunnel(*arguments: str) -> AbstractAsyncContextManager[Program]:
    """Run ``trio-wsstream serve`` or ``trio-wsstream listen``."""
    return running([*TUNNEL, *arguments], "listening on")


async def port_of(program: Program) -> int:
    """Return the port that a tunnel listens on."""
    return int((await program.says(r"listening on \S+:(\d+)"))[1])


@asynccontextmanager
async def tunnel_to(port: int) -> AsyncGenerator[int, None]:
    """Run both halves of a tunnel to ``port``, and return the local port that leads there."""
    async with tunnel("serve", "0", f"127.0.0.1:{port}") as serving:
        url = f"ws://127.0.0.1:{await port_of(serving)}/"
        async with tunnel("listen", "0", url) as listening:
            yield await port_of(listening)
