"""Fixtures: one process of the other program for each class of tests, in each of its roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

pytest.register_assert_rewrite(f"{__package__}.checks", f"{__package__}.peer")

from .peer import Meeting, Peer  # noqa: E402

Meet = Callable[..., AbstractAsyncContextManager[Meeting]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this folder as slow, since each starts other programs."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses ``role`` once for each role that the other program has."""
    if "role" in metafunc.fixturenames:
        metafunc.parametrize("role", metafunc.cls.roles)


@pytest.fixture(scope="class")
def peer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    """Start the other program for a class of tests."""
    with Peer(request.cls.command(), tmp_path_factory.mktemp("peer")) as running:
        yield running


@pytest.fixture
def meet(peer: Peer, role: str) -> Meet:
    """Return `Peer.meet` for the role at hand."""
    return partial(peer.meet, role)
