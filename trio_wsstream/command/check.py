"""``trio-wsstream check URL``: step by step, whether a server can be reached, and if not, why."""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import time
from collections.abc import Generator
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import trio
from trio_websocket import ConnectionTimeout

from trio_wsstream import CloseReceived, PongReceived, WsByteStream

from . import client
from .connections import describe
from .options import ascii_name

_HOLDS = 1.0  # seconds without an answer to a half-close


@attrs.define
class Step:
    """One of the steps.

    Attributes:
      name (str): what is tried.
      ok (bool): whether it succeeded.
      seconds (float or None): how long it took.
      detail (str): what was found, or why it failed.
      facts (dict): the same for machines.
    """

    name: str
    ok: bool = False
    seconds: float | None = None
    detail: str = ""
    facts: dict[str, Any] = attrs.Factory(dict)

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"{1000 * self.seconds:.1f} ms"
        mark = "ok" if self.ok else "FAILED"
        return f"{self.name:14} {mark:6} {took:>10}  {self.detail}".rstrip()


_ADVICE_IF_SLOW: Final = {
    "name": "can this machine reach its DNS server?",
    "tcp": "is a firewall between, or is a proxy needed? --proxy",
    "tls": "something listens there and is silent: does it speak TLS? ws:// is without",
    "status": "something listens there and is silent: does it speak HTTP? wss:// is with TLS",
    "ping": "something between the two ends holds messages back",
}


class _Stop(Exception):
    """A step has failed, and so there are no more."""


class Report:
    """The steps that were made.

    Attributes:
      steps (list of Step): all, in their order; only the last may have failed.
      advice (str): what to do about it; empty if nothing failed, or if that is not known.
    """

    def __init__(self, options: argparse.Namespace, *, tells: bool) -> None:
        self.steps: list[Step] = []
        self.advice: str = ""
        self._options = options
        self._tells = tells

    @property
    def ok(self) -> bool:
        return all(step.ok for step in self.steps)

    @contextlib.contextmanager
    def step(self, name: str, *, is_timed: bool = True) -> Generator[Step]:
        """Make a step; what is raised in the block has it fail, and ends the check."""
        step = Step(name)
        self.steps.append(step)
        began_at = time.perf_counter()
        try:
            yield step
        except (*client.CANNOT_OPEN, trio.BrokenResourceError, trio.TooSlowError) as error:
            step.detail = self._why(error).rstrip(".")
            cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else None
            self.advice = client.advise(self._options, cause or error)
            if isinstance(error, trio.TooSlowError | ConnectionTimeout):
                self.advice = _ADVICE_IF_SLOW.get(step.name, self.advice)
            raise _Stop from None
        else:
            step.ok = True
        finally:
            if is_timed:
                step.seconds = time.perf_counter() - began_at
            if self._tells:
                print(step, flush=True)

    def _why(self, error: Exception) -> str:
        if isinstance(error, trio.TooSlowError):
            return f"no answer within {self._options.connect_timeout:g} s (--connect-timeout)"
        if isinstance(error, trio.BrokenResourceError):
            return describe(error)
        if isinstance(error, OSError):
            return describe(error)
        return client.why(self._options, error)

    def as_json(self) -> str:
        import json

        facts = {
            "url": client.shown(self._options.url),
            "ok": self.ok,
            "steps": [attrs.asdict(step) for step in self.steps],
            "failed": next((step.name for step in self.steps if not step.ok), None),
            "advice": self.advice or None,
        }
        return json.dumps(facts, indent=2)


def run(options: argparse.Namespace) -> int:
    """Print the steps.

    Returns:
      int: 0 if all succeeded, else 3.
    """
    client.prepare(options)
    trio.run(client.check_values, options)
    report = Report(options, tells=not options.json)
    trio.run(check, options, report)
    if options.json:
        print(report.as_json())
    elif report.ok:
        print("It can be reached.")
    else:
        step = report.steps[-1]
        print(f"It cannot be reached: {step.name}: {step.detail}.")
        if report.advice:
            print(f"What to do: {report.advice}")
    return 0 if report.ok else 3


async def check(options: argparse.Namespace, report: Report) -> None:
    """Make the steps, until one fails. Each of them has a time that it may take."""
    try:
        if options.proxy is None:
            await _check_directly(options, report)
        else:
            await _check_through_proxy(options, report)
    except _Stop:
        pass


async def _check_directly(options: argparse.Namespace, report: Report) -> None:
    parts = urlsplit(options.url)
    host = ascii_name(parts.hostname or "").replace("%25", "%", 1)  # RFC 6874
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    with report.step("name") as step, trio.fail_after(options.connect_timeout):
        found = await _resolve(host, port)
        step.detail = f"{host} is {', '.join(found)}"
        step.facts = {"host": host, "addresses": found}
    transport: trio.abc.Stream
    with report.step("tcp") as step, trio.fail_after(options.connect_timeout):
        transport = tcp = await trio.open_tcp_stream(host, port)
        address = tcp.socket.getpeername()[0]
        step.detail = f"{address} port {port}"
        step.facts = {"address": address, "port": port}
    if options.tls is not None:
        with report.step("tls") as step, trio.fail_after(options.connect_timeout):
            name = host.partition("%")[0].rstrip(".")  # RFC 6066, 3
            tls = trio.SSLStream(tcp, options.tls, server_hostname=name, https_compatible=True)
            try:
                await tls.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(tcp)
                raise
            transport = tls
            _tell_tls(options, step)
    # TLS is there already, and the Host header says what the URL does.
    url = options.url.replace("wss:", "ws:", 1)
    await _check_websocket(options, report, url=url, transport=transport)


async def _check_through_proxy(options: argparse.Namespace, report: Report) -> None:
    """The proxy resolves the name, and it and TLS come before the answer."""
    await _check_websocket(options, report, proxy=options.proxy)


async def _check_websocket(
    options: argparse.Namespace, report: Report, *, url: str | None = None, **how: Any
) -> None:
    is_proxied = "proxy" in how
    with trio.CancelScope() as hurry:
        async with contextlib.AsyncExitStack() as stack:
            with report.step("proxy" if is_proxied else "status") as step:
                opening = client.open_stream(options, url=url, **how)
                try:
                    ws = await stack.enter_async_context(opening)
                except client.CANNOT_OPEN as error:
                    step.name = _step_of(error)
                    raise
                if is_proxied:
                    step.detail = f"{_place_of(ws.remote)}, and through it up to the status"
                else:
                    _tell_status(step)
            if is_proxied:
                if options.tls is not None:
                    with report.step("tls", is_timed=False) as step:
                        _tell_tls(options, step)
                with report.step("status", is_timed=False) as step:
                    _tell_status(step)
            await _check_stream(options, report, ws)
            hurry.deadline = trio.current_time() + _HOLDS  # some hold their Close back for long


def _tell_status(step: Step) -> None:
    step.detail = "101 Switching Protocols"
    step.facts = {"status": 101}


def _place_of(remote: Any) -> str:
    if hasattr(remote, "address"):
        return f"{remote.address} port {remote.port}"
    return "connected"  # inside TLS with the proxy there is no address


def _step_of(error: Exception) -> str:
    """Which step a handshake has failed in that has made several of them."""
    if client.is_proxys(error):
        return "proxy"
    return "tls" if str(error).startswith("no TLS with ") else "status"


async def _check_stream(options: argparse.Namespace, report: Report, ws: WsByteStream) -> None:
    with report.step("subprotocol", is_timed=False) as step:
        step.detail = ws.subprotocol or "none"
        if options.subprotocol and not ws.subprotocol:
            step.detail += f"; it speaks none of {', '.join(options.subprotocol)}"
        step.facts = {"subprotocol": ws.subprotocol}
    with report.step("ping") as step, trio.fail_after(options.connect_timeout):
        seconds = await ws.ping()
        step.detail = f"round trip {1000 * seconds:.1f} ms"
        step.facts = {"round_trip": seconds}
    with (
        report.step("half-close", is_timed=False) as step,
        trio.fail_after(options.connect_timeout + _HOLDS),
    ):
        is_honoured = await _honours_half_close(ws)
        step.detail = (
            "the other end is a WsByteStream, and goes on sending after our half-close"
            if is_honoured
            else "the other end is no WsByteStream: it may not go on sending after our half-close"
        )
        step.facts = {"is_ws_byte_stream": is_honoured}


async def _honours_half_close(ws: WsByteStream) -> bool:
    """A WsByteStream says so with a Pong; others close, or are silent."""
    with ws.subscribe(kinds=(PongReceived, CloseReceived)) as events:
        await ws.send_eof()
        with trio.move_on_after(_HOLDS):
            async for _ in events:
                if ws.half_close_honoured is not None:
                    break
    return ws.half_close_honoured is True


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"the name {host} cannot be resolved: {error.strerror}") from None
    except UnicodeError:
        raise OSError(f"{host!r} is not a valid name of a host") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _tell_tls(options: argparse.Namespace, step: Step) -> None:
    session: ssl.SSLObject | None = options.tls.session
    if session is None:
        return
    certificate: Any = session.getpeercert() or {}
    step.facts = {"version": session.version()}
    if not certificate:
        step.detail = f"{session.version()}; the certificate was not checked (--insecure)"
        return
    from .tls import subject

    days = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) // 86400)
    issuer = subject(certificate, "issuer")
    step.detail = f"{session.version()}, issued by {issuer}, {days} days left"
    step.facts |= {"issuer": issuer, "days_left": days}
