"""``trio-wsstream serve ADDRESS TARGET``: WebSockets to a TCP port or Unix socket.

The target is connected to before the client is answered, so that a client whose target is away is
told so by a status, and not by a WebSocket that ends.
"""

from __future__ import annotations

import argparse
import errno
import hmac
import ipaddress
import os
import socket
from contextvars import ContextVar
from functools import partial
from typing import Any

import trio
from trio_websocket import ConnectionRejected

from trio_wsstream import WsByteStream, WsListener, WsRequest, serve_ws

from . import addresses, life, log
from .addresses import Address
from .connections import Connection, Connections, Counters, describe
from .options import UsageError, read_tokens
from .tls import TlsListener, server_context

_UNIX = "unix"  # who comes through a Unix socket
_HANDSHAKE = 10.0  # seconds, besides those for connecting to the target


def run(options: argparse.Namespace) -> int:
    """Serve until signals end it.

    Returns:
      int: the exit code.

    Raises:
      UsageError: a file cannot be used, or everybody could connect and `--open` does not say so.
    """
    server_context(options)  # before anything is listened on
    if options.token_file is not None:
        read_tokens(options.token_file)
    return life.run(
        options.address, partial(Gateway, options), partial(_check, options), options.workers
    )


def _check(options: argparse.Namespace, sockets: list[socket.socket]) -> None:
    check_open(options, sockets)
    trio.run(_check_values, options, sockets[0])


async def _check_values(options: argparse.Namespace, sock: socket.socket) -> None:
    """Have the library say what is wrong, before anything is served."""
    async with trio.open_nursery() as nursery:
        try:
            WsListener(life.Listener(sock), nursery, **_settings(options))
        except ValueError as error:
            wrong: UsageError | None = UsageError(str(error))
        else:
            wrong = None
    if wrong is not None:
        raise wrong


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "subprotocols": options.subprotocol,
        "allowed_origins": [None, *options.origin],
        "connect_timeout": _HANDSHAKE + options.connect_timeout,
        "config": options.config,
    }


def check_open(options: argparse.Namespace, sockets: list[socket.socket]) -> None:
    """Refuse to be an open relay by mistake."""
    public = [addresses.name_of(sock) for sock in sockets if not addresses.is_local(sock)]
    if not public or options.token_file is not None or options.client_ca is not None:
        return
    if not options.open:
        raise UsageError(
            f"{public[0]} can be reached by other machines, and everybody would get to the target. "
            "Give --token-file or --client-ca to say who may, or --open if everybody may."
        )
    log.warn("open", f"--open: everybody who reaches {', '.join(public)} gets to the target")


def refusal(status: int, reason: str, *headers: tuple[bytes, bytes]) -> ConnectionRejected:
    text = ((b"Content-Type", b"text/plain; charset=utf-8"), *headers)
    return ConnectionRejected(status, text, f"{reason}\n".encode())


class Gateway(life.Server):
    """Answers clients, and carries them to their targets."""

    refuses_while_draining = True

    def __init__(self, options: argparse.Namespace, counters: Counters, worker: int | None) -> None:
        self.options: argparse.Namespace = options
        self.connections: Connections = Connections(options.max_connections, counters, worker)
        self.drain_timeout: float = options.drain_timeout
        self.answers_while_draining: bool = options.health is not None
        self._routes: dict[str, Address] = dict(options.route)
        self._tokens: dict[str, bytes] | None = None
        self._tls: list[TlsListener] = []
        self._is_unix = False  # It listens on a Unix socket.
        # What was refused in the task at hand: `_tell_refused` is called in the same one.
        self._refused: ContextVar[WsRequest | None] = ContextVar("refused", default=None)
        self._read_tokens()

    def _read_tokens(self) -> None:
        if self.options.token_file is not None:
            self._tokens = read_tokens(self.options.token_file)

    async def reload(self) -> None:
        """Read certificates and tokens again, for new connections; if one is wrong, none."""
        try:
            context = server_context(self.options)
            self._read_tokens()
        except UsageError as error:
            log.fail("reload", f"what was read before stays: {error}")
            return
        for listener in self._tls:
            assert context is not None
            listener.context = context
        log.tell("reload", "certificates and tokens have been read again")

    async def serve(
        self,
        listeners: list[life.Listener],
        handlers: trio.Nursery,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        options = self.options
        context = server_context(options)
        self._is_unix = listeners[0].socket.family == socket.AF_UNIX
        served: list[Any] = [*listeners]
        if context is not None:
            served = self._tls = [TlsListener(each, context) for each in listeners]
        await serve_ws(
            self._carry,
            listeners=served,
            **_settings(options),
            accept=self._admit,
            http=self._answer,
            on_refused=self._tell_refused,
            on_error=self._tell_error,
            handler_nursery=handlers,
            task_status=task_status,
        )

    # Before the answer

    async def _admit(self, request: WsRequest) -> None:
        """The ``accept=`` of `serve_ws`. Raises ConnectionRejected."""
        try:
            await self._let_in(request)
        except ConnectionRejected:
            self._refused.set(request)
            raise

    async def _let_in(self, request: WsRequest) -> None:
        if self.connections.is_draining:
            raise refusal(503, "this server is stopping", (b"Retry-After", b"1"))
        user = self._authenticate(request)
        path = request.path.partition("?")[0]
        target = self._target_of(path)
        if self.connections.is_full():
            limit = self.options.max_connections
            raise refusal(503, f"{limit} connections are open, and no more are allowed")
        connection = self.connections.begin("", str(target), path, user)
        request.state.connection = connection
        connection.local = await self._connect(target)

    def _authenticate(self, request: WsRequest) -> str:
        """The name of the client's token, if it needs one."""
        if self._tokens is None:
            return ""
        given = [value for name, value in request.headers if name.lower() == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        found = ""
        if scheme.lower() == b"bearer":
            for name, each in self._tokens.items():  # all of them, so that time tells nothing
                if hmac.compare_digest(each, token.strip()):
                    found = name
        if not found:
            reason = "this token is not known" if given else "a bearer token is needed"
            raise refusal(401, reason, (b"WWW-Authenticate", b"Bearer"))
        return found

    def _target_of(self, path: str) -> Address:
        target: Address | None = self._routes.get(path, self.options.target)
        if target is None:
            raise refusal(404, "there is nothing at this path")
        return target

    async def _connect(self, target: Address) -> trio.SocketStream:
        seconds = self.options.connect_timeout
        try:
            with trio.move_on_after(seconds):
                return await addresses.connect_to(target)
            raise refusal(504, f"the target did not answer within {seconds:g} s")
        except OSError as error:
            why = describe(error)
            if why == os.strerror(errno.ECONNREFUSED):
                why = "connection refused by the target"
            elif getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise refusal(503, f"{why} on the server") from None
            else:
                why = f"the target cannot be reached: {why}"
            raise refusal(502, why) from None

    async def _answer(
        self, method: str, path: str, _: Any
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """The ``http=`` of `serve_ws`: health checks."""
        health = self.options.health
        if health is None or path.partition("?")[0] != health or method not in ("GET", "HEAD"):
            return None
        headers = [(b"Content-Type", b"text/plain"), (b"Cache-Control", b"no-store")]
        if self.connections.is_draining:
            return 503, headers, b"draining\n"
        return 200, headers, b"ok\n"

    def _tell_refused(self, remote: object, status: int | None, reason: str) -> None:
        request = self._refused.get()
        client = self._who(remote)
        path = target = None
        if request is not None:
            client = self._client_of(remote, request.headers)
            path = request.path.partition("?")[0]
            target = self._routes.get(path, self.options.target)
        what = "no opening handshake"
        if status is not None:
            what = f"refused with {status}"
            phrase, _, text = reason.partition(": ")  # "502 Bad Gateway: connection refused ..."
            reason = text or phrase.removeprefix(f"{status} ")
        where = "" if path is None else f" {path}"
        if target is not None and status in (502, 504):
            where += f" to {target}"
        log.tell(
            "refused",
            f"{client}{where}: {what}: {reason}",
            client=client,
            path=path,
            target=None if target is None else str(target),
            status=status,
            reason=reason,
        )

    def _tell_error(self, stream: WsByteStream, error: Exception) -> None:
        log.fail("error", f"{self._who(stream.remote)}: {error!r}")

    # After it

    async def _carry(self, ws: WsByteStream) -> None:
        assert ws.state is not None
        connection: Connection = ws.state.connection
        connection.client = self._client_of(ws.remote, ws.handshake_headers)
        if not connection.user:
            connection.user = self._subject_of(ws)
        names = ("the client", "the target")
        local = connection.local
        await self.connections.carry(connection, ws, local, names=names, ws_first=True)

    def _client_of(self, remote: Any, headers: Any) -> str:
        """Its address; behind a proxy that is trusted, the one that this has forwarded."""
        address = self._who(remote)
        trusted = self.options.trust_forwarded
        if not trusted:
            return address
        forwarded = forwarded_for(headers)
        hop = str(getattr(remote, "address", address))
        client = ""
        while forwarded and _is_trusted(hop, trusted):
            client = hop = forwarded.pop()
        return f"{client} through {address}" if client else address

    def _who(self, remote: Any) -> str:
        """A client's address. A socket that has been reset has none any more."""
        if not hasattr(remote, "address"):
            return _UNIX if self._is_unix else "a client that has left"
        host = str(remote.address)
        return f"[{host}]:{remote.port}" if ":" in host else f"{host}:{remote.port}"

    def _subject_of(self, ws: WsByteStream) -> str:
        if self.options.client_ca is None:
            return ""
        return next(filter(None, (each.subject_of(ws.remote) for each in self._tls)), "")


def forwarded_for(headers: Any) -> list[str]:
    """The addresses that proxies have written, the nearest last: ``X-Forwarded-For``."""
    values = [value for name, value in headers if name.lower() == b"x-forwarded-for"]
    hops = b",".join(values).decode("latin-1").split(",")
    return [hop for hop in map(_address, hops) if hop]


def _address(text: str) -> str:
    """An IP address, without the port that some proxies write; empty if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _is_trusted(hop: str, trusted: list[Any]) -> bool:
    if hop == _UNIX:
        return None in trusted
    try:
        address = ipaddress.ip_address(hop.partition("%")[0])
    except ValueError:  # It has left.
        return False
    return any(network is not None and address in network for network in trusted)
