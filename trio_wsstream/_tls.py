"""TLS over a socket, without the coroutines of `trio.SSLStream`.

Theory of operation. A `trio.SSLStream` takes its locks and a schedule point for each record of
16 KiB. And it breaks if a caller is cancelled while it writes, because it does not know how much of
what it encrypted was sent. `TlsWire` works with the `ssl.SSLObject` of the `SSLStream`, and with
the two buffers of that. It fills the one from the socket, and decrypts as many records as a read
asks for. It writes what it finds in the other as `SocketWire` writes a frame: after a cancellation
the rest is kept and goes out first. So nothing is lost.

*Nobody else may read or write the SSLStream* meanwhile. It does the handshake of TLS before, and
the closing after. On a connection that trio-websocket has opened, the first frame waits until its
tasks have left the `SSLStream`. Where that may take long, the connection gets a `StreamWire`.

*TLS 1.3 only.* In older versions either side may start a new handshake, and then writing has to
wait for reading. In TLS 1.3 the peer may send other keys, or ask for a certificate (RFC 8446, 4.6).
OpenSSL answers by itself, into the buffer of what is to be written. What a read finds there goes
out at once if the socket takes it, and else before the next frame.

*Memory.* The two buffers never shrink. So no more than two records go into them at once, and a
short one: in frames of 64 KiB the last record has only as many bytes as the header.
"""

from __future__ import annotations

import copy
import os
import select
import ssl
from collections.abc import Sequence
from typing import Any, Final

import trio

from ._frames import MAX_HEADER, Buffer
from ._read_size import PAYLOAD_SIZE, TLS_RECORD
from ._transport import MayBegin, SocketWire, StreamWire, own_socket, shut_down, unsent, unsent_in

_PARTS: Final = ("_delayed_outgoing", "_incoming", "_outgoing", "_ssl_object", "_state")
"""The private attributes of a `trio.SSLStream` that this file reads or sets."""

_OVERHEAD: Final = 22  # bytes: the header of a record, its content type and its authentication tag
_MOST: Final = PAYLOAD_SIZE + MAX_HEADER  # bytes of one read, before what TLS adds
_TWO_RECORDS: Final = 2 * TLS_RECORD
_TWO_FRAMES: Final = 4  # buffers
_SHORT: Final = 100  # bytes
_MOST_ANSWERS: Final = 65536  # bytes that a peer has us answer while it reads nothing


class TlsWire(SocketWire):
    """Reads and writes the TLS 1.3 of a `trio.SSLStream` over a `trio.SocketStream`."""

    __slots__ = ("_answer", "_encrypted", "_error", "_has_more", "_incoming", "_outgoing", "_tls")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        super().__init__(stream.transport_stream)
        self._stream: Any = stream
        self._tls: ssl.SSLObject = self._stream._ssl_object
        self._incoming: ssl.MemoryBIO = self._stream._incoming
        self._outgoing: ssl.MemoryBIO = self._stream._outgoing
        self._encrypted: Buffer = b""  # what has come, and is not in _incoming yet
        self._answer = b""  # the rest of what TLS itself has to say, before the next frame
        self._error: ssl.SSLError | None = None  # of reading
        self._has_more = True  # Perhaps: the last read of trio-websocket's task may leave records.

    def read_now(self, max_bytes: int) -> bytes | None:
        data = self._decrypt(max_bytes) if self._has_more else None
        if data is None:  # This is no loop: records without data must not keep other tasks waiting.
            size = min(max(max_bytes, TLS_RECORD), _MOST)
            received = super().read_now(size + (size // TLS_RECORD + 1) * _OVERHEAD)
            if received is None:
                return None
            if not received:
                self._incoming.write_eof()
            elif len(received) <= _TWO_RECORDS:
                self._incoming.write(received)
            else:
                self._encrypted = memoryview(received)
            data = self._decrypt(max_bytes)
        return data

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Return what can be decrypted now, ``b""`` at the end, or None if nothing has come.

        Raises:
          ssl.SSLError: the peer broke the rules of TLS, or ended TCP and not TLS.
        """
        pieces: list[bytes] = []
        left = max_bytes
        while self._error is None:
            if self._encrypted and not self._incoming.pending:
                self._feed()
            try:
                piece = self._tls.read(left if left < TLS_RECORD else TLS_RECORD)
            except ssl.SSLWantReadError:
                self._has_more = False
                if not self._encrypted:
                    break  # Else there is more of the record.
            except ssl.SSLError as error:
                self._has_more = True
                self._error = error.with_traceback(None)  # OpenSSL would tell another next time.
            else:
                pieces.append(piece)
                left -= len(piece)
                if not (piece and left and (self._incoming.pending or self._encrypted)):
                    # The end can be read again.
                    self._has_more = not piece or self._is_pending()
                    break
        if (self._outgoing.pending or self._answer) and not self.rest and self._takes_bytes():
            self._answer = super().write_now(self._take_encrypted())
        if self._outgoing.pending > _MOST_ANSWERS:
            self._has_more = True
            self._error = ssl.SSLError("the peer asks for new keys, and takes no answers")
        if pieces:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._error is None:
            return None
        if isinstance(self._error, ssl.SSLEOFError) and self._stream._https_compatible:
            return b""
        raise copy.copy(self._error)  # Its traceback holds the stream.

    def awaited(self) -> SocketWire | None:
        """See `_Wire.awaited`. Records may have come that were not decrypted yet."""
        return None if self._has_more or self._error is not None else super().awaited()

    def _feed(self) -> None:
        """Put the next bytes that have come into the buffer that they are decrypted from."""
        end = _TWO_RECORDS + 2 * _OVERHEAD
        if len(self._encrypted) > end + _SHORT:
            self._incoming.write(self._encrypted[:end])
            self._encrypted = self._encrypted[end:]
        else:
            self._incoming.write(self._encrypted)
            self._encrypted = b""

    def _is_pending(self) -> bool:
        return bool(self._incoming.pending or self._encrypted or self._tls.pending())

    def _takes_bytes(self) -> bool:
        """Return whether the socket takes something without waiting."""
        if self.limit is not None and unsent_in(self.socket) >= self.limit:
            return False
        if self.socket.fileno() < 0:  # It is closed, which a write will tell.
            return True
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLOUT)
        return bool(poll.poll(0))

    def _take_encrypted(self) -> bytes:
        """Take what is to be written, after the session tickets that the SSLStream holds back."""
        encrypted = self._answer + self._outgoing.read()
        self._answer = b""
        delayed: bytes | None = self._stream._delayed_outgoing
        if delayed is None:
            return encrypted
        self._stream._delayed_outgoing = None
        return delayed + encrypted

    def _encrypt(self, header: Buffer, payload: Buffer = b"") -> list[bytes]:
        """Encrypt a frame, and return it in pieces.

        The payload of a long one is copied only as far as it shares a record with the header.
        """
        room = TLS_RECORD - len(header)
        if not payload or len(payload) <= room:
            self._tls.write(b"".join((header, payload)))
            return [self._take_encrypted()]
        with memoryview(payload) as view:
            self._tls.write(b"".join((header, view[:room])))
            encrypted = []
            start, end = room, room + TLS_RECORD
            while len(view) > end + _SHORT:
                self._tls.write(view[start:end])
                encrypted.append(self._take_encrypted())
                start, end = end, end + _TWO_RECORDS
            self._tls.write(view[start:])
        encrypted.append(self._take_encrypted())
        return encrypted

    def is_readable(self) -> bool:
        """Whether something can be read without waiting: see `_Wire.is_readable`."""
        return self._error is not None or self._is_pending() or super().is_readable()

    def write_now(self, data: bytes) -> bytes:
        """Write without waiting. The result is all of ``data`` if the rest of a frame must go out
        first. Else it is empty, and what the socket has not taken is kept for `write_rest`.
        """
        if self.rest:
            return data
        try:
            self.rest = super().write_now(b"".join(self._encrypt(data)))
        except ssl.SSLError as error:
            self.note_failure(error)
        return b""

    async def write(self, buffers: Sequence[Buffer], may_begin: MayBegin | None = None) -> int:
        """Write a frame, or the first two: see `_Wire.write`. This waits for both, and leaves no
        `rest`.

        A frame that has been encrypted must be sent (RFC 8446, 5.3). So if this is cancelled after
        that, the rest of the frames is kept, and the next call writes it first. On a slow line this
        waits for the socket before it encrypts.
        """
        try:
            has_waited = bool(self.rest)
            if has_waited:
                await self._write_rest()
            while self.limit is not None and not self._takes_bytes():
                await self._wait_writable()
                has_waited = True
            if not has_waited:
                await trio.lowlevel.checkpoint_if_cancelled()
            elif may_begin and not may_begin():
                return 0
            buffers = buffers[:_TWO_FRAMES]
            encrypted = self._encrypt(*buffers[:2])
            if len(buffers) > 2:
                encrypted += self._encrypt(*buffers[2:])
            sent = self._writev(encrypted)
            if sent < sum(map(len, encrypted)):
                self.rest = unsent(encrypted, sent)
            if sent and not has_waited:
                await trio.lowlevel.cancel_shielded_checkpoint()
            if self.rest:
                await self._write_rest()
            return len(buffers)
        except OSError as error:
            self.note_failure(error)
            raise trio.BrokenResourceError(self.failure) from error

    async def _write_rest(self) -> None:
        while self.rest:
            await super()._write_rest()
            self.rest = self._take_encrypted()  # an answer that has come about meanwhile

    def _leave(self, payload: memoryview, key: bytes, start: int, stop: int) -> None:
        # No piece is encrypted while there is a rest, so this is that of a piece that has begun.
        super()._leave(payload, key, stop if self.rest else start, stop)

    def _keep(self, data: Buffer) -> None:
        try:
            super()._keep(b"".join(self._encrypt(b"", data)))
        except ssl.SSLError as error:
            self.note_failure(error)

    async def aclose(self, deadline: float) -> None:
        """Close the stream, and end TCP: see `_Wire.aclose`."""
        if self.rest or self._answer or self._stream._https_compatible:
            # TLS says no goodbye: after a record that is cut off, no other has a meaning.
            await self.aclose_forcefully()
        else:
            await super(SocketWire, self).aclose(deadline)

    async def aclose_forcefully(self) -> None:
        """Close the stream without waiting for anything, and end TCP: see `_Wire.aclose`."""
        shut_down(self.socket)
        await trio.aclose_forcefully(self._stream)


def adapt(stream: trio.abc.Stream, *, is_shared: bool = False) -> StreamWire | SocketWire:
    """Return the fastest wire that works for ``stream``.

    What is fast works for Trio's own sockets only. A socket of another class, which
    `trio.socket.set_custom_socket_factory` allows, may do more than its file descriptor does.

    Args:
      stream: a transport.
      is_shared (bool): whether tasks of trio-websocket may still be reading or writing.
    """
    if not hasattr(os, "writev"):
        return StreamWire(stream)
    if type(stream) is trio.SocketStream and own_socket(stream):
        return SocketWire(stream)
    if type(stream) is trio.SSLStream and not is_shared and _is_known(stream):
        return TlsWire(stream)
    return StreamWire(stream)


def _is_known(stream: Any) -> bool:
    """Return whether a `TlsWire` knows its way about in ``stream``, and in what is beneath."""
    if not all(hasattr(stream, part) for part in _PARTS):  # It is that of another Trio.
        return False
    if own_socket(stream.transport_stream) is None:
        return False
    try:
        return bool(stream._state.name == "OK" and stream.version() == "TLSv1.3")
    except trio.NeedHandshakeError:
        return False
