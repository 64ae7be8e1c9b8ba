"""Where to listen, and what to connect to."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import struct
from typing import Final

import attrs
import trio

_BACKLOG: Final = 4096  # the kernel takes its own limit if that is lower
# Those of the options that this system has: seconds, seconds, and a number of probes.
_KEEPALIVE: Final[dict[int, int]] = {
    getattr(socket, name): value
    for name, value in {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}.items()
    if hasattr(socket, name)
}


@attrs.frozen
class Address:
    """TCP, a Unix socket, or a socket that this process was started with.

    Attributes:
      host (str), port (int): of TCP; an empty host is all interfaces.
      path (str): of a Unix socket; with ``@`` at its beginning it is an abstract one.
      fd (int): of a socket that is there already.
    """

    host: str = ""
    port: int = -1
    path: str = ""
    fd: int = -1

    def __str__(self) -> str:
        if self.fd >= 0:
            return f"fd:{self.fd}"
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host or "*"
        return f"{host}:{self.port}"

    @property
    def unix_name(self) -> str:
        """The path as the kernel wants it."""
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise ValueError(f"{text!r} is no port number: those are 0 to 65535")
    return int(text)


def _parse_tcp(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon:
        return Address("127.0.0.1", _port(text))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} needs brackets around its IPv6 address: [::1]:80")
    return Address("" if host == "*" else host, _port(port))


def parse_listening(text: str) -> Address:
    """PORT, HOST:PORT, [IPV6]:PORT, unix:PATH or fd:N.

    Raises:
      ValueError: it is none of these.
    """
    if text.startswith("fd:"):
        if not text[3:].isdecimal():
            raise ValueError(f"{text!r} has no number of a file descriptor: fd:3")
        return Address(fd=int(text[3:]))
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("/"):
        raise ValueError(f"{text!r} looks like a path: write unix:{text}")
    return _parse_tcp(text)


def parse_target(text: str) -> Address:
    """HOST:PORT, [IPV6]:PORT, unix:PATH, or PORT on this machine.

    Raises:
      ValueError: it is none of these.
    """
    if text.startswith("unix:"):
        return _parse_unix(text)
    try:
        address = _parse_tcp(text)
    except ValueError as error:
        raise ValueError(f"{error}; a target is HOST:PORT or unix:PATH") from None
    if not address.host or address.port == 0:
        raise ValueError(f"{text!r} is no target, which is HOST:PORT or unix:PATH")
    return address


def _parse_unix(text: str) -> Address:
    if text in ("unix:", "unix:@"):
        raise ValueError(f"{text!r} has no path: unix:/run/tunnel.sock")
    return Address(path=text.removeprefix("unix:"))


# Listening


def listen_on(address: Address) -> list[socket.socket]:
    """Listening sockets: several if a host has several addresses.

    Raises:
      OSError: it cannot be listened on. Its text says where.
    """
    try:
        if address.fd >= 0:
            return [_inherited(address.fd)]
        if address.path:
            return [_listen_on_unix(address)]
        return _listen_on_tcp(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the host's name is not valid"
        raise OSError(f"cannot listen on {address}: {reason or error}") from error


def _inherited(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; is it passed to this process?") from None
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise OSError(errno.EINVAL, "it is not listening (systemd: Accept=no)")
    sock.set_inheritable(False)
    return sock


def _listen_on_unix(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        try:
            sock.bind(address.unix_name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_abandoned(address.path):
                raise
            os.unlink(address.path)
            sock.bind(address.unix_name)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_abandoned(path: str) -> bool:
    """Whether a Unix socket is there on which nobody listens any more."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            return probe.connect_ex(path) == errno.ECONNREFUSED
    return False


def _listen_on_tcp(address: Address) -> list[socket.socket]:
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue  # no IPv6 on this machine
                raise
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            port = address.port or sockets[0].getsockname()[1]  # any, but the same for all
            sock.bind((where[0], port, *where[2:]))
            sock.listen(_BACKLOG)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def remove(address: Address) -> None:
    """Remove the Unix socket that `listen_on` has made, if it is one."""
    if address.path and not address.path.startswith("@"):
        with contextlib.suppress(OSError):
            os.unlink(address.path)


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can connect."""
    if sock.family == socket.AF_UNIX:
        return True
    return sock.family in (socket.AF_INET, socket.AF_INET6) and is_loopback(sock.getsockname()[0])


def is_loopback(host: str) -> bool:
    """Whether an IP address, or localhost, is this machine."""
    if host == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return ip.is_loopback or (mapped is not None and mapped.is_loopback)


def name_of(sock: socket.socket) -> str:
    """A listening socket's address, for the log."""
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return str(Address(name[0], name[1]))
    if isinstance(name, bytes):
        name = "@" + os.fsdecode(name[1:])
    return f"unix:{name}"


# Connecting


async def connect_to(address: Address) -> trio.SocketStream:
    """Connect to a target.

    Raises:
      OSError: it cannot be connected to.
    """
    if address.path:
        return await trio.open_unix_socket(address.unix_name)
    family = _family_of(address.host)
    try:
        if family is None:
            stream = await trio.open_tcp_stream(address.host, address.port)
        else:
            stream = await _connect_to_ip(family, address)
    except UnicodeError:
        raise OSError(f"{address.host!r} is not a valid name of a host") from None
    keep_alive(stream.socket)
    return stream


def _family_of(host: str) -> socket.AddressFamily | None:
    """The family of an IP address; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return family
    return None


async def _connect_to_ip(family: socket.AddressFamily, address: Address) -> trio.SocketStream:
    """As `trio.open_tcp_stream`, but with no tasks to try several addresses at a time.

    Those tasks would take a tenth of the time that a connection takes.
    """
    sock = trio.socket.socket(family)
    try:
        await sock.connect((address.host, address.port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def keep_alive(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel notice when the other machine has vanished, also if nothing is sent.

    What a listening socket accepts inherits this on Linux.
    """
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # it is gone already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


def reset_when_closed(stream: trio.SocketStream) -> None:
    """Have TCP reset when it is closed: what has failed must not look like an end."""
    if stream.socket.family != socket.AF_UNIX and stream.socket.fileno() != -1:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
