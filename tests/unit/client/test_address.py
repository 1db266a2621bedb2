"""Where the daemon is: URLs, and the configuration of the daemon on this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.client.address import from_configuration, from_url
from tracer.config import Config
from tracer.errors import RmapdError


@pytest.mark.parametrize(
    ("given", "url", "secure"),
    [
        ("http://127.0.0.1:9743", "http://127.0.0.1:9743", True),
        ("http://localhost:9743/", "http://localhost:9743", True),
        ("http://[::1]:9743", "http://[::1]:9743", True),
        ("http://web1:9743", "http://web1:9743", False),
        ("http://192.0.2.7", "http://192.0.2.7", False),
        ("https://web1", "https://web1", True),
        ("https://web1:443/hosts/a/", "https://web1/hosts/a", True),
        (" https://web1:9743\n", "https://web1:9743", True),
        ("http://127.0.0.1.evil.example", "http://127.0.0.1.evil.example", False),
    ],
)
def test_url_names_a_daemon(given: str, url: str, secure: bool) -> None:
    address = from_url(given)
    assert (address.url, address.secure) == (url, secure)
    assert from_url(address.url) == address


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("web1:9743", "does not begin with"),
        ("ftp://web1", "does not begin with"),
        ("https://", "names no host"),
        ("http://a b", "names no host"),
        ("http://web1:port", "Port could not be cast"),
        ("http://web1:99999", "Port out of range"),
        ("https://web1/?x=1", "has a query"),
        ("http://[::1", "Invalid IPv6"),
    ],
)
def test_wrong_url_is_refused(given: str, why: str) -> None:
    with pytest.raises(RmapdError) as refused:
        from_url(given)
    assert why in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "given", ["https://admin:s3cret@web1", "http://s3cret@web1/", "x://:s3cret@"]
)
def test_password_in_a_url_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(RmapdError) as refused:
        from_url(given)
    assert "s3cret" not in str(refused.value)
    assert "--password-file" in str(refused.value)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (Config().listen, "http://127.0.0.1:9743"),
        ("0.0.0.0:9000", "http://127.0.0.1:9000"),
        ("[::]:9000", "http://[::1]:9000"),
        ("192.0.2.7:9743", "http://192.0.2.7:9743"),
    ],
)
def test_address_comes_from_the_configuration(listen: str, url: str) -> None:
    assert from_configuration(Config(listen=listen)).url == url


def test_web_configuration_decides_between_http_and_https(tmp_path: Path) -> None:
    rules = tmp_path / "web.yml"
    settings = Config(web_config=str(rules))
    rules.write_text("{}")
    assert from_configuration(settings).url == "http://127.0.0.1:9743"
    rules.write_text("tls_server_config: {cert_file: a.pem, key_file: a.key}")
    address = from_configuration(settings)
    assert (address.scheme, address.certificate) == ("https", tmp_path / "a.pem")


def test_unknown_address_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="its port is chosen when it starts"):
        from_configuration(Config(listen="127.0.0.1:0"))
    with pytest.raises(RmapdError) as refused:
        from_configuration(Config(web_config=str(tmp_path / "missing.yml")))
    assert "whether the daemon speaks TLS is not known" in str(refused.value)
    assert "--url https://127.0.0.1:9743" in str(refused.value)
