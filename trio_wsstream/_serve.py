"""Servers: `WsListener`, whose streams have finished the opening handshake, and `serve_ws`.

Theory of operation. `WsListener.accept` accepts transports and starts a task for the opening
handshake of each of them (`_pending`). A task whose handshake succeeds appends its stream to
`_opened` and wakes `accept`, which returns the stream. While no task is in `accept`, no transport
is accepted either, as with TCP. So there is a bound on everything that the listener holds.

For `serve_ws`, the task of the handshake goes on with the handler (`_handler`), and `accept` never
returns. A task for the handler, and waking `accept` for each stream, would take a seventh of a
connection's time.

*A burst of clients must only slow the server down, and silent clients must not keep others out.* So
while `max_pending` handshakes are under way, further clients wait in the kernel's backlog. The
oldest handshake is dropped for one of them, but only after it has had a fair time (`_patience`).
That is two seconds, or twice the time that handshakes take at present if that is longer. A server
that is short of processor time, or whose clients are far away, therefore waits longer and does not
drop clients that are almost done. A client that sends nothing is dropped after two seconds.

*A refused client* gets an HTTP response. Then this side of the transport is closed, and for a
moment the listener drops what the client still sends. Without that, the kernel would send a reset,
which may overtake the response. No exception of a handshake leaves the task of that handshake.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from http import HTTPStatus  # noqa: F401  # Refusals need it, also when no descriptor is left.
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import attrs
import trio
from trio_websocket import ConnectionRejected, Endpoint, HandshakeError

from . import _handshake
from ._checks import (
    call,
    check_function,
    check_integer,
    check_nursery,
    check_seconds,
    check_server_ssl_context,
    check_several,
    check_trio,
)
from ._config import StreamConfig, check_config
from ._connecting import why_failed
from ._handshake import HttpAnswered, HttpHook, WsRequest, check_subprotocols
from ._http import Headers, reason_of, refusal
from ._open import open_nursery
from ._stream import WsByteStream, is_end_of
from ._transport import Endpoints

AcceptHook = Callable[[WsRequest], Awaitable[Iterable[tuple[bytes, bytes]] | None]]
RefusedHook = Callable[[Endpoint | str, int | None, str], object]
Handler = Callable[[WsByteStream], Awaitable[object]]
ErrorHook = Callable[[WsByteStream, Exception], object]

_LINGER: Final = 2.0  # seconds that a refused client has to read the response and to hang up
_FAIR_TIME: Final = 2.0  # seconds that an opening handshake has, however many clients wait
_MAX_PENDING: Final = 1024
_MAX_HEADER_SIZE: Final = 16384  # bytes
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_logger = logging.getLogger(__name__)


@attrs.define(eq=False)
class _Pending:
    """An opening handshake that is under way.

    Attributes:
      remote (Endpoint or str): the client's address.
      began_at (float): when the handshake began, by Trio's clock.
      scope (trio.CancelScope): the scope that the handshake runs in.
      why (str): the reason why the handshake was dropped, if the scope is cancelled.
      has_answer (bool): whether a response was sent.
      path (str or None): the path of the request, without the query, once it is known.
      origin (str or None): the Origin header of the request, once it is known.
    """

    endpoints: Endpoints
    began_at: float
    scope: trio.CancelScope
    why: str
    has_answer: bool = False
    path: str | None = None
    origin: str | None = None

    def drop(self, why: str) -> None:
        """Cancel the handshake. The log and ``on_refused`` will say ``why``."""
        self.why = why
        self.scope.cancel()

    def note_request(self, target: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the parts of a request that the log may show.

        These are the path without the query and the Origin header. The rest may hold secrets.
        """
        with contextlib.suppress(ValueError):
            self.path = _path_of(target)
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        self.origin = ", ".join(origins) or None

    def __str__(self) -> str:
        said = "" if self.path is None else f", path {self.path!r}, origin {self.origin!r}"
        return f"{self.endpoints.remote}{said}"


class WsListener(trio.abc.Listener[WsByteStream]):
    """A `trio.abc.Listener` of `WsByteStream`, over a listener of any transport.

    The transport may be TCP, TLS or a Unix socket, for example. With this class,
    `trio.serve_listeners` serves a handler that was written for Trio streams over WebSockets. Trio
    drops the stream when a handler returns, and does not tell the peer. A handler that wants to
    close the stream properly does its work in ``async with stream:``, as over TLS.

    Opening handshakes run concurrently. A client that is silent or slow, or that is no WebSocket
    client, does not delay other clients and never makes `accept` raise an exception. A client that
    is refused gets an HTTP response. Its status is 400 if the request is no opening handshake
    (RFC 6455, 4.2.1), 426 for another version of the protocol, 403 for a wrong origin, 404 for a
    wrong path, 431 for headers that are too long, or the status that ``accept`` has chosen.

    Args:
      transport_listener (trio.abc.Listener): accepts the transports.
      nursery (trio.Nursery): runs the opening handshakes and the tasks of the streams. Cancelling
          it drops all of them.
      subprotocols (iterable of str): the subprotocols of the server, best first. The first one that
          the client offers is chosen. If the client offers none of them, the connection has no
          subprotocol (RFC 6455, 4.2.2).
      allowed_origins (iterable of str or None): the values of the Origin header that are admitted,
          written as browsers send them (RFC 6454, 6.2: ``"https://example.com"``). If None is among
          them, clients without an Origin header are admitted; these are no browsers. If
          ``allowed_origins`` itself is None, every client is admitted. Then any web page can make
          the browsers of its visitors connect to this server with their cookies (cross-site
          WebSocket hijacking; RFC 6455, 10.2).
      path (str or None): the only path that is served, percent-encoded. None: every path is. The
          query of a request is not compared.
      connect_timeout (float): seconds that an opening handshake may take, with TLS.
      max_pending (int): how many opening handshakes may be under way. While there are so many,
          further clients wait in the kernel's backlog. The oldest handshake is dropped for one of
          them once it has taken 2 seconds and twice as long as others take at present.
      max_header_size (int): bytes. A request with a longer head is refused with 431 (RFC 6585, 5).
      config (StreamConfig): the settings of the streams.
      accept (async function or None): called with the `WsRequest`, a kind of
          `trio_websocket.WebSocketRequest`, that is about to be accepted. It returns headers
          (tuples of bytes) for the response, or None. To refuse the client, it raises
          `trio_websocket.ConnectionRejected` with a status, headers and a body. Any other exception
          is logged, and the client is refused with 500. What it stores in ``request.state`` becomes
          ``stream.state``.
      http (async function or None): called with the method, the path (with the query) and the
          headers of a request that is no opening handshake, such as a load balancer's health check.
          It returns the status, headers and body of the response, or None to refuse the request
          as usual.
      on_refused (function or None): called with ``(remote, status, reason)`` for each client that
          was refused or whose opening handshake failed. ``remote`` is the client's address as in
          ``stream.remote``, ``status`` is the status of the response or None if there was none, and
          ``reason`` tells why in words. It is no async function. Exceptions that it raises are
          logged and have no other effect.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument has a value that is not allowed. An origin or a path that no client
          can send is not allowed either.

    Attributes:
      transport_listener (trio.abc.Listener): as given.
      addresses (tuple): the ``getsockname()`` of the listening socket, under TLS or not. For TCP
          this is ``(host, port)``, with two more items for IPv6. It is empty if there is no socket.
    """

    def __init__(
        self,
        transport_listener: trio.abc.Listener[trio.abc.Stream],
        nursery: trio.Nursery,
        *,
        subprotocols: Iterable[str] = (),
        allowed_origins: Iterable[str | None] | None = None,
        path: str | None = None,
        connect_timeout: float = 10.0,
        max_pending: int = _MAX_PENDING,
        max_header_size: int = _MAX_HEADER_SIZE,
        config: StreamConfig = StreamConfig(),
        accept: AcceptHook | None = None,
        http: HttpHook | None = None,
        on_refused: RefusedHook | None = None,
    ) -> None:
        _check_listener("transport_listener", transport_listener)
        check_nursery("nursery", nursery)
        check_seconds("connect_timeout", connect_timeout)
        check_config(config)
        self.transport_listener = transport_listener
        self.addresses: tuple[Any, ...] = _addresses(transport_listener)
        self._nursery = nursery
        check_several("subprotocols", subprotocols)
        self._subprotocols = tuple(subprotocols)
        check_subprotocols(self._subprotocols)
        self._allowed_origins = _checked_origins(allowed_origins)
        self._path = _checked_path(path)
        self._connect_timeout = connect_timeout
        self._max_pending = _checked_count("max_pending", max_pending)
        self._max_header_size = _checked_count("max_header_size", max_header_size)
        self._config = config
        if accept is not None:
            check_function("accept", accept, is_async=True)
        if http is not None:
            check_function("http", http, is_async=True)
        if on_refused is not None:
            check_function("on_refused", on_refused)
        self._hook, self._http, self._on_refused = accept, http, on_refused
        self._handler: Handler | None = None
        self._pending: dict[_Pending, None] = {}  # oldest first
        self._took: collections.deque[float] = collections.deque(maxlen=15)  # seconds
        self._opened: collections.deque[WsByteStream] = collections.deque()
        self._is_closed = False
        self._is_accepting = False
        self._accepting = trio.CancelScope()  # Cancelling it wakes a task in `accept`.

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.addresses)) or repr(self.transport_listener)
        state = "closed" if self._is_closed else f"{len(self._pending)} opening"
        return f"<trio_wsstream.WsListener on {where}: {state}>"

    @property
    def port(self) -> int:
        """The TCP port that is listened on: the one that was asked for or that the kernel chose.

        Raises:
          RuntimeError: the listener has no TCP socket.
        """
        for address in self.addresses:
            if isinstance(address, tuple) and isinstance(address[0], str):
                return int(address[1])
        raise RuntimeError(f"this listener does not listen on TCP, so it has no port: {self!r}")

    async def accept(self) -> WsByteStream:
        """Wait for a client that has finished its opening handshake, and return its stream.

        The streams are returned in the order in which their handshakes finish. The handshake of a
        client begins only while a task is in this method. If it is cancelled, no client is lost.

        Raises:
          trio.ClosedResourceError: the listener is closed.
          trio.BusyResourceError: another task is in `accept`.
          OSError: from the ``accept`` of the transport listener. `trio.serve_listeners` handles it.
        """
        check_trio()
        if self._is_accepting:
            raise trio.BusyResourceError("another task is accepting on this listener")
        self._is_accepting = True
        try:
            await trio.lowlevel.checkpoint()
            while not self._opened:
                with trio.CancelScope() as self._accepting:
                    if self._is_full():
                        await self._wait_for_room()
                    transport = await self._accept_transport()
                    if self._is_full():
                        self._drop_for_others(self._oldest())
                    await self._begin(transport)
                    del transport  # or it would be kept until the next client comes
            return self._opened.popleft()
        finally:
            self._is_accepting = False

    async def aclose(self) -> None:
        """Close ``transport_listener``, and drop the clients that `accept` has not returned."""
        self._is_closed = True
        for pending in self._pending:
            pending.drop("the listener was closed")
        try:
            await self.transport_listener.aclose()
        finally:
            with trio.CancelScope(shield=True):  # Closing forcefully does not wait.
                while self._opened:
                    await trio.aclose_forcefully(self._opened.popleft())

    async def _accept_transport(self) -> trio.abc.Stream:
        try:
            return await self.transport_listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:  # as if max_pending were reached
                overdue_since = trio.current_time() - self._patience()
                for pending in list(self._pending):
                    if pending.began_at <= overdue_since:
                        self._drop_for_others(pending)
            raise

    def _is_full(self) -> bool:
        return len(self._pending) >= self._max_pending

    def _oldest(self) -> _Pending:
        return next(iter(self._pending))

    async def _wait_for_room(self) -> None:
        """Wait until the oldest handshake has had a fair time and may be dropped for a new client.

        If a handshake ends before that, this wait is cancelled, and `accept` checks for room again.
        """
        await trio.sleep_until(self._oldest().began_at + self._patience())
        # If the event loop was held up, the handshake may have ended in the meantime. Its task runs
        # during these checkpoints.
        for _ in range(2):
            await trio.lowlevel.checkpoint()

    def _patience(self) -> float:
        """Return how many seconds a handshake may take while other clients wait for its place."""
        usual = sorted(self._took)[len(self._took) // 2] if self._took else 0.0
        return max(_FAIR_TIME, 2 * usual)

    def _drop_for_others(self, pending: _Pending) -> None:
        del self._pending[pending]
        pending.drop("the opening handshake took too long, and others were waiting")

    async def _begin(self, transport: trio.abc.Stream) -> None:
        now = trio.current_time()
        pending = _Pending(
            endpoints=Endpoints(transport, client=False),
            began_at=now,
            scope=trio.CancelScope(deadline=now + self._connect_timeout),
            why=f"the opening handshake took more than {self._connect_timeout} seconds",
        )
        try:
            self._nursery.start_soon(self._serve_one, transport, pending)
        except RuntimeError:  # The nursery has ended.
            await trio.aclose_forcefully(transport)
            raise
        self._pending[pending] = None
        if self._is_closed:  # aclose was called while this transport was accepted.
            pending.drop("the listener was closed")

    async def _serve_one(self, transport: trio.abc.Stream, pending: _Pending) -> None:
        stream = await self._open(transport, pending)
        del transport, pending  # or they would live as long as the stream
        if stream is None:
            return
        if self._handler is not None:
            await self._handler(stream)
        else:
            self._opened.append(stream)
            self._accepting.cancel()

    async def _open(self, transport: trio.abc.Stream, pending: _Pending) -> WsByteStream | None:
        """Do one client's opening handshake. No exception but `trio.Cancelled` leaves this."""
        stream: WsByteStream | None = None
        try:
            try:
                with pending.scope:
                    stream = await self._shake_hands(transport, pending)
            finally:
                self._pending.pop(pending, None)
                if stream is None:
                    await trio.aclose_forcefully(transport)
        except (HandshakeError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if not pending.has_answer:  # else that has been told, or was no refusal
                is_told = str(error) or error.__cause__ is not None
                why = why_failed(error) if is_told else "the client broke the connection"
                self._tell_refused(pending, None, why)
        except Exception as error:
            _logger.exception("an opening handshake failed")
            self._tell_refused(pending, None, f"the server failed: {type(error).__name__}")
        if stream is None and pending.scope.cancelled_caught and not pending.has_answer:
            self._tell_refused(pending, None, pending.why)
        if len(self._pending) == self._max_pending - 1:
            self._accepting.cancel()  # It may be waiting for room.
        return stream

    async def _shake_hands(
        self, transport: trio.abc.Stream, pending: _Pending
    ) -> WsByteStream | None:
        if isinstance(transport, trio.SSLStream):
            await transport.do_handshake()
            _handshake.check_alpn(transport)
        try:
            connection, request = await _handshake.accept(
                transport,
                partial(self._judge, pending),
                max_header_size=self._max_header_size,
                http=partial(self._answer, pending),
            )
        except ConnectionRejected as rejection:
            self._note_answer(pending)
            if not isinstance(rejection, HttpAnswered):
                self._tell_refused(pending, rejection.status_code, reason_of(rejection))
            await _lingering_close(transport)
            return None
        self._note_answer(pending)
        # The timeout may have expired; then nobody would own the stream.
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = WsByteStream(connection, self._nursery, self._config)
        stream.state = request.state
        _logger.debug("%s: opened for %s", connection, pending)
        return stream

    def _note_answer(self, pending: _Pending) -> None:
        pending.has_answer = True
        self._took.append(trio.current_time() - pending.began_at)

    def _tell_refused(self, pending: _Pending, status: int | None, reason: str) -> None:
        _logger.debug("refused %s: %s (%s)", pending, status or "no response", reason)
        if self._on_refused is not None:
            try:
                self._on_refused(pending.endpoints.remote, status, reason)
            except Exception:
                _logger.exception("on_refused of a WsListener raised")

    async def _answer(
        self, pending: _Pending, method: str, path: str, headers: Headers
    ) -> tuple[int, Iterable[tuple[bytes, bytes]], bytes] | None:
        pending.note_request(path, headers)
        if self._http is None:
            return None
        return await call("http", self._http, method, path, headers)

    async def _judge(
        self, pending: _Pending, request: WsRequest
    ) -> tuple[str | None, Iterable[tuple[bytes, bytes]]]:
        pending.note_request(request.path, request.headers)
        try:
            path = _path_of(request.path)
        except ValueError as error:
            raise refusal(400, "The target of the request is no path.") from error
        if self._path is not None and path != self._path:
            raise refusal(404, "There is no WebSocket at this path.")
        if self._allowed_origins is not None and not self._is_admitted(request):
            raise refusal(403, "This origin is not admitted.")
        headers = None if self._hook is None else await call("accept", self._hook, request)
        offered = request.proposed_subprotocols
        chosen = next((name for name in self._subprotocols if name in offered), None)
        return chosen, headers or ()

    def _is_admitted(self, request: WsRequest) -> bool:
        assert self._allowed_origins is not None
        origins = [value.decode("latin-1") for name, value in request.headers if name == b"origin"]
        if not origins:
            return None in self._allowed_origins
        return len(origins) == 1 and origins[0] in self._allowed_origins


def _path_of(target: str) -> str:
    """Return the path of a request's target, without its query (RFC 9112, 3.2).

    Raises:
      ValueError: the target is neither a path nor the URL of a WebSocket.
    """
    if "#" in target:
        raise ValueError("the target has a fragment")
    if target.startswith("/"):
        return target.partition("?")[0]
    url = urlsplit(target)  # A whole URL is allowed too (RFC 6455, 4.2.1).
    if url.scheme not in ("http", "https", "ws", "wss") or not url.hostname:
        raise ValueError("the target is no URL of a WebSocket")
    return url.path or "/"


async def _lingering_close(transport: trio.abc.Stream) -> None:
    """Close the transport of a refused client so that the response arrives.

    Closing it while bytes are unread would reset TCP, and the client might lose the response.
    """
    with trio.move_on_after(_LINGER):
        if isinstance(transport, trio.abc.HalfCloseableStream):
            await transport.send_eof()
        while await transport.receive_some(65536):
            pass
    await transport.aclose()


def _addresses(listener: Any) -> tuple[Any, ...]:
    """Return the address of a listener's socket in a tuple, also under TLS, or an empty tuple."""
    while not hasattr(listener, "socket") and hasattr(listener, "transport_listener"):
        listener = listener.transport_listener
    sock = getattr(listener, "socket", None)
    return () if sock is None else (sock.getsockname(),)


def _checked_count(name: str, value: int) -> int:
    if check_integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1, not {value!r}")
    return value


_ORIGIN: Final = re.compile(
    r"null|file://|[a-z][a-z0-9+.-]*://(?:[^]/?#@\s:A-Z*[]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def _checked_origins(origins: Iterable[str | None] | None) -> frozenset[str | None] | None:
    if origins is None:
        return None
    check_several("allowed_origins", origins)
    checked = frozenset(origins)
    for origin in checked:
        if origin is not None:
            _check_origin(origin)
    return checked


def _check_origin(origin: str) -> None:
    """Raise an error for an origin that no client would send (RFC 6454, 6.2).

    Clients write origins in one form only. An origin in another form would never match.
    """
    if not isinstance(origin, str):
        raise TypeError(f"allowed_origins must be strings or None, not {origin!r}")
    scheme = origin.partition(":")[0]
    if origin == "*":
        hint = "; to admit every origin, leave allowed_origins out"
    elif not origin.isascii():
        hint = "; write the host as browsers send it, in ASCII (xn--...)"
    elif origin.endswith(_DEFAULT_PORTS.get(scheme, "\n")):
        hint = f"; browsers leave out the port that is the default of {scheme}"
    elif (match := _ORIGIN.fullmatch(origin)) is None:
        hint = ", all in small letters, with no path and no slash at the end"
    elif int(match[1] or 0) > 65535:
        hint = "; a port is at most 65535"
    else:
        return
    raise ValueError(
        f"allowed_origins must be like 'https://example.com' or 'http://localhost:8000', "
        f"not {origin!r}, which no client sends{hint}"
    )


def _checked_path(path: str | None) -> str | None:
    if not isinstance(path, str | None):
        raise TypeError(f"path must be a str or None, not {path!r}")
    if path is not None and (not path.startswith("/") or "?" in path or "#" in path):
        raise ValueError(f"path must begin with / and have no query, not {path!r}")
    if path is not None and not re.fullmatch("[!-~]*", path):
        raise ValueError(
            f"path must be percent-encoded as in a request, not {path!r}; "
            f"urllib.parse.quote does that"
        )
    return path


async def serve_ws(
    handler: Handler,
    host: str | bytes | None = None,
    port: int | None = None,
    ssl_context: ssl.SSLContext | None = None,
    *,
    listeners: Iterable[trio.abc.Listener[trio.abc.Stream]] | None = None,
    subprotocols: Iterable[str] = (),
    allowed_origins: Iterable[str | None] | None = None,
    path: str | None = None,
    connect_timeout: float = 10.0,
    max_pending: int = _MAX_PENDING,
    max_header_size: int = _MAX_HEADER_SIZE,
    config: StreamConfig = StreamConfig(),
    accept: AcceptHook | None = None,
    http: HttpHook | None = None,
    on_refused: RefusedHook | None = None,
    on_error: ErrorHook | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[WsListener]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve ``handler`` over WebSockets on TCP, as `trio.serve_tcp` does over TCP.

    ``handler(stream)`` runs in a task for each client. When it returns, the stream is closed with
    1000. When it raises an `Exception`, the stream is closed with 1011.

    An exception of the handler is treated in one of two ways. If it is a
    `trio.BrokenResourceError` that this stream has raised, the client or the network has ended the
    stream. Then the exception is logged at INFO and has no other effect, so that handlers need not
    catch what their own clients do. Any other exception is passed to ``on_error``. Without
    ``on_error`` it ends the server, as in `trio.serve_tcp`, because unexpected errors should not
    pass silently.

    If it is cancelled, it stops accepting and drops the streams. But if ``handler_nursery`` is
    given, the handlers and their streams continue in that nursery.

    Args:
      handler (async function): called with the `WsByteStream` of each client.
      host (str, bytes or None): the interface, as in `trio.serve_tcp`. None: all interfaces.
      port (int): the TCP port. 0: the kernel chooses a free one.
      ssl_context (ssl.SSLContext or None): TLS settings for ``wss://``. None: ``ws://``.
      listeners (iterable of trio.abc.Listener): what to serve on, in place of host and port:
          sockets that systemd or a parent process has opened, Unix sockets, or memory. They are
          closed when `serve_ws` ends. With ``ssl_context``, TLS is put on each of them.
      on_error (function or None): called with ``(stream, exception)`` after the handler of a stream
          has raised an exception and the stream has been closed. It is no async function. An
          exception that it raises itself ends the server. The exception that it is called with has
          its traceback: ``logger.error("...", exc_info=exception)``.
      handler_nursery (trio.Nursery or None): runs the handlers and the tasks of the streams.
      task_status: for ``nursery.start``, which then returns the list of `WsListener`.

    The other arguments are those of `WsListener`.

    Raises:
      OSError: it is not possible to listen on host and port.
      TypeError: an argument has the wrong type.
      ValueError: an argument has a value that is not allowed.
    """
    check_trio()
    check_function("handler", handler, is_async=True)
    if on_error is not None:
        check_function("on_error", on_error)
    if handler_nursery is not None:
        check_nursery("handler_nursery", handler_nursery)
    check_server_ssl_context(ssl_context)
    check_several("subprotocols", subprotocols)
    if allowed_origins is not None:
        check_several("allowed_origins", allowed_origins)
    options: dict[str, Any] = {
        "subprotocols": tuple(subprotocols),  # An iterator can be read only once.
        "allowed_origins": None if allowed_origins is None else tuple(allowed_origins),
        "path": path,
        "connect_timeout": connect_timeout,
        "max_pending": max_pending,
        "max_header_size": max_header_size,
        "config": config,
        "accept": accept,
        "http": http,
        "on_refused": on_refused,
    }
    transport_listeners = await _open_listeners(host, port, ssl_context, listeners)

    async def handle(stream: WsByteStream) -> None:
        try:
            async with stream:
                await call("handler", handler, stream)
        except Exception as error:
            if is_end_of(stream, error):
                has_traceback = _logger.isEnabledFor(logging.DEBUG)
                why = why_failed(error)
                _logger.info("%r ended its handler: %s", stream, why, exc_info=has_traceback)
            elif on_error is not None:
                on_error(stream, error)
            else:
                raise

    async with open_nursery() as nursery:
        if handler_nursery is None:
            handler_nursery = nursery
        try:
            ws_listeners = [
                WsListener(transport_listener, handler_nursery, **options)
                for transport_listener in transport_listeners
            ]
        except BaseException:
            for transport_listener in transport_listeners:
                await transport_listener.aclose()
            raise
        for ws_listener in ws_listeners:
            ws_listener._handler = handle
        await trio.serve_listeners(  # It never calls the handler, because `accept` never returns.
            handle, ws_listeners, handler_nursery=handler_nursery, task_status=task_status
        )


async def _open_listeners(
    host: str | bytes | None,
    port: int | None,
    ssl_context: ssl.SSLContext | None,
    listeners: Iterable[trio.abc.Listener[trio.abc.Stream]] | None,
) -> list[trio.abc.Listener[trio.abc.Stream]]:
    if listeners is not None:
        if host is not None or port is not None:
            raise TypeError("serve_ws takes either host and port or listeners, not both")
        opened = _checked_listeners(listeners, is_secure=ssl_context is not None)
    elif port is None:
        raise TypeError("serve_ws needs a port (0: any free one), or listeners=[...]")
    else:
        _check_address(host, port)
        opened = [*await trio.open_tcp_listeners(port, host=host)]
    if ssl_context is None:
        return opened
    return [trio.SSLListener(each, ssl_context, https_compatible=True) for each in opened]


def _checked_listeners(
    listeners: Iterable[trio.abc.Listener[trio.abc.Stream]], *, is_secure: bool
) -> list[trio.abc.Listener[trio.abc.Stream]]:
    if isinstance(listeners, trio.abc.Listener):
        raise TypeError(
            f"listeners must be an iterable, not the single {listeners!r}: use [listener]"
        )
    if not isinstance(listeners, Iterable):
        raise TypeError(f"listeners must be an iterable of trio.abc.Listeners, not {listeners!r}")
    checked = list(listeners)
    if not checked:
        raise ValueError("listeners must not be empty: there would be nothing to serve on")
    for listener in checked:
        _check_listener("each of listeners", listener)
        if is_secure and isinstance(listener, trio.SSLListener):
            raise ValueError(f"ssl_context must be None where a listener has TLS: {listener!r}")
    return checked


def _check_listener(name: str, listener: object) -> None:
    if isinstance(listener, WsListener):
        raise TypeError(f"{name} must be a listener of transports, not {listener!r}")
    if not isinstance(listener, trio.abc.Listener):
        raise TypeError(
            f"{name} must be a trio.abc.Listener, not {listener!r}; a listening socket becomes one "
            "by trio.SocketListener(trio.socket.from_stdlib_socket(sock))"
        )


def _check_address(host: object, port: int) -> None:
    if not isinstance(host, str | bytes | None):
        raise TypeError(f"host must be a str, bytes or None, not {host!r}")
    if not 0 <= check_integer("port", port) <= 65535:
        raise ValueError(f"port must be from 0 to 65535 (0: any free one), not {port!r}")
