"""Connecting through a proxy: HTTP CONNECT (RFC 9110, 9.3.6) or SOCKS5 (RFC 1928 and 1929).

Theory of operation. `find_proxy` decides which proxy is used, if any. It looks at the ``proxy=`` of
`open_ws_stream` and at the environment. `open_through_proxy` connects to the proxy, asks it for a
tunnel, and returns a stream that carries only bytes of the server. TLS with the server then runs
inside this stream, so that the proxy learns the server's name and port and nothing else.

*The response to a CONNECT has no body.* The bytes after the head of a 2xx response belong to the
tunnel, even if the head has a Content-Length or a Transfer-Encoding. The body of a refusal is an
error page for people. The status and its reason phrase say the same, so the body is never read,
however long it is. This module therefore cuts the head off at its blank line and removes these two
headers before h11 parses it.

*Credentials* are stored in a `Proxy` only, and the ``repr`` of a `Proxy` leaves them out. No error
quotes the proxy's URL, not even a part of it: a password with a "/" that is not percent-encoded
makes a part of the password look like a host and a port.
"""

from __future__ import annotations

import base64
import logging
import math
import re
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs
import h11
import trio
from trio_websocket import HandshakeError

from ._connecting import authority_of, open_tcp, start_tls, why_failed
from ._errors import ProxyRejected
from ._url import split_authority

_logger = logging.getLogger(__name__)

# Desktops put "socks://" URLs into all_proxy. They mean SOCKS of any version, and that the proxy
# resolves the names.
_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080, "socks": 1080}

# The environment variables that may name a proxy, in the order in which they are asked. "_proxy" is
# appended to each name. "socks" is no variable but a setting of macOS and Windows.
_VARIABLES: Final = {"ws": ("ws", "http", "all", "socks"), "wss": ("wss", "https", "all", "socks")}

_CREDENTIALS_PLACE: Final = "the proxy's URL, as in http://user:password@host:port"

_MAX_HEAD: Final = 65536  # bytes
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_FRAMING: Final = re.compile(  # the headers that announce a body, also if they are folded
    rb"^(?:content-length|transfer-encoding)[ \t]*:.*\n(?:[ \t].*\n)*", re.IGNORECASE | re.MULTILINE
)


@attrs.frozen
class Proxy:
    """A proxy server.

    Args:
      scheme (str): one of the keys of `_PORTS`.
      host (str): the proxy's name or address, in ASCII.
      port (int): the proxy's port.
      user (str): the user to log in as, or an empty string.
      password (str): the user's password, or an empty string.
    """

    scheme: str
    host: str
    port: int
    user: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)

    @property
    def address(self) -> str:
        """Host and port of the proxy, for messages."""
        return authority_of(self.host, self.port)

    @property
    def has_credentials(self) -> bool:
        return bool(self.user or self.password)


# Which proxy


def find_proxy(proxy: str | None, scheme: str, host: str, port: int) -> Proxy | None:
    """Return the proxy to use, or None to connect without a proxy.

    Args:
      proxy (str or None): the argument of `open_ws_stream`.
      scheme (str): the scheme of the server's URL, "ws" or "wss".
      host (str): the server's host, in ASCII.
      port (int): the server's port.

    Raises:
      ValueError: ``proxy``, or the proxy in the environment, is not the URL of a proxy.
      TypeError: ``proxy`` is no str. The error does not show it, because it may hold a password.
    """
    if proxy is None:
        return None
    if not isinstance(proxy, str):
        raise TypeError(f"proxy must be a str or None, not of type {type(proxy).__name__}")
    if proxy == "env":
        return _from_environment(scheme, host, port)
    return _parse(proxy, "proxy")


def _from_environment(scheme: str, host: str, port: int) -> Proxy | None:
    # Imported here, because urllib.request imports many modules that nothing else needs.
    from urllib.request import getproxies, proxy_bypass

    # An entry of no_proxy may be a host or a host and a port, and an IPv6 address may be without
    # brackets.
    name = host.rstrip(".")
    if proxy_bypass(name) or proxy_bypass(authority_of(name, port)):
        return None
    proxies = getproxies()
    for variable in _VARIABLES[scheme]:
        if url := proxies.get(variable):
            if variable == "socks":  # macOS gives a URL with "http://".
                url = "socks://" + url.rpartition("://")[2]
            return _parse(url, f"{variable}_proxy in the environment")
    return None


def _parse(url: str, what: str) -> Proxy:
    """Parse the URL of a proxy.

    Args:
      url (str): the URL. A host and a port without a scheme are those of an HTTP proxy.
      what (str): what the errors call the URL.
    """
    url = url.strip()
    if re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"{what} must have no spaces and no control characters in it")
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        raise ValueError(f"{what} must be a URL such as http://user:password@host:port") from None
    if parts.scheme not in _PORTS:
        expected = "http://, https://, socks5:// or socks5h://"
        raise ValueError(f"{what} must begin with {expected}, not with {parts.scheme}://")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"{what} must end after its host and port; "
            "in user and password, '/', '?', '#' and '%' must be percent-encoded"
        )
    user_info, _, address = parts.netloc.rpartition("@")
    try:
        host, port = split_authority(address, _PORTS[parts.scheme])
    except ValueError as error:
        raise ValueError(f"{what} must have {error}") from None
    user, password = _parse_user_info(user_info, what)
    if parts.scheme in ("http", "https"):
        if ":" in user:
            raise ValueError(f"{what} must have a user with no colon in it (RFC 7617, 2)")
    elif user_info and not all(
        each.isascii() and 1 <= len(each) <= 255 for each in (user, password)
    ):
        raise ValueError(
            f"{what} must have a user and a password of 1 to 255 ASCII characters each, "
            "or neither (RFC 1929)"
        )
    return Proxy(parts.scheme, host, port, user, password)


def _parse_user_info(user_info: str, what: str) -> tuple[str, str]:
    user, _, password = user_info.partition(":")
    try:
        return unquote(user, errors="strict"), unquote(password, errors="strict")
    except UnicodeError:
        raise ValueError(
            f"{what} must have its user and password percent-encoded in UTF-8"
        ) from None


# Through it


async def open_through_proxy(proxy: Proxy, host: str, port: int) -> trio.abc.Stream:
    """Connect to ``host``, in ASCII, and ``port`` through ``proxy``, and return the stream.

    There is no timeout, so the caller must set one.

    Raises:
      ProxyRejected: the proxy has refused to connect.
      trio_websocket.HandshakeError: the proxy cannot be reached, or its answer is not valid.
      ImportError: this is a SOCKS proxy, and python-socks is not installed.
    """
    host = host.partition("%")[0]  # A zone has a meaning on this machine only.
    _logger.debug("connecting to %s through the proxy %s", authority_of(host, port), proxy.address)
    if proxy.scheme in ("http", "https"):
        return await _open_http(proxy, authority_of(host, port))
    return await _open_socks(proxy, host, port)


async def _open_http(proxy: Proxy, target: str) -> trio.abc.Stream:
    name = f"the proxy {proxy.address}"
    transport: trio.abc.Stream = await open_tcp(proxy.host, proxy.port, name)
    try:
        if proxy.scheme == "https":
            # With Python's default settings. The caller's ssl_context is for the server: it may
            # have a client certificate, or trust a private authority.
            server_name = proxy.host.partition("%")[0].rstrip(".")
            transport = await start_tls(transport, None, server_name, name, hint=": use http://")
        rest = await _ask_for_tunnel(proxy, transport, target)
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(transport)
        raise _broken(proxy, error) from error
    except BaseException:
        await trio.aclose_forcefully(transport)
        raise
    return trio.StapledStream(transport, _AfterHead(rest, transport)) if rest else transport


async def _ask_for_tunnel(proxy: Proxy, transport: trio.abc.Stream, target: str) -> bytes:
    """Send a CONNECT, wait until it is granted, and return the bytes after the response's head."""
    headers = [("Host", target), ("User-Agent", "trio-wsstream")]
    if proxy.has_credentials:
        credentials = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        headers.append(("Proxy-Authorization", f"Basic {credentials}"))
    http = h11.Connection(h11.CLIENT)
    request = http.send(h11.Request(method="CONNECT", target=target, headers=headers))
    http.send(h11.EndOfMessage())
    assert request is not None
    await transport.send_all(request)
    received = bytearray()
    while True:
        http.receive_data(await _receive_head(proxy, transport, received))
        try:
            response = http.next_event()
        except h11.RemoteProtocolError:  # It may quote secrets, so it is not the cause.
            raise HandshakeError(
                f"the proxy {proxy.address} answered with a head that is not valid HTTP"
            ) from None
        if isinstance(response, h11.Response):
            break  # Anything else is an interim response (RFC 9110, 15.2).
    if response.status_code >= 300:
        raise ProxyRejected(
            proxy.address, target, response.status_code, _why_refused(proxy, response)
        )
    return bytes(received)


async def _receive_head(proxy: Proxy, transport: trio.abc.Stream, received: bytearray) -> bytes:
    """Return the head of a response, without the headers that announce a body.

    Args:
      received (bytearray): bytes that were read and not used yet. More are read from ``transport``
          and appended, and the head is removed.
    """
    searched = 0
    while True:
        beginning = bytes(received[:16])
        if not b"HTTP/".startswith(beginning[:5]):
            raise HandshakeError(
                f"the proxy {proxy.address} does not speak HTTP: its answer begins {beginning!r}"
            )
        end = _HEAD_END.search(received, searched)
        if end or len(received) > _MAX_HEAD:
            break
        searched = max(0, len(received) - 2)
        data = await transport.receive_some(4096)
        if not data:
            raise HandshakeError(f"the proxy {proxy.address} hung up before it had answered")
        received += data
    if end is None or end.end() > _MAX_HEAD:
        raise HandshakeError(
            f"the proxy {proxy.address} answered with a head of more than {_MAX_HEAD} bytes"
        )
    head = bytes(received[: end.end()])
    del received[: end.end()]
    return _FRAMING.sub(b"", head)


def _why_refused(proxy: Proxy, response: h11.Response) -> str:
    reason = response.reason.decode("ascii", "replace")[:200]
    if response.status_code not in (401, 407):  # tinyproxy sends 401 for a wrong password.
        return reason
    challenges = b", ".join(
        value for name, value in response.headers if name == b"proxy-authenticate"
    )
    if challenges and not re.search(rb"\bbasic\b", challenges, re.IGNORECASE):
        hint = "it offers no Basic authentication, and no other kind is supported"
    elif proxy.has_credentials:
        hint = "it does not accept the user and password in the proxy's URL"
    else:
        hint = f"it needs a user and a password: put them into {_CREDENTIALS_PLACE}"
    return f"{reason}; {hint}"


async def _open_socks(proxy: Proxy, host: str, port: int) -> trio.abc.Stream:
    try:
        from python_socks import ProxyConnectionError, ProxyError, ProxyType
        from python_socks.async_.trio.v2 import Proxy as SocksProxy
    except ImportError as error:
        raise ImportError(
            "a SOCKS proxy needs python-socks: pip install 'trio-wsstream[socks]'"
        ) from error
    client = SocksProxy(
        ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.user,
        proxy.password,
        rdns=proxy.scheme != "socks5",
    )
    try:
        stream = await client.connect(host, port, timeout=math.inf)
    except ProxyConnectionError as error:
        why = why_failed(error.__cause__ or error)
        raise HandshakeError(f"cannot connect to the proxy {proxy.address}: {why}") from error
    except ProxyError as error:
        reason = str(error)
        if error.error_code is None and not proxy.has_credentials:
            reason += f"; if it needs a user and a password, put them into {_CREDENTIALS_PLACE}"
        raise ProxyRejected(proxy.address, authority_of(host, port), None, reason) from error
    except OSError as error:  # With "socks5", this machine resolves the name.
        raise HandshakeError(
            f"{host} is not known on this machine: {why_failed(error)}; "
            "with socks5h:// the proxy resolves the name"
        ) from error
    except trio.BrokenResourceError as error:
        raise _broken(proxy, error) from error
    except ValueError as error:  # The proxy's answer cannot be decoded.
        raise HandshakeError(f"the proxy {proxy.address} does not speak SOCKS5") from error
    return stream.trio_stream


def _broken(proxy: Proxy, error: trio.BrokenResourceError) -> HandshakeError:
    return HandshakeError(f"the connection to the proxy {proxy.address} broke: {why_failed(error)}")


class _AfterHead(trio.abc.ReceiveStream):
    """Receives the bytes that came together with the proxy's response, and then the transport's."""

    def __init__(self, rest: bytes, transport: trio.abc.Stream) -> None:
        self._rest = rest
        self._transport = transport

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._rest:
            return await self._transport.receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        count = len(self._rest) if max_bytes is None else max_bytes
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    async def aclose(self) -> None:
        await self._transport.aclose()
