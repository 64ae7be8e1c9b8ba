"""``nox`` runs all that CI runs; ``nox -s tests`` the tests, on every Python that is installed."""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lint", "types", "examples"]


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def tests(session: nox.Session) -> None:
    """The test suite, with its peers."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


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
    """Every example runs and exits with 0."""
    session.install(".")
    for example in sorted(Path("examples").glob("*.py")):
        session.run("python", str(example))


@nox.session
def bench(session: nox.Session) -> None:
    """Throughput, round trips, memory: ratios to a bare TCP stream. Takes some minutes."""
    session.install(".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
