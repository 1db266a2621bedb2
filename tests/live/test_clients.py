"""`rmapd status`, `events` and `top` beside a real daemon: restarts, TLS, passwords."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.live.conftest import WORKLOAD, daemon, entries_hold, rmapd
from tests.live.test_access import PASSWORD, USER, Site
from tests.live.test_prometheus import run_at
from tests.support.daemons import RMAPD, sample, until
from tests.support.prometheus import free_port
from tests.support.terminal import Terminal


@contextlib.contextmanager
def following(url: str, heard: Path, noted: Path) -> Iterator[None]:
    """Run `rmapd events -f` meanwhile; it ends only when it is asked to."""
    command = [RMAPD, "events", "-f", "--url", url]
    with (
        heard.open("w") as out,
        noted.open("w") as err,
        subprocess.Popen(command, stdout=out, stderr=err) as follower,
    ):
        try:
            yield
            assert follower.poll() is None
            follower.send_signal(signal.SIGTERM)  # SIGINT is ignored where a shell starts us behind
            assert follower.wait(30) in (-signal.SIGTERM, 128 + signal.SIGTERM)
        finally:
            follower.kill()


def shown_checks(top: Terminal) -> int:
    """Return the checks of M1 that hold, as they are on the screen."""
    rows = [line.split() for line in top.lines if line.startswith(" M1 ")]
    return int(rows[0][2].replace(",", "")) if rows else 0


def test_clients_show_a_daemon_under_load() -> None:
    with daemon() as (_, url):
        done = rmapd("status", "--url", url)
        assert done.returncode == 0, done.stdout
        assert "gate open" in done.stdout
        found = json.loads(rmapd("status", "--url", url, "--format", "json").stdout)["status"]
        for name, one in found["invariants"].items():
            done = rmapd("status", "--url", url, "--require", name)
            assert done.returncode == (4 if one["coverage"] == "none" else 0), done.stdout
        listed = rmapd("events", "--url", url)
        assert (listed.returncode, listed.stdout) == (0, ""), "a healthy kernel violates nothing"
        entries_hold(url, 1000)
        with (
            Terminal([RMAPD, "top", "--url", url, "--interval", "1"], (100, 30)) as top,
            subprocess.Popen([*WORKLOAD, "20000"], stdout=subprocess.DEVNULL) as load,
        ):
            top.shows("live", f"fidelity {found['fidelity']}", " M1 ", " V4 ", "No violation")
            top.until(lambda: "checks/s –" not in top.text, "a rate")
            top.until(lambda: "▅" in top.text or "█" in top.text, "a sparkline")
            top.press("4")
            top.shows("mmap_lock write", "in all tasks")
            top.press("6")
            top.shows("the audit took", "programs", url)
            load.wait(120)
            holds = sample(url, 'rmapd_checks_total{invariant="M1",verdict="holds"}')
            top.press("2r")
            top.until(lambda: shown_checks(top) >= holds > 1000, f"{holds:,.0f} checks")
            top.press("q")
            assert top.end() == 0


def test_clients_survive_a_restart_of_the_daemon(tmp_path: Path) -> None:
    noted = tmp_path / "events.log"
    with contextlib.ExitStack() as stack:
        with daemon() as (_, url):
            stack.enter_context(following(url, tmp_path / "events.jsonl", noted))
            top = stack.enter_context(Terminal([RMAPD, "top", "--url", url, "--interval", "1"]))
            top.shows("live")
        done = rmapd("status", "--url", url)
        assert (done.returncode, done.stdout) == (5, "")
        assert "nothing listens there" in done.stderr
        top.shows("GONE: nothing listens there")
        until(lambda: "; waiting" in noted.read_text(), 120, "events noticed the end")
        with daemon() as (_, again):
            assert again == url
            top.shows("the daemon was restarted", "live")
            until(lambda: "was restarted" in noted.read_text(), 120, "events noticed the restart")
            top.press("q")
            assert top.end() == 0
    assert (tmp_path / "events.jsonl").read_text() == ""
    assert noted.read_text().count("was restarted") == 1


def test_clients_find_the_daemon_of_this_host_by_its_configuration(reachable: Path) -> None:
    """With TLS and a password, and without a URL, a CA, or the name in the certificate."""
    site, at = Site(reachable, "VerifyClientCertIfGiven"), f"127.0.0.1:{free_port()}"
    config, password = reachable / "rmapd.toml", reachable / "password"
    config.write_text(f'listen = "{at}"\nweb_config = "{site.rules}"\n')
    password.write_text(f"{PASSWORD}\n")
    password.chmod(0o600)
    environment = os.environ | {"RMAPD_CONFIG": str(config), "RMAPD_API_USER": USER}
    login = ["--password-file", str(password)]
    with run_at(at, "--config", str(config)):
        until(lambda: rmapd("status", *login, env=environment).returncode == 0, 120, "an open gate")
        done = rmapd("status", *login, env=environment)
        assert f"at https://{at}" in done.stdout
        wrong = rmapd("status", env=environment | {"RMAPD_API_PASSWORD": "wrong"})
        assert wrong.returncode == 2
        assert "it refuses this user or password" in wrong.stderr
        foreign = rmapd("status", "--url", f"https://{at}", *login, env=environment)
        assert foreign.returncode == 2
        assert "its certificate is not trusted" in foreign.stderr
        trusted = ["--url", f"https://{at}", "--ca-file", str(reachable / "ca.pem"), *login]
        assert rmapd("events", *trusted, env=environment).returncode == 0
        with Terminal([RMAPD, "top", *login], (120, 40), environment) as top:
            top.shows("live", " M1 ")
            top.press("q")
            assert top.end() == 0
