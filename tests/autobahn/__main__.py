"""Run the Autobahn Testsuite against an echo on `WsByteStream`, in both roles, on loopback.

    python -m tests.autobahn PYTHON [CASE ...]

PYTHON is a Python 2.7 in which the suite is installed. With CASEs, only these cases run. The
program exits with 1 if the suite judges a case in another way than docs/autobahn.rst lists.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import trio
from trio_websocket import WebSocketRequest, serve_websocket

from trio_wsstream import StreamConfig, TextPolicy, WsByteStream, open_ws_stream, wrap_websocket

from .cases import Case, read_cases

AGENT = "trio_wsstream"
LAUNCHER = Path(__file__).with_name("loopback.py")
CONFIG = StreamConfig(max_message_size=1 << 24, text=TextPolicy.AS_BYTES)


async def answer(stream: WsByteStream, echo: str) -> None:
    """Send back what comes, in the way that ``echo`` names, until the suite ends the case."""
    together = int(echo) if echo.isdigit() else 1
    received = bytearray()
    try:
        async for data in stream:
            if echo != "nothing":
                received += data
            if len(received) >= together:
                await stream.send_all(received)
                received = bytearray()
    except trio.BrokenResourceError:
        pass  # Many cases end like this, and the suite judges how.


async def run_as_server(python: str, cases: list[Case], folder: Path) -> None:
    """Run the suite as a client. The path of its URL names the kind of echo."""
    by_echo: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        by_echo[case.echo].append(case.number)

    async def serve(request: WebSocketRequest) -> None:
        async with wrap_websocket(await request.accept(), CONFIG) as stream:
            await answer(stream, request.path[1:].replace("-", " "))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, None))
        for echo, numbers in by_echo.items():
            path = echo.replace(" ", "-")
            address = {"agent": path, "url": f"ws://127.0.0.1:{server.port}/{path}"}
            specification = folder / f"{path}.json"
            specification.write_text(
                json.dumps({"servers": [address], "cases": numbers, "outdir": str(folder / path)})
            )
            await trio.run_process(
                [python, str(LAUNCHER), "fuzzingclient", str(specification)],
                stdout=subprocess.DEVNULL,
            )
        nursery.cancel_scope.cancel()


async def run_as_client(python: str, cases: list[Case], folder: Path) -> None:
    """Run the suite as a server. Ask it for each case, and then for its reports."""
    specification = folder / "specification.json"
    numbers = [case.number for case in cases]
    specification.write_text(
        json.dumps({"url": "ws://127.0.0.1:0", "cases": numbers, "outdir": str(folder / AGENT)})
    )
    command = [python, str(LAUNCHER), "fuzzingserver", str(specification)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE))
        said = bytearray()
        while b"PORT" not in said or not said.endswith(b"\n"):
            said += await process.stdout.receive_some() or sys.exit("the suite did not start")
        nursery.start_soon(drain, process.stdout)
        url = f"ws://127.0.0.1:{int(said.partition(b'PORT')[2].split()[0])}"
        for case in cases:
            path = f"/runCase?agent={AGENT}&casetuple={case.number}"
            async with open_ws_stream(url + path, config=CONFIG) as stream:
                await answer(stream, case.echo)
        path = f"/updateReports?agent={AGENT}"
        async with open_ws_stream(url + path, config=CONFIG) as stream:
            await answer(stream, "nothing")
        nursery.cancel_scope.cancel()


async def drain(pipe: trio.abc.ReceiveStream) -> None:
    async for _ in pipe:
        pass


def reported(folder: Path) -> dict[str, tuple[str, str]]:
    """Return for each case how the suite judges its messages, and how its closing."""
    return {
        number: (result["behavior"], result["behaviorClose"])
        for index in folder.glob("*/index.json")
        for results in json.loads(index.read_text()).values()
        for number, result in results.items()
    }


def check(role: str, cases: list[Case], results: dict[str, tuple[str, str]]) -> bool:
    """Compare the results with the list, print the differences, and return whether all agree."""
    wrong = []
    for case in cases:
        closing = "INFORMATIONAL" if case.result == "INFORMATIONAL" else "OK"
        if results.get(case.number) != (case.result, closing):
            wrong.append(f"  {case.number}: {results.get(case.number)}, not {case.result}")
    print(f"{role}: {len(cases) - len(wrong)} of {len(cases)} cases as listed", *wrong, sep="\n")
    return not wrong


def check_is_complete(python: str, cases: list[Case]) -> None:
    """Exit with an error unless the list has each of the suite's cases once."""
    said = subprocess.run(
        [python, str(LAUNCHER), "--cases"], check=True, capture_output=True, text=True
    )
    if sorted(said.stdout.split()) != sorted(case.number for case in cases):
        sys.exit("docs/autobahn.rst does not list exactly the cases that the suite has")


def main(python: str, *only: str) -> None:
    cases = read_cases()
    check_is_complete(python, cases)
    cases = [case for case in cases if case.echo and (not only or case.number in only)]
    good = True
    for role, run in {"as server": run_as_server, "as client": run_as_client}.items():
        with tempfile.TemporaryDirectory() as folder:
            trio.run(run, python, cases, Path(folder))
            good &= check(role, cases, reported(Path(folder)))
    sys.exit(not good)


if __name__ == "__main__":
    main(*sys.argv[1:])
