"""Tests with headless Chromium, through ``WebSocket`` and ``WebSocketStream``. It is a client only.

`meeting` opens a connection in the page, with either API. In scripts its name is ``it``, and its
methods are in ``browser.html``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_wsstream import (
    AbnormalClosure,
    ConnectionLost,
    StreamClosed,
    TextRejected,
    WsByteStream,
    WsListener,
)

from ..support.receiving import receive_all
from ..support.tasks import background
from .browser import Browser, ScriptError, open_browser
from .checks import sha256
from .peer import LIMIT

SIZE: Final = 8 * 2**20
REASON: Final = "gr\u00fc\u00dfe \u2713"

both_apis = pytest.mark.parametrize("api", ["WebSocket", "WebSocketStream"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@asynccontextmanager
async def listening(**options: Any) -> AsyncGenerator[tuple[WsListener, str], None]:
    """Yield a listener with ``options``, and its URL."""
    with trio.fail_after(LIMIT):
        async with background() as nursery:
            (transport_listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = transport_listener.socket.getsockname()[1]
            async with WsListener(transport_listener, nursery, **options) as listener:
                yield listener, f"ws://127.0.0.1:{port}/"


@asynccontextmanager
async def meeting(browser: Browser, api: str, **options: Any) -> AsyncGenerator[WsByteStream, None]:
    """Yield a stream whose other end is ``it`` in the page."""
    async with listening(**options) as (listener, url):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_in_page, browser, api, url)
            stream = await listener.accept()
        yield stream


async def open_in_page(browser: Browser, api: str, url: str, *protocols: str) -> Any:
    script = "window.it = await APIS[api].open(url, protocols); return it.protocol"
    return await browser.run(script, api=api, url=url, protocols=protocols)


# Much data


@both_apis
async def test_bytes_come_back_from_a_page(browser: Browser, api: str) -> None:
    async with meeting(browser, api) as stream:

        async def echo() -> None:
            async for data in stream:
                await stream.send_all(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            sent, received = await browser.run(
                """
                const data = randomBytes(size);
                const echoed = receive(it, size);
                await sendAll(it, data);
                const hashes = [await sha256(data), await sha256(await echoed)];
                it.close(1000);
                return hashes;
                """,
                size=SIZE,
            )
        assert received == sent


HELD_BACK: Final = """
    const data = randomBytes(size);
    await new Promise((resolve, reject) => {
      const sent = sendAll(it, data, resolve);
      sent.then(() => { it.close(1000); reject(new Error("never held back")); }, () => {});
    });
    return sha256(data);
"""


@both_apis
async def test_a_page_that_sends_is_held_back_until_we_receive(browser: Browser, api: str) -> None:
    async with meeting(browser, api) as stream:
        sent = await browser.run(HELD_BACK, size=SIZE)
        received = await receive_all(stream)
        assert len(received) == SIZE
        assert sha256(received) == sent


@both_apis
async def test_a_page_receives_all_that_was_sent(browser: Browser, api: str) -> None:
    """A page that does not read makes us wait with ``WebSocketStream``, not with ``WebSocket``."""
    data = os.urandom(SIZE)
    async with meeting(browser, api) as stream:
        has_sent = trio.Event()

        async def send() -> None:
            await stream.send_all(data)
            has_sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            if api == "WebSocketStream":
                await wait_all_tasks_blocked(0.3)
                assert not has_sent.is_set()
            received = await browser.run("return sha256(await receive(it, size))", size=SIZE)
        assert received == sha256(data)


@both_apis
async def test_the_browser_answers_our_pings(browser: Browser, api: str) -> None:
    """The browser answers pings while its page is busy."""
    async with meeting(browser, api) as stream:
        assert 0 < await stream.ping(b"x" * 125) < LIMIT

        async def send() -> None:
            await browser.run("await sendAll(it, randomBytes(size))", size=SIZE)
            nursery.cancel_scope.cancel()

        async def ping() -> None:
            while True:
                await stream.ping()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(ping)
            while True:
                await stream.receive_some()


# Closing


@both_apis
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1000, REASON), (4001, REASON)])
async def test_a_close_of_the_page_ends_the_stream(
    browser: Browser, api: str, code: int, reason: str
) -> None:
    async with meeting(browser, api) as stream:
        how = await browser.run(
            "await it.send(new Uint8Array(5)); it.close(code, reason); return it.closed",
            code=code,
            reason=reason,
        )
        assert how == {"code": code, "reason": reason, "wasClean": True}
        assert await stream.receive_some() == bytes(5)
        if code == 1000:
            error = None
            assert await stream.receive_some() == b""
        else:
            error = AbnormalClosure(code, reason)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.receive_some()
            assert broken.value.__cause__ == error
        await stream.aclose()
        assert stream.closed == StreamClosed(code, reason, clean=True, error=error)


@both_apis
@pytest.mark.parametrize("code", [1000, 1001, 1011, 4999])
async def test_our_close_reaches_the_page(browser: Browser, api: str, code: int) -> None:
    async with meeting(browser, api) as stream:
        await stream.send_all(b"hello")
        await stream.aclose(code, REASON)
        assert stream.closed is not None
        assert (stream.closed.code, stream.closed.reason) == (code, REASON)
        assert stream.closed.clean
        received, how = await browser.run(
            "return [await sha256(await receive(it)), await it.closed]"
        )
        assert received == sha256(b"hello")
        assert how == {"code": code, "reason": REASON, "wasClean": True}


@both_apis
async def test_text_from_a_page_is_refused(browser: Browser, api: str) -> None:
    async with meeting(browser, api) as stream:
        how = await browser.run("await it.send('text'); return it.closed")
        assert how == {"code": 1003, "reason": "Text messages are not supported.", "wasClean": True}
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert isinstance(broken.value.__cause__, TextRejected)


OPEN_AND_LEAVE: Final = """
    const frame = document.body.appendChild(document.createElement("iframe"));
    const it = new frame.contentWindow[api](url);
    await (it.opened ?? new Promise((resolve) => { it.onopen = resolve; }));
    frame.remove();
"""


@both_apis
async def test_a_page_that_is_left_says_that_it_goes_away(browser: Browser, api: str) -> None:
    """Leaving a page closes the connection with 1001, which is no end of the stream."""
    async with listening() as (listener, url), trio.open_nursery() as nursery:
        nursery.start_soon(partial(browser.run, OPEN_AND_LEAVE, api=api, url=url))
        stream = await listener.accept()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        assert stream.closed == StreamClosed(1001, "", clean=True, error=AbnormalClosure(1001))


@both_apis
async def test_a_browser_that_is_killed_is_no_clean_end(api: str, tmp_path: Path) -> None:
    with open_browser(tmp_path) as browser:
        async with meeting(browser, api) as stream:
            await browser.run("await it.send(new Uint8Array(5))")
            browser.kill()
            assert await stream.receive_some() == bytes(5)
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.receive_some()
            assert isinstance(broken.value.__cause__, ConnectionLost)


# A half-close


LATE = {"WebSocket": "", "WebSocketStream": "InvalidStateError"}


@pytest.mark.parametrize(("api", "late"), LATE.items())
async def test_a_half_close_closes_the_websocket_of_a_page(
    browser: Browser, api: str, late: str
) -> None:
    """The browser answers at once. ``WebSocket`` silently drops data that is sent later."""
    async with meeting(browser, api) as stream:
        await stream.send_all(b"hello")
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await stream.aclose()
        assert stream.closed == StreamClosed(1000, "half-close", clean=True, error=None)
        received, how, refused = await browser.run(
            """
            const result = [await sha256(await receive(it)), await it.closed];
            try {
              await (it.writer ?? it.socket)[it.writer ? "write" : "send"](new Uint8Array(5));
              return [...result, ""];
            } catch (error) {
              return [...result, error.name];
            }
            """
        )
        assert received == sha256(b"hello")
        assert how == {"code": 1000, "reason": "half-close", "wasClean": True}
        assert refused == late


@both_apis
async def test_a_half_close_cuts_off_what_waits_in_the_browser(browser: Browser, api: str) -> None:
    """Data that the page has not yet sent is lost, so half-close only after the page is done."""
    async with meeting(browser, api) as stream:
        await browser.run(HELD_BACK, size=SIZE)
        await stream.send_eof()
        assert 0 < len(await receive_all(stream)) < SIZE
        how = await browser.run("return it.closed")
        assert (how["code"], how["reason"]) == (1000, "half-close")


# The opening handshake


@asynccontextmanager
async def serving(**options: Any) -> AsyncGenerator[str, None]:
    """Run a server that keeps its streams open, and yield its URL."""

    async def handle(_: WsByteStream) -> None:
        await trio.sleep_forever()

    async with listening(**options) as (listener, url), background() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        yield url


@both_apis
async def test_only_pages_of_admitted_origins_are_served(browser: Browser, api: str) -> None:
    async with serving(allowed_origins=["https://example.com", browser.origin]) as url:
        await open_in_page(browser, api, url)
    async with serving(allowed_origins=["https://example.com"]) as url:
        with pytest.raises(ScriptError):
            await open_in_page(browser, api, url)


@both_apis
async def test_a_page_gets_the_subprotocol_that_the_server_has_chosen(
    browser: Browser, api: str
) -> None:
    """A browser that offers subprotocols fails the connection if the server chooses none."""
    async with serving(subprotocols=["best", "good"]) as url:
        assert await open_in_page(browser, api, url, "other", "good") == "good"
        with pytest.raises(ScriptError):
            await open_in_page(browser, api, url, "other")
