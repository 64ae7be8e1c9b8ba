"""Streams as context managers: around a connection, and from a URL."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
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


class open_nursery:  # noqa: N801  # It is used as a function.
    """Open a nursery that does not wrap an exception of its block in a group, if no task raises.

    An exception of the block cancels the tasks, as in any nursery. This is no generator, because
    each connection enters one, and a generator takes longer.
    """

    async def __aenter__(self) -> trio.Nursery:
        check_trio()
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._nursery.cancel_scope.cancel()
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as raised:
            if _is_failure(raised):
                if not _is_failure(error):
                    raise
                errors = [error, raised]
                raise BaseExceptionGroup("a block and its tasks have failed", errors) from None
            if error is None:
                raise


def _is_failure(error: BaseException | None) -> TypeGuard[BaseException]:
    """Return whether ``error`` is or contains anything but `trio.Cancelled`."""
    return error is not None and (
        BaseExceptionGroup("", [error]).split(trio.Cancelled)[1] is not None
    )


@asynccontextmanager
async def wrap_websocket(
    connection: WebSocketConnection, config: StreamConfig = StreamConfig()
) -> AsyncGenerator[WsByteStream, None]:
    """Take ``connection`` over, and yield a `WsByteStream` with a nursery of its own.

    At the end of the block the stream is closed, as at the end of ``async with stream``. An
    exception of the block leaves it unchanged and in no exception group.

    Args:
      connection (trio_websocket.WebSocketConnection): the connection to take over.
      config (StreamConfig): the settings of the stream.

    Raises:
      TakeoverError: the connection cannot be taken over: see `WsByteStream`.
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
    """Connect to ``url``, and yield a `WsByteStream`.

    At the end of the block the stream is closed, as at the end of `wrap_websocket`.

    Args:
      url (str): a URL that begins with ``ws://`` or ``wss://`` (RFC 6455, 3).
      ssl_context (ssl.SSLContext or None): the TLS settings for ``wss://``. None: Python's default
          settings. They are made once, so a process sees a change of the system's authorities only
          after a restart. A context must not offer HTTP/2 by ALPN.
      subprotocols (iterable of str): the subprotocols to offer, best first (RFC 6455, 1.9).
      extra_headers (iterable of (bytes, bytes)): more headers for the opening handshake. A Host
          header replaces that of ``url``, and a User-Agent header replaces ours.
      connect_timeout (float): seconds that connecting may take, with the opening handshake.
      config (StreamConfig): the settings of the stream.
      transport (trio.abc.Stream or None): the transport to use in place of a TCP connection to the
          host of ``url``, such as a Unix socket or another `WsByteStream`. With ``wss://``, TLS is
          put on it. It is closed with the stream, and also if connecting fails.
      proxy (str or None): the URL of a proxy to connect through, with its user and password if
          it needs them. It begins with ``http://``, ``https://``, ``socks5://`` (this machine
          resolves names) or ``socks5h://`` (the proxy resolves names). ``"env"``: the proxy that
          the environment names for this URL, if any. None: no proxy. This is the default, because
          a variable that was set for browsers and package installers should not send a program's
          streams to another host. With a proxy, ``stream.remote`` is the proxy's address.

    Raises:
      trio_websocket.HandshakeError: the connection could not be opened. The text says why.
      trio_websocket.ConnectionRejected: the server refused the opening handshake. This is a kind
          of HandshakeError.
      trio_websocket.ConnectionTimeout: connecting took longer than ``connect_timeout``. This is a
          kind of HandshakeError.
      ProxyRejected: the proxy refused to connect. This is a kind of HandshakeError.
      TypeError: an argument has the wrong type.
      ValueError: ``url`` is no WebSocket URL, or another argument has a value that is not allowed.
      ImportError: this is a SOCKS proxy, and python-socks is not installed.
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
        if proxy is not None:
            # Imported only if it is used, because the import takes time.
            from ._proxy import find_proxy, open_through_proxy

            via = find_proxy(proxy, "wss" if parsed.is_secure else "ws", parsed.host, parsed.port)
    except BaseException:
        if isinstance(transport, trio.abc.Stream):
            await trio.aclose_forcefully(transport)
        raise
    _logger.debug("connecting to %s", parsed.authority)  # The rest of the URL may hold secrets.
    async with open_nursery() as nursery:
        with trio.CancelScope(deadline=trio.current_time() + connect_timeout) as scope:
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
        if scope.cancelled_caught:
            through = "" if via is None else f" through the proxy {via.address}"
            raise ConnectionTimeout(
                f"connecting to {parsed.authority}{through} took more than "
                f"{connect_timeout} seconds"
            )
        async with stream:
            yield stream


def _prepare(
    url: str,
    ssl_context: ssl.SSLContext | None,
    subprotocols: Iterable[str],
    extra_headers: Iterable[tuple[bytes, bytes]],
) -> tuple[Url, _handshake.Request]:
    """Check the arguments, and return the parts of the URL and the request to send."""
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
