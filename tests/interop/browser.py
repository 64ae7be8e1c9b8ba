"""Headless Chromium with one page, ``browser.html``, which runs scripts and gives their results."""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trio

from .peer import HERE, need_program


class ScriptError(Exception):
    """A script in the page has thrown an exception."""


class Browser:
    """The page in Chromium.

    Attributes:
      origin (str): the origin of the page.
    """

    def __init__(self, server: _PageServer, process: subprocess.Popen[bytes]) -> None:
        self.origin = server.origin
        self._server = server
        self._process = process
        self._numbers = itertools.count()

    async def run(self, script: str, **args: object) -> Any:
        """Run ``script``, the body of an async function of ``args``, and return its result.

        Raises:
          ScriptError: The script threw an exception.
        """
        path = f"/result/{next(self._numbers)}"
        token = trio.lowlevel.current_trio_token()
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._server.results[path] = lambda result: token.run_sync_soon(send.send_nowait, result)
        order = {"path": path, "script": script, "args": args}
        self._server.scripts.put(json.dumps(order).encode())
        result = await receive.receive()
        if "error" in result:
            raise ScriptError(result["error"])
        return result.get("value")

    def kill(self) -> None:
        """Kill all processes of the browser at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a new ``profile``. The test is skipped if Chromium is not installed."""
    command = [need_program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"]
    with _PageServer() as server:
        process = subprocess.Popen([*command, server.origin], start_new_session=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        browser = Browser(server, process)
        try:
            assert server.is_open.wait(60), "Chromium does not open the page"
            yield browser
        finally:
            browser.kill()
            server.scripts.put(None)
            server.shutdown()
            thread.join()


class _PageServer(ThreadingHTTPServer):
    """An HTTP server that serves the page, gives it scripts and takes their results."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _PageRequest)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.is_open = threading.Event()  # set when the page has asked for a script
        self.scripts = queue.SimpleQueue[bytes | None]()  # None ends the page's waiting
        self.results: dict[str, Callable[[dict[str, Any]], None]] = {}


class _PageRequest(BaseHTTPRequestHandler):
    server: _PageServer

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer((HERE / "browser.html").read_bytes(), "text/html")
        elif self.path == "/script":
            self.server.is_open.set()
            if (script := self.server.scripts.get()) is not None:
                self._answer(script, "application/json")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        result = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.server.results[self.path](result)
        except trio.RunFinishedError:
            pass  # The test that asked has ended.
        self._answer(b"", "text/plain")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
