"""A server of several processes that share one listening socket.

    workers.py 8000                serve on port 8000, with a worker for each processor
    workers.py 8000 --workers 4    with four of them
    workers.py                     show it at work

The parent opens the socket and starts the workers, which inherit it. Whichever worker is free
accepts the next client. A worker that dies is replaced. SIGTERM or Ctrl-C drains the server: no
worker accepts any more, and each ends when its last connection has ended; a second signal drops
the connections that are still open. If the parent itself is killed, the workers drain, too: they
see the end of a pipe that it holds.

Each worker is a process of its own and shares no memory with the others. Where clients must be
told of each other, that needs a database or a broker; see also docs/servers.rst.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys

import trio
from shutdown import serve_until_signal  # the example beside this one

from trio_wsstream import WsByteStream, WsListener, open_ws_stream

RESTART_PAUSE = 1.0  # seconds, at the least, between two starts in place of each other
BACKLOG = 65535  # clients that may wait to be accepted; the kernel lowers it to its own limit


class Workers:
    """The parent: it keeps workers running until it is told to stop.

    Args:
      listening: the socket that they share.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.running: set[trio.Process] = set()
        self._listening = listening
        self._is_stopping = False

    async def run(
        self, count: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep ``count`` workers running, until a signal has come and all of them have ended."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as workers:
                    for _ in range(count):
                        workers.start_soon(self._keep_one_running)
                    nursery.start_soon(self._stop_on_signals, signals, workers)
                nursery.cancel_scope.cancel()

    async def _keep_one_running(self) -> None:
        while not self._is_stopping:
            started_at = trio.current_time()
            descriptor = self._listening.fileno()
            process = await trio.lowlevel.open_process(
                [sys.executable, __file__, "--worker-of", str(descriptor)],
                pass_fds=[descriptor],
                stdin=subprocess.PIPE,
                start_new_session=True,  # so that Ctrl-C reaches the parent alone
            )
            self.running.add(process)
            if self._is_stopping:
                process.terminate()
            status = await process.wait()
            self.running.remove(process)
            if not self._is_stopping:
                say(f"parent: worker {process.pid} has died ({status}); starting another")
                await trio.sleep_until(started_at + RESTART_PAUSE)

    async def _stop_on_signals(self, signals, workers: trio.Nursery) -> None:
        async for _ in signals:
            say("parent: stopping the workers")
            self._is_stopping = True
            self._listening.close()
            for process in self.running:
                process.terminate()


async def work(descriptor: int) -> None:
    """A worker: it serves on a socket that it has inherited."""
    sock = trio.socket.from_stdlib_socket(socket.socket(fileno=descriptor))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_the_parent_ends)

        async def serve(task_status: trio.TaskStatus[list[WsListener]]) -> None:
            listeners = [trio.SocketListener(sock)]
            await serve_until_signal(handle, listeners=listeners, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(serve)
        say(f"worker {os.getpid()}: serving")
    say(f"worker {os.getpid()}: ended")


async def stop_when_the_parent_ends() -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as parent:
        await parent.receive_some()
    signal.raise_signal(signal.SIGTERM)


async def handle(stream: WsByteStream) -> None:
    """What the server does: it says which process it is, and echoes."""
    await stream.send_all(b"%d" % os.getpid())
    async for chunk in stream:
        await stream.send_all(chunk)


def listen(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port), backlog=BACKLOG)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # in one piece: all processes write to the same place
    sys.stdout.flush()


# Shown at work


async def show() -> None:
    with listen(0) as listening:
        url = f"ws://127.0.0.1:{listening.getsockname()[1]}/"
        async with trio.open_nursery() as nursery:
            await nursery.start(Workers(listening).run, 2)

            async with open_ws_stream(url) as stream:
                worker = int(await stream.receive_some())
                say(f"client: connected to worker {worker}, and killing it")
                os.kill(worker, signal.SIGKILL)
                try:
                    await stream.receive_some()
                except trio.BrokenResourceError as error:
                    say(f"client: {error}")

            async with open_ws_stream(url) as stream:
                say(f"client: connected to worker {int(await stream.receive_some())}")
                signal.raise_signal(signal.SIGTERM)
                await trio.sleep(0.5)
                await stream.send_all(b"still there?")
                say(f"client: received {bytes(await stream.receive_some())!r} while it stops")
        say("parent: ended")


async def serve(port: int, count: int) -> None:
    with listen(port) as listening:
        say(f"parent: listening on port {listening.getsockname()[1]}")
        await Workers(listening).run(count)
    say("parent: ended")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int, nargs="?")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--worker-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker_of is not None:
        trio.run(work, arguments.worker_of)
    elif arguments.port is not None:
        trio.run(serve, arguments.port, arguments.workers)
    else:
        trio.run(show)


if __name__ == "__main__":
    main()
