"""What bytes from the peer mean, what this side owes the peer, who has closed. No I/O, no Trio.

Theory of operation. Everything follows from a few facts. Each fact is set in one place and never
unset: the two Closes (`close_received` and `close_sent`; RFC 6455, 5.5.1 and 7.1), the `error` that
broke the connection, and whether TCP has ended.

*What the reader is told at the end* (`ended`, `verdict`) is settled by whichever comes first: the
peer's Close, an error, or the end of TCP. Data that comes after that is dropped.

*What this side owes the peer* is kept until `data_to_send` asks for it: Pings, Pongs, the rest of a
message that was cut short, and a Close, in this order. Nothing follows a Close but the control
frames of a half-closed end. When 64 newer Pongs
wait, the oldest is dropped (5.5.3), so a flood of Pings takes no memory. A Close counts as sent as
soon as it is encoded.

*A half-close* is a Close 1000 with the reason ``half-close``. A `WsByteStream` that receives it
defers its answer (`answer_is_deferred`), goes on sending, and says so with a Pong whose payload is
`ANSWER_DEFERRED`. The half-closed end that has read this word (`peer_defers_answer`) goes on
sending Pings and Pongs, which 5.5.1 allows. To any other peer a half-close is a Close like any
other, so nothing is sent after it.

`next_event` returns the events one by one, in the order of the wire. It decodes nothing more before
it is called again, so its caller can make a peer wait.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ._config import HalfClose, StreamConfig, TextPolicy
from ._errors import (
    AbnormalClosure,
    ConnectionLost,
    HalfCloseIgnored,
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
    CONTINUATION,
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
    client: functools.partial(encode, FIN | BINARY, client=client) for client in (True, False)
}
_MERGED: Final = 4096  # bytes: smaller pieces are stored together, as each costs an object


class Close(NamedTuple):
    """What a Close says: code 1005 stands for none (RFC 6455, 7.1.5)."""

    code: int
    reason: str


HALF_CLOSE: Final = Close(1000, "half-close")

ANSWER_DEFERRED: Final = b"half-close: answer deferred"
"""The payload of the Pong that says to another WsByteStream: I defer my answer to your
half-close."""

HEARTBEAT: Final = b"heartbeat"
"""The payload of the unsolicited Pongs that keepalive sends."""


def _do_nothing() -> None:
    pass


class Ping:
    """A ping in flight.

    Attributes:
      is_answered (bool): its Pong, or that of a later ping, has come.
      wake: a function that is called when that happens, or when it never will.
    """

    __slots__ = ("is_answered", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.is_answered = False
        self.wake = wake


# Empty containers take 56 and 128 bytes. Streams that need none share these, which stay empty.
_NO_PINGS: Final[OrderedDict[bytes, Ping]] = OrderedDict()
_NOTHING: Final[list[bytes]] = []


class ReceiveBuffer:
    """Payload that no caller has received yet. Adding and taking cost no more than a copy.

    The pieces are a list, here and below, because an empty deque takes 700 bytes of every stream.
    """

    __slots__ = ("_first", "_pieces", "_taken", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self._first = 0  # the index of the first piece that is not taken
        self._taken = 0  # bytes already taken of that piece
        self.size = 0

    def add(self, pieces: Sequence[Buffer]) -> None:
        """Add payload."""
        piece = b"".join(pieces)  # no copy of one that is bytes
        self.size += len(piece)
        if self.size > len(piece) and len(self._pieces[-1]) + len(piece) <= _MERGED:
            last = self._pieces[-1]
            self._pieces[-1] = merged = last if isinstance(last, bytearray) else bytearray(last)
            merged += piece
        elif piece:
            self._pieces.append(piece)

    def take(self, max_bytes: int | None) -> bytes | bytearray:
        """Take at most ``max_bytes`` bytes; None: take everything."""
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
            piece = self._pieces[self._first]
            stop = self._taken + wanted
            part = piece[self._taken : stop]
            parts.append(part)
            wanted -= len(part)
            if stop >= len(piece):
                self._forget_first()
            else:
                self._taken = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _forget_first(self) -> None:
        """The first piece is taken. The list is cut rarely, so that each piece costs the same."""
        self._pieces[self._first] = b""
        self._first += 1
        self._taken = 0
        if 2 * self._first >= len(self._pieces):
            del self._pieces[: self._first]
            self._first = 0

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self._first = self._taken = self.size = 0


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
      answer_is_deferred (bool): our answer to the peer's Close is held back.
      peer_defers_answer (bool): the peer has said that it holds back its answer to our half-close.
      peer_speaks_on (bool): the peer has sent a Ping or Pong after its Close.
      error (WsStreamError or None): why the connection broke.
      has_failed (bool): this side failed the connection for what the peer did (7.1.7).
      peer_may_send_on (bool): the peer may send after our Close, so a server must not close TCP
          before the peer does: its reset could overtake what we sent.
      tcp_ended (bool): nothing more can come.
      ended (bool): nothing more will be added to ``unread``.
      verdict (WsStreamError or None): how: None is a clean end.
      can_send (bool): data may be sent.
      owes (bool): `data_to_send` has something to do.
      encode_message: makes a binary message of a buffer: its header and its payload.
      pings (dict): the pings in flight by payload, oldest first.

    Attributes, to be set:
      must_speak_soon (bool): the peer should hear from us before the next heartbeat is due.
      unfinished (tuple or None): what is left of the message of which a sender has written the
          first fragments: a buffer, and where in it the rest starts and ends.
      steps_left (int): after how many frames (or runs of 256 binary ones) `next_event` stops
          decoding, as if that were all; negative: never.
    """

    __slots__ = (
        "_close_owed",
        "_config",
        "_decoder",
        "_events",
        "_is_deaf",
        "_logs",
        "_loss",
        "_name",
        "_pings_owed",
        "_pongs_owed",
        "_rest_owed",
        "_text",
        "answer_is_deferred",
        "can_send",
        "client",
        "close_received",
        "close_sent",
        "encode_message",
        "ended",
        "error",
        "has_failed",
        "is_receiving",
        "must_speak_soon",
        "owes",
        "peer_defers_answer",
        "peer_may_send_on",
        "peer_speaks_on",
        "pings",
        "steps_left",
        "tcp_ended",
        "unfinished",
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
        self.answer_is_deferred = False
        self.peer_defers_answer = False
        self.peer_speaks_on = False
        self.error: WsStreamError | None = None
        self.has_failed = False
        self.peer_may_send_on = False
        self.must_speak_soon = False
        self.tcp_ended = False
        self.ended = False
        self.verdict: WsStreamError | None = None
        self.can_send = close_sent is None
        self.owes = False
        self.is_receiving = True  # payload is kept; False once this side has closed
        self.pings = _NO_PINGS
        self.steps_left = -1
        self.unfinished: tuple[Buffer, int, int] | None = None
        self.encode_message = _ENCODERS[client]
        self._name = name
        self._logs = _logger.isEnabledFor(logging.DEBUG)  # asked once: it is the hot path
        if self._logs:
            self.encode_message = self._encode_message_and_log
        self._config = config
        self._decoder = Decoder(client=client)
        self._loss: ConnectionLost | None = None  # why sending failed
        self._is_deaf = False  # what still comes has no meaning
        self._events: list[WsEvent] = []  # that happened, and were not asked for yet
        self._text: bytearray | None = None  # of an unfinished message, under AS_EVENTS
        self._pings_owed = _NOTHING
        self._pongs_owed = _NOTHING
        self._rest_owed = b""  # the last fragment of a message, encoded
        self._close_owed: Close | None = None

    # What comes in

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take bytes that came from the peer; `next_event` then decodes them."""
        if self.is_decoding:
            self._decoder.feed(data)

    @property
    def is_decoding(self) -> bool:
        """What comes from the peer still has a meaning: data, or control frames after its Close."""
        return not self.ended or (self.answer_is_deferred and not self._is_deaf)

    @property
    def frame_left(self) -> int:
        """Bytes of the current data frame's payload that are still to come."""
        return self._decoder.left

    def receive_at_once(self, data: bytes | bytearray) -> bytes | bytearray | None:
        """Return the payload of ``data`` if that is one binary message, several of one length, or a
        part of one frame's.

        Otherwise return None, and give ``data`` to `receive_data`.
        """
        if self.ended or not self.is_receiving:
            return None
        message = self._decoder.decode_at_once(data)
        if self._logs and message is not None:
            self._log_payload([message])
        return message

    def receive_eof(self, why: str = "the transport ended", *, close_written: bool = False) -> None:
        """Note that TCP has ended or broken, and why, and whether our Close was written before."""
        if self.tcp_ended:
            return
        self.tcp_ended = True
        self.can_send = False
        if self.close_received is None:
            self._break(ConnectionLost(f"{why} before the peer's Close"))
        elif self.close_sent is None or not (close_written or self.peer_has_closed):
            self._break(ConnectionLost(f"{why} before the answer to the peer's Close"))

    def next_event(self) -> WsEvent | None:
        """Decode up to the next event; None when everything is decoded, or no step is left."""
        while True:
            if self._events:
                event = self._events.pop(0)
                if self._logs:
                    _logger.debug("%s < %r", self._name, event)
                return event
            if not (self.is_decoding and self.steps_left):
                return None
            self.steps_left -= 1
            payload: list[Buffer] = []
            try:
                try:
                    frame = self._decoder.decode(payload)
                finally:  # what came before a violation counts
                    if self._logs and payload:
                        self._log_payload(payload)
                    if payload and self.is_receiving and not self.ended:
                        self.unread.add(payload)
                if frame is None:
                    return None
                if frame is not MORE:
                    self._handle(frame)
            except (ProtocolViolation, TextRejected) as error:
                if self.ended:  # by the peer's Close: what follows cannot make it worse
                    self._is_deaf = True
                else:
                    self.fail(error)

    def _handle(self, frame: Frame) -> None:
        opcode, payload, ends_message = frame
        if self.ended and opcode in (PING, PONG):
            self.peer_speaks_on = True
        if opcode == PING:
            self._events.append(PingReceived(payload))
            if self.may_send_control:
                self._owe_pong(payload)
        elif opcode == PONG:
            self._events.append(PongReceived(payload))
            if payload in self.pings:
                self._settle_pings(payload)
            elif payload == ANSWER_DEFERRED and not self.ended:
                self._note_deferral()
        elif opcode == CLOSE and self.ended:
            self._is_deaf = True
        elif opcode == CLOSE:
            self._handle_close(Close(*decode_close_payload(payload)))
        elif not self.is_receiving or self.ended:
            pass
        elif self._config.text is TextPolicy.REJECT:
            raise TextRejected(1003, "Text messages are not supported.")
        elif self._config.text is TextPolicy.AS_EVENTS:
            self._handle_text(payload, ends_message)
        else:
            self.unread.add([payload])

    def _note_deferral(self) -> None:
        """Note that the peer defers its answer to our half-close.

        The peer should hear from us soon, so that it knows that we go on sending control frames. It
        must not be at once: if the answer is short, the peer or a proxy may have closed TCP by
        then. A frame of ours would then reset TCP, and what we have not read yet would be lost.
        """
        if not self.peer_defers_answer:
            self.peer_defers_answer = True
            if self.close_sent is not None:
                self.must_speak_soon = True
                _logger.debug("%s: the peer honours the half-close", self._name)

    def _handle_text(self, payload: bytes, ends_message: bool) -> None:
        if self._text is None:
            self._text = bytearray()
        self._text += payload
        if len(self._text) > self._config.receive_buffer_size:
            raise TextRejected(1009, "The text message is too long.")
        if ends_message:
            self._events.append(TextReceived(self._text.decode()))
            self._text = None

    def _handle_close(self, close: Close) -> None:
        self.close_received = close
        self._events.append(CloseReceived(*close))
        complete = close.code in self._config.end_codes and not self._decoder.is_inside_message
        answers_half_close = self.close_sent == HALF_CLOSE and not self.peer_defers_answer
        if answers_half_close:
            _logger.info("%s: the peer did not honour the half-close", self._name)
        if not complete:
            if self.is_receiving or close.code != self._code_of_ours:
                self.error = AbnormalClosure(*close)
        elif answers_half_close and self._config.half_close is HalfClose.REQUIRE:
            self.error = HalfCloseIgnored(*close)
        self._end(self.error)
        if self.close_sent is None and self._close_owed is None:
            self.answer_is_deferred = complete and self._defers_answer_to(close)
            if not self.answer_is_deferred:
                self._owe_close(close)
            elif close == HALF_CLOSE:
                self.peer_may_send_on = True  # its heartbeats
                self._owe_pong(ANSWER_DEFERRED)
        self._forget_pings()

    @property
    def _code_of_ours(self) -> int | None:
        close = self.close_sent or self._close_owed
        return None if close is None else close.code

    def _defers_answer_to(self, close: Close) -> bool:
        policy = self._config.half_close
        if policy in (HalfClose.AUTO, HalfClose.REQUIRE):
            return close == HALF_CLOSE
        return policy is HalfClose.ALWAYS

    @property
    def peer_has_closed(self) -> bool:
        """The peer's Close has ended our sending too. A half-close that we honour does not."""
        close = self.close_received
        if close is None:
            return False
        return isinstance(self.error, AbnormalClosure) or not self._defers_answer_to(close)

    def _settle_pings(self, payload: bytes) -> None:
        """A Pong answers its ping and all earlier ones (5.5.3)."""
        earlier = None
        while earlier != payload:
            earlier, ping = self.pings.popitem(last=False)
            ping.is_answered = True
            ping.wake()
        if not self.pings:
            self.pings = _NO_PINGS

    def _forget_pings(self) -> None:
        """The pings in flight will not be answered."""
        while self.pings:
            self.pings.popitem()[1].wake()
        self.pings = _NO_PINGS

    # What goes out

    def ping(self, payload: bytes, wake: Callable[[], object] = _do_nothing) -> Ping:
        """Add a Ping to what is owed. It stays in `pings` until it is settled.

        Args:
          payload: at most 125 bytes.
          wake: is called when the Ping is answered, or when it cannot be answered any more.
        """
        if payload in self.pings:
            raise ValueError(f"a ping with the payload {shown(payload)} is already in flight")
        if self.pings is _NO_PINGS:
            self.pings = OrderedDict()
        self.pings[payload] = ping = Ping(wake)
        if self._pings_owed is _NOTHING:
            self._pings_owed = []
        self._pings_owed.append(payload)
        self.owes = True
        return ping

    @property
    def owes_ping(self) -> bool:
        """A Ping has not been sent yet."""
        return bool(self._pings_owed)

    def heartbeat(self) -> None:
        """Add an unsolicited Pong to what is owed, as a sign of life (5.5.3)."""
        self._owe_pong(HEARTBEAT)

    def _owe_pong(self, payload: bytes) -> None:
        if self._pongs_owed is _NOTHING:
            self._pongs_owed = []
        self._pongs_owed.append(payload)
        del self._pongs_owed[:-MAX_PONGS_OWED]
        self.owes = True

    @property
    def may_send_control(self) -> bool:
        """Whether Pings and Pongs may be sent: before our Close, and after our half-close to a
        peer that has said that it defers its answer.
        """
        if self.tcp_ended:
            return False
        if self.close_sent is None:
            return True
        return self.peer_defers_answer and self.close_received is None and not self.error

    @property
    def pings_are_answered(self) -> bool:
        """Whether the peer can be expected to answer a Ping that is sent now."""
        if not self.may_send_control or self.error is not None:
            return False
        if self.close_received is not None:
            is_ours = self.close_received == HALF_CLOSE
            return self.answer_is_deferred and (self.peer_speaks_on or is_ours)
        return self.can_send or self.peer_defers_answer

    def close(self, close: Close) -> None:
        """Add a Close to what is owed, unless one has been sent, or is owed, or TCP has ended."""
        if self.close_sent is None and self._close_owed is None and not self.tcp_ended:
            self._owe_close(close)

    def stop_receiving(self) -> None:
        """Drop the payload that no caller has received, and all that still comes."""
        self.is_receiving = False
        self.unread.clear()

    def fail(self, error: ProtocolViolation | TextRejected) -> None:
        """Fail the connection (7.1.7)."""
        self.has_failed = self.peer_may_send_on = True
        self._break(error.with_traceback(None))  # it would keep what was read
        reason = error.reason.encode()[:MAX_REASON].decode(errors="ignore")
        self.close(Close(error.close_code, reason))
        self.owes = True  # the end of TCP, if no Close

    def fail_to_send(self, why: str) -> bool:
        """Note that nothing more can be sent. What the peer still sends can be read all the same.

        Returns:
          Whether there is an event that tells of it.
        """
        self._forget_pings()
        is_over = self.peer_has_closed or self.tcp_ended
        if is_over or self.error is not None or self._loss is not None:
            return False  # the connection is over, or its error has been told
        self._loss = ConnectionLost(why)
        self._events.append(ErrorOccurred(self._loss))
        return True

    def time_out(self) -> None:
        """Give up a peer that keepalive got no answer from."""
        self._break(KeepaliveTimeout("no sign of life after a keepalive ping"))
        self.close(Close(1011, "keepalive timeout"))

    def _break(self, error: WsStreamError) -> None:
        if self.error is None:
            self.error = error
            if self._loss is None:
                self._events.append(ErrorOccurred(error))
            elif isinstance(error, ConnectionLost):
                self.error = self._loss  # which has been told
        self._end(self.error)
        self._forget_pings()

    def _end(self, verdict: WsStreamError | None) -> None:
        if not self.ended:
            self.ended = True
            self.verdict = verdict

    def _owe_close(self, close: Close) -> None:
        self.answer_is_deferred = False
        self._close_owed = close
        self.can_send = False
        self.owes = True
        self._forget_pings()

    def data_to_send(self) -> bytes:
        """Return the frames that are owed, and owe nothing any more. A Close comes last."""
        frames: list[Buffer] = []
        if self.may_send_control:
            for owed, opcode in ((self._pings_owed, PING), (self._pongs_owed, PONG)):
                for payload in owed:
                    if self._logs:
                        kind = "Ping" if opcode == PING else "Pong"
                        _logger.debug("%s > %s(%s)", self._name, kind, shown(payload))
                    frames += encode(FIN | opcode, payload, client=self.client)
        if self._close_owed is not None:
            self.finish_message()  # Its sender sends no more.
        frames.append(self._rest_owed)
        if self._close_owed is not None and self.close_sent is None:
            payload = encode_close_payload(*self._close_owed)
            if self._says_deferral_before(self._close_owed):
                frames += encode(FIN | PONG, ANSWER_DEFERRED, client=self.client)
            frames += encode(FIN | CLOSE, payload, client=self.client)
            self.close_sent = self._close_owed
            if self._logs:
                _logger.debug("%s > %r", self._name, self.close_sent)
        self._pings_owed = self._pongs_owed = _NOTHING
        self._rest_owed = b""
        self.owes = False
        return b"".join(frames)

    def _says_deferral_before(self, close: Close) -> bool:
        """Whether the word goes before a Close: under REQUIRE a clean Close of ours must not look
        like the answer of another library. It may have been owed before the peer's half-close came.
        """
        received = self.close_received
        is_answer = received is close or self.peer_may_send_on
        return (
            self._config.half_close is HalfClose.REQUIRE
            and close.code == 1000
            and (received is None or (received == HALF_CLOSE and not is_answer))
        )

    def encode_fragment(self, payload: Buffer, *, begins: bool, ends: bool) -> tuple[Buffer, ...]:
        """Return a fragment of a binary message: its header and its payload (5.4).

        Args:
          begins (bool): it is the first one.
          ends (bool): it is the last one.
        """
        if self._logs:
            _logger.debug("%s > a fragment of %d bytes", self._name, len(payload))
        first = (BINARY if begins else CONTINUATION) | (FIN if ends else 0)
        return encode(first, payload, client=self.client)

    def finish_message(self) -> None:
        """Owe the rest of the `unfinished` message, if there is one: its sender sends no more.

        If the connection has broken, nobody needs the rest, and a Close may stand inside a message.
        """
        if self.unfinished is not None and self.verdict is None:
            buffer, start, stop = self.unfinished
            with memoryview(buffer)[start:stop] as rest:
                self._rest_owed = b"".join(self.encode_fragment(rest, begins=False, ends=True))
            self.owes = True
        self.unfinished = None

    @property
    def owes_rest(self) -> bool:
        """The rest of a message is owed, so that no other message can begin before it is sent."""
        return bool(self._rest_owed)

    def encode_long_message(self, payload: memoryview) -> tuple[bytes, memoryview, bytes]:
        """Return header, unmasked payload and masking key (``b""`` for none) of a binary message
        that is too long to be masked at once.
        """
        if self._logs:
            self._log_message(payload)
        key = fresh_key() if self.client else b""
        mask = MASKED if self.client else 0
        return encode_header(FIN | BINARY, len(payload), mask) + key, payload, key

    def _encode_message_and_log(self, payload: Buffer) -> tuple[Buffer, ...]:
        self._log_message(payload)
        return encode(FIN | BINARY, payload, client=self.client)

    def _log_message(self, payload: Buffer) -> None:
        _logger.debug("%s > a binary message of %d bytes", self._name, len(payload))

    def _log_payload(self, pieces: Sequence[Buffer]) -> None:
        _logger.debug("%s < %d bytes of binary payload", self._name, sum(map(len, pieces)))

    # How it ended

    def abandon(self) -> None:
        """Note that this side closes the transport: nothing more can be sent or received."""
        self.tcp_ended = True
        self.can_send = False
        self.ended = True
        self._forget_pings()

    def closed(self, *, close_written: bool) -> StreamClosed:
        """Return the last event as things stand (7.1.4, 7.1.5, 7.1.6)."""
        code, reason = self.close_received or Close(1006, "")
        clean = self.close_received is not None and close_written
        clean = clean and not isinstance(self.error, KeepaliveTimeout)  # ours has gone nowhere
        return StreamClosed(code, reason, clean, self.error)
