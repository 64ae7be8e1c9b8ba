"""The options of ``trio-wsstream``: where they may stand, and what is said of a wrong one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trio_wsstream import HalfClose, StreamConfig
from trio_wsstream.command import main
from trio_wsstream.command.addresses import Address
from trio_wsstream.command.options import JOBS, UsageError, make_parser, parse, read_tokens


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "TRIO_WSSTREAM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "arguments",
    [
        "serve 8000 db:5432 -q --drain-timeout 5m --origin http://a",
        "-q --drain-timeout 5m --origin http://a serve 8000 db:5432",
        "--drain-timeout=5m serve -q 8000 --origin=http://a db:5432",
        "--origin http://a -q --drain-timeout 300 serve 8000 db:5432",
    ],
)
def test_options_stand_before_or_after_the_job(arguments: str) -> None:
    options = parse(arguments.split())
    assert options.job == "serve"
    assert options.quiet
    assert options.drain_timeout == 300
    assert options.origin == ["http://a"]
    assert (options.address, options.target) == (Address("127.0.0.1", 8000), Address("db", 5432))


def test_the_value_of_an_option_is_not_taken_for_the_job() -> None:
    options = parse(["--subprotocol", "check", "--header", "X: serve", "connect", "ws://host"])
    assert options.job == "connect"
    assert options.subprotocol == ["check"]
    assert options.headers == [(b"X", b"serve")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8000", Address("127.0.0.1", 8000)),
        ("0.0.0.0:8000", Address("0.0.0.0", 8000)),
        ("*:8000", Address("", 8000)),
        ("[::1]:0", Address("::1", 0)),
        ("unix:/run/a b", Address(path="/run/a b")),
        ("unix:@name", Address(path="@name")),
        ("fd:3", Address(fd=3)),
    ],
)
def test_listen_takes_ports_hosts_and_unix_sockets(text: str, address: Address) -> None:
    assert parse(["listen", text, "ws://host"]).address == address


def test_an_address_is_shown_as_it_is_written() -> None:
    for text in ("host:80", "[::1]:80", "unix:/a", "unix:@a", "fd:3", "*:80"):
        assert str(parse(["listen", text, "ws://host"]).address) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 20), ("20s", 20), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25), (".5", 0.5)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse(["connect", "ws://host", "--connect-timeout", text]).connect_timeout == seconds


def test_a_tunnel_holds_every_close_back_unless_told_otherwise() -> None:
    assert parse(["connect", "ws://host"]).config == StreamConfig(half_close=HalfClose.ALWAYS)
    automatic = parse(["connect", "ws://host", "--half-close", "auto"]).config
    assert automatic.half_close is HalfClose.AUTO


def test_keepalive_can_be_switched_off() -> None:
    off = parse(["connect", "ws://host", "--ping-interval=0", "--ping-timeout=0"]).config
    assert (off.ping_interval, off.ping_timeout) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "what is to be done is missing"),
        ("-q", "what is to be done is missing"),
        ("carry", "there is no job 'carry'"),
        ("listen 80x ws://host", "'80x' is no port number"),
        ("listen 65536 ws://host", "'65536' is no port number"),
        ("listen ::1:80 ws://host", "needs brackets"),
        ("listen /run/x ws://host", "write unix:/run/x"),
        ("listen fd:x ws://host", "no number of a file descriptor"),
        ("listen unix: ws://host", "has no path"),
        ("listen 80", "required: URL"),
        ("listen 80 http://host", "'http://host' is no ws:// or wss:// URL"),
        ("connect ws://[::g]/", "'ws://[::g]/' has no valid address in its brackets"),
        ("connect ws://host:99999/", "no port from 1 to 65535"),
        ("connect ws://host:0/", "no port from 1 to 65535"),
        ("connect ws://host/#x", "no fragment"),
        ("connect ws://host/ä", "percent-encoded"),
        ("connect ws://host --header nonsense", "of the form 'NAME: VALUE'"),
        ("connect ws://host --header-file missing", "cannot read --header-file missing: No such"),
        ("connect ws://host --token-file missing", "cannot read --token-file missing: No such"),
        ("connect ws://host --subprotocol a,b", "'a,b' is no subprotocol"),
        ("connect wss://host --server-name a/b", "'a/b' is no name of a host"),
        ("connect wss://host --server-name a..b", "'a..b' is no name of a host"),
        ("connect ws://host --ca ca.pem", "--ca is for wss://"),
        ("connect ws://host --insecure", "--insecure is for wss://"),
        ("connect ws://host --connect-timeout soon", "'soon' is no duration; write 20"),
        ("connect wss://host --key key.pem", "--key needs --cert"),
        ("connect ws://host --workers 2", "unrecognized arguments: --workers"),
        ("serve 80", "needs a TARGET, or a --route"),
        ("serve 80 host:port", "'port' is no port number"),
        ("serve 80 host:0", "is no target"),
        ("serve 80 h:80 --route db", "not of the form PATH=TARGET"),
        ("serve 80 h:80 --route db=h:1", "begins with /"),
        ("serve 80 h:80 --route /a=h:1 --route /a=h:2", "/a has several --route"),
        ("serve 80 h:80 --route /a=h:1 --health /a", "is --health's"),
        ("serve 80 h:80 --key key.pem", "--key needs --cert"),
        ("serve 80 h:80 --client-ca ca.pem", "--client-ca needs --cert"),
        ("serve 80 h:80 --max-connections 0", "no number of at least 1"),
        ("serve 80 h:80 --trust-forwarded here", "write 10.0.0.0/8"),
        ("connect ws://host ws://other", "1 arguments too many"),
        ("@missing", "cannot read @missing: No such"),
    ],
)
def test_wrong_arguments_are_told_with_exit_code_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    assert re.search(re.escape(message), capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["connect", "ws://host/?token=hidden#x"],
        ["connect", "ws://me:hidden@host/"],
        ["connect", "http://host/?hidden"],
        ["connect", "ws://host", "--header", "hidden"],
        ["connect", "ws://host", "ws://other/?hidden"],
        ["connect", "ws://host", "--tokn-file", "hidden"],
        ["connect", "ws://host", "--token=hidden"],
        ["ws://host/?hidden"],
        ["connect", "ws://host", "--header", "Authorization: hid\ndenhidden"],
    ],
)
def test_an_error_about_an_option_shows_no_secret(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "hidden" not in capsys.readouterr().err


def options_with_a_value() -> list[tuple[str, str]]:
    """Return each option of each job that takes a value."""
    return [
        (job, action.option_strings[-1])
        for job in JOBS
        for action in make_parser(job)._actions
        if action.option_strings and action.nargs != 0
    ]


@pytest.mark.parametrize(("job", "option"), options_with_a_value())
def test_no_option_takes_an_empty_value(
    job: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"listen": ["0", "wss://host"], "serve": ["0", "host:1"]}
    assert main([job, *places.get(job, ["wss://host"]), option, ""]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gateway.example.", "gateway.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("[::1]", "::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("_a.internal", "_a.internal"),
    ],
)
def test_a_server_name_is_a_name_or_an_ip_address(text: str, name: str) -> None:
    assert parse(["connect", "wss://host", "--server-name", text]).server_name == name


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_a_help(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([job, "--help"], ["--help", job]):
        with pytest.raises(SystemExit) as exited:
            main(arguments)
        assert exited.value.code == 0
        assert f"trio-wsstream {job}" in capsys.readouterr().out


def test_the_help_names_the_jobs_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"trio-wsstream {job} " in shown for job in JOBS)
    assert "3 could not connect" in shown


def test_arguments_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "options").write_text(
        "# the gateway\n--drain-timeout 5m\n\n--route '/a=unix:/run/a b'  # spaces\n-q\n"
    )
    options = parse(["serve", "8000", f"@{tmp_path}/options", "db:5432"])
    assert options.route == [("/a", Address(path="/run/a b"))]
    assert options.drain_timeout == 300
    assert options.quiet


# Secrets


def test_a_clients_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIO_WSSTREAM_TOKEN", "from-environment")
    assert parse(["connect", "ws://host"]).headers == [
        (b"Authorization", b"Bearer from-environment")
    ]
    for text in ("from-file\n", "# mine\nalice from-file\n"):
        (tmp_path / "token").write_text(text)
        options = parse(["connect", "ws://host", "--token-file", str(tmp_path / "token")])
        assert options.headers == [(b"Authorization", b"Bearer from-file")]


def test_headers_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("# for the gateway\nX-Key: a: b\n\nCookie: c=d\n")
    options = parse(["connect", "ws://host", "--header-file", str(tmp_path / "headers")])
    assert options.headers == [(b"X-Key", b"a: b"), (b"Cookie", b"c=d")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no token in"),
        ("hidden\n", "line 1 of .* must be a name and a token"),
        ("a hidden\na hidden2\n", "line 2 of .*: the name 'a' is there twice"),
        ("a hid,den\n", "line 1 of .*: a token has letters"),
    ],
)
def test_a_wrong_token_file_is_told_by_its_line_and_shows_no_token(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        read_tokens(str(tmp_path / "tokens"))
    assert "hidden" not in str(refused.value)


def test_tokens_have_names(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# who may\nalice abc\n\nbob\tdef==\n")
    assert read_tokens(str(tmp_path / "tokens")) == {"alice": b"abc", "bob": b"def=="}


# Proxies


def test_the_environment_is_asked_for_a_proxy_only_if_it_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse(["connect", "ws://host"]).proxy is None
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    assert parse(["connect", "ws://host"]).proxy == "env"
    assert parse(["connect", "ws://host", "--proxy", "none"]).proxy is None
    assert parse(["connect", "ws://host", "--proxy", "http://x:1"]).proxy == "http://x:1"


# What the docs say

DOCS = Path(__file__).parent.parent / "docs"


def command_lines() -> list[str]:
    """Return those in the code blocks of the README and of the pages on the command."""
    lines = []
    for page in (
        DOCS.parent / "README.rst",
        DOCS / "command.rst",
        *sorted(DOCS.glob("tunnel-*.rst")),
    ):
        text = page.read_text().replace("\\\n", " ")
        lines += re.findall(
            r"^    (?:.*[ /])?trio-wsstream ((?:serve|listen|check|connect) .*)$", text, re.M
        )
    return [line for line in lines if "URL" not in line and "TARGET" not in line]


@pytest.mark.parametrize("line", command_lines())
def test_the_command_lines_in_the_docs_are_right(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_wsstream.command.options.read_text", lambda *_: "token")
    assert parse(shlex.split(line)).job == line.split()[0]


def test_the_docs_have_command_lines() -> None:
    assert len(command_lines()) >= 8


def test_the_docs_have_no_option_that_there_is_not() -> None:
    known = {name for each in JOBS for a in make_parser(each)._actions for name in a.option_strings}
    text = (DOCS / "command.rst").read_text()
    assert set(re.findall(r"``(--[a-z-]+)", text)) <= known | {"--help"}
