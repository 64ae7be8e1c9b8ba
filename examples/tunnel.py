#!/usr/bin/env python3
"""TCP over WebSocket: both halves of a tunnel, and one that uses stdin and stdout.

  tunnel.py serve --bind 0.0.0.0 8000 127.0.0.1:5432     where the database is, on "gateway"
  tunnel.py listen 5432 ws://gateway:8000/               where its clients are
  ssh -o ProxyCommand='tunnel.py -q connect ws://%h:8001/' gateway

Without --bind only programs on this machine can connect. "serve" lets everybody through who can:
if that is too many, put a web server in front of it that asks who they are; --header answers it.

Half-closes pass through in both directions. An error on one side resets the other, so that nobody
takes a truncated stream for a complete one: a TCP peer sees a reset, also when this process is
killed; a WebSocket ends without a Close, or with 1011 if there is nothing to connect to.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import socket
import ssl
import struct
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio
from trio_websocket import HandshakeError

from trio_wsstream import StreamClosed, StreamConfig, WsByteStream, open_ws_stream, serve_ws

CONNECT_TIMEOUT = 30.0  # seconds

log = logging.getLogger("tunnel")
numbers = itertools.count(1)  # of connections, for the log

Local = trio.SocketStream | trio.StapledStream[Any, Any]  # TCP, or stdin and stdout


def reset_when_closed(tcp: trio.SocketStream, is_on: bool = True) -> None:
    """Whether closing ``tcp`` resets it, whoever closes it: the kernel, perhaps."""
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", is_on, 0))


class Tunnel:
    """A WebSocket and a local connection, joined: bytes and half-closes go both ways."""

    def __init__(self, number: int, ws: WsByteStream, local: Local) -> None:
        self.number = number
        self.ws = ws
        self.local = local
        self.failure = ""  # why it has failed
        self._both_ways = trio.CancelScope()
        self._outgoing = trio.CancelScope()

    async def carry(self) -> None:
        """Until both directions have ended, or one has failed; then close both sides."""
        async with self.ws, self.local:
            with self._both_ways:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch)
                    nursery.start_soon(self._show_life)
                    async with trio.open_nursery() as pumps:
                        pumps.start_soon(self._pump, "incoming", self.ws, self.local)
                        with self._outgoing:
                            await self._pump("outgoing", self.local, self.ws)
                    nursery.cancel_scope.cancel()
            if self.failure:
                await trio.aclose_forcefully(self.ws)
            elif isinstance(self.local, trio.SocketStream):
                reset_when_closed(self.local, False)
        log.info("#%d: %s", self.number, f"reset: {self.failure}" if self.failure else "closed")

    async def _pump(
        self, direction: str, source: trio.abc.Stream, sink: trio.abc.HalfCloseableStream
    ) -> None:
        count, end = 0, "cut off"
        try:
            async for chunk in source:
                await sink.send_all(chunk)
                count += len(chunk)
            await sink.send_eof()
            end = "ended"
        except trio.BrokenResourceError as error:
            end = "failed"
            self._fail(error.__cause__ or error)
        finally:
            log.info("#%d: %s %s after %d bytes", self.number, direction, end, count)

    async def _watch(self) -> None:
        """See the end of the WebSocket, also when there is nothing to receive or send."""
        async for closed in self.ws.subscribe(kinds=StreamClosed):
            if isinstance(closed, StreamClosed) and closed.error is not None:
                self._fail(closed.error)
            else:
                self._outgoing.cancel()  # nobody receives any more; what has come may go on

    async def _show_life(self) -> None:
        """Ping, also while the local side pauses and nothing is received.

        For then keepalive's clock stands still here, but not at the peer, whose own pings wait
        behind what it sends. It would give us up.
        """
        interval = self.ws.config.ping_interval
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while interval is not None:
                with trio.move_on_after(interval):
                    await self.ws.ping()
                    await trio.sleep_forever()

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or str(error) or repr(error)
        self._both_ways.cancel()


async def carry_to_server(options: argparse.Namespace, number: int, local: Local) -> bool:
    """Open a WebSocket for a local connection. Whether both directions came to their ends."""
    try:
        async with open_ws_stream(
            options.url,
            options.tls if options.url.startswith("wss:") else None,
            extra_headers=options.header,
            connect_timeout=CONNECT_TIMEOUT,
            config=options.config,
        ) as ws:
            tunnel = Tunnel(number, ws, local)
            await tunnel.carry()
            return not tunnel.failure
    except (HandshakeError, ValueError) as error:  # the latter for a name that no host can have
        log.error("#%d: cannot open %s: %r", number, options.url, error)
        return False


async def connect(options: argparse.Namespace) -> bool:
    """Carry stdin and stdout to the server."""
    stdio = trio.StapledStream(trio.lowlevel.FdStream(1), trio.lowlevel.FdStream(0))
    return await carry_to_server(options, next(numbers), stdio)


async def listen(options: argparse.Namespace) -> None:
    """Carry whatever connects to a local port to the server."""

    async def handle(tcp: trio.SocketStream) -> None:
        reset_when_closed(tcp)
        number = next(numbers)
        log.info("#%d: a connection", number)
        await carry_to_server(options, number, tcp)

    listeners = await trio.open_tcp_listeners(options.port, host=options.bind)
    tell_addresses(listeners)
    await trio.serve_listeners(handle, listeners)


async def serve(options: argparse.Namespace) -> None:
    """Carry WebSockets to a TCP server."""

    async def handle(ws: WsByteStream) -> None:
        number = next(numbers)
        log.info("#%d: a connection from %s", number, ws.remote)
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                tcp = await trio.open_tcp_stream(*options.target)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            log.error("#%d: cannot connect: %s", number, str(error) or "it takes too long")
            await ws.aclose(1011, "cannot connect")
        else:
            reset_when_closed(tcp)
            log.info("#%d: connected", number)
            await Tunnel(number, ws, tcp).carry()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(
                serve_ws,
                handle,
                options.bind,
                options.port,
                options.tls,
                allowed_origins=[None, *options.origin],
                path=options.path,
                config=options.config,
            )
        )
        tell_addresses(listeners)


def tell_addresses(listeners: Iterable[Any]) -> None:
    for listener in listeners:
        while not isinstance(listener, trio.SocketListener):  # it is over TLS or TCP
            listener = listener.transport_listener
        log.info("listening on %s port %d", *listener.socket.getsockname()[:2])


# The command line


def port_number(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port number")
    return int(text)


def ws_url(text: str) -> str:
    parts = urlsplit(text)
    is_right = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
    if not is_right or parts.fragment or "@" in parts.netloc:  # RFC 6455, 3
        raise argparse.ArgumentTypeError(f"{text!r} is no ws:// or wss:// URL")
    return text


def host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HOST:PORT")
    return host.strip("[]"), port_number(port)


def header(text: str) -> tuple[bytes, bytes]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME: VALUE")
    return name.strip().encode(), value.strip().encode()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log failures only")
    parser.add_argument(
        "--ping-interval",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="of silence until a keepalive ping; 0: no keepalive (default: %(default)s)",
    )
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    client = argparse.ArgumentParser(add_help=False)
    client.add_argument("url", type=ws_url, metavar="URL", help="of the server: ws:// or wss://")
    client.add_argument("--ca", metavar="FILE", help="trust these authorities for wss://")
    client.add_argument(
        "--header",
        type=header,
        action="append",
        default=[],
        metavar="NAME: VALUE",
        help="send it with the request, as 'Authorization: ...'",
    )

    port = argparse.ArgumentParser(add_help=False)
    port.add_argument("port", type=port_number, metavar="PORT", help="to listen on; 0: any")
    port.add_argument(
        "--bind",
        metavar="HOST",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )

    for run, parents in ((listen, [port, client]), (connect, [client]), (serve, [port])):
        command = commands.add_parser(
            run.__name__, parents=parents, help=run.__doc__, description=run.__doc__
        )
        command.set_defaults(run=run)
    command.add_argument("target", type=host_and_port, metavar="HOST:PORT", help="to connect to")
    command.add_argument("--cert", metavar="FILE", help="certificate chain, to serve wss://")
    command.add_argument("--key", metavar="FILE", help="its private key, if it is not in there")
    command.add_argument("--path", help="the only one to serve (default: any)")
    command.add_argument(
        "--origin",
        action="append",
        default=[],
        help="admit browsers that come from here (default: no browsers)",
    )
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        parser.exit()
    try:
        options.config = StreamConfig(ping_interval=options.ping_interval or None)
        if options.run is not serve:
            options.tls = ssl.create_default_context(cafile=options.ca)
        elif options.cert:
            options.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            options.tls.load_cert_chain(options.cert, options.key)
        elif options.key:
            parser.error("--key needs --cert")
        else:
            options.tls = None
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot load the certificate, key or authorities: {error}")
    return options


def main() -> int:
    options = parse()
    level = logging.WARNING if options.quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(message)s")
    status = 1
    try:
        status = 0 if trio.run(options.run, options) else 1
    except* KeyboardInterrupt:
        status = 130  # as a shell tells it
    except* (OSError, ValueError) as errors:
        log.error("cannot %s: %s", options.run.__name__, errors.exceptions[0])
    return status


if __name__ == "__main__":
    sys.exit(main())
