"""``trio-wsstream listen ADDRESS URL``: each connection to a local address becomes a WebSocket."""

from __future__ import annotations

import argparse
import socket
from functools import partial
from typing import Any

import trio

from . import addresses, client, life, log
from .connections import Connections, Counters
from .options import UsageError, parse


def run(options: argparse.Namespace) -> int:
    """Listen until signals end it.

    Returns:
      int: the exit code.
    """
    client.prepare(options)
    return life.run(options.address, partial(LocalServer, options), partial(_check, options))


def _check(options: argparse.Namespace, sockets: list[socket.socket]) -> None:
    trio.run(client.check_values, options)
    _warn_if_public(sockets)


def _warn_if_public(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        if not addresses.is_local(sock):
            name = addresses.name_of(sock)
            log.warn("open", f"{name}: whoever reaches this address is let through to the server")


class LocalServer(life.Server):
    """Carries whatever connects to the server of the options."""

    def __init__(self, options: argparse.Namespace, counters: Counters, _: int | None) -> None:
        self.options: argparse.Namespace = options
        self.connections: Connections = Connections(options.max_connections, counters)
        self.drain_timeout: float = options.drain_timeout

    async def serve(
        self,
        listeners: list[life.Listener],
        handlers: trio.Nursery,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await trio.serve_listeners(
            self._handle, listeners, handler_nursery=handlers, task_status=task_status
        )

    async def reload(self) -> None:
        """Read certificates, tokens and headers again, for new connections."""
        try:
            options = parse(self.options.arguments)
            client.prepare(options)
            await client.check_values(options)
        except UsageError as error:
            log.fail("reload", f"what was read before stays: {error}")
        else:
            self.options = options
            log.tell("reload", "certificates and tokens have been read again")

    async def _handle(self, local: trio.SocketStream) -> None:
        options, url = self.options, client.shown(self.options.url)
        who = _peer_of(local)
        if self.connections.is_full():
            await _reset(local)
            log.warn("refused", f"{who}: refused: {options.max_connections} connections are open")
            return
        connection = self.connections.begin(who, url)
        has_opened = False
        try:
            async with client.open_stream(options) as ws:
                has_opened = True
                names = ("the local side", "the server")
                await self.connections.carry(connection, ws, local, names=names, ws_first=False)
        except client.CANNOT_OPEN as error:
            if has_opened:
                raise
            why = client.why_not(options, error)
            log.fail(
                "unreachable", f"{connection.route}: cannot connect: {why}", **connection.facts
            )
        finally:
            if not has_opened:
                self.connections.forget(connection)
                await _reset(local)


async def _reset(local: trio.SocketStream) -> None:
    addresses.reset_when_closed(local)
    await trio.aclose_forcefully(local)


def _peer_of(local: trio.SocketStream) -> str:
    if local.socket.family == socket.AF_UNIX:
        return "unix"
    try:
        host, port = local.socket.getpeername()[:2]
    except OSError:
        return "somebody who has left"
    return str(addresses.Address(host, port))
