"""Options of the tests, and the order in which Trio runs tasks.

Trio shuffles the tasks that are ready to run. It draws the order from a random generator, which is
seeded here before each test, from the seed of the run and the name of the test. The header shows
the seed of the run. With ``--schedule-seed`` and that number, all tests run their tasks in the same
order again, also if only one test is run, and also in the workers of pytest-xdist.

The seed does not determine what comes from outside of Trio: the moment when the kernel says that a
socket is ready, threads, the real clock, and masking keys. Hypothesis seeds the generator itself,
in the same way for each example, unless the test draws `hypothesis.strategies.random_module`.

A busy machine would look like a slow line, on which messages go out in fragments (``_pace.py``). So
no line is slow here, except in ``test_pace.py``.

``--hypothesis-profile=long`` tries more examples.
"""

from __future__ import annotations

import math
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
import trio
import trio.testing

from trio_wsstream import _pace

# Without this, a failing assertion in a helper would not show its values.
pytest.register_assert_rewrite(f"{__package__}.support")

SLOW: Final = _pace.SLOW

hypothesis.settings.register_profile("long", max_examples=5000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedule-seed",
        type=int,
        default=random.SystemRandom().randrange(1_000_000),
        help="the seed of the order in which Trio runs tasks (default: a new one for each run)",
    )
    parser.addoption(
        "--flood",
        type=int,
        default=10_000,
        help="the number of frames in a flood (default: %(default)s)",
    )


@pytest.hookimpl(optionalhook=True)  # pytest-xdist has this hook, and may not be installed.
def pytest_configure_node(node: Any) -> None:
    node.workerinput["schedule_seed"] = node.config.getoption("schedule_seed")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # Each worker has drawn a seed of its own.
        config.option.schedule_seed = config.workerinput["schedule_seed"]


def pytest_report_header(config: pytest.Config) -> str:
    return f"order of tasks: --schedule-seed={config.getoption('schedule_seed')}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed = item.config.getoption("schedule_seed")
    trio._core._run._r.seed(f"{seed} {item.nodeid}")
    vars(_pace)["SLOW"] = SLOW if item.path.name == "test_pace.py" else math.inf


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """An empty folder for Unix sockets. Their paths may be no longer than about 100 bytes.

    The path of pytest's own ``tmp_path`` is longer on some machines.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt, also in programs that the test starts.

    A shell that starts the tests in the background makes them ignore SIGINT.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def clock_that_jumps(mock_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock for tests over sockets. It jumps to the next deadline when nothing happens.

    ``autojump_clock`` would jump too early, while the kernel still has bytes that the other end has
    not received. This clock waits until all tasks have been blocked for 20 ms of real time. Both
    ends must be in this process: then it makes no difference how busy the machine is.
    """
    mock_clock.autojump_threshold = 0.02
    return mock_clock


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many bytes each `os.read` has asked."""
    read, sizes = os.read, []

    def note_read(descriptor: int, size: int) -> bytes:
        sizes.append(size)
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", note_read)
    return sizes
