"""Opening TCP and TLS as a client, to a server or to a proxy, and saying in words why it failed."""

from __future__ import annotations

import functools
import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

import trio
from trio_websocket import HandshakeError

_PLAIN_TEXT: Final = (  # OpenSSL's reasons for bytes that are no TLS
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
)

_TLS_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
"""The variables of the environment on which Python's default settings for TLS depend."""


def authority_of(host: str, port: int) -> str:
    """Return host and port as in a URL, for messages."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_tcp(host: str, port: int, name: str) -> trio.SocketStream:
    """Open a TCP connection.

    Args:
      host (str): a name in ASCII or an address.
      port (int): the port.
      name (str): what the error calls the peer.

    Raises:
      trio_websocket.HandshakeError: the connection cannot be opened. The text says why.
    """
    try:
        if _is_ipv4(host):
            return await _connect_ipv4(host, port)
        return await trio.open_tcp_stream(host, port)
    except OSError as error:
        raise HandshakeError(f"cannot connect to {name}: {why_failed(error)}") from error


def _is_ipv4(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


async def _connect_ipv4(address: str, port: int) -> trio.SocketStream:
    """Do what `trio.open_tcp_stream` does, in less than half of the time.

    There is no name to be looked up. (For an IPv6 address there would be: it may have a zone.)
    """
    sock = trio.socket.socket()
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


@functools.lru_cache(maxsize=1)
def _default_context(*environment: str | None) -> ssl.SSLContext:
    """Return Python's default settings.

    Making them reads all authorities of the system, which takes longer than all the rest of a
    connection. So it is done only once, and again if the environment names other files. Nobody gets
    the context to change it.
    """
    return ssl.create_default_context()


async def start_tls(
    transport: trio.abc.Stream,
    context: ssl.SSLContext | None,
    server_name: str,
    name: str,
    *,
    hint: str = "",
) -> trio.SSLStream[trio.abc.Stream]:
    """Start TLS on ``transport`` and finish its handshake.

    Args:
      context (ssl.SSLContext or None): the settings; None means Python's default settings.
      server_name (str): the name that the certificate must have.
      name (str): what the error calls the peer.
      hint (str): what the error adds if the peer does not speak TLS.

    Raises:
      trio_websocket.HandshakeError: the handshake has failed. The text says why.
    """
    try:
        tls = trio.SSLStream(
            transport,
            context or _default_context(*map(os.environ.get, _TLS_VARIABLES)),
            server_hostname=server_name,
            https_compatible=True,
        )
        await tls.do_handshake()
    except (trio.BrokenResourceError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
        if isinstance(cause, ssl.SSLError) and cause.reason in _PLAIN_TEXT:
            why = f"it answered in plain text{hint}"
        elif cause is None or isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            why = "it ended the connection in the TLS handshake"
        else:
            why = why_failed(cause)
        raise HandshakeError(f"no TLS with {name}: {why}") from error
    return tls


def why_failed(error: BaseException) -> str:
    """Return in words why an operation of Trio has failed, with each reason once."""
    return "; ".join(dict.fromkeys(_reason(each) for each in _leaves(error)))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    elif error.__cause__ is not None and _only_wraps(error):
        yield from _leaves(error.__cause__)
    else:
        yield error


def _only_wraps(error: BaseException) -> bool:
    """Whether Trio has made an error that says less than its cause does.

    For example, "all attempts to connect to a host have failed" is an OSError with no errno.
    """
    return isinstance(error, trio.BrokenResourceError) or (
        isinstance(error, OSError) and error.errno is None
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.removesuffix(".")
    reason = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and isinstance(reason, str):
        if reason in _PLAIN_TEXT:
            return "the other end does not speak TLS"
        return reason.replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        unknown = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        return "no such host" if error.errno in unknown else str(error.strerror)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        text = os.strerror(error.errno)  # The error's own text may have the address as well.
        return text[:1].lower() + text[1:]
    return re.sub(r" \(_ssl\.c:\d+\)$", "", str(error)) or type(error).__name__
