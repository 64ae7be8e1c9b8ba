"""Servers: a listener whose streams have gone through the opening handshake, and `serve_ws`.

Theory of operation. `WsListener.accept` accepts transports, and starts a task for the opening
handshake on each of them (`_pending`). One that succeeds puts its stream into `_opened`, and
calls `accept` back from the transport's listener to return it. While nobody is in `accept`, no
transport is accepted either, as with TCP, so all of this is bounded.

A client that is refused gets an HTTP response; then our side of the transport is closed and what
still comes is dropped for a moment, so that no reset overtakes the response. Whatever happens in
a handshake stays in its task.
"""

from __future__ import annotations

import collections
import logging
import operator
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final, NoReturn
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionRejected, HandshakeError, WebSocketRequest

from . import _handshake
from ._config import StreamConfig, check_config, check_seconds, check_several
from ._open import open_nursery
from ._stream import WsByteStream

Headers = Iterable[tuple[bytes, bytes]]
AcceptHook = Callable[[WebSocketRequest], Awaitable[Headers | None]]
Handler = Callable[[WsByteStream], Awaitable[object]]

_LINGER: Final = 2.0  # seconds, for a client that was refused to read why and to hang up

_logger = logging.getLogger(__name__)


class WsListener(trio.abc.Listener[WsByteStream]):
    """A `trio.abc.Listener` of `WsByteStream`, over one of any transport: TCP, TLS, Unix sockets.

    With it `trio.serve_listeners` serves a handler of Trio streams over WebSockets. Trio drops the
    stream when a handler returns, with no word to the peer; a handler that wants to close it well
    does its work in ``async with stream:``, as over TLS.

    Opening handshakes run side by side. A client that is silent, slow or no WebSocket client
    delays nobody, and never makes `accept` raise. One that is refused gets an HTTP response: 400
    if its request is no opening handshake (RFC 6455, 4.2.1), 426 for another version, 403 for its
    origin, 404 for its path, or what ``accept`` says.

    Args:
      transport_listener (trio.abc.Listener): whose streams are taken.
      nursery (trio.Nursery): for the opening handshakes, and for the streams' tasks. Its
          cancellation drops all of them.
      subprotocols (iterable of str): the server's, best first. The first that the client
          offers is chosen; if there is none, the connection has none (RFC 6455, 4.2.2).
      allowed_origins (collection of str or None): the values of the Origin header that are
          admitted; None among them admits clients that send none, which are no browsers. None
          admits all: then any web page may have its visitors' browsers connect here, with their
          cookies (cross-site WebSocket hijacking; RFC 6455, 10.2).
      path (str or None): the only path that is served; None: all are. The query is not compared.
      connect_timeout (float): seconds for an opening handshake, TLS included.
      max_pending (int): how many opening handshakes may be under way; one more drops the oldest.
      config (StreamConfig): the settings of the streams.
      accept: an async function that is called with the `trio_websocket.WebSocketRequest` that is
          about to be accepted. It returns headers (tuples of bytes) for the response, or None. It
          refuses by raising `trio_websocket.ConnectionRejected` with a status, headers and a
          body. Any other exception is logged, and refuses with 500.

    Raises:
      ValueError, TypeError: an argument is none of these.

    Attributes:
      transport_listener (trio.abc.Listener): as given.
    """

    def __init__(
        self,
        transport_listener: trio.abc.Listener[trio.abc.Stream],
        nursery: trio.Nursery,
        *,
        subprotocols: Iterable[str] = (),
        allowed_origins: Collection[str | None] | None = None,
        path: str | None = None,
        connect_timeout: float = 10.0,
        max_pending: int = 128,
        config: StreamConfig = StreamConfig(),
        accept: AcceptHook | None = None,
    ) -> None:
        check_several("subprotocols", subprotocols)
        check_several("allowed_origins", allowed_origins)
        if not isinstance(path, str | None):
            raise TypeError(f"path must be a str or None, not {path!r}")
        if path is not None and (not path.startswith("/") or "?" in path or "#" in path):
            raise ValueError(f"path must begin with / and have no query, not {path!r}")
        check_seconds("connect_timeout", connect_timeout)
        if operator.index(max_pending) < 1:
            raise ValueError(f"max_pending must be at least 1, not {max_pending!r}")
        check_config(config)
        self.transport_listener = transport_listener
        self._nursery = nursery
        self._subprotocols = tuple(subprotocols)
        self._allowed_origins = None if allowed_origins is None else frozenset(allowed_origins)
        self._path = path
        self._connect_timeout = connect_timeout
        self._max_pending = max_pending
        self._config = config
        self._hook = accept
        self._pending: dict[trio.CancelScope, None] = {}  # oldest first
        self._opened: collections.deque[WsByteStream] = collections.deque()
        self._is_closed = False
        self._is_accepting = False
        self._accepting = trio.CancelScope()  # of the transport listener's accept

    async def accept(self) -> WsByteStream:
        """Wait for a client that has finished its opening handshake. First come, first served.

        A client's opening handshake begins only while a task is in here.

        Raises:
          trio.ClosedResourceError: the listener is closed.
          trio.BusyResourceError: another task is in `accept`.
          OSError: from the transport's ``accept``. `trio.serve_listeners` knows what to do.

        Cancelled, it loses no client.
        """
        if self._is_accepting:
            raise trio.BusyResourceError("another task is accepting on this listener")
        self._is_accepting = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._opened:
                with trio.CancelScope() as self._accepting:
                    await self._begin(await self.transport_listener.accept())
            return self._opened.popleft()
        finally:
            self._is_accepting = False

    async def aclose(self) -> None:
        """Close ``transport_listener``, and drop every client that `accept` has not returned."""
        self._is_closed = True
        for scope in self._pending:
            scope.cancel()
        try:
            await self.transport_listener.aclose()
        finally:
            with trio.CancelScope(shield=True):  # that does not wait
                while self._opened:
                    await trio.aclose_forcefully(self._opened.popleft())

    async def _begin(self, transport: trio.abc.Stream) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + self._connect_timeout)
        try:
            self._nursery.start_soon(self._open, transport, scope)
        except RuntimeError:  # the nursery has ended
            await trio.aclose_forcefully(transport)
            raise
        self._pending[scope] = None
        if self._is_closed:  # while this one was accepted
            scope.cancel()
        if len(self._pending) > self._max_pending:
            oldest = next(iter(self._pending))
            oldest.cancel()
            del self._pending[oldest]

    async def _open(self, transport: trio.abc.Stream, scope: trio.CancelScope) -> None:
        """One client's opening handshake. Raises nothing but `trio.Cancelled`."""
        stream: WsByteStream | None = None
        try:
            try:
                with scope:
                    stream = await self._shake_hands(transport)
            finally:
                self._pending.pop(scope, None)
                if stream is None:
                    await trio.aclose_forcefully(transport)
        except (HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _logger.debug("an opening handshake failed: %r", error)
        except Exception:
            _logger.exception("an opening handshake failed")
        if stream is not None:
            self._opened.append(stream)
            self._accepting.cancel()

    async def _shake_hands(self, transport: trio.abc.Stream) -> WsByteStream | None:
        try:
            connection, request = await _handshake.accept(
                transport, self._judge, max_header_size=16384
            )
        except ConnectionRejected as rejection:
            _logger.debug("refused a client with %d", rejection.status_code)
            await _linger(transport)
            return None
        await trio.lowlevel.checkpoint_if_cancelled()  # meanwhile, and nobody would take it
        stream = WsByteStream(connection, self._nursery, self._config)
        stream.handshake_headers = tuple(request.headers)
        return stream

    async def _judge(
        self, request: WebSocketRequest
    ) -> tuple[str | None, list[tuple[bytes, bytes]]]:
        try:
            path = _path_of(request)
        except ValueError as error:
            raise ConnectionRejected(400, (), b"This is no path.\n") from error
        if self._path is not None and path != self._path:
            raise ConnectionRejected(404, (), b"There is no WebSocket here.\n")
        if self._allowed_origins is not None and not self._is_admitted(request):
            raise ConnectionRejected(403, (), b"This origin is not admitted.\n")
        headers: list[tuple[bytes, bytes]] = []
        if self._hook is not None:
            try:
                headers.extend(await self._hook(request) or ())
            except ConnectionRejected:
                raise
            except Exception as error:
                _logger.exception("the accept hook of a WsListener raised")
                raise ConnectionRejected(500, (), None) from error
        offered = request.proposed_subprotocols
        chosen = next((name for name in self._subprotocols if name in offered), None)
        return chosen, headers

    def _is_admitted(self, request: WebSocketRequest) -> bool:
        assert self._allowed_origins is not None
        origins = [value.decode("latin-1") for name, value in request.headers if name == b"origin"]
        if not origins:
            return None in self._allowed_origins
        return len(origins) == 1 and origins[0] in self._allowed_origins


def _path_of(request: WebSocketRequest) -> str:
    """Raises ValueError for a target that is no path and no URL (RFC 9112, 3.2)."""
    target = request.path
    if "#" in target:
        raise ValueError(f"{target!r} has a fragment")
    if target.startswith("/"):
        return target.partition("?")[0]
    url = urlsplit(target)  # is allowed, too (RFC 6455, 4.2.1)
    if url.scheme not in ("http", "https", "ws", "wss") or not url.hostname:
        raise ValueError(f"{target!r} is no URL of a WebSocket")
    return url.path or "/"


async def _linger(transport: trio.abc.Stream) -> None:
    """Let the response to a client that was refused arrive."""
    with trio.move_on_after(_LINGER):
        if isinstance(transport, trio.abc.HalfCloseableStream):
            await transport.send_eof()
        while await transport.receive_some(65536):
            pass
    await transport.aclose()


async def serve_ws(
    handler: Handler,
    host: str | bytes | None,
    port: int,
    ssl_context: ssl.SSLContext | None = None,
    *,
    subprotocols: Iterable[str] = (),
    allowed_origins: Collection[str | None] | None = None,
    path: str | None = None,
    connect_timeout: float = 10.0,
    max_pending: int = 128,
    config: StreamConfig = StreamConfig(),
    accept: AcceptHook | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[WsListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve ``handler`` over WebSockets on TCP, as `trio.serve_tcp` does over TCP.

    ``handler(stream)`` runs in a task for each client. When it returns, the stream is closed;
    when it raises an `Exception`, it is closed with 1011, and the exception goes on.

    Cancelled, it stops accepting, and drops the streams too, unless ``handler_nursery`` is
    another one's: their handlers and streams go on there.

    Args:
      handler: an async function that is called with a `WsByteStream`.
      host (str, bytes or None), port (int): as of `trio.serve_tcp`. None: all interfaces.
      ssl_context (ssl.SSLContext or None): to serve ``wss``; None: ``ws``.
      handler_nursery (trio.Nursery or None): for the handlers and streams.
      task_status: for ``nursery.start``, which gives the list of `WsListener`.

      The others: as of `WsListener`.
    """
    transport_listeners: list[trio.SocketListener] | list[trio.SSLListener[trio.SocketStream]]
    if ssl_context is None:
        transport_listeners = await trio.open_tcp_listeners(port, host=host)
    else:
        transport_listeners = await trio.open_ssl_over_tcp_listeners(
            port, ssl_context, host=host, https_compatible=True
        )

    async def handle(stream: WsByteStream) -> None:
        async with stream:
            await handler(stream)

    async with open_nursery() as nursery:
        if handler_nursery is None:
            handler_nursery = nursery
        try:
            listeners = [
                WsListener(
                    transport_listener,
                    handler_nursery,
                    subprotocols=subprotocols,
                    allowed_origins=allowed_origins,
                    path=path,
                    connect_timeout=connect_timeout,
                    max_pending=max_pending,
                    config=config,
                    accept=accept,
                )
                for transport_listener in transport_listeners
            ]
        except BaseException:
            for transport_listener in transport_listeners:
                await transport_listener.aclose()
            raise
        await trio.serve_listeners(
            handle, listeners, handler_nursery=handler_nursery, task_status=task_status
        )
