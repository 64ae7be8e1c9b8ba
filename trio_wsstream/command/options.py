"""The options of each job, and what can be wrong with them.

Options may stand before the job's name or after it. So the job is found first: it is the first
argument that is neither an option nor an option's value. Then one parser, the job's own, gets all
the others.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from trio_wsstream import HalfClose, StreamConfig

from .addresses import Address, parse_listening, parse_target

JOBS: Final = {
    "connect": "carry stdin and stdout to a WebSocket server, as ssh's ProxyCommand does",
    "listen": "carry each connection to a local port or Unix socket to a WebSocket server",
    "serve": "carry WebSockets to a TCP port or Unix socket",
    "check": "tell whether a WebSocket server can be reached, and if not, why",
}

USAGE: Final = """\
usage: trio-wsstream connect URL            stdin and stdout: ssh's ProxyCommand
       trio-wsstream listen ADDRESS URL     a local port or Unix socket, each connection a WebSocket
       trio-wsstream serve ADDRESS TARGET   WebSockets to a TCP port or Unix socket
       trio-wsstream check URL              can it be reached, and if not, why

ADDRESS is PORT (on 127.0.0.1), HOST:PORT, [IPV6]:PORT, unix:PATH, or fd:N (socket activation).
TARGET is HOST:PORT, [IPV6]:PORT or unix:PATH. URL begins with ws:// or wss://.
Options may stand before the job or after it. @FILE stands for the arguments in a file.
`trio-wsstream JOB --help` lists the options of a job.

exit codes: 0 both directions came to their end; 1 failed; 2 wrong arguments; 3 could not connect
"""

TOKEN_VARIABLE: Final = "TRIO_WSSTREAM_TOKEN"

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2

Header = tuple[bytes, bytes]


class UsageError(Exception):
    """The arguments, or the files that they name, cannot be used."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nTry 'trio-wsstream {self.prog.split()[-1]} --help'.")


# What an option's value may be


def duration(text: str) -> float:
    """Seconds: ``20``, ``20s``, ``1.5m``, ``2h``."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(ms|s|m|h|)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 20, 20s, 5m or 1h")
    return float(match[1]) * {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def count(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def ws_url(text: str) -> str:
    """RFC 6455, section 3. A query may hold a secret, so it is never shown."""
    shown = repr(text.partition("?")[0])
    try:
        parts = urlsplit(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown} has no valid address in its brackets") from None
    try:
        port = parts.port
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown} has no port from 1 to 65535") from None
    if "@" in parts.netloc:
        raise argparse.ArgumentTypeError(
            "a WebSocket URL has no user and password; --token-file and --header-file send them"
        )
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise argparse.ArgumentTypeError(f"{shown} is no ws:// or wss:// URL")
    if port == 0:
        raise argparse.ArgumentTypeError(f"{shown} has no port from 1 to 65535")
    if parts.fragment:
        raise argparse.ArgumentTypeError(f"{shown} must have no fragment (#...)")
    if not re.fullmatch("[!-~]*", parts.path + parts.query):
        raise argparse.ArgumentTypeError(f"{shown} must be percent-encoded")
    return text


def header(text: str) -> Header:
    """``NAME: VALUE``; the value may be a secret, so it is never shown."""
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(_TOKEN, name.strip()):
        raise argparse.ArgumentTypeError("a header must be of the form 'NAME: VALUE'")
    if not re.fullmatch(r"[\t -~\x80-\xff]*", value):
        raise argparse.ArgumentTypeError(
            f"the header {name.strip()} must have a value of one line, in Latin-1"
        )
    return name.strip().encode(), value.strip().encode("latin-1")


def file(text: str) -> str:
    """The path of a file. An empty one is what a shell makes of a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return text


def subprotocol(text: str) -> str:
    if not re.fullmatch(_TOKEN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no subprotocol: letters, digits, - and _")
    return text


def ascii_name(name: str) -> str:
    """The name of a host as DNS and certificates have it (IDNA 2008, UTS 46)."""
    if not name.isascii():
        import idna

        with contextlib.suppress(idna.IDNAError):
            return idna.encode(name, uts46=True).decode("ascii")
    return name


def server_name(text: str) -> str:
    """A host's name or IP address, as in a certificate."""
    name = ascii_name(text.strip("[]").removesuffix("."))
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name))
    if not re.fullmatch(r"(?=.{1,253}$)[0-9A-Za-z_-]{1,63}(\.[0-9A-Za-z_-]{1,63})*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a host, as gateway.example is")
    return name


def origin(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin, as https://example.com is")
    return text


def http_path(text: str) -> str:
    if not re.fullmatch(r"/[!-~]*", text) or "?" in text or "#" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: it begins with / and has no query")
    return text


def route(text: str) -> tuple[str, Address]:
    """``PATH=TARGET``."""
    path, equals, target = text.rpartition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form PATH=TARGET")
    return http_path(path), parse_target(target)


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A CIDR; None for ``unix``: those who come through a Unix socket."""
    if text == "unix":
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write 10.0.0.0/8, 10.1.2.3 or unix") from None


def proxy(text: str) -> str:
    """Its URL may hold a password, so it is never shown. `open_ws_stream` checks it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; for no proxy write none")
    return text


# The parsers


class _Version(argparse.Action):
    """It is looked up only when it is asked for, as that takes time."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version")

    def __call__(self, *_: object) -> None:
        from importlib import metadata

        print(f"trio-wsstream {metadata.version('trio-wsstream')}")
        raise SystemExit(0)


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    group.add_argument("-v", "--verbose", action="count", default=0, help="more; -vv: every frame")
    group.add_argument("--log-format", choices=("text", "json"), default="text")
    group.add_argument("--version", action=_Version)


def _add_file(group: argparse._ArgumentGroup, option: str, words: str) -> None:
    group.add_argument(option, type=file, metavar="FILE", help=words)


def _add_stream(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the WebSocket")
    group.add_argument(
        "--connect-timeout", type=duration, default=30.0, metavar="DURATION", help="default: 30s"
    )
    group.add_argument(
        "--ping-interval",
        type=duration,
        default=20.0,
        metavar="DURATION",
        help="of silence until a keepalive ping; 0: no keepalive (default: 20s)",
    )
    group.add_argument(
        "--ping-timeout",
        type=duration,
        default=20.0,
        metavar="DURATION",
        help="for the answer; 0: none is demanded (default: 20s)",
    )
    group.add_argument(
        "--half-close",
        choices=[each.name.lower() for each in HalfClose],
        default="always",
        help="which Closes of the other end mean that only its own direction has ended; "
        "auto: those of another WsByteStream (default: always, as other tunnels mean it)",
    )
    group.add_argument(
        "--subprotocol",
        type=subprotocol,
        action="append",
        default=[],
        metavar="NAME",
        help="may be given again",
    )


def _add_client(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument(
        "--proxy",
        type=proxy,
        metavar="URL",
        help=(
            "http://, https://, socks5:// or socks5h://; none: no proxy "
            "(default: what http_proxy, https_proxy, all_proxy and no_proxy say); other users see "
            "a password in it in ps, so set one of these variables instead, or use @FILE"
        ),
    )
    _add_file(
        group,
        "--token-file",
        f"send the token in this file (default: that in the variable {TOKEN_VARIABLE})",
    )
    group.add_argument(
        "--header",
        type=header,
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send it with the request; other users see it in ps, so not for secrets",
    )
    _add_file(group, "--header-file", "send the headers in this file")
    group.add_argument("--origin", type=origin, help="send this Origin, as a browser does")
    _add_file(group, "--ca", "trust these authorities, and no others")
    _add_file(group, "--cert", "a client certificate, with its chain")
    _add_file(group, "--key", "its private key, if it is not in there")
    group.add_argument(
        "--server-name",
        type=server_name,
        metavar="NAME",
        help="of the certificate, if not the URL's",
    )
    group.add_argument(
        "--insecure", action="store_true", help="accept any certificate: anybody can listen in"
    )


def _add_life(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("life and death")
    group.add_argument(
        "--drain-timeout",
        type=duration,
        default=30.0,
        metavar="DURATION",
        help="how long open connections may go on after SIGTERM or SIGINT (default: 30s)",
    )
    group.add_argument("--max-connections", type=count, metavar="N", help="that are open at once")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=_target, metavar="TARGET", nargs="?", help="to connect to")
    parser.add_argument(
        "--route",
        type=_route,
        action="append",
        default=[],
        metavar="PATH=TARGET",
        help="for this path another target; may be given again",
    )
    group = parser.add_argument_group("who may connect; one is needed unless on loopback")
    _add_file(
        group,
        "--token-file",
        "who sends one of the bearer tokens in this file: a name and a token on each line",
    )
    _add_file(group, "--client-ca", "who has a certificate of these authorities")
    group.add_argument("--open", action="store_true", help="everybody: an open door to TARGET")
    group.add_argument(
        "--origin",
        type=origin,
        action="append",
        default=[],
        help="browsers that come from here, too; may be given again (default: no browsers)",
    )
    group = parser.add_argument_group("the server")
    _add_file(group, "--cert", "certificate chain, to serve wss://")
    _add_file(group, "--key", "its private key, if it is not in there")
    group.add_argument(
        "--health", type=http_path, metavar="PATH", help="answer 200 there, and 503 while draining"
    )
    group.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes (default: 1)"
    )
    group.add_argument(
        "--trust-forwarded",
        type=network,
        action="append",
        default=[],
        metavar="CIDR",
        help="believe what proxies at these addresses say of their clients; unix: on a Unix socket",
    )


def _as_type(parse_it: Callable[[str], Any]) -> Callable[[str], Any]:
    def check(text: str) -> Any:
        try:
            return parse_it(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


_listening, _target, _route = map(_as_type, (parse_listening, parse_target, route))


def make_parser(job: str) -> argparse.ArgumentParser:
    """The parser of a job's options."""
    parser = _Parser(
        f"trio-wsstream {job}",
        description=JOBS[job][0].upper() + JOBS[job][1:] + ".",
        allow_abbrev=False,
    )
    if job in ("listen", "serve"):
        parser.add_argument(
            "address",
            type=_listening,
            metavar="ADDRESS",
            help="PORT (on 127.0.0.1), HOST:PORT, [IPV6]:PORT, unix:PATH or fd:N",
        )
    if job == "serve":
        _add_serve(parser)
    else:
        parser.add_argument("url", type=ws_url, metavar="URL", help="ws:// or wss://")
        _add_client(parser)
    _add_stream(parser)
    if job in ("listen", "serve"):
        _add_life(parser)
    if job == "check":
        parser.add_argument("--json", action="store_true", help="one object with all of it")
    _add_common(parser)
    return parser


# From arguments to options


def expand(arguments: Sequence[str]) -> list[str]:
    """Put what stands in files in the place of ``@FILE``.

    A file has arguments as a shell's words, several on a line or one on each, with # comments.
    """
    expanded: list[str] = []
    for argument in arguments:
        if argument.startswith("@") and len(argument) > 1:
            import shlex

            text = read_text("@", argument[1:])
            try:
                expanded += shlex.split(text, comments=True)
            except ValueError as error:
                raise UsageError(f"cannot read {argument}: {error}") from None
        else:
            expanded.append(argument)
    return expanded


def split_job(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The job's name, and the arguments without it."""
    takes_value = (
        {
            name
            for job in JOBS
            for action in make_parser(job)._actions
            if action.nargs != 0
            for name in action.option_strings
        }
        if arguments and arguments[0].startswith("-")
        else set()
    )
    is_value = False
    for index, argument in enumerate(arguments):
        if not is_value and not argument.startswith("-"):
            return argument, [*arguments[:index], *arguments[index + 1 :]]
        is_value = not is_value and argument in takes_value
    return None, list(arguments)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; ``job`` says of which job.

    Raises:
      UsageError: they are wrong.
      SystemExit: help, or the version, was asked for.
    """
    job, rest = split_job(expand(arguments))
    if job is None:
        general = _Parser("trio-wsstream", usage=USAGE, add_help=False)
        _add_common(general)
        general.add_argument("-h", "--help", action="store_true")
        if general.parse_known_args(rest)[0].help:
            print(USAGE, end="")
            raise SystemExit(0)
        raise UsageError(f"what is to be done is missing\n\n{USAGE}")
    if job not in JOBS:
        shown = repr(job) if re.fullmatch("[a-z]{1,15}", job) else "of this name"  # no secret
        raise UsageError(f"there is no job {shown}: connect, listen, serve and check are known")
    parser = make_parser(job)
    options, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:  # Their values may be secrets.
        names = [each.partition("=")[0] for each in unknown if each.startswith("-")]
        if names:
            parser.error(f"unrecognized arguments: {' '.join(names)}")
        parser.error(f"{len(unknown)} arguments too many, of {len(rest)}")
    options.job = job
    options.arguments = list(arguments)
    if job == "serve":
        _check_serve(options)
    else:
        _finish_client(options)
    try:
        options.config = StreamConfig(
            half_close=HalfClose[options.half_close.upper()],
            ping_interval=options.ping_interval or None,
            ping_timeout=options.ping_timeout or None,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    return options


def _check_serve(options: argparse.Namespace) -> None:
    if options.key and not options.cert:
        raise UsageError("--key needs --cert, the certificate that it belongs to")
    if options.client_ca and not options.cert:
        raise UsageError("--client-ca needs --cert: client certificates are part of TLS")
    if options.target is None and not options.route:
        raise UsageError("serve needs a TARGET, or a --route for each path")
    paths = [path for path, _ in options.route]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"the path {path} has several --route")
        if path == options.health:
            raise UsageError(f"the path {path} is --health's, so it can have no --route")


def _finish_client(options: argparse.Namespace) -> None:
    if options.key and not options.cert:
        raise UsageError("--key needs --cert, the certificate that it belongs to")
    if not options.url.startswith("wss:"):
        for name in ("ca", "cert", "server_name", "insecure"):
            if getattr(options, name):
                raise UsageError(f"--{name.replace('_', '-')} is for wss://, and this is ws://")
    options.headers = list(options.header)
    if options.header_file is not None:
        options.headers += read_headers(options.header_file)
    if options.origin is not None:
        options.headers.append((b"Origin", options.origin.encode()))
    token = read_client_token(options.token_file)
    if token is not None:
        if any(name.lower() == b"authorization" for name, _ in options.headers):
            raise UsageError("there are a token and a header Authorization; send one of them")
        options.headers.append((b"Authorization", b"Bearer " + token.encode()))
    options.has_token = token is not None
    options.proxy = choose_proxy(options.proxy)


def choose_proxy(given: str | None) -> str | None:
    """What `open_ws_stream` is to be given. To ask the environment takes time, so look first."""
    if given == "none":
        return None
    if given is None and any(name.lower().endswith("_proxy") for name in os.environ):
        return "env"
    return given


# Files


def read_text(option: str, path: str) -> str:
    """The text of a file.

    Args:
      option: which names the file, for the error; ``@`` for one of arguments.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        name = f"{option} {path}" if option != "@" else f"@{path}"
        raise UsageError(f"cannot read {name}: {reason}") from None


def meaningful_lines(text: str) -> list[tuple[int, str]]:
    """The lines with their numbers, without blank ones and comments."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def read_headers(path: str) -> list[Header]:
    """One ``NAME: VALUE`` on each line."""
    headers = []
    for number, line in meaningful_lines(read_text("--header-file", path)):
        try:
            headers.append(header(line))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"line {number} of --header-file {path}: {error}") from None
    return headers


_BEARER_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1


def _check_token(token: str, where: str) -> str:
    if not _BEARER_TOKEN.fullmatch(token):
        raise UsageError(f"{where}: a token has letters, digits and - . _ ~ + / only (RFC 6750)")
    return token


def read_client_token(path: str | None) -> str | None:
    """The first token in the file, with or without a name before it; or that in the environment."""
    if path is None:
        token = os.environ.get(TOKEN_VARIABLE)
        return None if not token else _check_token(token, f"the variable {TOKEN_VARIABLE}")
    lines = meaningful_lines(read_text("--token-file", path))
    if not lines:
        raise UsageError(f"there is no token in --token-file {path}")
    number, line = lines[0]
    return _check_token(line.split()[-1], f"line {number} of --token-file {path}")


def read_tokens(path: str) -> dict[str, bytes]:
    """Of a server: the tokens by their names; ``NAME TOKEN`` on each line.

    Raises:
      UsageError: the file cannot be read, or a line of it is wrong. The error shows no token.
    """
    tokens: dict[str, bytes] = {}
    for number, line in meaningful_lines(read_text("--token-file", path)):
        where = f"line {number} of --token-file {path}"
        words = line.split()
        if len(words) != 2:
            raise UsageError(f"{where} must be a name and a token, with a space between them")
        name, token = words
        if name in tokens:
            raise UsageError(f"{where}: the name {name!r} is there twice")
        tokens[name] = _check_token(token, where).encode()
    if not tokens:
        raise UsageError(f"there is no token in --token-file {path}: nobody could connect")
    return tokens
