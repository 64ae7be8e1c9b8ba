"""Streams as context managers: around a connection, and from a URL."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import TypeGuard

import trio
from trio_websocket import ConnectionTimeout, HandshakeError, WebSocketConnection

from . import _handshake
from ._checks import check_seconds, check_several, check_ssl_context, check_trio
from ._config import StreamConfig, check_config
from ._connecting import open_tcp, start_tls
from ._stream import WsByteStream
from ._url import Url, parse_url

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery that lets its block's exception out as it was, if no task raises: in no group.

    A block that raises cancels the tasks, as with any nursery.
    """
    check_trio()
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:  # noqa: BLE001  # raised again below
                error = exc
                nursery.cancel_scope.cancel()
    except BaseException as raised:
        if _is_failure(raised):
            if not _is_failure(error):
                raise
            errors = [error, raised]
            raise BaseExceptionGroup("a block and its tasks have failed", errors) from None
        if error is None:
            raise
    if error is not None:
        raise error


def _is_failure(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether there is more in it than `trio.Cancelled`, which may come in a group or without."""
    return error is not None and (
        BaseExceptionGroup("", [error]).split(trio.Cancelled)[1] is not None
    )


@asynccontextmanager
async def wrap_websocket(
    connection: WebSocketConnection, config: StreamConfig = StreamConfig()
) -> AsyncGenerator[WsByteStream, None]:
    """A `WsByteStream` over ``connection``, with a nursery of its own.

    Leaving the block closes the stream as leaving ``async with stream`` does. An exception
    comes out of it as it was, in no group.

    Raises:
      TakeoverError: as `WsByteStream`.
    """
    async with open_nursery() as nursery, WsByteStream(connection, nursery, config) as stream:
        yield stream


@asynccontextmanager
async def open_ws_stream(
    url: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    subprotocols: Iterable[str] = (),
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
    connect_timeout: float = 60.0,
    config: StreamConfig = StreamConfig(),
    transport: trio.abc.Stream | None = None,
    proxy: str | None = None,
) -> AsyncGenerator[WsByteStream, None]:
    """Connect to ``url`` and yield a `WsByteStream`; left as `wrap_websocket`.

    Args:
      url (str): ``ws://`` or ``wss://`` (RFC 6455, 3).
      ssl_context (ssl.SSLContext or None): for ``wss``; None: Python's default. It must not
          offer HTTP/2 by ALPN.
      subprotocols (iterable of str): to offer, best first (RFC 6455, 1.9).
      extra_headers (iterable of (bytes, bytes)): for the opening handshake. A Host replaces that
          of ``url``, and a User-Agent ours.
      connect_timeout (float): seconds until a `trio_websocket.ConnectionTimeout`.
      config (StreamConfig): the settings of the stream.
      transport (trio.abc.Stream or None): what to connect over, in place of TCP to the host of
          ``url``: a Unix socket, another `WsByteStream`. With ``wss`` there will be TLS on it.
          It is closed with the stream, and also if the connection fails.
      proxy (str or None): the URL of a proxy to connect through, with its user and password if
          it needs them: ``http://``, ``https://``, ``socks5://`` (names are resolved here) or
          ``socks5h://`` (by the proxy). ``"env"``: the proxy that the environment names for this
          URL, if any. None: no proxy, which is the default because a variable that was set for
          browsers and package installers should not send a program's streams to another host
          unasked. ``stream.remote`` is the proxy's address.

    Raises:
      trio_websocket.HandshakeError: the connection could not be opened. `ConnectionRejected`,
          `ConnectionTimeout` and `ProxyRejected` are kinds of it. The text says why.
      ValueError, TypeError: ``url`` is no WebSocket URL, or another argument is none of these.
      ImportError: the proxy is a SOCKS proxy, and python-socks is not installed.
      RuntimeError: no Trio is running.
    """
    check_trio()
    try:
        parsed, request = _prepare(url, ssl_context, subprotocols, extra_headers)
        check_seconds("connect_timeout", connect_timeout)
        check_config(config)
        if not isinstance(transport, trio.abc.Stream | None):
            raise TypeError(f"transport must be a Stream, not {transport!r}")
        if transport is not None and proxy is not None:
            raise ValueError("proxy must be None where there is a transport to connect over")
        via = None
        if proxy is not None:  # imported only where it is used: that takes time
            from ._proxy import find_proxy, open_through_proxy

            via = find_proxy(proxy, "wss" if parsed.is_secure else "ws", parsed.host, parsed.port)
    except BaseException:
        if isinstance(transport, trio.abc.Stream):
            await trio.aclose_forcefully(transport)
        raise
    _logger.debug("connecting to %s", parsed.authority)  # the rest may hold secrets
    async with open_nursery() as nursery:
        try:
            with trio.fail_after(connect_timeout):
                if via is not None:
                    transport = await open_through_proxy(via, parsed.host, parsed.port)
                elif transport is None:
                    transport = await open_tcp(parsed.host, parsed.port, parsed.authority)
                try:
                    if parsed.is_secure:
                        transport = await _start_tls(transport, parsed, ssl_context)
                    connection = await _handshake.connect(transport, request)
                    stream = WsByteStream(connection, nursery, config)
                except BaseException:
                    await trio.aclose_forcefully(transport)
                    raise
        except trio.TooSlowError:
            through = "" if via is None else f" through the proxy {via.address}"
            raise ConnectionTimeout(
                f"connecting to {parsed.authority}{through} took more than "
                f"{connect_timeout} seconds"
            ) from None
        async with stream:
            yield stream


def _prepare(
    url: str,
    ssl_context: ssl.SSLContext | None,
    subprotocols: Iterable[str],
    extra_headers: Iterable[tuple[bytes, bytes]],
) -> tuple[Url, _handshake.Request]:
    """What is to be sent, and whereto; all that can be refused before anything happens."""
    parsed = parse_url(url)
    check_ssl_context(ssl_context)
    if ssl_context is not None and not parsed.is_secure:
        raise ValueError(
            f"ssl_context must be None with a ws:// URL, which has no TLS: "
            f"use wss://{parsed.authority}"
        )
    check_several("subprotocols", subprotocols)
    if isinstance(extra_headers, dict):
        raise TypeError("extra_headers must be tuples of (name, value), not a dict")
    request = _handshake.make_request(
        parsed.authority, parsed.resource, subprotocols, extra_headers
    )
    return parsed, request


async def _start_tls(
    transport: trio.abc.Stream, url: Url, ssl_context: ssl.SSLContext | None
) -> trio.abc.Stream:
    tls = await start_tls(
        transport,
        ssl_context,
        url.server_name,
        url.authority,
        hint=": use ws://",
    )
    protocol = tls.selected_alpn_protocol()
    if protocol not in (None, "http/1.1"):
        raise HandshakeError(
            f"TLS with {url.authority} has agreed on {protocol!r} and not on HTTP/1.1: "
            "use an ssl_context of its own, with set_alpn_protocols(['http/1.1']) or without any"
        )
    return tls
