"""Measure how long an import takes, in a fresh process each time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Final

from .results import Result

BASELINE: Final = "import trio, trio_websocket"
STATEMENTS: Final = (BASELINE, "import trio_wsstream")

_PROGRAM: Final = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def measure_imports(rounds: int) -> Result:
    """Time the imports in turns, ``rounds`` times. A first run compiles the modules."""
    result = Result("import", "import", "ms", BASELINE)
    result.samples = {statement: [] for statement in STATEMENTS}
    with tempfile.TemporaryDirectory() as cache:
        for statement in STATEMENTS:
            _import(statement, cache)
        for _ in range(rounds):
            for statement in STATEMENTS:
                result.samples[statement].append(_import(statement, cache) * 1e3)
    return result


def _import(statement: str, cache: str) -> float:
    """Return how many seconds ``statement`` takes. The compiled modules are kept in ``cache``."""
    command = [sys.executable, "-c", _PROGRAM.format(statement)]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    return float(done.stdout)
