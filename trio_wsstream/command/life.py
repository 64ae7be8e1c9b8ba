"""How a server lives: listeners, signals, draining, and several processes.

SIGTERM and SIGINT drain: nothing more is accepted, and what is open may go on for a while; then
each WebSocket is closed with 1001. A second signal ends everything at once. SIGHUP reads files
again, and SIGUSR1 writes what is open.

*Several processes* share listening sockets: the parent opens them and forks, each worker runs Trio
on its own, and the parent only waits. It passes signals on, and starts a worker again that has
died. Workers are in process groups of their own, so that a terminal's Ctrl-C reaches them only
once. Each worker holds one end of a pipe whose other end is the parent's: if the parent dies, the
worker drains.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import trio

from . import log
from .addresses import Address, keep_alive, listen_on, name_of, remove
from .connections import Connections, Counters

_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TRIES_AGAIN: Final = 0.1  # seconds
_QUIET: Final = 60.0  # seconds without a shortage, until one is told again
_INHERITS_OPTIONS: Final = sys.platform == "linux"  # an accepted socket, from the listening one
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_OTHERS: Final = (signal.SIGHUP, signal.SIGUSR1)

Start = Callable[..., Awaitable[object]]


class Listener(trio.abc.Listener[trio.SocketStream]):
    """On a listening socket. Out of descriptors, it says so once, and waits for some."""

    def __init__(self, sock: socket.socket) -> None:
        keep_alive(sock)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._name = name_of(sock)
        self._is_quiet_until = -math.inf
        self.socket: trio.socket.SocketType = self._listener.socket

    async def accept(self) -> trio.SocketStream:
        while True:
            try:
                stream = await self._listener.accept()
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                now = trio.current_time()
                if now >= self._is_quiet_until:
                    text = f"cannot accept on {self._name}: {os.strerror(error.errno)}; "
                    log.fail(
                        "short", text + "going on when there are some (ulimit -n, LimitNOFILE=)"
                    )
                self._is_quiet_until = now + _QUIET
                await trio.sleep(_TRIES_AGAIN)
            else:
                if not _INHERITS_OPTIONS:
                    keep_alive(stream.socket)
                return stream

    async def aclose(self) -> None:
        await self._listener.aclose()


class Server:
    """What `live` runs.

    Attributes:
      connections (Connections): those that are open.
      drain_timeout (float): seconds.
      answers_while_draining (bool): whether it listens on until the end: for health checks.
      refuses_while_draining (bool): whether those that are not open yet are refused or dropped.
    """

    connections: Connections
    drain_timeout: float
    answers_while_draining = False
    refuses_while_draining = False

    async def serve(
        self,
        listeners: list[Listener],
        handlers: trio.Nursery,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled; what was accepted goes on in ``handlers``."""
        raise NotImplementedError

    async def reload(self) -> None:
        """SIGHUP: read files again."""


async def live(server: Server, sockets: list[socket.socket], parent: int | None = None) -> int:
    """Run a server until signals have ended it.

    Args:
      parent: a pipe that ends if the parent process does.

    Returns:
      int: the exit code.
    """
    listeners = [Listener(sock) for sock in sockets]
    stopping = trio.Event()
    code = 0

    def stop() -> None:
        nonlocal code
        if stopping.is_set():
            log.warn("stop", "a second signal: ending at once")
            code = 1
            everything.cancel_scope.cancel()
        stopping.set()

    async def attend_signals() -> None:
        async for number in signals:
            if number in _STOPPING:
                stop()
            elif number == signal.SIGHUP:
                await server.reload()
            else:
                server.connections.tell_all()

    async def attend_parent(pipe: int) -> None:
        await trio.lowlevel.wait_readable(pipe)
        stop()

    with trio.open_signal_receiver(*_STOPPING, *_OTHERS) as signals:
        # A worker is started with them blocked, so that none comes too early.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOPPING, *_OTHERS, signal.SIGCHLD})
        async with trio.open_nursery() as everything:
            everything.start_soon(attend_signals)
            if parent is not None:
                everything.start_soon(attend_parent, parent)
            async with trio.open_nursery() as handlers:
                accepting = await handlers.start(_accept, server, listeners, handlers)
                await stopping.wait()
                await _drain(server, accepting)
                handlers.cancel_scope.cancel()
            everything.cancel_scope.cancel()
    return code


async def _accept(
    server: Server,
    listeners: list[Listener],
    handlers: trio.Nursery,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners, handlers)
            task_status.started(scope)


async def _drain(server: Server, accepting: trio.CancelScope) -> None:
    connections = server.connections
    connections.is_draining = True
    count = len(connections.open)
    if count:
        text = f"stopping: {count} open, for {server.drain_timeout:g} s at most"
        log.tell("drain", text, open=count, seconds=server.drain_timeout)
    if not server.answers_while_draining:
        accepting.cancel()
    with trio.move_on_after(server.drain_timeout):
        await connections.wait_until_none(of_all=not server.refuses_while_draining)
    await connections.close_all()
    accepting.cancel()
    log.tell("stopped", "stopped")


def run(
    address: Address,
    make: Callable[[Counters, int | None], Server],
    check: Callable[[list[socket.socket]], None],
    workers: int = 1,
) -> int:
    """Listen and serve until signals have ended it.

    Args:
      make: makes the server, in the process that runs it, and in no task.
      check: may raise `UsageError` for the sockets that are listened on.

    Returns:
      int: the exit code.
    """
    try:
        sockets = listen_on(address)
    except OSError as error:
        log.fail("listen", str(error))
        return 1
    try:
        check(sockets)
        for sock in sockets:
            log.tell("listening", f"listening on {name_of(sock)}", address=name_of(sock))
        counters = Counters(workers)
        if workers == 1:
            return trio.run(_make_and_live, make, counters, None, sockets, None)
        return _Supervisor(
            workers,
            lambda worker, pipe: trio.run(_make_and_live, make, counters, worker, sockets, pipe),
            counters,
        ).run()
    finally:
        remove(address)


async def _make_and_live(
    make: Callable[[Counters, int | None], Server],
    counters: Counters,
    worker: int | None,
    sockets: list[socket.socket],
    pipe: int | None,
) -> int:
    return await live(make(counters, worker), sockets, pipe)


class _Supervisor:
    """The parent of several workers. It runs no Trio, and only waits."""

    def __init__(self, count: int, work: Callable[[int, int], int], counters: Counters) -> None:
        self._work = work
        self._counters = counters
        self._count = count
        self._workers: dict[int, tuple[int, float]] = {}  # by process: its number, its beginning
        self._pipe = os.pipe()
        self._is_stopping = False
        self._code = 0

    def run(self) -> int:
        signals = {*_STOPPING, *_OTHERS, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        for number in range(self._count):
            self._start(number)
        while self._workers:
            number = signal.sigwait(signals)
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self._is_stopping = self._is_stopping or number in _STOPPING
                for process in self._workers:
                    os.kill(process, number)
        return self._code

    def _start(self, number: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        process = os.fork()
        if process == 0:
            self._be(number)
        self._workers[process] = (number, time.monotonic())
        log.tell("worker", f"worker {number + 1} is process {process}", worker=number + 1)

    def _be(self, number: int) -> NoReturn:
        code = 1
        try:
            os.setpgid(0, 0)
            os.close(self._pipe[1])
            code = self._work(number, self._pipe[0])
        except BaseException:  # noqa: BLE001  # nothing of it may get into the parent's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while self._workers:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                break
            number, began_at = self._workers.pop(process)
            self._counters.set(number, 0)
            code = os.waitstatus_to_exitcode(status)
            if self._is_stopping:
                self._code = self._code or (code if code >= 0 else 1)
                continue
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            log.fail("worker", f"worker {number + 1} (process {process}) has died: {why}")
            if time.monotonic() - began_at < 1:
                time.sleep(1)  # or it would go on like this as fast as it can
            self._start(number)
