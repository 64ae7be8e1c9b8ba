"""The program ``trio-wsstream``: TCP, Unix sockets, stdin and stdout over WebSockets.

A thin room over `bridge`, `open_ws_stream` and `serve_ws`. Each job has a file of its own, with a
function ``run(options) -> int`` that gives the exit code, and is imported only when it is asked
for. The options are in `options`, and nothing is kept at module level.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from . import log
from .options import UsageError, parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      arguments (sequence of str or None): without the program's name; None: `sys.argv`.

    Returns:
      int: 0 if both directions came to their end, 1 if something failed, 2 for wrong arguments,
      3 if no connection could be made. 128 and a signal's number if it was stopped by that.
    """
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        log.set_up(options)
        job = importlib.import_module(f".{options.job}", __package__)
        code: int = job.run(options)
    except UsageError as error:
        print(f"trio-wsstream: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:  # before anything waits for signals
        code = 130
    return code
