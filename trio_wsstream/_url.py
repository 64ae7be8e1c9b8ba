"""Parsing and checking WebSocket URLs (RFC 6455, section 3).

The name of a host is used in three places, and each needs another form of it:

- DNS gets the name as it is. It may end with a dot, and an IPv6 address may have a zone.
- The Host header gets it without the zone (RFC 6874).
- TLS gets it without the zone and without the dot at the end (RFC 6066, 3).

Before that, an internationalized name is turned into ASCII (IDNA 2008 with UTS 46).

The error texts quote only scheme, host and port of a URL. Its other parts may contain secrets.
"""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple

_URL: Final = re.compile(
    r"([^:/?#]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL
)  # RFC 3986, B
_AUTHORITY: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_LABEL: Final = re.compile(r"[0-9A-Za-z_]([-0-9A-Za-z_]{0,61}[0-9A-Za-z_])?")
_MAX_NAME: Final = 253  # characters, without a dot at the end (RFC 1035, 2.3.4)
_PORTS: Final = {"ws": 80, "wss": 443}


class Url(NamedTuple):
    """The parts of a WebSocket URL.

    Attributes:
      is_secure (bool): whether the scheme is ``wss``.
      host (str): the host to connect to, in ASCII. It may have a zone, or a dot at the end.
      port (int): the port to connect to.
      authority (str): the value of the Host header. It has the port only if that is not the default
          port of the scheme.
      server_name (str): the name of the host for TLS.
      resource (str): path and query, as in the request.
    """

    is_secure: bool
    host: str
    port: int
    authority: str
    server_name: str
    resource: str


def parse_url(url: object) -> Url:
    """Return the parts of a ``ws`` or ``wss`` URL.

    Raises:
      ValueError: ``url`` is no valid WebSocket URL. The text says what is wrong with it.
      TypeError: ``url`` is no str.
    """
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not a {type(url).__name__}")
    match = _URL.fullmatch(url)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in ("ws", "wss"):
        found = f", not with {scheme[:20]}://" if match else ""
        raise ValueError(f"url must begin with ws:// or wss://{found}")
    _, authority, path, query, fragment = match.groups()
    if "@" in authority:
        raise ValueError(
            "url must have no user and password; "
            "use an Authorization header in extra_headers instead"
        )
    about = f"{scheme}://{authority}"[:300]
    if unfit := re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError(f"url must have no {_name_of(unfit[0])} in it: {about!r}")
    if fragment is not None:
        raise ValueError(f"url must have no fragment (#...): {about!r}")
    resource = (path or "/") + (query or "")
    if not re.fullmatch("[!-~]*", resource):
        raise ValueError(f"url must have its path and query percent-encoded: {about!r}")
    try:
        host, port = split_authority(authority, _PORTS[scheme])
    except ValueError as error:
        raise ValueError(f"url must have {error}: {about!r}") from error.__cause__
    bare = host.partition("%")[0]
    named = f"[{bare}]" if ":" in bare else bare
    if port != _PORTS[scheme]:
        named = f"{named}:{port}"
    return Url(scheme == "wss", host, port, named, bare.rstrip("."), resource)


def split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """Return the host, in ASCII, and the port of a URL's authority.

    Args:
      authority (str): host and port of the URL, without a user.
      default_port (int): the port if the authority has none.

    Raises:
      ValueError: the host or the port is missing or not valid. The text says what the URL must
          have, and quotes nothing of it.
    """
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("a host, or a host and a port (host:port)")
    host, digits = match.groups()
    if not host:
        raise ValueError("a host")
    port = int(digits[:7]) if digits else default_port
    if not 1 <= port <= 65535:
        raise ValueError("a port from 1 to 65535")
    if host.startswith("["):
        return _check_address(host[1:-1]), port
    return _check_name(host), port


def _name_of(character: str) -> str:
    return {" ": "space", "\t": "tab", "\n": "newline", "\r": "newline"}.get(
        character, "control character"
    )


def _check_address(address: str) -> str:
    """Return an IPv6 address, followed by ``%`` and its zone if there is one.

    In a URL the zone is separated by ``%25`` (RFC 6874).
    """
    bare, percent, zone = address.partition("%")
    if zone.startswith("25") and len(zone) > 2:
        zone = zone[2:]
    try:
        socket.inet_pton(socket.AF_INET6, bare)
    except (OSError, ValueError):
        raise ValueError("an IPv6 address in its brackets") from None
    if percent and not re.fullmatch(r"[-.~_0-9A-Za-z]+", zone):
        raise ValueError("the name of an interface after %25")
    return bare + percent + zone


def _check_name(name: str) -> str:
    """Return the name of a host, or an IPv4 address, in ASCII (RFC 5890, UTS 46)."""
    if not name.isascii():
        import idna  # Imported here, because most programs do not need it.

        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except idna.IDNAError as error:
            raise ValueError("a valid host name") from error
    name = name.lower()
    bare = name.removesuffix(".")
    if len(bare) > _MAX_NAME:
        raise ValueError(f"a host of at most {_MAX_NAME} characters")
    for label in bare.split("."):
        if len(label) > 63:
            raise ValueError("a host with at most 63 characters between its dots")
        if not _LABEL.fullmatch(label):
            raise ValueError("a valid host name")
    return name
