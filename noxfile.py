"""``nox`` runs the tests on every Python that is installed, lint, types and the examples.

``nox -l`` lists the other sessions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

AUTOBAHN = "autobahntestsuite==25.10.1"

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "examples"]

NO_TIMEOUT = ["-o", "faulthandler_timeout=0"]  # for sessions whose single tests run long


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The test suite, with those of the peers that are there."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and the same format everywhere."""
    session.install(".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types within, and of the public names."""
    session.install(".[types]")
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_wsstream")


@nox.session
def examples(session: nox.Session) -> None:
    """Every example runs and exits with 0; ``tunnel.py``, a tool, shows its help."""
    session.install(".", "tricycle")
    for example in sorted(Path("examples").glob("*.py")):
        session.run("python", str(example))


@nox.session
def interop(session: nox.Session) -> None:
    """Other WebSocket programs at the other end: docs/peers.rst. First: .ci/install-peers."""
    session.install(".[test,interop]")
    if shutil.which("npm"):
        with session.chdir("tests/interop"):
            session.run("npm", "install", "--no-audit", "--no-fund", "--silent", external=True)
    session.run("python", "-m", "pytest", "tests/interop", *session.posargs)


@nox.session
def schedules(session: nox.Session) -> None:
    """The tests under twenty orders of tasks; a number and more arguments are for another count."""
    session.install(".[test]")
    count, *rest = session.posargs or ["20"]
    for seed in range(int(count)):
        session.run("python", "-m", "pytest", "-q", f"--schedule-seed={seed}", *rest)


@nox.session
def stateful(session: nox.Session) -> None:
    """Injected faults, and both ends in any order of calls: 5000 cases of each. Ten minutes."""
    session.install(".[test]")
    files = ["tests/test_stateful.py", "tests/test_faults.py"]
    session.run("python", "-m", "pytest", "--hypothesis-profile=long", *NO_TIMEOUT, *files)


@nox.session
def floods(session: nox.Session) -> None:
    """A million frames of each kind, to a server. Ten minutes."""
    session.install(".[test]")
    command = ["python", "-m", "pytest", "--flood=1000000", *NO_TIMEOUT, "tests/test_floods.py"]
    session.run(*command, "-k", "server", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Throughput, round trips, memory: ratios to a bare TCP stream. Takes some minutes."""
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def many(session: nox.Session) -> None:
    """As many connections at once as the limit of open files allows; ``-- --pairs 1000``."""
    session.install(".")
    for side in ("client", "server"):
        session.run("python", "-m", "benchmarks.many", "--close", side, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Fifteen minutes of connections that come and go, and nothing left; ``-- --minutes 1``."""
    session.install(".[test]")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def autobahn(session: nox.Session) -> None:
    """The Autobahn Testsuite, in both roles: docs/autobahn.rst. It needs a Python 2.7."""
    python2 = find_python2()
    if python2 is None:
        session.skip("the Autobahn Testsuite needs a Python 2.7, and there is none")
    session.install(".", "virtualenv<20.22")  # the last that makes environments of Python 2.7
    environment = Path(session.create_tmp()) / "python2"
    session.run("python", "-m", "virtualenv", "--quiet", "-p", python2, str(environment))
    python2 = str(environment / "bin" / "python")
    session.run(python2, "-m", "pip", "install", "--quiet", AUTOBAHN, external=True)
    session.run("python", "-m", "tests.autobahn", python2, *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each target, guided by coverage, for 60 seconds; ``nox -s fuzz -- 300`` for 300."""
    session.install(".[test,fuzz]")
    seconds = session.posargs[0] if session.posargs else "60"
    for target in "decoder", "protocol", "takeover":
        folder = Path(session.create_tmp()) / "corpus"
        session.run("python", "-m", "tests.fuzz", target, str(folder), f"-max_total_time={seconds}")


@nox.session
def guard(session: nox.Session) -> None:
    """Each supported trio-websocket and wsproto; and the tests with the lowest of everything."""
    session.install(".[test]")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    supported = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for ours in releases(session, "trio-websocket", supported):
        for inner in releases(session, "wsproto", supported):
            session.install(f"trio-websocket=={ours}", f"wsproto=={inner}")
            session.run("python", "-m", "tests.guard")
    session.install(
        *(f"{name}=={next(iter(bounds)).version}" for name, bounds in supported.items())
    )
    # Those left out need a newer websockets as a peer.
    peers = ["--ignore=tests/test_differential.py", "--ignore=tests/interop"]
    peers += ["-k", "not client_of_websockets"]
    session.run("python", "-m", "pytest", "-q", *peers)


def releases(session: nox.Session, name: str, supported: dict[str, SpecifierSet]) -> list[str]:
    """All that pip finds of a package, in the supported range."""
    said = session.run("python", "-m", "pip", "index", "versions", name, silent=True)
    assert isinstance(said, str)
    versions = said.partition("Available versions:")[2].split("\n")[0].split(",")
    return list(supported[name].filter(version.strip() for version in versions))


def find_python2() -> str | None:
    """On the path, or one of pyenv's that is not."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which("python2.7"), *map(str, pyenv.glob("versions/2.7*/bin/python2.7"))]
    for candidate in filter(None, candidates):
        if (
            subprocess.run([candidate, "-c", "pass"], check=False, capture_output=True).returncode
            == 0
        ):
            return candidate
    return None
