"""The examples: each of them runs, and does what it says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_wsstream import (
    ConnectionLost,
    WsListener,
    open_ws_stream,
)

from .support.programs import EXAMPLES, LIMIT, load

pytestmark = pytest.mark.slow  # as most of these tests start programs

DATA = bytes(range(256)) * 4000


async def run(
    *command: str | Path, status: int = 0, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run a Python script to its end. Its output is text."""
    with trio.fail_after(LIMIT):
        done = await trio.run_process(
            [sys.executable, *command],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    output = done.stdout.decode(), done.stderr.decode()
    print(*output, sep="\n")
    assert done.returncode == status
    return subprocess.CompletedProcess(done.args, done.returncode, *output)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
async def test_every_example_runs_with_no_arguments(example: Path) -> None:
    done = await run(example)
    assert done.stdout
    assert not done.stderr


async def test_framing_refuses_what_is_too_long() -> None:
    done = await run(EXAMPLES / "framing.py")
    assert done.stdout.splitlines() == [
        "client: three messages came back",
        "server: refused a message of 4294967295 bytes",
        "client: the peer closed with code 1009 and reason 'a message of 4294967295 bytes'",
        "client: three lines came back",
        "server: refused a line of 1000 characters or more",
        "client: the peer closed with code 1009 and reason 'a line of 1000 characters or more'",
    ]


async def test_shutdown_lets_the_open_connection_finish() -> None:
    done = await run(EXAMPLES / "shutdown.py")
    lines = done.stdout.splitlines()
    assert "client: StreamClosed(code=1000, reason='', clean=True, error=None)" in lines
    for line in lines:
        print(line)
    stopped = lines.index("server: accepting no more connections, and waiting for the open ones")
    assert stopped < lines.index("client: the server accepts no new connection")
    assert lines.index("client: received b'after'") > stopped
    assert lines[-1] == "server: has ended"


@pytest.mark.parametrize("impatient", ["second signal", "no patience"])
async def test_shutdown_drops_connections_in_the_end(
    impatient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutdown = load("shutdown")
    if impatient == "no patience":
        monkeypatch.setattr(shutdown, "PATIENCE", 0)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                shutdown.serve_until_signal, shutdown.echo, "127.0.0.1", 0
            )
            async with open_ws_stream(url_of(listeners)) as stream:
                await stream.send_all(b"x")
                await stream.receive_some()
                signal.raise_signal(signal.SIGTERM)
                if impatient == "second signal":
                    signal.raise_signal(signal.SIGINT)
                with pytest.raises(trio.BrokenResourceError) as broken:
                    await stream.receive_some()
    assert isinstance(broken.value.__cause__, ConnectionLost)


def url_of(listeners: list[WsListener]) -> str:
    port = listeners[0].port
    return f"ws://127.0.0.1:{port}/"
