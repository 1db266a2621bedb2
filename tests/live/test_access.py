"""Access rules of a real run.

A real Prometheus scrapes by its own TLS and basic_auth settings; other clients are refused.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import bcrypt
import pytest
import trustme

from tests.live.test_prometheus import run_at
from tests.support.daemons import RMAPD, until
from tests.support.prometheus import Prometheus, free_port, prometheus
from tracer.bpf import programs

USER, PASSWORD = "prometheus", "correct horse battery"
RULES = """
tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_auth_type: {auth}
  client_ca_file: ca.pem
basic_auth_users:
  {user}: {hash}
"""


class Site:
    """Certificates, passwords and the web configuration of one host."""

    def __init__(self, folder: Path, auth: str = "RequireAndVerifyClientCert") -> None:
        self.folder, self.ca = folder, trustme.CA()
        self.ca.cert_pem.write_to_path(folder / "ca.pem")
        self.renew()
        client = self.ca.issue_cert("prometheus.test")
        client.private_key_pem.write_to_path(folder / "client.key")
        client.cert_chain_pems[0].write_to_path(folder / "client.pem")
        hashed = (
            bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode().replace("$2b$", "$2y$")
        )
        self.rules = folder / "web.yml"
        self.rules.write_text(RULES.format(auth=auth, user=USER, hash=hashed))

    def renew(self) -> None:
        server = self.ca.issue_cert("127.0.0.1", "localhost")
        server.private_key_pem.write_to_path(self.folder / "server.key")
        server.cert_chain_pems[0].write_to_path(self.folder / "server.pem")

    def scrape(self, at: str, **changes: object) -> dict[str, object]:
        """Return a scrape job as Prometheus's documentation writes it."""
        tls = {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"}
        job: dict[str, object] = {
            "job_name": "secured",
            "scheme": "https",
            "static_configs": [{"targets": [at]}],
        }
        files = {name: str(self.folder / file) for name, file in tls.items()}
        return (
            job
            | {"tls_config": files, "basic_auth": {"username": USER, "password": PASSWORD}}
            | changes
        )

    def status(
        self, at: str, path: str, *, certificate: bool = True, password: str = PASSWORD
    ) -> int | str:
        """Return the status of a request, or the name of the error if there is no response."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if certificate:
            context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        passwords.add_password(None, f"https://{at}/", USER, password, is_authenticated=True)
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPBasicAuthHandler(passwords),
        )
        try:
            with opener.open(f"https://{at}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except (urllib.error.URLError, OSError) as error:
            return type(error).__name__


def up(api: Prometheus, job: str) -> bool:
    return bool(api.query(f'up{{job="{job}"}} == 1'))


def test_prometheus_with_certificate_and_password_scrapes_and_others_are_refused(
    reachable: Path,
) -> None:
    site, at = Site(reachable), f"127.0.0.1:{free_port()}"
    wrong = site.scrape(at, job_name="wrong", basic_auth={"username": USER, "password": "x"})
    only_ca = {"ca_file": str(reachable / "ca.pem")}
    anonymous = site.scrape(at, job_name="anonymous", tls_config=only_ca)
    jobs = {"scrape_configs": [site.scrape(at), wrong, anonymous]}
    with run_at(at, "--web-config", str(site.rules)), prometheus(reachable, **jobs) as api:
        until(lambda: up(api, "secured"), 120, "scraped")
        until(lambda: api.query('rmapd_gate_open{job="secured"} == 1'), 60, "the gate is open")
        until(
            lambda: api.query('up{job="wrong"} == 0') and api.query('up{job="anonymous"} == 0'),
            20,
            "the others are refused",
        )
        targets = {
            target["labels"]["job"]: target["lastError"]
            for target in api.get("/api/v1/targets")["activeTargets"]
        }
        assert "401" in targets["wrong"]
        assert targets["anonymous"]
        (served,) = api.query('scrape_samples_scraped{job="secured"}')
        assert int(served["value"][1]) < 700
        for path in (
            "/metrics",
            "/",
            "/protocols",
            "/api/v1/report",
            "/-/healthy",
            "/-/ready",
            "/static/style.css",
            "/nothing",
        ):
            assert site.status(at, path, password="x") == 401
            assert isinstance(site.status(at, path, certificate=False), str), (
                "no handshake, no status"
            )
            assert site.status(at, path) == (404 if path == "/nothing" else 200)
        text = subprocess.run(
            [
                *"curl -s --cacert ca.pem --cert client.pem --key client.key -u".split(),
                f"{USER}:{PASSWORD}",
                f"https://{at}/metrics",
            ],
            cwd=reachable,
            capture_output=True,
            check=True,
        ).stdout
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
        site.renew()
        site.ca.cert_pem.write_to_path(reachable / "ca.pem")
        time.sleep(4)
        until(lambda: up(api, "secured"), 20, "still scraped after the certificate was renewed")


def test_valid_web_config_is_reloaded_and_invalid_one_is_rejected(reachable: Path) -> None:
    site, at = Site(reachable, "VerifyClientCertIfGiven"), f"127.0.0.1:{free_port()}"
    environment = os.environ | {"NOTIFY_SOCKET": ""}
    command = [RMAPD, "run", "--listen", at, "--web-config", str(site.rules)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            until(lambda: site.status(at, "/-/ready", certificate=False) == 200, 120, "ready")
            good = site.rules.read_text()
            site.rules.write_text(good + "rate_limits: {}\n")
            process.send_signal(signal.SIGHUP)
            time.sleep(1.5)
            assert site.status(at, "/metrics", certificate=False) == 200
            site.rules.write_text(good.replace(f"  {USER}:", "  other:"))
            process.send_signal(signal.SIGHUP)
            until(
                lambda: site.status(at, "/metrics", certificate=False) == 401,
                10,
                "a removed user reads nothing",
            )
        finally:
            process.terminate()
            assert process.stderr
            errors = process.stderr.read()
            process.wait(30)
    assert "the access rules stay unchanged" in errors
    assert "try: rate_limit" in errors
    assert "is reloaded: TLS, VerifyClientCertIfGiven, 1 users" in errors


def test_bad_hash_is_exit_2_and_open_address_is_warned_of_at_start(tmp_path: Path) -> None:
    """With --duration 0 rmapd ends at once: the open address is served for a moment only."""
    (tmp_path / "web.yml").write_text("basic_auth_users: {a: x}")
    done = subprocess.run(
        [RMAPD, "run", "--web-config", str(tmp_path / "web.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not a bcrypt hash" in done.stderr
    assert not [name for _, name in programs.program_ids() if name == "rmapd_never"]
    if shutil.which("unshare") is None:
        pytest.fail("unshare is part of util-linux")
    alone = [
        "unshare",
        "-n",
        "sh",
        "-c",
        f"ip link set lo up && exec {RMAPD} run --listen 0.0.0.0:0 --duration 0",
    ]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "anyone who can reach 0.0.0.0 may read" in done.stderr
    assert "traffic on 0.0.0.0 is not encrypted" in done.stderr
