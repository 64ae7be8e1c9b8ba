"""Tunnels over WebSockets: ``python -m benchmarks.tunnels``.

Each tunnel has both its halves in processes of their own, between a client and a target over TCP.
It is compared to two bare relays in place of the halves, each with two pumps on Trio. So the ratios
tell what the WebSocket costs, and not what it costs to pass through two more processes. Processor
time is that of both halves.

wstunnel and chisel carry many connections over one WebSocket. websocat and Go's pumps, which copy
between TCP and a NetConn of coder/websocket, give each its own, as trio-wsstream does. These two
are found where ``nox -s interop`` has built them, or on the path. If a tunnel cuts a case short,
the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from typing import Final

import trio

from tests.interop.build import BUILDS

CHUNK: Final = 65536  # bytes
ROUND_TRIPS: Final = 2000
CONNECTIONS: Final = 300
LIMIT: Final = 120  # seconds, for anything
_TICKS: Final = os.sysconf("SC_CLK_TCK")

Command = list[str]

PYTHON: Final = sys.executable
OURS: Final = [PYTHON, "-m", "trio_wsstream", "-q"]
RELAY: Final = [PYTHON, "-m", "benchmarks.tunnels", "--relay"]


def halves(name: str, local: int, middle: int, target: int) -> tuple[Command, Command]:
    """The commands of the half at the target, and of the half at the clients."""
    url, there = f"ws://127.0.0.1:{middle}", f"127.0.0.1:{target}"
    websocat = program("rust", "websocat") or ""
    pumps = program("go", "pumps") or ""
    return {
        "two bare relays": (
            [*RELAY, str(middle), str(target)],
            [*RELAY, str(local), str(middle)],
        ),
        "trio-wsstream": (
            [*OURS, "serve", str(middle), there],
            [*OURS, "listen", str(local), f"{url}/"],
        ),
        "websocat": (
            [websocat, "-q", "--binary", f"ws-l:127.0.0.1:{middle}", f"tcp:{there}"],
            [websocat, "-q", "--binary", f"tcp-l:127.0.0.1:{local}", f"{url}/"],
        ),
        "Go's pumps": (
            [pumps, "serve", there, f"127.0.0.1:{middle}"],
            [pumps, "listen", url, f"127.0.0.1:{local}"],
        ),
        "wstunnel": (
            ["wstunnel", "server", url],
            ["wstunnel", "client", "-L", f"tcp://127.0.0.1:{local}:{there}", url],
        ),
        "chisel": (
            ["chisel", "server", "--host", "127.0.0.1", "--port", str(middle)],
            ["chisel", "client", f"http://127.0.0.1:{middle}", f"127.0.0.1:{local}:{there}"],
        ),
    }[name]


def program(language: str, name: str) -> str | None:
    """A program that the tests' peers have built, or one on the path."""
    build = BUILDS[language]
    file, _ = build.find(build.target, name)
    return str(file) if file.exists() else shutil.which(name)


NAMES: Final = ("two bare relays", "trio-wsstream", "websocat", "Go's pumps", "wstunnel", "chisel")


def is_installed(name: str) -> bool:
    if name == "websocat":
        return program("rust", name) is not None
    if name == "Go's pumps":
        return program("go", "pumps") is not None
    return name in ("two bare relays", "trio-wsstream") or shutil.which(name) is not None


# What is measured with


async def relay(port: int, target: int) -> None:
    """Carry what connects to ``port`` to ``target``, with two pumps and nothing else."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        while data := await source.receive_some(CHUNK):
            await sink.send_all(data)
        await sink.send_eof()

    async def handle(client: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, OSError, BaseExceptionGroup):
            server = await trio.open_tcp_stream("127.0.0.1", target)
            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(pump, client, server)
                await pump(server, client)

    await trio.serve_tcp(handle, port, host="127.0.0.1")


async def answer(client: trio.SocketStream) -> None:
    """The target: it echoes (``e``), or sends (``d``) or swallows (``u``) many bytes."""
    with contextlib.suppress(trio.BrokenResourceError):
        await _answer(client)


async def _answer(client: trio.SocketStream) -> None:
    order = await client.receive_some(1)
    if order == b"e":
        async for chunk in client:
            await client.send_all(chunk)
    elif order == b"d":
        for _ in range(int(await client.receive_some(20))):
            await client.send_all(bytes(CHUNK))
    elif order == b"u":
        async for _ in client:
            pass
        await client.send_all(b"!")


async def up(port: int, chunks: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"u")
        for _ in range(chunks):
            await stream.send_all(bytes(CHUNK))
        await stream.send_eof()
        if await stream.receive_some() != b"!":
            raise trio.BrokenResourceError("there was no answer after the half-close")


async def down(port: int, chunks: int) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"d%d" % chunks)
        count = 0
        while count < chunks * CHUNK:
            data = await stream.receive_some()
            if not data:
                raise trio.BrokenResourceError("it ended too early")
            count += len(data)


async def round_trips(port: int, _: int, count: int = ROUND_TRIPS) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"e")
        for _ in range(count):
            await stream.send_all(bytes(32))
            if not await stream.receive_some():
                raise trio.BrokenResourceError("it ended")


async def connections(port: int, _: int) -> None:
    for _ in range(CONNECTIONS):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"ex")
            await stream.receive_some()


CASES: Final[dict[str, Callable[[int, int], object]]] = {
    "up": up,
    "down": down,
    "round trips": round_trips,
    "connections": connections,
}


def processor_time(processes: list[subprocess.Popen[bytes]]) -> float:
    """Seconds, of all their threads."""
    total = 0.0
    for process in processes:
        with open(f"/proc/{process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@contextlib.contextmanager
def running(*commands: Command) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [
        subprocess.Popen(each, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for each in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def tunnel(
    name: str, target: int
) -> AsyncGenerator[tuple[int, list[subprocess.Popen[bytes]]]]:
    """Both halves; the port for clients, and the processes."""
    local, middle = free_ports(2)
    with running(*halves(name, local, middle, target)) as processes:
        with trio.fail_after(LIMIT):
            while True:  # until it carries something
                try:
                    await round_trips(local, 0, 1)
                    break
                except (OSError, trio.BrokenResourceError):
                    await trio.sleep(0.1)
        yield local, processes


async def measure(names: list[str], rounds: int, chunks: int) -> dict[tuple[str, str], list[float]]:
    """Seconds by the clock and by the processors, as ``case`` and ``case, processor``.

    They are not a number where the tunnel has cut something short, or took longer than `LIMIT`.
    """
    results: dict[tuple[str, str], list[float]] = {}
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        target = listener.socket.getsockname()[1]
        for _ in range(rounds):
            for name in names:
                async with tunnel(name, target) as (port, processes):
                    for case, run in CASES.items():
                        spent, began_at = processor_time(processes), time.perf_counter()
                        try:
                            with trio.fail_after(LIMIT):
                                await run(port, chunks)  # type: ignore[misc]
                        except (trio.BrokenResourceError, trio.TooSlowError):
                            began_at = spent = math.nan
                        took = time.perf_counter() - began_at
                        spent = processor_time(processes) - spent
                        results.setdefault((name, case), []).append(took)
                        results.setdefault((name, f"{case}, processor"), []).append(spent)
        nursery.cancel_scope.cancel()
    return results


def time_start(rounds: int) -> tuple[float, float]:
    """Seconds: ``python -c "import trio"``, and ``connect`` from its start to its first byte."""

    async def greet(client: trio.SocketStream) -> None:
        await client.send_all(b"x")
        await trio.sleep_forever()

    async def run() -> tuple[float, float]:
        bare, ours = [], []
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, greet, 0, host="127.0.0.1"))
            (middle,) = free_ports(1)
            target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            with running([*OURS, "serve", str(middle), target]):
                command = [*OURS, "connect", f"ws://127.0.0.1:{middle}/"]
                await trio.to_thread.run_sync(first_byte, command)  # when it listens
                for _ in range(rounds):
                    bare.append(await trio.to_thread.run_sync(first_byte, IMPORT))
                    ours.append(await trio.to_thread.run_sync(first_byte, command))
            nursery.cancel_scope.cancel()
        return statistics.median(bare), statistics.median(ours)

    return trio.run(run)


# As after an installation, which compiles everything.
WITH_BYTECODE: Final = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
IMPORT: Final = [PYTHON, "-c", "import trio; print('x', flush=True)"]


def first_byte(command: Command) -> float:
    """Seconds until a program writes to stdout. It is started again while it writes nothing."""
    while True:
        began_at = time.perf_counter()
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=WITH_BYTECODE,
        ) as process:
            assert process.stdout is not None
            has_written = process.stdout.read(1) == b"x"
            took = time.perf_counter() - began_at
            process.kill()
        if has_written:
            return took


def show(results: dict[tuple[str, str], list[float]], names: list[str]) -> None:
    """A table of ratios of medians: how much longer than the bare relays each takes."""
    width = max(map(len, names))
    cases = [case for each in CASES for case in (each, f"{each}, processor")]
    for case in cases:
        bare = statistics.median(results[NAMES[0], case])
        print(f"\n{case}: {bare:.3f} s in {NAMES[0]}")
        for name in names[1:]:
            ratio = statistics.median(results[name, case]) / bare if bare else float("nan")
            is_cut = any(map(math.isnan, results[name, case]))
            print(f"    {name:{width}}  {'cut short' if is_cut else f'{ratio:.2f} times as long'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tunnels", description="Compare trio-wsstream to other tunnels."
    )
    parser.add_argument("--rounds", metavar="N", type=int, default=5)
    parser.add_argument("--mib", metavar="N", type=int, default=200, help="of a transfer (200)")
    parser.add_argument("--relay", metavar="PORT", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        trio.run(relay, *arguments.relay)
        return
    names = [name for name in NAMES if is_installed(name)]
    for name in NAMES:
        if name not in names:
            print(f"{name}: skipped, as it is not installed")
    bare, ours = time_start(arguments.rounds)
    print(f"connect, start to first byte: {ours:.3f} s, {ours / bare:.2f} times `import trio`")
    show(trio.run(measure, names, arguments.rounds, arguments.mib * 16), names)


if __name__ == "__main__":
    main()
