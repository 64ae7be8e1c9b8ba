"""A `WsByteStream` as an anyio byte stream (``pip install trio-wsstream[anyio]``).

This is for code that is written for anyio: its TLS and text streams, httpcore, and httpx. The event
loop must still be Trio's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, final

import anyio
import anyio.abc
import trio
from trio_websocket import Endpoint

from ._stream import WsByteStream

__all__ = ["ByteStream", "WsAttribute"]


class WsAttribute(anyio.TypedAttributeSet):
    """The typed attributes of a `ByteStream`, with the names of the `WsByteStream` attributes."""

    subprotocol: str | None = anyio.typed_attribute()
    path: str | None = anyio.typed_attribute()
    handshake_headers: tuple[tuple[bytes, bytes], ...] = anyio.typed_attribute()


@contextmanager
def _anyios_errors(action: str) -> Iterator[None]:
    """Turn Trio's stream errors into anyio's errors of the same names, with the same causes."""
    try:
        yield
    except trio.BrokenResourceError as error:
        raise anyio.BrokenResourceError(str(error)) from error.__cause__
    except trio.ClosedResourceError as error:
        raise anyio.ClosedResourceError(str(error)) from None
    except trio.BusyResourceError:
        raise anyio.BusyResourceError(action) from None


@final
class ByteStream(anyio.abc.ByteStream):
    """An `anyio.abc.ByteStream` over a `WsByteStream`.

    Its methods raise anyio's errors in place of Trio's errors of the same names, with the same
    causes. ``async with`` closes the stream as the ``async with`` of `WsByteStream` does: with
    close code 1000, or with 1011 after an exception.

    The typed attributes are those of `WsAttribute`. If the transport has addresses, there are the
    addresses and ports of `anyio.abc.SocketAttribute` too.

    Args:
      stream (WsByteStream): the stream to wrap.

    Attributes:
      stream (WsByteStream): the wrapped stream.
    """

    def __init__(self, stream: WsByteStream) -> None:
        self.stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive at least one byte, and at most ``max_bytes``.

        Raises:
          anyio.EndOfStream: the stream has ended, so that `WsByteStream.receive_some` returns
              ``b""``.
          anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.BusyResourceError,
          ValueError: as `WsByteStream.receive_some`.
        """
        with _anyios_errors("reading from"):
            data = await self.stream.receive_some(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        """Send all of ``item``, as `WsByteStream.send_all`."""
        with _anyios_errors("writing to"):
            await self.stream.send_all(item)

    async def send_eof(self) -> None:
        """Send a half-close, as `WsByteStream.send_eof`."""
        with _anyios_errors("writing to"):
            await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream with close code 1000, as `WsByteStream.aclose`."""
        await self.stream.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.stream.__aexit__(exc_type, exc_val, exc_tb)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """The typed attributes, each with the function that returns its value."""
        stream = self.stream
        attributes: dict[Any, Callable[[], Any]] = {
            WsAttribute.subprotocol: lambda: stream.subprotocol,
            WsAttribute.path: lambda: stream.path,
            WsAttribute.handshake_headers: lambda: stream.handshake_headers,
        }
        local, remote = stream.local, stream.remote
        if isinstance(local, Endpoint) and isinstance(remote, Endpoint):
            attributes |= {
                anyio.abc.SocketAttribute.local_address: lambda: (str(local.address), local.port),
                anyio.abc.SocketAttribute.local_port: lambda: local.port,
                anyio.abc.SocketAttribute.remote_address: lambda: (
                    str(remote.address),
                    remote.port,
                ),
                anyio.abc.SocketAttribute.remote_port: lambda: remote.port,
            }
        return attributes
