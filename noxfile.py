"""The sessions of nox.

``nox`` alone runs the tests on every Python that is installed, lint, types, the examples and docs.
``nox -l`` lists all sessions. ``nox -s NAME`` runs one of them.
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
nox.options.sessions = ["tests", "lint", "types", "examples", "docs"]

NO_TIMEOUT = ["-o", "faulthandler_timeout=0"]  # for sessions in which one test runs for minutes


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """Run the test suite. Tests that need a program which is not installed are skipped."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style and the format of the code."""
    session.install(".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types inside the package, and that every public name has one."""
    session.install(".[types]")
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trio_wsstream")


@nox.session
def examples(session: nox.Session) -> None:
    """Run every example. Each must exit with 0."""
    session.install(".[anyio]", "httpx", "tricycle")
    for example in sorted(Path("examples").glob("*.py")):
        session.run("python", str(example))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build/html. A warning or a broken reference is an error."""
    session.install(".[docs,anyio]")
    session.run(
        "sphinx-build", "-E", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html"
    )


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist twice, check their contents, and run the sdist's fast tests."""
    session.install("build", "twine")
    tmp = Path(session.create_tmp())
    builds = [tmp / "once", tmp / "twice"]
    for folder in builds:
        shutil.rmtree(folder, ignore_errors=True)
        session.run("python", "-m", "build", "--outdir", str(folder), silent=True)
    wheel, sdist = (next(builds[0].glob(kind)) for kind in ("*.whl", "*.tar.gz"))
    for file in wheel, sdist:
        if file.read_bytes() != (builds[1] / file.name).read_bytes():
            session.error(f"building {file.name} twice gives two different files")
    session.run("twine", "check", "--strict", str(wheel), str(sdist))
    session.run("python", "tests/packaging_contents.py", str(wheel), str(sdist))
    shutil.unpack_archive(sdist, tmp, filter="data")
    session.install(f"{wheel}[test]")
    with session.chdir(tmp / sdist.name.removesuffix(".tar.gz")):
        shutil.rmtree("trio_wsstream")  # so that the tests import the wheel
        session.run("python", "-W", "error", "-c", "import trio_wsstream")
        session.run("python", "-m", "pytest", "-q", "-n", "auto", "-m", "not slow")


@nox.session
def interop(session: nox.Session) -> None:
    """Run the tests with other WebSocket programs (docs/peers.rst), after .ci/install-peers."""
    session.install(".[test,interop]")
    if shutil.which("npm"):
        with session.chdir("tests/interop"):
            session.run("npm", "install", "--no-audit", "--no-fund", "--silent", external=True)
    session.run("python", "-m", "tests.interop.build")
    session.run("python", "-m", "pytest", "tests/interop", *session.posargs)


@nox.session
def schedules(session: nox.Session) -> None:
    """Run the tests with 20 random orders of tasks; ``-- 100`` runs them with 100."""
    session.install(".[test]")
    count, *rest = session.posargs or ["20"]
    for seed in range(int(count)):
        session.run("python", "-m", "pytest", "-q", f"--schedule-seed={seed}", *rest)


@nox.session
def stateful(session: nox.Session) -> None:
    """Inject faults, and call both ends in random order: 5000 cases of each, in ten minutes."""
    session.install(".[test]")
    files = ["tests/test_stateful.py", "tests/test_faults.py"]
    session.run("python", "-m", "pytest", "--hypothesis-profile=long", *NO_TIMEOUT, *files)


@nox.session
def floods(session: nox.Session) -> None:
    """Send a million frames of each kind to a server. This takes ten minutes."""
    session.install(".[test]")
    command = ["python", "-m", "pytest", "--flood=1000000", *NO_TIMEOUT, "tests/test_floods.py"]
    session.run(*command, "-k", "server", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Compare speed, processor time and memory to bare Trio and to other libraries, in 15 minutes.

    Without arguments, it compares the program to other tunnels, too. ``-- --check`` compares counts
    of work that do not depend on the machine with those in benchmarks/counts.json, in a minute.
    """
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "benchmarks.tunnels")


@nox.session
def many(session: nox.Session) -> None:
    """Open as many connections as the limit of files allows; ``-- --pairs 1000`` opens 1000."""
    session.install(".")
    for side in ("client", "server"):
        session.run("python", "-m", "benchmarks.many", "--close", side, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Open and end connections for 15 minutes, then find what is left; ``-- --minutes 1``."""
    session.install(".[test]")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def autobahn(session: nox.Session) -> None:
    """Run the Autobahn Testsuite as client and as server (docs/autobahn.rst), with a Python 2.7."""
    python2 = find_python2()
    if python2 is None:
        session.skip("the Autobahn Testsuite needs Python 2.7, and no Python 2.7 was found")
    session.install(".", "virtualenv<20.22")  # Later versions cannot make an environment for 2.7.
    environment = Path(session.create_tmp()) / "python2"
    session.run("python", "-m", "virtualenv", "--quiet", "-p", python2, str(environment))
    python2 = str(environment / "bin" / "python")
    session.run(python2, "-m", "pip", "install", "--quiet", AUTOBAHN, external=True)
    session.run("python", "-m", "tests.autobahn", python2, *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each target, guided by coverage, for 60 seconds; ``-- 300`` takes 300 seconds."""
    session.install(".[test,fuzz]")
    seconds = session.posargs[0] if session.posargs else "60"
    for target in "decoder", "protocol", "takeover":
        folder = Path(session.create_tmp()) / "corpus"
        session.run("python", "-m", "tests.fuzz", target, str(folder), f"-max_total_time={seconds}")


@nox.session
def newest(session: nox.Session) -> None:
    """Run the tests with the newest release of everything."""
    session.install("--upgrade", "--upgrade-strategy", "eager", ".[test]")
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs)


@nox.session
def guard(session: nox.Session) -> None:
    """Test each supported trio-websocket and wsproto, and the lowest versions of everything."""
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
    # The tests left out need a newer websockets at the other end.
    peers = ["--ignore=tests/test_differential.py", "--ignore=tests/interop"]
    peers += ["-k", "not client_of_websockets"]
    session.run("python", "-m", "pytest", "-q", *peers)


def releases(session: nox.Session, name: str, supported: dict[str, SpecifierSet]) -> list[str]:
    """Return all versions of a package that pip finds in the supported range."""
    said = session.run("python", "-m", "pip", "index", "versions", name, silent=True)
    assert isinstance(said, str)
    versions = said.partition("Available versions:")[2].split("\n")[0].split(",")
    return list(supported[name].filter(version.strip() for version in versions))


def find_python2() -> str | None:
    """Return the path of a Python 2.7, from the search path or from pyenv, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which("python2.7"), *map(str, pyenv.glob("versions/2.7*/bin/python2.7"))]
    for candidate in filter(None, candidates):
        if (
            subprocess.run([candidate, "-c", "pass"], check=False, capture_output=True).returncode
            == 0
        ):
            return candidate
    return None
