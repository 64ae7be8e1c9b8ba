"""What bytes from the peer mean, what is owed to the peer, who has closed. No I/O, no Trio.

Theory of operation. Everything follows from a few facts, each set in one place and never
unset: `close_received` and `close_sent` (RFC 6455, 5.5.1 and 7.1), the `error` with which this
side failed the connection, and whether TCP has ended.

*What the reader is told at the end* is settled by the first of: the peer's Close, an error,
the end of TCP (`ended`, `verdict`). Whatever comes in afterwards is dropped undecoded.

*What the peer is owed* is kept until `data_to_send` asks for it: Pings of this side, Pongs,
then a Close, which ends it all. A Pong that was not sent in time is let go when 64 newer ones
wait (5.5.3), so a flood of pings takes no memory. A Close counts as sent once it is encoded.

*A half-close* is a Close 1000 with the reason ``half-close``. A peer that knows the convention
holds its answer back (`is_held`) and goes on sending; to any other it is a Close like others.

Events come out of `next_event` one by one, in the order of the wire, and decoding waits for
the reader between them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ._config import HalfClose, StreamConfig, TextPolicy
from ._errors import (
    AbnormalClosure,
    ConnectionLost,
    KeepaliveTimeout,
    ProtocolViolation,
    TextRejected,
    WsStreamError,
)
from ._events import (
    CloseReceived,
    ErrorOccurred,
    PingReceived,
    PongReceived,
    StreamClosed,
    TextReceived,
    WsEvent,
    shown,
)
from ._frames import (
    BINARY,
    CLOSE,
    FIN,
    MASKED,
    MAX_CONTROL_PAYLOAD,
    MORE,
    PING,
    PONG,
    Buffer,
    Decoder,
    Frame,
    decode_close_payload,
    encode,
    encode_close_payload,
    encode_header,
    fresh_key,
)

_logger = logging.getLogger(__name__)

MAX_PONGS_OWED: Final = 64
MAX_REASON: Final = MAX_CONTROL_PAYLOAD - 2  # bytes
_ENCODERS: Final[dict[bool, Callable[[Buffer], tuple[Buffer, ...]]]] = {
    client: functools.partial(encode, BINARY, client=client) for client in (True, False)
}
_MERGED: Final = 4096  # bytes: smaller pieces are stored together, as each costs an object


class Close(NamedTuple):
    """What a Close says: code 1005 stands for none (RFC 6455, 7.1.5)."""

    code: int
    reason: str


HALF_CLOSE: Final = Close(1000, "half-close")


class Ping:
    """A ping in flight."""

    is_answered = False


class ReceiveBuffer:
    """Payload that nobody has received yet. Adding and taking cost no more than a copy.

    Lists, here and below: they stay short, and an empty deque takes 700 bytes of every stream.
    """

    __slots__ = ("_pieces", "_taken", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._taken = 0  # bytes already taken of the first piece
        self.size = 0

    def add(self, pieces: Sequence[Buffer]) -> None:
        piece = b"".join(pieces)  # no copy of one that is bytes
        self.size += len(piece)
        if self._pieces and len(self._pieces[-1]) + len(piece) <= _MERGED:
            last = self._pieces[-1]
            self._pieces[-1] = merged = last if isinstance(last, bytearray) else bytearray(last)
            merged += piece
        elif piece:
            self._pieces.append(piece)

    def take(self, max_bytes: int | None) -> bytes | bytearray:
        """At most ``max_bytes`` bytes of what there is, or all."""
        if (
            len(self._pieces) == 1
            and not self._taken
            and (max_bytes is None or self.size <= max_bytes)
        ):
            self.size = 0
            return self._pieces.pop()
        wanted = self.size if max_bytes is None else min(max_bytes, self.size)
        self.size -= wanted
        parts = []
        while wanted:
            piece = self._pieces[0]
            stop = self._taken + wanted
            part = piece[self._taken : stop]
            parts.append(part)
            wanted -= len(part)
            if stop >= len(piece):
                del self._pieces[0]
                self._taken = 0
            else:
                self._taken = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def clear(self) -> None:
        self._pieces.clear()
        self._taken = self.size = 0


class Protocol:
    """One end of a connection whose opening handshake is done.

    Args:
      client (bool): whether this side is the client.
      config (StreamConfig): `text`, `half_close` and `receive_buffer_size` matter here.
      close_sent (Close or None): a Close that this side has sent before.
      name: what it is called in the log, which has a line for each frame, at DEBUG.

    Attributes, to be read only:
      unread (ReceiveBuffer): the payload that came.
      close_received, close_sent (Close or None): the Closes so far; sent means encoded.
      is_held (bool): the answer to the peer's Close is held back.
      error (WsStreamError or None): why the connection broke.
      has_failed (bool): this side failed the connection for what the peer did (7.1.7).
      tcp_ended (bool): nothing more can come.
      ended (bool): nothing more will be added to ``unread``.
      verdict (WsStreamError or None): how: None is a clean end.
      can_send (bool): data may be sent.
      owes (bool): `data_to_send` has something to do.
      encode_message: makes a binary message of a buffer: its header and its payload.
      pings (dict): the pings in flight by payload, oldest first.

    Attributes, to be set:
      steps_left (int): after how many frames (or runs of 256 binary ones) `next_event` stops
          decoding, as if that were all; negative: never.
    """

    __slots__ = (
        "_close_owed",
        "_config",
        "_decoder",
        "_events",
        "_logs",
        "_name",
        "_pings_owed",
        "_pongs_owed",
        "_text",
        "can_send",
        "client",
        "close_received",
        "close_sent",
        "encode_message",
        "ended",
        "error",
        "has_failed",
        "is_held",
        "is_receiving",
        "owes",
        "pings",
        "steps_left",
        "tcp_ended",
        "unread",
        "verdict",
    )

    def __init__(
        self,
        *,
        client: bool,
        config: StreamConfig,
        close_sent: Close | None = None,
        name: object = "protocol",
    ) -> None:
        self.client = client
        self.unread = ReceiveBuffer()
        self.close_received: Close | None = None
        self.close_sent = close_sent
        self.is_held = False
        self.error: WsStreamError | None = None
        self.has_failed = False
        self.tcp_ended = False
        self.ended = False
        self.verdict: WsStreamError | None = None
        self.can_send = close_sent is None
        self.owes = False
        self.is_receiving = True  # payload is kept; False once this side has closed
        self.pings: dict[bytes, Ping] = {}
        self.steps_left = -1
        self.encode_message = _ENCODERS[client]
        self._name = name
        self._logs = _logger.isEnabledFor(logging.DEBUG)  # asked once: it is the hot path
        if self._logs:
            self.encode_message = self._encode_message_and_log
        self._config = config
        self._decoder = Decoder(client=client)
        self._events: list[WsEvent] = []  # that happened, and were not asked for yet
        self._text = bytearray()  # of an unfinished message, under AS_EVENTS
        self._pings_owed: list[bytes] = []
        self._pongs_owed: list[bytes] = []
        self._close_owed: Close | None = None

    # What comes in

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take bytes that came from the peer; `next_event` then decodes them."""
        if not self.ended:
            self._decoder.feed(data)

    @property
    def frame_left(self) -> int:
        """Bytes of the current data frame's payload that are still to come."""
        return self._decoder.left

    def receive_message(self, data: bytes | bytearray) -> bytes | bytearray | None:
        """The payload of what came from the peer if it is one binary message, no more and no
        less: then there is nothing to decode. Else None, and it is for `receive_data`.
        """
        if self.ended or not self.is_receiving:
            return None
        message = self._decoder.decode_message(data)
        if self._logs and message is not None:
            self._log_payload([message])
        return message

    def receive_eof(self, why: str = "the transport ended") -> None:
        """TCP has ended, or broke."""
        if self.tcp_ended:
            return
        self.tcp_ended = True
        self.can_send = False
        if self.close_received is None:
            self._break(ConnectionLost(f"{why} before the peer's Close"))
        elif self.close_sent is None:
            self._break(ConnectionLost(f"{why} before the answer to the peer's Close"))

    def next_event(self) -> WsEvent | None:
        """Decode up to the next event; None when everything is decoded, or no step is left."""
        while True:
            if self._events:
                event = self._events.pop(0)
                if self._logs:
                    _logger.debug("%s < %r", self._name, event)
                return event
            if self.ended or not self.steps_left:
                return None
            self.steps_left -= 1
            payload: list[Buffer] = []
            try:
                try:
                    frame = self._decoder.decode(payload)
                finally:  # what came before a violation counts
                    if self._logs and payload:
                        self._log_payload(payload)
                    if payload and self.is_receiving:
                        self.unread.add(payload)
                if frame is None:
                    return None
                if frame is not MORE:
                    self._handle(frame)
            except (ProtocolViolation, TextRejected) as error:
                self.fail(error)

    def _handle(self, frame: Frame) -> None:
        opcode, payload, ends_message = frame
        if opcode == PING:
            self._events.append(PingReceived(payload))
            if self.close_sent is None:
                self._pongs_owed.append(payload)
                del self._pongs_owed[:-MAX_PONGS_OWED]
                self.owes = True
        elif opcode == PONG:
            self._events.append(PongReceived(payload))
            self._settle_pings(payload)
        elif opcode == CLOSE:
            self._handle_close(Close(*decode_close_payload(payload)))
        elif not self.is_receiving:
            pass
        elif self._config.text is TextPolicy.REJECT:
            raise TextRejected(1003, "Text messages are not supported.")
        elif self._config.text is TextPolicy.AS_EVENTS:
            self._handle_text(payload, ends_message)
        else:
            self.unread.add([payload])

    def _handle_text(self, payload: bytes, ends_message: bool) -> None:
        self._text += payload
        if len(self._text) > self._config.receive_buffer_size:
            raise TextRejected(1009, "The text message is too long.")
        if ends_message:
            self._events.append(TextReceived(self._text.decode()))
            self._text = bytearray()

    def _handle_close(self, close: Close) -> None:
        self.close_received = close
        self._events.append(CloseReceived(*close))
        complete = close.code in (1000, 1001, 1005) and not self._decoder.is_inside_message
        if not complete:
            self.error = AbnormalClosure(*close)
        self._end(self.error)
        self.pings.clear()
        if self.close_sent is None and self._close_owed is None:
            self.is_held = complete and self._holds_back(close)
            if not self.is_held:
                self._owe_close(close)

    def _holds_back(self, close: Close) -> bool:
        policy = self._config.half_close
        return policy is HalfClose.ALWAYS or (policy is HalfClose.AUTO and close == HALF_CLOSE)

    def _settle_pings(self, payload: bytes) -> None:
        """A Pong answers its ping and all earlier ones (5.5.3)."""
        if payload in self.pings:
            for earlier in list(self.pings):
                self.pings.pop(earlier).is_answered = True
                if earlier == payload:
                    break

    # What goes out

    def ping(self, payload: bytes) -> Ping:
        """Owe a Ping. It stays in `pings` until it is answered, or never can be."""
        if payload in self.pings:
            raise ValueError(f"a ping with the payload {shown(payload)} is already in flight")
        self.pings[payload] = ping = Ping()
        self._pings_owed.append(payload)
        self.owes = True
        return ping

    def close(self, close: Close) -> None:
        """Owe a Close, unless one has been sent or is owed, or what went before it was cut off."""
        if self.close_sent is None and self._close_owed is None and not self.tcp_ended:
            self._owe_close(close)

    def stop_receiving(self) -> None:
        """Drop what was not received, and all that still comes."""
        self.is_receiving = False
        self.unread.clear()

    def fail(self, error: ProtocolViolation | TextRejected) -> None:
        """Fail the connection (7.1.7)."""
        self.has_failed = True
        self._break(error.with_traceback(None))  # it would keep what was read
        reason = error.reason.encode()[:MAX_REASON].decode(errors="ignore")
        self.close(Close(error.close_code, reason))
        self.owes = True  # the end of TCP, if no Close

    def time_out(self) -> None:
        """Give up a peer that keepalive got no answer from."""
        self._break(KeepaliveTimeout("no sign of life after a keepalive ping"))
        self.close(Close(1011, "keepalive timeout"))

    def _break(self, error: WsStreamError) -> None:
        if self.error is None:
            self.error = error
            self._events.append(ErrorOccurred(error))
        self._end(self.error)
        self.pings.clear()

    def _end(self, verdict: WsStreamError | None) -> None:
        if not self.ended:
            self.ended = True
            self.verdict = verdict

    def _owe_close(self, close: Close) -> None:
        self.is_held = False
        self._close_owed = close
        self.can_send = False
        self.owes = True
        self.pings.clear()

    def data_to_send(self) -> bytes:
        """The frames that are owed; the Close last, and nothing after it."""
        frames: list[Buffer] = []
        if self.close_sent is None:
            for owed, opcode in ((self._pings_owed, PING), (self._pongs_owed, PONG)):
                for payload in owed:
                    if self._logs:
                        kind = "Ping" if opcode == PING else "Pong"
                        _logger.debug("%s > %s(%s)", self._name, kind, shown(payload))
                    frames += encode(opcode, payload, client=self.client)
            if self._close_owed is not None:
                payload = encode_close_payload(*self._close_owed)
                frames += encode(CLOSE, payload, client=self.client)
                self.close_sent = self._close_owed
                if self._logs:
                    _logger.debug("%s > %r", self._name, self.close_sent)
        self._pings_owed.clear()
        self._pongs_owed.clear()
        self.owes = False
        return b"".join(frames)

    def encode_long_message(self, payload: memoryview) -> tuple[bytes, memoryview, bytes]:
        """A binary message that is too long to be masked at once: its header, its payload as it
        is, and the masking key, ``b""`` if there is none.
        """
        if self._logs:
            self._log_message(payload)
        key = fresh_key() if self.client else b""
        mask = MASKED if self.client else 0
        return encode_header(FIN | BINARY, len(payload), mask) + key, payload, key

    def _encode_message_and_log(self, payload: Buffer) -> tuple[Buffer, ...]:
        self._log_message(payload)
        return encode(BINARY, payload, client=self.client)

    def _log_message(self, payload: Buffer) -> None:
        _logger.debug("%s > a binary message of %d bytes", self._name, len(payload))

    def _log_payload(self, pieces: Sequence[Buffer]) -> None:
        _logger.debug("%s < %d bytes of binary payload", self._name, sum(map(len, pieces)))

    # How it ended

    def abandon(self) -> None:
        """This side closes the transport: nothing more can be sent, and nothing comes."""
        self.tcp_ended = True
        self.can_send = False
        self.ended = True
        self.pings.clear()

    def closed(self, *, close_is_out: bool) -> StreamClosed:
        """The last event, as things stand (7.1.4, 7.1.5, 7.1.6)."""
        code, reason = self.close_received or Close(1006, "")
        clean = self.close_received is not None and close_is_out
        return StreamClosed(code, reason, clean, self.error)
