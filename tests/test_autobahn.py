"""The cases of the Autobahn Testsuite that a byte stream cannot answer as messages.

docs/autobahn.rst lists which, and why. Each is here under its number, said by a raw peer to a
stream that sends everything back: with text, which `TextPolicy.AS_BYTES` makes bytes, and with
binary in its place. All that is asked of the echo is that its bytes are the same.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import trio

from trio_wsstream import ProtocolViolation, StreamClosed, StreamConfig, TextPolicy, WsByteStream

from .autobahn.cases import read_cases
from .support.frames import BINARY, CLOSE, CONT, PING, PONG, SIDES, TEXT, close_payload
from .support.raw_peer import RawPeer, raw_pair
from .support.tasks import background

CONFIG = StreamConfig(text=TextPolicy.AS_BYTES)
FRAMEWISE = 0
KIB, MIB = 1 << 10, 1 << 20

Said = tuple[int, bytes] | tuple[int, bytes, bool]
"""A frame: opcode, with reserved bits perhaps; payload; False if it does not end its message."""


class Script(NamedTuple):
    """What the peer says, and what must come of it.

    Attributes:
      parts: said one after the other, each when the one before has been answered.
      chop: bytes for each write; `FRAMEWISE`: a frame; None: all of a part.
      ending: said last.
      code: of the Close that answers it.
    """

    parts: list[list[Said]]
    chop: int | None = None
    ending: list[Said] = [(CLOSE, close_payload(1000))]  # noqa: RUF012  # nobody changes it
    code: int = 1000


HELLO = b"Hello, world!"
WORD = bytes.fromhex("cebae1bdb9cf83cebcceb5")  # in Greek; its first accent is of three bytes
NONCHARACTERS = [chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)]
VALID_UTF8 = {
    "6.5": [b"hello%sworld" % middle.encode() for middle in "$¢€𤭢"] + [WORD],
    "6.7": [c.encode() for c in "\0\x80\u0800\U00010000"],
    "6.9": [c.encode() for c in "\x7f\u07ff\uffff\U0010ffff"],
    "6.11": [c.encode() for c in "\ud7ff\ue000\ufffd\U0010ffff"],
    "6.22": [c.encode() for c in NONCHARACTERS],
    "6.23": [chr(c).encode() for c in range(0xFFF9, 0x10000)],
}


def letters(length: int) -> bytes:
    """Return payload that is valid text and in which no piece is equal to its neighbour."""
    alphabet = bytes(range(33, 122))  # a prime number of them
    return (alphabet * (length // len(alphabet) + 1))[:length]


def fragments(message: int, *pieces: bytes) -> list[Said]:
    last = len(pieces) - 1
    return [(CONT if n else message, piece, n == last) for n, piece in enumerate(pieces)]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def scripts(message: int) -> dict[str, Script]:
    """Return all scripts by number. Their messages have the opcode ``message``."""
    one, two, three, four, five = (b"fragment%d" % n for n in range(1, 6))
    greeting = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    ping: Said = (PING, b"ping payload")
    pinged = [(message, one, False), ping, (CONT, two)]

    def fail(*wrong: Said, chop: int | None = None) -> Script:
        """Send a message, then what fails the connection, and a Ping that must get no answer."""
        return Script([[(message, HELLO)]], chop, [*wrong, (PING, b"")], 1002)

    lengths = enumerate([0, 125, 126, 127, 128, 65535, 65536], 1)
    result = {f"1.1.{n}": Script([[(message, letters(length))]]) for n, length in lengths}
    result |= {
        "1.1.8": Script([[(message, letters(65536))]], chop=997),
        "1.2.1": Script([[(message, b"")]]),
        "3.2": fail((message | 2 << 4, HELLO)),
        "3.3": fail((message | 3 << 4, HELLO), chop=FRAMEWISE),
        "3.4": fail((message | 4 << 4, HELLO), chop=1),
        "4.1.3": fail((5, b"")),
        "4.1.4": fail((6, HELLO)),
        "4.1.5": fail((7, HELLO), chop=1),
        "4.2.3": fail((13, b"")),
        "4.2.4": fail((14, HELLO)),
        "4.2.5": fail((15, HELLO), chop=1),
        "5.3": Script([fragments(message, one, two)]),
        "5.4": Script([fragments(message, one, two)], chop=FRAMEWISE),
        "5.5": Script([fragments(message, one, two)], chop=1),
        "5.6": Script([pinged]),
        "5.7": Script([pinged], chop=FRAMEWISE),
        "5.8": Script([pinged], chop=1),
        "5.15": fail((CONT, three, False), (message, four)),
    }
    for number, chop in ("5.19", None), ("5.20", FRAMEWISE):
        first: list[Said] = [(message, one, False), (CONT, two, False), (PING, b"pongme 1!")]
        rest: list[Said] = [(CONT, three, False), (CONT, four, False)]
        rest += [(PING, b"pongme 2!"), (CONT, five)]
        result[number] = Script([first, rest], chop)
    result |= {
        "6.1.1": Script([[(message, b"")]]),
        "6.1.2": Script([fragments(message, b"", b"", b"")]),
        "6.1.3": Script([fragments(message, b"", b"middle frame payload", b"")]),
        "6.2.1": Script([[(message, greeting)]]),
        "6.2.2": Script([fragments(message, greeting[:12], greeting[12:])]),
        "6.2.3": Script([fragments(message, *cut(greeting, 1))]),
        "6.2.4": Script([fragments(message, *cut(WORD, 1))]),
    }
    for section, payloads in VALID_UTF8.items():
        for n, payload in enumerate(payloads, 1):
            result[f"{section}.{n}"] = Script([[(message, payload)]])
    for n in (2, 5, 7, 9, 11):
        result[f"6.6.{n}"] = Script([[(message, WORD[:n])]])
    close = (CLOSE, close_payload(1000))
    at_once = [(message, letters(256 * KIB)), (message, HELLO), close, (PING, b"")]
    result |= {
        "7.1.1": Script([[(message, HELLO)]]),
        "7.1.6": Script([], ending=at_once),
        "7.13.1": Script([], ending=[(CLOSE, close_payload(5000))], code=1002),
        "7.13.2": Script([], ending=[(CLOSE, close_payload(65535))], code=1002),
    }
    for n, length in enumerate([64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB], 1):
        result[f"9.1.{n}"] = Script([[(message, letters(length))]])
    for n in range(1, 10):
        result[f"9.3.{n}"] = Script([fragments(message, *cut(letters(4 * MIB), 16 * 4**n))])
    for n in range(1, 7):
        result[f"9.5.{n}"] = Script([[(message, letters(MIB))]], chop=32 * 2**n)
    for n, length in enumerate([0, 16, 64, 256, KIB, 4 * KIB], 1):
        result[f"9.7.{n}"] = Script([[(message, letters(length))]] * 1000)
    result["9.8.1"] = Script([[(message, b"")]] * 1000)
    result["10.1.1"] = Script([fragments(message, *cut(letters(65536), 1300))])
    return result


SCRIPTS = {BINARY: scripts(BINARY), TEXT: scripts(TEXT)}


class Peer:
    """A raw peer that sends the frames of a script and collects the answers."""

    def __init__(self, raw: RawPeer, script: Script) -> None:
        self.raw = raw
        self.script = script
        self.echoed = bytearray()
        self.pongs: list[bytes] = []
        self.code: int | None = None
        self._news = trio.lowlevel.ParkingLot()

    async def speak(self) -> None:
        echo, pongs = 0, 0
        for part in self.script.parts:
            await self._say(part)
            echo += sum(len(said[1]) for said in part if said[0] != PING)
            pongs += sum(said[0] == PING for said in part)
            while len(self.echoed) < echo or len(self.pongs) < pongs:
                await self._news.park()
        try:
            await self._say(self.script.ending)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # after a violation nobody need listen to the rest

    async def _say(self, part: list[Said]) -> None:
        frames = [self.raw.frame(said[0], said[1], fin=all(said[2:])) for said in part]
        if self.script.chop == FRAMEWISE:
            writes = frames
        else:
            whole = b"".join(frames)
            writes = cut(whole, self.script.chop or len(whole))
        for write in writes:
            await self.raw.transport.send_all(write)

    async def listen(self) -> None:
        """Receive until TCP ends. A server ends it after both Closes (RFC 6455, 7.1.1)."""
        try:
            while self.raw.masked or self.code is None:
                opcode, payload = await self.raw.receive()
                assert self.code is None, "a frame after a Close"
                if opcode == PONG:
                    self.pongs.append(payload)
                elif opcode == CLOSE:
                    self.code = int.from_bytes(payload[:2], "big")
                else:
                    assert opcode == BINARY
                    self.echoed += payload
                self._news.unpark_all()
        except EOFError as error:
            assert error.args == (b"",)
        finally:
            await self.raw.transport.aclose()


async def send_back(stream: WsByteStream) -> bytes:
    """Send back all that is received, as long as sending works, and return it."""
    received = bytearray()
    try:
        async for data in stream:
            received += data
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                pass  # there may be more to receive all the same
    except trio.BrokenResourceError:
        pass
    await stream.aclose()
    return bytes(received)


@pytest.mark.parametrize(
    "number",
    # Those of section 9 are the long ones.
    [
        pytest.param(number, marks=[pytest.mark.slow] if number.startswith("9.") else [])
        for number in SCRIPTS[BINARY]
    ],
)
@pytest.mark.parametrize("message", [BINARY, TEXT], ids=["binary", "text"])
@SIDES
async def test_a_case_of_autobahn_gets_the_expected_answer(
    number: str, message: int, client: bool
) -> None:
    script = SCRIPTS[message][number]
    said = list(itertools.chain(*script.parts))
    before_the_end = list(itertools.takewhile(lambda said: said[0] == message, script.ending))
    with trio.fail_after(60):
        async with background() as outer:
            stream, raw = await raw_pair(outer, "tcp", CONFIG, client=client)
            peer = Peer(raw, script)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.listen)
                nursery.start_soon(peer.speak)
                received = await send_back(stream)
    sent = b"".join(said[1] for said in said + before_the_end if said[0] in (message, CONT))
    assert received == sent
    assert received.startswith(peer.echoed)
    assert peer.pongs == [said[1] for said in said if said[0] == PING]
    assert peer.code == script.code
    if script.code == 1000:
        assert stream.closed == StreamClosed(1000, "", clean=True, error=None)
    else:
        assert stream.closed is not None
        assert isinstance(stream.closed.error, ProtocolViolation)
        assert stream.closed.error.close_code == script.code


def test_every_case_that_needs_rewriting_was_rewritten() -> None:
    assert sorted(SCRIPTS[BINARY]) == sorted(c.number for c in read_cases() if c.is_rewritten)


def test_every_case_is_in_the_list_once_and_has_an_answer_or_a_reason() -> None:
    cases = read_cases()
    assert len({case.number for case in cases}) == len(cases) == 517
    for case in cases:
        assert case.why or case.result == "OK"
        assert bool(case.echo) == bool(case.result)
        assert case.echo.isdigit() or case.echo in ("", "each read", "nothing")
        assert case.is_rewritten or case.result == "OK" or case.number[:3] in ("12.", "13.")
