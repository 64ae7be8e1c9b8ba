"""The fuzz targets: what is fuzzed, and what must hold for every input.

The first five bytes of an input choose the side, the settings and the cuts (`Setting`). The rest is
what the peer sends. Whatever it is, and however it is cut into reads, the outcome must be what
`reference` makes of the whole: the same payload, events and end. No exception may come but those of
the library, and no more may be kept than a frame's header and what the settings allow. A target
raises an exception if this does not hold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import trio
import trio.testing

from trio_wsstream import (
    AbnormalClosure,
    CloseReceived,
    ConnectionLost,
    ErrorOccurred,
    HalfClose,
    PingReceived,
    PongReceived,
    ProtocolViolation,
    StreamClosed,
    StreamConfig,
    TextPolicy,
    TextReceived,
    TextRejected,
    WsByteStream,
    WsEvent,
)
from trio_wsstream._frames import (
    FIN,
    MASKED,
    MAX_CONTROL_PAYLOAD,
    MAX_HEADER,
    MORE,
    Decoder,
    apply_mask,
    encode_header,
)
from trio_wsstream._protocol import ANSWER_DEFERRED, HALF_CLOSE, MAX_PONGS_OWED, Close, Protocol

from ..support.handshakes import handshake
from ..support.tasks import background
from . import reference
from .reference import BINARY, CLOSE, PING, PONG, TEXT, Binary, Control, Part, Text, Wrong

MAX_UNDECODED = MAX_HEADER + MAX_CONTROL_PAYLOAD


class Setting(NamedTuple):
    """How an input is run."""

    client: bool
    config: StreamConfig
    seed: int
    queue_size: int
    share: float
    """How much of what the peer sends comes before the takeover, from 0 to 1."""

    @classmethod
    def of(cls, head: bytes) -> Setting:
        flags, seed, size, *share = head
        return cls(
            client=bool(flags & 1),
            config=StreamConfig(
                text=list(TextPolicy)[(flags >> 1) % 3],
                half_close=list(HalfClose)[(flags >> 3) % 3],
                receive_buffer_size=1 << (size & 15),
            ),
            seed=seed,
            queue_size=(flags >> 5) & 3,
            share=int.from_bytes(share) / 65535,
        )


def split(data: bytes) -> tuple[Setting, bytes]:
    return Setting.of(data[:5].ljust(5, b"\0")), data[5:]


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut ``data`` into reads of one byte if ``seed`` is 0, else into reads of random sizes."""
    choice = random.Random(seed).choice
    start = 0
    while start < len(data):
        stop = start + (1 if seed == 0 else choice((1, 2, 3, 7, 61, 300)))
        yield data[start:stop]
        start = stop


# The decoder


def decoded(chunks: Iterable[bytes], *, client: bool) -> Iterator[Part]:
    """Yield what `Decoder` makes of ``chunks``, in the form of `reference.read`."""
    decoder = Decoder(client=client)
    for chunk in chunks:
        decoder.feed(chunk)
        assert len(decoder._data) <= MAX_UNDECODED + len(chunk)
        while True:
            payload: list[bytes] = []
            try:
                frame = decoder.decode(payload)
            except ProtocolViolation as error:
                yield from map(Binary, payload)
                yield Wrong(error.close_code)
                return
            yield from map(Binary, payload)
            if frame is None:
                break
            if frame is MORE:
                continue
            if frame.opcode == TEXT:
                yield Text(frame.payload, frame.ends_message)
            else:
                yield Control(frame.opcode, frame.payload, decoder.is_inside_message)
            if frame.opcode == CLOSE:
                return
        assert len(decoder._data) - decoder._position <= MAX_UNDECODED


def joined(parts: Iterable[Part]) -> list[Part]:
    """Return ``parts`` with neighbouring pieces of payload joined."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if isinstance(part, Binary) and isinstance(last, Binary):
            result[-1] = Binary(last.payload + part.payload)
        elif isinstance(part, Text) and isinstance(last, Text) and not last.ends_message:
            result[-1] = Text(last.payload + part.payload, part.ends_message)
        elif not isinstance(part, Binary) or part.payload:
            result.append(part)
    return [part for part in result if part != Text(b"", False)]


def decoder(data: bytes) -> None:
    """Check that the decoder finds the same frames however the input is cut."""
    setting, said = split(data)
    expected = joined(reference.read(said, from_client=not setting.client))
    for chunks in [said], cut(said, 0), cut(said, setting.seed):
        assert joined(decoded(chunks, client=setting.client)) == expected


# The protocol


class Outcome(NamedTuple):
    """What the peer's input must lead to.

    Attributes:
      payload: the bytes that can be received.
      events: what subscribers see. An error stands as its type and close code.
      end: why no more comes: None for a clean end, "" if more may come, else the type of the error.
      pongs: the payloads of the Pongs that are owed.
      answer: the Close that is owed, or None. Of a failure it is the code only.
    """

    payload: bytes
    events: list[WsEvent | tuple[type[Exception], int]]
    end: type[Exception] | str | None
    pongs: list[bytes]
    answer: tuple[int, str] | int | None


def outcome(parts: Iterable[Part], config: StreamConfig) -> Outcome:
    payload, text = b"", b""
    events: list[WsEvent | tuple[type[Exception], int]] = []
    pongs: list[bytes] = []

    def fail(kind: type[Exception], code: int) -> Outcome:
        return Outcome(payload, [*events, (kind, code)], kind, pongs, code)

    iterator = iter(parts)
    for part in iterator:
        if isinstance(part, Wrong):
            return fail(ProtocolViolation, part.code)
        if isinstance(part, Binary):
            payload += part.payload
        elif isinstance(part, Text):
            if config.text is TextPolicy.REJECT:
                return fail(TextRejected, 1003)
            if config.text is TextPolicy.AS_BYTES:
                payload += part.payload
                continue
            text += part.payload
            if len(text) > config.receive_buffer_size:
                return fail(TextRejected, 1009)
            if part.ends_message:
                events.append(TextReceived(text.decode()))
                text = b""
        elif part.opcode == PING:
            events.append(PingReceived(part.payload))
            pongs.append(part.payload)
        elif part.opcode == PONG:
            events.append(PongReceived(part.payload))
        else:
            close = reference.read_close(part.payload)
            if isinstance(close, Wrong):
                return fail(ProtocolViolation, close.code)
            events.append(CloseReceived(*close))
            is_clean = close[0] in (1000, 1005) and not part.is_inside_message
            is_held = is_clean and (
                config.half_close is HalfClose.ALWAYS
                or (config.half_close is not HalfClose.NEVER and close == HALF_CLOSE)
            )
            if not is_held:
                end = None if is_clean else AbnormalClosure
                return Outcome(payload, events, end, pongs, close)
            if close == HALF_CLOSE:
                pongs.append(ANSWER_DEFERRED)
            hear_control(iterator, events, pongs)
            return Outcome(payload, events, None, pongs, None)
    return Outcome(payload, events, "", pongs, None)


def hear_control(
    parts: Iterator[Part],
    events: list[WsEvent | tuple[type[Exception], int]],
    pongs: list[bytes],
) -> None:
    """Take in what counts after a half-close: Pings and Pongs, up to another Close or a mistake."""
    for part in parts:
        if isinstance(part, Wrong):
            return
        if isinstance(part, Control):
            if part.opcode == PING:
                events.append(PingReceived(part.payload))
                pongs.append(part.payload)
            elif part.opcode == PONG:
                events.append(PongReceived(part.payload))
            else:
                return


def plain(event: WsEvent) -> WsEvent | tuple[type[Exception], int]:
    """Return an event in the form that `Outcome` has."""
    if isinstance(event, ErrorOccurred):
        return type(event.error), getattr(event.error, "close_code", 0)
    return event


def replies(data: bytes, *, client: bool) -> list[Control]:
    """Return the control frames that we sent, after checking that they are legal and complete."""
    parts = list(reference.read(data, from_client=client))
    assert all(isinstance(part, Control) for part in parts), parts
    controls = [part for part in parts if isinstance(part, Control)]
    assert len(data) == sum(2 + 4 * client + len(control.payload) for control in controls)
    return controls


def protocol(data: bytes) -> None:
    """Check that events, payload and answers are the same for every cut, and always legal."""
    setting, said = split(data)
    parts = list(reference.read(said, from_client=not setting.client, beyond_close=True))
    expected = outcome(parts, setting.config)
    for chunks in [said], cut(said, 0), cut(said, setting.seed):
        check_protocol(chunks, setting, expected)
    check_busy_protocol(said, setting, expected)


def check_protocol(chunks: Iterable[bytes], setting: Setting, expected: Outcome) -> None:
    config = setting.config
    ours = Protocol(client=setting.client, config=config)
    events = []
    for chunk in chunks:
        ours.receive_data(chunk)
        events += [plain(event) for event in iter(ours.next_event, None)]
        assert len(ours._pongs_owed) <= MAX_PONGS_OWED
        assert ours.ended or len(ours._text or b"") <= config.receive_buffer_size
    assert events == expected.events
    assert ours.unread.size == len(expected.payload)
    assert ours.unread.take(None) == expected.payload
    assert ours.ended is (expected.end != "")
    assert (ours.verdict and type(ours.verdict)) == (expected.end or None)
    sent = replies(ours.data_to_send(), client=setting.client)
    answer = [reference.read_close(sent.pop().payload)] if sent and sent[-1][0] == CLOSE else []
    assert [(PONG, pong) for pong in expected.pongs[-MAX_PONGS_OWED:]] == [c[:2] for c in sent]
    if isinstance(expected.answer, int):
        assert [close[0] for close in answer if isinstance(close, tuple)] == [expected.answer]
    else:
        assert answer == ([] if expected.answer is None else [expected.answer])


def check_busy_protocol(said: bytes, setting: Setting, expected: Outcome) -> None:
    """Check the protocol while this side sends, closes and receives at random too."""
    ours = Protocol(client=setting.client, config=setting.config)
    rng = random.Random(setting.seed)
    events, received, sent, stopped = [], b"", b"", False
    pings = 0
    for chunk in cut(said, setting.seed):
        ours.receive_data(chunk)
        events += [plain(event) for event in iter(ours.next_event, None)]
        match rng.randrange(16):
            case 0 | 1 | 2 | 3:
                received += ours.unread.take(rng.choice((1, 10, None)))
            case 4 | 5 | 6:
                sent += ours.data_to_send()
            case 7 | 8 if ours.can_send:
                ours.ping(pings.to_bytes(4))
                pings += 1
            case 9 if rng.random() < 0.2:
                ours.close(Close(1000, "enough"))
            case 10 if rng.random() < 0.2:
                ours.close(HALF_CLOSE)
            case 11 if rng.random() < 0.1:
                ours.stop_receiving()
                stopped = True
            case 12 if rng.random() < 0.1:
                ours.receive_eof()
                events += [plain(event) for event in iter(ours.next_event, None)]
            case 13 if rng.random() < 0.1:
                ours.time_out()
                events += [plain(event) for event in iter(ours.next_event, None)]
    received += ours.unread.take(None)
    assert expected.payload.startswith(received)
    assert stopped or ours.error or received == expected.payload
    own_end = [event for event in events if event not in expected.events]
    assert len(own_end) <= 1 or (stopped and setting.config.text is not TextPolicy.AS_BYTES)
    sent += ours.data_to_send()
    controls = replies(sent, client=setting.client)
    assert [control.opcode for control in controls[:-1]].count(CLOSE) == 0
    assert sum(control.opcode == PING for control in controls) <= pings
    pongs = iter(expected.pongs)
    assert all(pong.payload in pongs for pong in controls if pong.opcode == PONG)  # in order


# The takeover


def takeover(data: bytes) -> None:
    """Check that a takeover at any point loses nothing and repeats nothing."""
    setting, said = split(data)
    trio.run(check_takeover, setting, said, clock=trio.testing.MockClock(autojump_threshold=0))


async def check_takeover(setting: Setting, said: bytes) -> None:
    config = StreamConfig(text=TextPolicy.AS_BYTES, half_close=HalfClose.NEVER)
    before = round(len(said) * setting.share)
    ours, theirs = trio.testing.memory_stream_pair()
    received = b""
    end: type[Exception] | None = None
    with trio.fail_after(1000):
        async with background() as nursery:
            connection = await handshake(
                nursery, ours, theirs, client=setting.client, message_queue_size=setting.queue_size
            )
            await theirs.send_all(said[:before])
            await trio.testing.wait_all_tasks_blocked()
            stream = WsByteStream(connection, nursery, config)
            events = stream.subscribe(math.inf)
            try:
                await theirs.send_all(said[before:])
                await theirs.send_eof()
            except trio.BrokenResourceError:
                pass  # The connection was failed before this.
            try:
                async for chunk in stream:
                    received += chunk
            except trio.BrokenResourceError as error:
                end = type(error.__cause__)
            await stream.aclose()
            happened = [event async for event in events]
            sent = b"".join([chunk async for chunk in theirs])
    assert isinstance(happened[-1], StreamClosed)
    assert not any(isinstance(event, StreamClosed) for event in happened[:-1])
    controls = replies(sent, client=setting.client)
    assert [control.opcode for control in controls[:-1]].count(CLOSE) == 0
    from_client = not setting.client
    expected = outcome(reference.read(said, from_client=from_client, beyond_close=True), config)
    met = outcome(reference.read(said[:before], from_client=from_client, beyond_close=True), config)
    if met.end is ProtocolViolation:
        # trio-websocket met the violation itself. It dropped its part of the same frame.
        assert expected.payload.startswith(received)
        assert end in (ProtocolViolation, AbnormalClosure)
    else:
        assert received == expected.payload
        assert end is (ConnectionLost if expected.end == "" else expected.end)
        pongs = [control.payload for control in controls if control.opcode == PONG]
        if expected.end == "":  # TCP may have ended before the Pongs could be sent.
            rest = iter(expected.pongs)
            assert all(pong in rest for pong in pongs)
        else:
            assert pongs[-MAX_PONGS_OWED:] == expected.pongs[-MAX_PONGS_OWED:]
            assert controls[-1].opcode == CLOSE


CORPUS = Path(__file__).parent.parent / "corpus"
TARGETS = {"decoder": decoder, "protocol": protocol, "takeover": takeover}


# The inputs that fuzzing starts from


def seeds() -> list[bytes]:
    """Return short inputs that contain every kind of frame, to a server and to a client."""
    word = "aé€𝄞".encode()
    speeches: list[list[tuple[int, bytes]]] = [
        [(BINARY, b"x" * 3), (BINARY | 0x100, b"ab"), (PING, b"p"), (0x100, b""), (0, b"cd")],
        [(TEXT, word), (TEXT | 0x100, word[:2]), (PONG, b"q"), (0x100, word[2:4]), (0, word[4:])],
        [(BINARY, b"y" * 126), (CLOSE, b"\x03\xe8bye"), (PING, b"")],
        [(BINARY, b""), (CLOSE, b"\x03\xe8half-close")],
        [(BINARY | 0x100, b"z"), (CLOSE, b"")],
        [(TEXT, b"\xed\xa0\x80"), (CLOSE, b"\x0f\xa0")],
        [(PING, b"%d" % n) for n in range(70)],
        [(BINARY, b"w" * 70000), (CLOSE, b"\x03\xe9")],
        [(BINARY, b"v" * 300)] + [(TEXT | 0x100, b"")] + [(0x100, b"u")] * 20,
        [(3, b"")],
        [(0, b"")],
        [(TEXT, b"t" * 64)],
    ]
    result = []
    for n, speech in enumerate(speeches):
        for client in (False, True):
            for more in (0, 2, 4, 16, 34) if len(speech[0][1]) < 4096 else (34,):
                # A key of zeros lets the fuzzer see the payload of a frame.
                key = b"" if client else bytes(4) if more < 16 else b"\x01\x23\x45\x67"
                said = b"".join(plain_frame(*frame, key=key) for frame in speech)
                head = bytes((client | more | n % 4 << 5, n, 4 + n % 3, 37 * n % 256, 0))
                result.append(head + said)
    for client in (False, True):
        mask = 0 if client else 0x80
        for length, size in LENGTHS:
            header = bytes((0x82, mask | (126 if size == 2 else 127))) + length.to_bytes(size)
            result.append(bytes((client, 0, 4, 0, 0)) + header + bytes(8))
        for code in CODES:
            close = plain_frame(CLOSE, code.to_bytes(2), key=bytes(0 if client else 4))
            result.append(bytes((client, 0, 4, 0, 0)) + close)
        result.append(bytes((client, 0, 4, 0, 0, 0x89, mask | 126, 0, 126)) + bytes(130))
        result.append(bytes((client, 0, 4, 0, 0, 0x82, mask ^ 0x80)) + bytes(8))
    return result


LENGTHS = [(125, 2), (126, 2), (65535, 8), (65536, 8), ((1 << 63) - 1, 8), (1 << 63, 8)]
CODES = [999, 1000, 1003, 1004, 1005, 1006, 1007, 1014, 1015, 1016, 2999, 3000, 4999, 5000]
"""Values on both sides of each limit. A length comes with the number of bytes that encode it."""


def corpus(name: str) -> list[bytes]:
    """Return the inputs that fuzzing found worth keeping. Each is a line of hexadecimal digits."""
    lines = (CORPUS / f"{name}.txt").read_text().splitlines()
    return [bytes.fromhex(line) for line in lines if not line.startswith("#")]


def plain_frame(opcode: int, payload: bytes, *, key: bytes) -> bytes:
    """Return a frame: without FIN if ``opcode`` has 0x100, unmasked if ``key`` is empty."""
    first = opcode & 15 | (0 if opcode & 0x100 else FIN)
    header = encode_header(first, len(payload), MASKED if key else 0)
    return header + key + (apply_mask(payload, key) if key else payload)
