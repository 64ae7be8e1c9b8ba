"""The code of docs/servers.rst does what it says; tests.interop tests its configurations."""

from __future__ import annotations

import logging
import re
import socket
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import WsByteStream, open_ws_stream

from .support.handshakes import request
from .support.programs import running
from .support.receiving import receive_all
from .support.servers import memory_server, open_over
from .support.tasks import background
from .test_serve_hooks import serving

PAGE = (Path(__file__).parent.parent / "docs" / "servers.rst").read_text()


def code_with(text: str) -> str:
    """Return the Python block that contains ``text``."""
    blocks = re.findall(r"::\n\n((?: +.*\n|\n)+)", PAGE)
    (block,) = [block for block in blocks if text in block and "code-block" not in block]
    return textwrap.dedent(block)


def function(name: str) -> Any:
    names: dict[str, Any] = {}
    exec(code_with(f"def {name}("), names)
    return names[name]


async def test_on_refused_prints_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with memory_server(path="/", on_refused=function("on_refused")) as listener:
        transport = await listener.connect()
        await transport.send_all(request(line=b"GET /other HTTP/1.1"))
        await receive_all(transport)
        await transport.aclose()
    assert " 404 " in capsys.readouterr().out


async def test_on_error_logs_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: WsByteStream) -> None:
        raise LookupError("not found")

    async with background() as nursery:
        listener = await serving(nursery, handler, on_error=function("on_error"))
        stream = await open_over(nursery, await listener.connect())
        await stream.aclose()
        await wait_all_tasks_blocked()
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.exc_info
    assert isinstance(record.exc_info[1], LookupError)


async def test_http_answers_the_health_check() -> None:
    async with memory_server(http=function("http")) as listener:
        for path, status in ((b"/health", b"200"), (b"/", b"426")):
            transport = await listener.connect()
            await transport.send_all(b"GET %s HTTP/1.0\r\n\r\n" % path)
            assert (await receive_all(transport)).split(b" ")[1] == status
            await transport.aclose()


async def test_a_server_serves_on_a_socket_that_systemd_has_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor = listening.fileno()
        code = code_with("sd_listen_fds").replace("fileno=3", f"fileno={descriptor}")
        code = code.replace("trio.run(main)", "print('up')\ntrio.run(main)")
        command = [sys.executable, "-u", "-c", code]
        async with running(command, "up", pass_fds=[descriptor]):
            port = listening.getsockname()[1]
            async with open_ws_stream(f"ws://127.0.0.1:{port}") as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
