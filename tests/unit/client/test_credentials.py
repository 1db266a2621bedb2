"""Passwords and tokens from files, the environment or the keyboard; certificates from files."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trustme

from tracer.client.credentials import (
    Credentials,
    LoginOptions,
    authorization,
    fingerprint,
    tls_context,
)
from tracer.errors import RmapdError


def basic(both: str) -> str:
    return "Basic " + base64.b64encode(both.encode()).decode()


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_nothing_given_is_no_login() -> None:
    assert authorization(LoginOptions(), {}) == ""


def test_password_comes_from_file_environment_or_keyboard(tmp_path: Path) -> None:
    file = secret(tmp_path / "password", "from file \n")
    environ = {"RMAPD_API_PASSWORD": "from environment"}
    user = LoginOptions("alice")
    both = LoginOptions("alice", password_file=file)
    assert authorization(both, environ) == basic("alice:from file "), "a file wins"
    assert authorization(user, environ) == basic("alice:from environment")
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "pässword:with colon"

    assert authorization(user, {}, ask) == basic("alice:pässword:with colon")
    assert asked == ["Password of alice"]


def test_token_comes_from_file_or_environment(tmp_path: Path) -> None:
    file = secret(tmp_path / "token", "abc.def\n")
    assert authorization(LoginOptions(token_file=file), {}) == "Bearer abc.def"
    assert authorization(LoginOptions(), {"RMAPD_API_TOKEN": "xyz"}) == "Bearer xyz"


@pytest.mark.parametrize(
    ("options", "environ", "why"),
    [
        (LoginOptions("alice"), {}, "no password for alice"),
        (LoginOptions(), {"RMAPD_API_PASSWORD": "x"}, "a password without a user"),
        (LoginOptions("alice"), {"RMAPD_API_TOKEN": "x"}, "cannot log in twice"),
        (LoginOptions("a:b"), {"RMAPD_API_PASSWORD": "x"}, "it has a colon"),
        (LoginOptions(), {"RMAPD_API_TOKEN": "a\r\nX-Evil: 1"}, "not printable ASCII"),
        (LoginOptions("a", Path("/nonexistent/p")), {}, "cannot read the password file"),
    ],
)
def test_wrong_login_is_refused(options: LoginOptions, environ: dict[str, str], why: str) -> None:
    with pytest.raises(RmapdError, match=why) as refused:
        authorization(options, environ)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "why"), [("", "is empty"), ("\n", "is empty"), ("one\ntwo\n", "more than one line")]
)
def test_wrong_file_of_a_secret_is_refused(tmp_path: Path, content: str, why: str) -> None:
    file = secret(tmp_path / "password", content)
    with pytest.raises(RmapdError, match=why):
        authorization(LoginOptions("alice", file), {})


def test_secret_that_everybody_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authorization(LoginOptions("a", secret(tmp_path / "closed", "x", 0o640)), {})
    assert not caplog.text
    authorization(LoginOptions("a", secret(tmp_path / "open", "secret words", 0o644)), {})
    assert "every user of this machine can read the password" in caplog.text
    assert "secret words" not in caplog.text


def test_login_is_not_in_the_text_of_credentials() -> None:
    assert "Bearer" not in repr(Credentials(authorization="Bearer abc"))


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    ca = trustme.CA()
    client, other = ca.issue_cert("client"), ca.issue_cert("other")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    client.cert_chain_pems[0].write_to_path(cert)
    client.private_key_pem.write_to_path(key)
    assert tls_context(Credentials(cert_file=cert, key_file=key)).verify_mode == ssl.CERT_REQUIRED
    for half in (Credentials(cert_file=cert), Credentials(key_file=key)):
        with pytest.raises(RmapdError, match="needs its key"):
            tls_context(half)
    other.private_key_pem.write_to_path(key)
    with pytest.raises(RmapdError, match="cannot be used"):
        tls_context(Credentials(cert_file=cert, key_file=key))
    with pytest.raises(RmapdError, match="not a regular file"):
        tls_context(Credentials(ca_file=tmp_path))
    with pytest.raises(RmapdError, match=r"the CA .* cannot be used"):
        tls_context(Credentials(ca_file=tmp_path / "missing"))


def test_fingerprint_is_of_the_first_certificate(tmp_path: Path) -> None:
    ca, path = trustme.CA(), tmp_path / "chain.pem"
    leaf = ca.issue_cert("a").cert_chain_pems[0].bytes()
    path.write_bytes(leaf + ca.cert_pem.bytes())
    both = fingerprint(path)
    path.write_bytes(leaf)
    assert fingerprint(path) == both
    for wrong in ("", "no certificate", f"{ssl.PEM_HEADER}\n!\n{ssl.PEM_FOOTER}\n"):
        path.write_text(wrong)
        with pytest.raises(RmapdError, match="cannot be used"):
            fingerprint(path)
