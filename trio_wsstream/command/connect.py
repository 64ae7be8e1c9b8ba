"""``trio-wsstream connect URL``: stdin and stdout over a WebSocket, as ssh's ProxyCommand."""

from __future__ import annotations

import argparse
import signal

import trio

from . import client, log, stdio
from .connections import Connection, Connections

_LAST_WORDS = 1.0  # seconds, for a Close before a signal ends it


def run(options: argparse.Namespace) -> int:
    """Carry stdin and stdout to the server.

    Returns:
      int: the exit code.
    """
    client.prepare(options)
    with stdio.open_stdio() as (make_local, restore):
        try:
            return trio.run(_connect, options, make_local)
        finally:
            restore()


async def _connect(options: argparse.Namespace, make_local: stdio.Maker) -> int:
    """With a task that waits for signals."""
    connection = Connections(None).begin("stdin and stdout", client.shown(options.url))
    ended_by: signal.Signals | None = None
    code = 1

    async def wait_for_signal() -> None:
        nonlocal ended_by
        async for number in signals:
            ended_by = signal.Signals(number)
            if connection.ws is not None:
                # ssh has ended with SIGHUP, and all is well
                is_fine = ended_by is signal.SIGHUP
                connection.stop(f"ended by {ended_by.name}", is_failure=False)
                with trio.move_on_after(_LAST_WORDS):
                    await connection.ws.aclose(1000 if is_fine else 1001)
            nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_signal)
            code = await _carry(options, connection, make_local)
            nursery.cancel_scope.cancel()
    if ended_by is None:
        return code
    return 0 if ended_by is signal.SIGHUP else 128 + ended_by


async def _carry(
    options: argparse.Namespace, connection: Connection, make_local: stdio.Maker
) -> int:
    names = ("stdin and stdout", "the server")
    has_opened = False
    try:
        async with client.open_stream(options) as ws:
            has_opened = True
            is_whole = await Connections(None).carry(
                connection, ws, make_local(), names=names, ws_first=False
            )
    except client.CANNOT_OPEN as error:
        if has_opened:
            raise
        why = client.why_not(options, error)
        log.fail("unreachable", f"cannot connect to {connection.target}: {why}")
        return 2 if isinstance(error, ValueError) else 3  # of an argument, or of the network
    return 0 if is_whole else 1
