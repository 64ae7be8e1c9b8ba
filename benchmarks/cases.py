"""The cases, and how their samples are taken: the driver of the processes in `ends`.

Each sample has a server and a client in fresh processes (a relay has a third). Some samples of a
fresh process are slow by nothing but where its memory allocator has put things, and a process that
is measured again and again would have that luck for ever. In each round every kind of stream takes
its turn in a case, so that other work on the machine slows all of them alike. The order is turned
around from round to round, so that no kind always runs after the same other one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .ends import LINE, PEM
from .kinds import BARE, HOST, KINDS, OTHERS, OURS, OURS_INSIDE

KIB: Final = 1024
MIB: Final = 1024 * KIB
PEERS: Final = {"Go's NetConn": "go", "the Rust original": "rust"}
"""Other languages' relays, and the language."""
PATIENCE: Final = 600  # seconds for a sample to be over

Sample = dict[str, Any]


@dataclass
class Case:
    """What is measured, of which kinds of stream, and the samples.

    Attributes:
      key (str), title (str): its name in the command line, and in tables.
      family (str): the cases of one table have the same.
      work (str), size (int): what the client does, and with how many bytes or connections.
      tls (bool): whether the streams are encrypted.
      kinds: the kinds that are compared. The first one is bare Trio.
      once (bool): one sample of each kind is enough.
      length (float): how many times as long as others a sample takes.
      samples: for each kind, what was measured in each round; None: nothing in that round.
      skipped: for each kind that cannot be measured, the reason.
    """

    key: str
    title: str
    family: str
    work: str
    size: int
    kinds: tuple[str, ...]
    tls: bool = False
    once: bool = False
    length: float = 1
    samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def _transfers(family: str, kinds: tuple[str, ...]) -> Iterator[Case]:
    tls = family == "tls"
    for way in ("up", "down"):
        for name, size in (("1k", KIB), ("16k", 16 * KIB), ("64k", 64 * KIB), ("1m", MIB)):
            title = f"{way}, {size // KIB} KiB" if size < MIB else f"{way}, 1 MiB"
            yield Case(f"{family}-{way}-{name}", title, family, way, size, kinds, tls)
    for title, size in (("32 B", 32), ("4 KiB", 4 * KIB)):
        key = f"{family}-trip-{title.partition(' ')[0]}{'k' if size > KIB else ''}"
        yield Case(key, f"round trip, {title}", family, "round trip", size, kinds, tls)


def make_cases() -> list[Case]:
    """Return all cases, without samples."""
    relays = (BARE, OURS, *PEERS)
    every = (BARE, OURS, *OTHERS)
    return [
        *_transfers("ws", every),
        *_transfers("tls", (BARE, OURS, OURS_INSIDE, *OTHERS)),
        Case("relay-up", "up, 64 KiB", "relay", "up", 64 * KIB, relays),
        Case("relay-down", "down, 64 KiB", "relay", "down", 64 * KIB, relays),
        Case("relay-trip", "round trip, 32 B", "relay", "round trip", 32, relays),
        Case("line-up", "up, 1 MiB", "line", "up", MIB, (BARE, OURS), length=8),
        Case("line-down", "down, 1 MiB", "line", "down", MIB, (BARE, OURS), length=8),
        Case("ws-connections", "ws", "connections", "connections", 0, every),
        Case("tls-connections", "wss", "connections", "connections", 0, every, tls=True),
        Case("little", "450", "little", "little", 400, every, length=8),
        Case("idle-2000", "2,000", "idle", "idle", 2_000, every, once=True),
        Case("idle-10000", "10,000", "idle", "idle", 10_000, (BARE, OURS), once=True),
    ]


# Processes


@contextlib.contextmanager
def _process(*arguments: str, command: Iterable[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Run a process of `ends`, or another command, and kill it in the end."""
    command = [*command] or [sys.executable, "-m", "benchmarks.ends"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    process.kill()
        except Exception:
            errors.seek(0)
            sys.stderr.write(errors.read())
            raise


def _port(process: subprocess.Popen[str]) -> int:
    """Wait until a server listens. Its first line ends with its port."""
    assert process.stdout
    words = process.stdout.readline().replace(":", " ").split()
    return int(words[-1])


class Bench:
    """Takes samples. It is a context manager.

    Args:
      seconds (float): about how long the measured section of a sample takes.
      idle (float): how long nothing happens on idle connections.

    Attributes:
      folder (str): where the TLS certificates are meanwhile.
    """

    def __init__(self, seconds: float, idle: float) -> None:
        self._seconds = seconds
        self._idle = idle
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = self._temporary.name

    def __enter__(self) -> Bench:
        import trustme

        authority = trustme.CA()
        folder = Path(self.folder)
        authority.cert_pem.write_to_path(folder / PEM["client"])
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(
            folder / PEM["server"]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def measure(self, cases: list[Case], rounds: int, others: int) -> Iterator[str]:
        """Measure. This yields what it is about to do.

        Args:
          cases: the cases, which are given their samples.
          rounds (int): how many samples are taken of bare Trio and of our streams.
          others (int): in how many of these rounds the other libraries take part.
        """
        for case in cases:
            kinds = [kind for kind in case.kinds if others or kind not in OTHERS]
            case.skipped = {kind: why for kind in kinds if (why := why_not(kind))}
            case.samples = {kind: [] for kind in kinds if kind not in case.skipped}
        for case in cases:
            if case.once:
                yield case.key
        self._measure_idle([case for case in cases if case.once])
        for number in range(rounds):
            for case in cases:
                if case.once:
                    continue
                yield f"round {number + 1} of {rounds}: {case.key}"
                for kind in list(case.samples)[:: -1 if number % 2 else 1]:
                    is_due = kind not in OTHERS or number * others % rounds < others
                    case.samples[kind].append(self._sample(case, kind) if is_due else None)

    def _measure_idle(self, cases: list[Case]) -> None:
        """Other libraries and bare Trio at the same time, which makes them a little slower, as
        they disturb each other's caches of the processor. Each of ours is alone.
        """
        jobs = [(case, kind) for case in cases for kind in case.samples]
        with ThreadPoolExecutor(len(jobs) + 1) as pool:
            for is_alone in (False, True):
                chosen = [job for job in jobs if (job[1] == OURS) is is_alone]
                run = map if is_alone else pool.map
                for (case, kind), sample in zip(
                    chosen, run(lambda job: self._sample(*job), chosen), strict=True
                ):
                    case.samples[kind].append(sample)

    def _sample(self, case: Case, kind: str) -> Sample:
        folder = self.folder if case.tls else ""
        client_kind = OURS if kind in PEERS else kind
        server_kind = BARE if case.family == "relay" else kind
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(_process("client", client_kind, folder))
            processes = [stack.enter_context(_process("server", server_kind, folder))]
            port = _port(processes[0])
            if case.family in ("relay", "line"):
                processes.append(stack.enter_context(_relay(case.family, kind, port)))
                port = _port(processes[1])
            job = {
                "port": port,
                "work": case.work,
                "size": case.size,
                "seconds": self._idle if case.work == "idle" else self._seconds * case.length,
                "pids": [client.pid, *(process.pid for process in processes)],
            }
            said, _ = client.communicate(json.dumps(job) + "\n", timeout=PATIENCE)
            sample: Sample = json.loads(said)
            return sample


def _relay(family: str, kind: str, port: int) -> AbstractContextManager[subprocess.Popen[str]]:
    """Run the process between client and server, whose port is ``port``."""
    if family == "line":
        return _process("server", BARE, "", LINE, str(port))
    if kind in PEERS:
        return _process("serve", f"{HOST}:{port}", command=_relay_of(PEERS[kind]))
    return _process("server", kind, "", kind, str(port))


def _relay_of(language: str) -> list[str]:
    """Return the command of a relay, which the tests with other programs use, too."""
    from tests.interop.build import BUILDS

    build = BUILDS[language]
    program, command = build.find(build.target, "pumps")
    return [str(word) for word in command] if program.exists() else []


def why_not(kind: str) -> str:
    """Return why a kind cannot be measured, or an empty string."""
    if language := PEERS.get(kind):
        is_built = _relay_of(language)
        return "" if is_built else f"it is not built: python -m tests.interop.build {language}"
    return "" if KINDS[kind].is_installed else f"{KINDS[kind].requires} is not installed"
