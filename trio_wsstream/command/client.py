"""What `connect`, `listen` and `check` share: opening a WebSocket, and saying why that failed."""

from __future__ import annotations

import argparse
from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionRejected, ConnectionTimeout, HandshakeError

from trio_wsstream import ProxyRejected, WsByteStream, open_ws_stream

from . import log
from .addresses import is_loopback
from .connections import describe
from .options import TOKEN_VARIABLE, UsageError

CANNOT_OPEN = (HandshakeError, ValueError, OSError, ImportError)
"""What `open_stream` raises if there is no connection."""


def shown(url: str) -> str:
    """A URL without its query, which may hold a secret."""
    return url.partition("?")[0]


def prepare(options: argparse.Namespace) -> None:
    """Make the TLS context, and warn of what an operator should not overlook.

    Raises:
      UsageError: a file cannot be used.
    """
    options.tls = None
    if options.url.startswith("wss:"):
        from .tls import client_context

        options.tls = client_context(options)
    if options.insecure:
        log.warn("insecure", "--insecure: any certificate is accepted, so anybody can listen in")
    if options.has_token and options.tls is None and not is_loopback(_host(options.url)):
        log.warn("insecure", "the token is sent without encryption; wss:// would encrypt it")


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def open_stream(
    options: argparse.Namespace, *, url: str | None = None, **more: Any
) -> AbstractAsyncContextManager[WsByteStream]:
    """`open_ws_stream` with the options.

    Args:
      url: another one than that of the options, to open without TLS.
    """
    return open_ws_stream(
        url or options.url,
        options.tls if url is None else None,
        subprotocols=options.subprotocol,
        extra_headers=options.headers,
        connect_timeout=options.connect_timeout,
        config=options.config,
        **(more or {"proxy": options.proxy}),
    )


async def check_values(options: argparse.Namespace) -> None:
    """Have the library say what is wrong, before anything is connected to.

    Raises:
      UsageError: a value cannot be used.
    """
    wrong: Exception | None = None
    with trio.CancelScope() as scope:
        scope.cancel()  # so that it ends before it connects
        try:
            async with open_stream(options):
                pass
        except (ValueError, ImportError) as error:
            wrong = error
    if wrong is not None:
        raise UsageError(str(wrong))


def why_not(options: argparse.Namespace, error: Exception) -> str:
    """Why there is no connection, in one line, and what to do if that is known."""
    text = why(options, error)
    advice = advise(options, error)
    return f"{text}; {advice}" if advice and "use ws" not in text else text


def why(options: argparse.Namespace, error: Exception) -> str:
    """Why there is no connection, in one line."""
    if isinstance(error, ConnectionRejected):
        body = (error.body or b"").decode("utf-8", "replace").strip()
        is_text = bool(body) and not body.startswith("<")
        said = f": {body.splitlines()[0][:200]}" if is_text else ""
        if 300 <= error.status_code < 400:
            return f"the server answered {error}"  # with the Location
        return f"the server answered {error.status_code}{said}"
    if isinstance(error, ConnectionTimeout):
        return f"{error} (--connect-timeout)"
    return str(error) or repr(error)


def is_proxys(error: BaseException) -> bool:
    """Whether it is about the proxy, which is then named in it, and not about the server."""
    what = str(error).partition(": ")[0]
    return isinstance(error, HandshakeError) and " the proxy " in f" {what}"


def advise(options: argparse.Namespace, error: BaseException) -> str:
    """What to do about it; empty if that is not known."""
    if isinstance(error, ConnectionRejected):
        return _advise_for_status(options, error.status_code)
    if isinstance(error, ProxyRejected):
        return _ADVICE_FOR_PROXY.get(error.status or 0, "")
    reason = describe(error).lower()
    if is_proxys(error):
        if "certificate" in reason:
            return "the system must trust its authority, or SSL_CERT_FILE name it; --ca does not"
        where = "the environment (https_proxy ...)" if options.proxy == "env" else "--proxy"
        return f"is the proxy in {where} the right one? --proxy none uses none"
    for words, advice in _ADVICE.items():
        if words in reason:
            return advice
    if isinstance(error, ConnectionTimeout):
        return _ADVICE["timed out"]
    if options.tls is not None and "without a response" in reason:  # TLS 1.3 tells it so late
        if options.cert is None:
            return _ADVICE["handshake failure"]
        return "it may not accept the certificate in --cert"
    return ""


_ADVICE: Final = {
    "connection refused": "nothing listens there: is the server running, and is the port right?",
    "not known": "is the name right, and does this machine have a DNS server?",
    "name resolution": "is the name right, and does this machine have a DNS server?",
    "timed out": "is a firewall between, or is a proxy needed? --proxy",
    "unreachable": "is a firewall between, or is a proxy needed? --proxy",
    "mismatch, certificate": "the URL, or --server-name, must have the name in the certificate",
    "not yet valid": "are the clocks of both machines right?",
    "has expired": "its operator must renew the certificate",
    "certificate verify failed": "if it is your own authority's, trust that with --ca FILE",
    "wrong version number": "it does not speak TLS there: is it ws:// and not wss://?",
    "record layer failure": "it does not speak TLS there: is it ws:// and not wss://?",
    "too many open files": "see ulimit -n, or LimitNOFILE= of systemd",
    "certificate required": "it wants a client certificate: --cert and --key",
    "handshake failure": "it may want a client certificate: --cert and --key",
}


_PROXY_CANNOT: Final = "the proxy cannot reach the server: is the URL right?"
_ADVICE_FOR_PROXY: Final = {
    403: "many proxies allow port 443 only: can the server listen there?",
    **dict.fromkeys((500, 502, 503, 504), _PROXY_CANNOT),
}


def _advise_for_status(options: argparse.Namespace, status: int) -> str:
    if 300 <= status < 400:
        return "it sends clients elsewhere: is the URL right?"
    if status == 401 and options.has_token:
        return f"is the one in --token-file, or in {TOKEN_VARIABLE}, the right one?"
    if status == 400 and options.url.startswith("ws:"):
        return "does it speak TLS? Then the URL begins with wss://"
    advice = {
        200: "the path of the URL serves no WebSocket",
        401: "does it need a token? --token-file",
        403: "does it admit only some origins? --origin",
        404: "the path of the URL is not one that it serves",
        426: "it speaks another version of the WebSocket protocol",
        **dict.fromkeys((502, 504), "does what is behind the server run?"),
    }
    return advice.get(status, "")
