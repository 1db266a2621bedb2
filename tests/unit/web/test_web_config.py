"""The web configuration: errors name the key, unsupported keys are errors, none is ignored."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import bcrypt
import pytest
import trustme
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from tracer.cli import main
from tracer.errors import RmapdError
from tracer.web import access, tls, web_config

HASH = bcrypt.hashpw(b"correct horse", b"$2b$04$abcdefghijklmnopqrstuu").decode()
"""With a fixed salt: it is part of test ids, and every worker must collect the same."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ca = trustme.CA()
    server = ca.issue_cert("127.0.0.1", "localhost")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    (tmp_path / "junk.pem").write_text("junk")
    return tmp_path


def read(folder: Path, text: str) -> web_config.Rules:
    path = folder / "web.yml"
    path.write_text(text)
    found = web_config.read(path)
    if found.tls:
        tls.context(found.tls)
    return found


TLS = "tls_server_config: {cert_file: server.pem, key_file: server.key"


def test_every_supported_key_is_read(folder: Path) -> None:
    found = read(
        folder,
        TLS + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem,"
        " client_allowed_sans: [a.test], min_version: TLS12,"
        " max_version: TLS13, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256],"
        " prefer_server_cipher_suites: true,"
        " curve_preferences: [CurveP256]}\n"
        "http_server_config: {http2: true, headers: {X-Frame-Options: sameorigin,"
        " Strict-Transport-Security: max-age=1}}\n"
        f"basic_auth_users: {{alice: {HASH}}}\n",
    )
    assert found.tls is not None
    assert found.tls.cert_file == str(folder / "server.pem")
    assert found.identifies_readers
    assert found.users == {"alice": HASH}
    assert found.headers["X-Frame-Options"] == "sameorigin"
    assert "HTTP/1.1" in found.notes[0]


@pytest.mark.parametrize("text", ["", "{}", "tls_server_config:\n", "# nothing\n"])
def test_empty_configuration_is_plain_http_for_everyone(folder: Path, text: str) -> None:
    assert read(folder, text) == web_config.Rules()


@pytest.mark.parametrize("suite", web_config.CIPHERS)
def test_every_cipher_suite_exists_in_openssl(folder: Path, suite: str) -> None:
    read(folder, f"{TLS}, cipher_suites: [{suite}]}}")


@pytest.mark.parametrize("curve", web_config.CURVES)
def test_every_curve_exists_in_openssl(folder: Path, curve: str) -> None:
    read(folder, f"{TLS}, curve_preferences: [{curve}]}}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tls_server_confg: {}", r"tls_server_confg.*\n.*try: tls_server_config"),
        (TLS + ", key_fiel: x}", r"key_fiel.*\n.*try: key_file"),
        ("http_server_config: {http3: true}", "http3"),
        ("basic_auth_users: [a]", r"\$.basic_auth_users"),
        ("[", "is wrong"),
        ("a: &a [*a]", "is wrong"),
        ("basic_auth_users: {a: x}\nbasic_auth_users: {b: y}", "duplicate key basic_auth_users"),
        ("tls_server_config: {cert_file: server.pem}", "key_file .*missing"),
        ("tls_server_config: {key_file: server.key}", "cert_file .*missing"),
        (TLS + ", client_auth_type: RequireAnyClientCert}", "not supported"),
        (TLS + ", client_auth_type: Requires}", "not a policy"),
        (TLS + ", client_auth_type: RequireAndVerifyClientCert}", "client_ca_file .*missing"),
        (TLS + ", client_ca_file: ca.pem}", "client_auth_type"),
        (TLS + ", client_allowed_sans: [x]}", "client_auth_type"),
        (TLS + ", min_version: TLS10}", "min_version"),
        (TLS + ", min_version: TLS13, max_version: TLS12}", "above max_version"),
        (TLS + ", cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]}", "cipher_suites"),
        (TLS + ", curve_preferences: [CurveP256, CurveP384]}", "takes one curve"),
        (TLS + ", curve_preferences: [CurveP2]}", "curve_preferences"),
        (TLS + ", cert: PEM}", "cert in .*not supported"),
        (
            "tls_server_config: {cert_file: nowhere.pem, key_file: server.key}",
            "nowhere.pem .*No such file",
        ),
        (
            "tls_server_config: {cert_file: junk.pem, key_file: server.key}",
            "junk.pem .*cannot be used",
        ),
        ("tls_server_config: {cert_file: ca.pem, key_file: server.key}", "(?i)mismatch"),
        (
            TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: junk.pem}",
            "client CA .*junk.pem cannot be used",
        ),
        ("http_server_config: {headers: {Server: x}}", "cannot be set"),
        ("http_server_config: {headers: {X-Frame-Options: allow}}", "deny, sameorigin"),
        (
            'http_server_config: {headers: {X-XSS-Protection: "0\\r\\nSet-Cookie: a"}}',
            "not plain text",
        ),
        ("basic_auth_users: {alice: secret}", "alice .*not a bcrypt hash"),
        ("basic_auth_users: {'a:b': x}", "with a colon"),
        (f"basic_auth_users: {{alice: '{HASH.replace('$04$', '$31$')}'}}", "cost 31"),
        ("rate_limit: {interval: 1s, burst: 3}", "not supported"),
    ],
)
def test_invalid_setting_is_named(folder: Path, text: str, expected: str) -> None:
    with pytest.raises(RmapdError) as caught:
        read(folder, text)
    assert re.search(expected, str(caught.value), re.DOTALL), caught.value


def test_key_with_password_is_an_error_without_prompt(folder: Path) -> None:
    key = serialization.load_pem_private_key((folder / "server.key").read_bytes(), None)
    lock = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    with pytest.raises(RmapdError, match="the key has a password"):
        read(folder, TLS + "}")


def test_check_config_reads_web_configuration(folder: Path) -> None:
    (folder / "web.yml").write_text("basic_auth_users: {alice: secret}")
    (folder / "rmapd.toml").write_text(f"web_config = '{folder}/web.yml'")
    done = CliRunner().invoke(main, ["check-config", "--config", str(folder / "rmapd.toml")])
    assert done.exit_code == 2
    assert "alice" in done.output
    assert "secret" not in done.output
    (folder / "rmapd.toml").write_text(f"web_config = '{folder}/nowhere.yml'")
    assert (
        CliRunner().invoke(main, ["check-config", "--config", str(folder / "rmapd.toml")]).exit_code
        == 2
    )


@pytest.mark.parametrize(
    ("host", "text", "expected"),
    [
        ("127.0.0.1", "", 0),
        ("::1", "", 0),
        ("localhost", "", 0),
        ("0.0.0.0", "", 2),
        ("::", "", 2),
        ("192.0.2.1", TLS + "}", 1),
        ("192.0.2.1", f"{TLS}}}\nbasic_auth_users: {{a: {HASH}}}", 0),
        (
            "192.0.2.1",
            TLS + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem}",
            0,
        ),
        (
            "192.0.2.1",
            TLS + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.pem}",
            1,
        ),
        ("127.0.0.1", f"basic_auth_users: {{a: {HASH}}}", 1),
        ("127.0.0.1", "http_server_config: {http2: true}", 1),
    ],
)
def test_open_access_is_warned_about(folder: Path, host: str, text: str, expected: int) -> None:
    (folder / "web.yml").write_text(text)
    assert len(access.Access(folder / "web.yml").concerns(host)) == expected


def test_changed_file_is_reloaded_once_unchanged_for_a_second(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    path = folder / "web.yml"
    path.write_text("")
    mine = access.Access(path, lambda: now[0])

    def later(seconds: float = 1.1) -> web_config.Rules:
        now[0] += seconds
        mine.refresh()
        return mine.rules

    path.write_text(f"basic_auth_users: {{alice: {HASH}}}")
    assert not later(0.1).users, "not before a second"
    assert not later().users, "it may still be written"
    assert later().users == {"alice": HASH}
    path.write_text("basic_auth_users: {alice: x}")
    later()
    assert later().users == {"alice": HASH}, "what is wrong changes nothing"
    assert not mine.taken
    assert caplog.text.count("the access rules stay unchanged") == 1
    later()
    later()
    assert caplog.text.count("the access rules stay unchanged") == 1, "and it is logged once"
    path.write_text(TLS + "}")
    mine.reread()
    assert "a restart" in caplog.text
    path.unlink()
    later()
    assert later().users == {"alice": HASH}
    path.write_text("")
    mine.reread()
    assert not mine.rules.users
    assert mine.taken


def test_file_whose_mode_is_corrected_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewed key that only root can read: chmod changes neither its size nor its mtime."""
    now, path = [0.0], folder / "web.yml"
    path.write_text(TLS + "}")
    mine = access.Access(path, lambda: now[0])
    readings = list[bool]()
    monkeypatch.setattr(mine, "reread", lambda: readings.append(True))

    def later() -> int:
        for _ in range(2):
            now[0] += 1.1
            mine.refresh()
        return len(readings)

    assert not later()
    (folder / "server.key").chmod(0o640)
    assert later()


def test_changed_certificate_is_reloaded(folder: Path) -> None:
    path = folder / "web.yml"
    path.write_text(TLS + "}")
    mine = access.Access(path)
    before = mine.context
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        folder / "server.pem"
    )
    mine.reread()
    assert mine.context is before, "not the key's"
    (folder / "server.key").write_bytes((folder / "server.pem").read_bytes())
    mine.reread()
    assert isinstance(mine.context, ssl.SSLContext)
    assert mine.context is not before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((("DNS", "a.test"),), True),
        ((("DNS", "b.test"), ("URI", "spiffe://x/y")), True),
        ((("IP Address", "2001:DB8:0:0:0:0:0:1"),), True),
        ((("DNS", "A.test"),), False),
        ((("email", "a.test.evil"),), False),
        ((), False),
    ],
)
def test_client_certificate_is_accepted_by_its_names(
    names: tuple[tuple[str, str], ...], expected: bool
) -> None:
    allowed = ["a.test", "spiffe://x/y", "2001:db8::1"]
    assert tls.is_accepted({"subjectAltName": names}, allowed) is expected
    assert tls.is_accepted({"subjectAltName": names}, [])
    assert not tls.is_accepted(None, allowed)
