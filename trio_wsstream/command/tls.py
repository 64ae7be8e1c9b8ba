"""TLS contexts, and a listener whose context can be replaced while it listens."""

from __future__ import annotations

import argparse
import ssl
import weakref
from typing import Any

import trio

from .options import UsageError


class ClientContext(ssl.SSLContext):
    """A client's context.

    Attributes:
      server_name (str or None): whose certificate is demanded in place of that of the URL's host.
      session (ssl.SSLObject or None): of the latest connection, to see its certificate.
    """

    server_name: str | None = None
    session: ssl.SSLObject | None = None

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        if self.server_name is not None:
            options["server_hostname"] = self.server_name
        self.session = super().wrap_bio(*arguments, **options)
        return self.session


def client_context(options: argparse.Namespace) -> ClientContext | None:
    """For ``wss://``; None for ``ws://``.

    Raises:
      UsageError: a file cannot be used.
    """
    if not options.url.startswith("wss:"):
        return None
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = options.server_name
    if options.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.ca is None:
        context.load_default_certs()
    else:
        _load("the authorities in --ca", context.load_verify_locations, options.ca)
    if options.cert is not None:
        _load_own(context, options.cert, options.key)
    return context


def server_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """For ``wss://``, with what stands in the files by now; None without a certificate.

    Raises:
      UsageError: a file cannot be used.
    """
    if options.cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _load_own(context, options.cert, options.key)
    if options.client_ca is not None:
        load = context.load_verify_locations
        _load("the authorities in --client-ca", load, options.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load_own(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    def refuse_password() -> str:
        raise ValueError("the private key is encrypted, and there is nobody to ask")

    _load("--cert and --key", context.load_cert_chain, cert, key, refuse_password)


def _load(what: str, load: Any, path: str, *more: Any) -> None:
    try:
        load(path, *more)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        hints = {
            "KEY_VALUES_MISMATCH": "the private key does not belong to the certificate",
            "NO_START_LINE": "there is nothing of this kind in PEM",
            "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in PEM in it",
            "PEM_LIB": "it is not PEM, or the private key is missing; --key names it",
        }
        text = hints.get(reason.replace(" ", "_").upper(), reason)
        raise UsageError(f"cannot use {what} ({path}): {text}") from None
    except (OSError, ValueError) as error:
        text = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"cannot use {what} ({path}): {text}") from None


class TlsListener(trio.abc.Listener[trio.SSLStream[trio.abc.Stream]]):
    """As `trio.SSLListener`, but it can change its certificate, and knows its clients' ones.

    Attributes:
      context (ssl.SSLContext): for those who connect from now on.
    """

    def __init__(self, listener: trio.abc.Listener[trio.abc.Stream], context: ssl.SSLContext):
        self.transport_listener = listener
        self.context = context
        self._streams: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()

    async def accept(self) -> trio.SSLStream[trio.abc.Stream]:
        transport = await self.transport_listener.accept()
        stream = trio.SSLStream(transport, self.context, server_side=True, https_compatible=True)
        self._streams[_key(stream)] = stream
        return stream

    async def aclose(self) -> None:
        await self.transport_listener.aclose()

    def subject_of(self, remote: Any) -> str:
        """The name in the certificate of a client; empty if there is none.

        Args:
          remote: as of a `WsByteStream`.
        """
        key = (str(remote.address), remote.port) if hasattr(remote, "address") else remote
        stream = self._streams.get(key)
        return "" if stream is None else subject(stream.getpeercert() or {})


def _key(stream: trio.SSLStream[trio.abc.Stream]) -> object:
    transport = stream.transport_stream
    if isinstance(transport, trio.SocketStream):
        try:
            name = transport.socket.getpeername()
        except OSError:
            return None
        if isinstance(name, tuple):
            return name[:2]
    return repr(stream)


def subject(certificate: Any, of: str = "subject") -> str:
    """``CN=alice, O=Example``, of what `ssl.SSLSocket.getpeercert` gives."""
    short = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}
    names = [pair for group in certificate.get(of, ()) for pair in group]
    return ", ".join(f"{short.get(name, name)}={value}" for name, value in names)
