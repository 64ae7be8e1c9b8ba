"""The order of tasks: Trio shuffles those that are ready to run; here is where it draws from.

Each test starts from the run's seed and the test's name, so that the seed, which stands in the
header, gives the same orders again, in one test as in all of them. It does not fix what comes
from outside of Trio: when the kernel says that a socket is ready, threads, the clock (but
``MockClock``), masking keys. Hypothesis seeds the order itself, and each example alike, unless
the test draws `hypothesis.strategies.random_module`. ``--hypothesis-profile=long`` tries more.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator

import hypothesis
import pytest
import trio

# Without this, an assertion that fails in a helper shows no values.
pytest.register_assert_rewrite(f"{__package__}.support")

hypothesis.settings.register_profile("long", max_examples=5000, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedule-seed",
        type=int,
        default=random.SystemRandom().randrange(1_000_000),
        help="the seed of the order in which Trio runs tasks (default: another each time)",
    )
    parser.addoption(
        "--flood",
        type=int,
        default=10_000,
        help="how many frames make a flood (default: %(default)s)",
    )


def pytest_report_header(config: pytest.Config) -> str:
    return f"order of tasks: --schedule-seed={config.getoption('schedule_seed')}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed = item.config.getoption("schedule_seed")
    trio._core._run._r.seed(f"{seed} {item.nodeid}")


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """As in a terminal, also by programs that a test starts. In the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
