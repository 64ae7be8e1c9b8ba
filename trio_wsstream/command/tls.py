"""TLS contexts, and a listener whose context can be replaced while it listens."""

from __future__ import annotations

import argparse
import re
import ssl
import weakref
from typing import Any, Final

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
    if options.ca is not None:
        _load_authorities(context, "--ca", options.ca)
    elif not options.insecure:
        context.load_default_certs()
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
        _load_authorities(context, "--client-ca", options.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


# Files. What OpenSSL says of one that it cannot use names neither the file nor what is wrong with
# it ("PEM lib"). So a file is looked at again, after it was refused.

_CERTIFICATE: Final = re.compile(rb"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----")
_KEY: Final = re.compile(rb"-----BEGIN (\w+ )?PRIVATE KEY-----")


def _load_authorities(context: ssl.SSLContext, option: str, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError):
        _check_pem(option, path, _CERTIFICATE, "certificate")
        raise _unusable(option, path, "a certificate in it is damaged") from None


def _load_own(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    where = ("--cert", cert) if key is None else ("--key", key)
    has_password = False

    def refuse_password() -> str:
        nonlocal has_password
        has_password = True
        return ""

    try:
        context.load_cert_chain(cert, key, refuse_password)
    except (OSError, ValueError) as error:
        _check_pem("--cert", cert, _CERTIFICATE, "certificate")
        hint = "; --key names the file that has it" if key is None else ""
        _check_pem(*where, _KEY, "private key", hint)
        reason = _reason(error)
        if has_password:
            why = "its private key has a password; `openssl pkey` can write the key without one"
        elif reason == "key values mismatch":
            why = f"its private key does not belong to the certificate in --cert {cert}"
        elif not _has_certificates(cert):
            where, why = ("--cert", cert), "a certificate in it is damaged"
        elif reason.endswith("PEM lib"):
            why = "the private key in it is damaged"
        else:  # OpenSSL's policy: "ee key too small"
            where, why = ("--cert", cert), f"OpenSSL refuses it: {reason}"
        raise _unusable(*where, why) from None


def _check_pem(
    option: str, path: str, wanted: re.Pattern[bytes], what: str, hint: str = ""
) -> None:
    """Raise UsageError for a file in which there is nothing of what is wanted."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UsageError(f"cannot read {option} {path}: {error.strerror}") from None
    if not data.strip():
        raise _unusable(option, path, "it is empty")
    if b"-----BEGIN " not in data:
        raise _unusable(option, path, f"it is not in PEM: no line begins with -----BEGIN{hint}")
    if not wanted.search(data):
        raise _unusable(option, path, f"there is no {what} in it{hint}")


def _has_certificates(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        return False
    return True


def _unusable(option: str, path: str, why: str) -> UsageError:
    return UsageError(f"cannot use {option} {path}: {why}")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return re.sub(r" \(_ssl\.c:\d+\)$", "", str(error.args[-1]))


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
