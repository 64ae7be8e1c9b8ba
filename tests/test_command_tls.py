"""The files that ``trio-wsstream`` reads for TLS, and what it says of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from trio_wsstream.command import main
from trio_wsstream.command.options import UsageError, parse
from trio_wsstream.command.tls import client_context, server_context

DAMAGED = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that are right, and files of all kinds that are wrong."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    server.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    server.private_key_pem.write_to_path(str(folder / "key"))
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "both"))
    authority.cert_pem.write_to_path(str(folder / "ca"))
    other.private_key_pem.write_to_path(str(folder / "other-key"))
    key = serialization.load_pem_private_key(server.private_key_pem.bytes(), None)
    for name, form, encryption in (
        ("der", serialization.Encoding.DER, serialization.NoEncryption()),
        ("locked", serialization.Encoding.PEM, serialization.BestAvailableEncryption(b"x")),
    ):
        data = key.private_bytes(form, serialization.PrivateFormat.PKCS8, encryption)
        (folder / name).write_bytes(data)
    (folder / "text").write_text("hello\n")
    (folder / "empty").write_text("")
    (folder / "damaged").write_text(DAMAGED)
    (folder / "damaged-key").write_text(DAMAGED.replace("CERTIFICATE", "PRIVATE KEY"))
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--cert text", "cannot use --cert text: it is not in PEM"),
        ("--cert empty", "cannot use --cert empty: it is empty"),
        ("--cert folder", "cannot read --cert folder: Is a directory"),
        ("--cert missing", "cannot read --cert missing: No such file"),
        ("--cert key", "cannot use --cert key: there is no certificate in it"),
        ("--cert cert", "cannot use --cert cert: there is no private key in it; --key names"),
        ("--cert damaged --key key", "cannot use --cert damaged: a certificate in it is damaged"),
        ("--cert cert --key text", "cannot use --key text: it is not in PEM"),
        ("--cert cert --key der", "cannot use --key der: it is not in PEM"),
        ("--cert cert --key empty", "cannot use --key empty: it is empty"),
        ("--cert cert --key folder", "cannot read --key folder: Is a directory"),
        ("--cert cert --key missing", "cannot read --key missing: No such file"),
        ("--cert cert --key cert", "cannot use --key cert: there is no private key in it"),
        ("--cert cert --key locked", "cannot use --key locked: its private key has a password"),
        ("--cert cert --key damaged-key", "cannot use --key damaged-key: the private key in it is"),
        (
            "--cert cert --key other-key",
            "cannot use --key other-key: its private key does not belong to the certificate in "
            "--cert cert",
        ),
        ("--cert both --CA text", "cannot use --CA text: it is not in PEM"),
        ("--cert both --CA empty", "cannot use --CA empty: it is empty"),
        ("--cert both --CA folder", "cannot read --CA folder: Is a directory"),
        ("--cert both --CA missing", "cannot read --CA missing: No such file"),
        ("--cert both --CA key", "cannot use --CA key: there is no certificate in it"),
        ("--cert both --CA damaged", "cannot use --CA damaged: a certificate in it is damaged"),
    ],
)
def test_a_wrong_file_is_told_with_its_option_and_name(
    options: str, error: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    authorities = {"serve": "--client-ca", "connect": "--ca"}
    for job, make in (("serve 0 host:1", server_context), ("connect wss://host", client_context)):
        option = authorities[job.split()[0]]
        with pytest.raises(UsageError) as refused:
            make(parse(f"{job} {options.replace('--CA', option)}".split()))
        assert str(refused.value).startswith(error.replace("--CA", option))


def test_right_files_are_taken(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    for options in ("--cert both", "--cert cert --key key", "--cert both --client-ca ca"):
        assert server_context(parse(f"serve 0 host:1 {options}".split())) is not None


def test_a_file_that_may_not_be_read_is_told(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(files)
    monkeypatch.setattr("ssl.SSLContext.load_cert_chain", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert main(["serve", "0", "host:1", "--cert", "both"]) == 2
    assert "cannot read --cert both: Permission denied" in capsys.readouterr().err
