"""What the command says, on stderr: a line for each thing that happened, as text or as JSON."""

from __future__ import annotations

import argparse
import logging
import re
import time
from typing import Any, Final

_logger: Final = logging.getLogger(__name__)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def tell(event: str, text: str, level: int = logging.INFO, **facts: object) -> None:
    """Say that something happened.

    Args:
      event: which kind of thing, for machines.
      text: the line, for people.
      facts: for machines, the same that the text tells.
    """
    _logger.log(level, "%s", text, extra={"event": event, "facts": facts})


def is_told(level: int) -> bool:
    """Whether lines of this level are written, so that it is worth the time to make one."""
    return _logger.isEnabledFor(level)


def warn(event: str, text: str, **facts: object) -> None:
    """Say what an operator should look at."""
    tell(event, text, logging.WARNING, **facts)


def fail(event: str, text: str, **facts: object) -> None:
    """Say what has failed."""
    tell(event, text, logging.ERROR, **facts)


def escape(text: str) -> str:
    """One line, whatever a peer has put into it."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


class _Text(logging.Formatter):
    def __init__(self, has_time: bool) -> None:
        super().__init__("%(asctime)s %(message)s" if has_time else "trio-wsstream: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = escape(record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import json

        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def set_up(options: argparse.Namespace) -> None:
    """Have everything said on stderr, in the form and as much as was asked for.

    A `connect` that is some program's says only what has gone wrong, unless asked for more.
    """
    is_quiet = options.quiet or (options.job == "connect" and not options.verbose)
    level = logging.WARNING if is_quiet else logging.INFO
    handler = logging.StreamHandler()
    is_server = options.job in ("listen", "serve")
    handler.setFormatter(_Json() if options.log_format == "json" else _Text(has_time=is_server))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _logger.setLevel(logging.DEBUG if options.verbose else level)
    if options.verbose > 1:
        logging.getLogger("trio_wsstream").setLevel(logging.DEBUG)
