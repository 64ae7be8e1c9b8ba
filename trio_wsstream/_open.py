"""Streams as context managers: around a connection, and from a URL."""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeGuard
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionTimeout, HandshakeError, WebSocketConnection

from . import _handshake
from ._config import StreamConfig, check_seconds, check_several
from ._proxy import find_proxy, open_through_proxy
from ._stream import WsByteStream

_logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery that lets its block's exception out as it was, if no task raises: in no group.

    A block that raises cancels the tasks, as with any nursery.
    """
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
      ssl_context (ssl.SSLContext or None): for ``wss``; None: Python's default.
      subprotocols (iterable of str): to offer, best first (RFC 6455, 1.9).
      extra_headers (iterable of (bytes, bytes)): for the opening handshake.
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
          `ConnectionTimeout` and `ProxyRejected` are kinds of it.
      ValueError, TypeError: ``url`` is no WebSocket URL, or another argument is none of these.
      ImportError: the proxy is a SOCKS proxy, and python-socks is not installed.
    """
    parsed = _parse_url(url)
    check_several("subprotocols", subprotocols)
    check_seconds("connect_timeout", connect_timeout)
    if not isinstance(transport, trio.abc.Stream | None):
        raise TypeError(f"transport must be a Stream, not {transport!r}")
    if transport is not None and proxy is not None:
        raise ValueError("proxy must be None where there is a transport to connect over")
    via = find_proxy(proxy, "wss" if parsed.is_secure else "ws", parsed.host, parsed.port)
    _logger.debug("connecting to %s", parsed.authority)  # the rest may hold secrets
    async with open_nursery() as nursery:
        try:
            with trio.fail_after(connect_timeout):
                if via is not None:
                    transport = await open_through_proxy(via, parsed.host, parsed.port)
                elif transport is None:
                    transport = await _open_tcp(parsed)
                try:
                    if parsed.is_secure:
                        transport = await _start_tls(transport, parsed.host, ssl_context)
                    connection = await _handshake.connect(
                        transport,
                        parsed.authority,
                        parsed.resource,
                        list(subprotocols),
                        list(extra_headers),
                    )
                    stream = WsByteStream(connection, nursery, config)
                except BaseException:
                    await trio.aclose_forcefully(transport)
                    raise
        except trio.TooSlowError:
            raise ConnectionTimeout(f"{url} took more than {connect_timeout} seconds") from None
        except UnicodeError as error:
            raise ValueError(f"url must have a host, not {parsed.host!r}: {url!r}") from error
        async with stream:
            yield stream


class _Url(NamedTuple):
    is_secure: bool
    host: str
    port: int
    authority: str  # host and port, as written
    resource: str  # path and query


def _parse_url(url: str) -> _Url:
    """RFC 6455, section 3."""
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss"):
        raise ValueError(f"url must begin with ws:// or wss://: {url!r}")
    if not parts.hostname:
        raise ValueError(f"url must have a host: {url!r}")
    if parts.fragment or "@" in parts.netloc:
        raise ValueError(f"url must have neither a fragment nor a user: {url!r}")
    if parts.port == 0:
        raise ValueError(f"url must not have port 0: {url!r}")
    if not re.fullmatch("[!-~]*", parts.path + parts.query):
        raise ValueError(f"url must have its path and query percent-encoded: {url!r}")
    is_secure = parts.scheme == "wss"
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = parts.port or (443 if is_secure else 80)
    return _Url(is_secure, parts.hostname, port, parts.netloc, resource)


async def _open_tcp(url: _Url) -> trio.SocketStream:
    try:
        return await trio.open_tcp_stream(url.host, url.port)
    except OSError as error:
        raise HandshakeError(f"cannot connect to {url.authority}: {error}") from error


async def _start_tls(
    transport: trio.abc.Stream, host: str, ssl_context: ssl.SSLContext | None
) -> trio.SSLStream[trio.abc.Stream]:
    tls = trio.SSLStream(
        transport,
        ssl_context or ssl.create_default_context(),
        server_hostname=host,
        https_compatible=True,
    )
    try:
        await tls.do_handshake()
    except trio.BrokenResourceError as error:
        raise HandshakeError(f"no TLS with {host}: {error.__cause__ or error}") from error
    return tls
