"""stdin and stdout as one stream, whatever they are, and left as they were.

To wait for a descriptor it must be non-blocking, and that is a property of the open file, which
other programs share: a terminal would be left so for the shell, if this process is killed. So it is
opened once more (through /proc, where there is one): the new one is this process's own. What cannot
be opened again (a socket, another user's terminal) is made non-blocking, and made as it was in the
end.

A regular file never makes anybody wait, and the kernel refuses to wait for it: it is read at once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import trio

_CHUNK: Final = 65536  # bytes

Maker = Callable[[], "trio.StapledStream[Any, Any]"]


class _File(trio.abc.SendStream, trio.abc.ReceiveStream):
    """A regular file, or a device that never makes anybody wait."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        try:
            return os.read(self._fd, max_bytes or _CHUNK)
        except OSError as error:
            raise trio.BrokenResourceError("stdin cannot be read") from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise trio.BrokenResourceError("stdout cannot be written") from error

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1
        await trio.lowlevel.checkpoint()


@contextmanager
def open_stdio() -> Iterator[tuple[Maker, Callable[[], None]]]:
    """Take stdin and stdout away from this process's other users.

    Yields:
      A function that makes a stream of them, within Trio; and one that makes them as they were.
    """
    _fill_holes()
    were_blocking: list[tuple[int, bool]] = []
    fds = [_own(0, os.O_RDONLY, were_blocking), _own(1, os.O_WRONLY, were_blocking)]

    def make() -> trio.StapledStream[Any, Any]:
        receiving, sending = map(_stream_of, fds)
        return trio.StapledStream(sending, receiving)

    def restore() -> None:
        for fd, was_blocking in were_blocking:
            os.set_blocking(fd, was_blocking)
            os.close(fd)
        were_blocking.clear()

    yield make, restore


def _fill_holes() -> None:
    """Put in what gives and takes nothing, or a closed descriptor would become one of ours."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if fd == 2 else os.O_RDONLY)


def _own(fd: int, mode: int, were_blocking: list[tuple[int, bool]]) -> int:
    """A descriptor of the same file, this process's own; ``fd`` itself is then of nothing."""
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            own = os.dup(fd)  # with its position
        else:
            own = os.open(f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        own = os.dup(fd)
        were_blocking.append((os.dup(fd), os.get_blocking(fd)))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, fd)
    os.close(nothing)
    return own


def _stream_of(fd: int) -> Any:
    if stat.S_ISREG(os.fstat(fd).st_mode) or _never_waits(fd):
        return _File(fd)
    return trio.lowlevel.FdStream(fd)


def _never_waits(fd: int) -> bool:
    """/dev/null, /dev/zero: the kernel has no way to wait for them."""
    import select

    if not hasattr(select, "epoll"):
        return False
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLIN)
        except PermissionError:
            return True
    return False
