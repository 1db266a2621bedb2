"""Live tests need root, BTF and bcc; without these they are skipped.

With RMAPD_REQUIRE_KERNEL=1 they fail instead, because CI must not count a skip as a pass.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import RMAPD, is_ready, sample

ROOT = Path(__file__).parent.parent.parent
os.environ.setdefault("RMAPD_STORE", "")  # do not write to this machine's store
if "RMAPD_CACHE" not in os.environ:
    # one for all tests: a start that compiles takes twice as long
    os.environ["RMAPD_CACHE"] = tempfile.mkdtemp(prefix="rmapd-tests-")
    atexit.register(shutil.rmtree, os.environ["RMAPD_CACHE"], ignore_errors=True)
WORKLOAD = [sys.executable, "-S", str(ROOT / "tests/workloads/migrate.py")]
"""-S: without site-packages coverage is not started in a process that forks in a loop."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "" if os.geteuid() == 0 else "not root"
    reason = reason or ("" if Path("/sys/kernel/btf/vmlinux").exists() else "no BTF")
    for item in items:
        item.add_marker(pytest.mark.live)
        if reason and os.environ.get("RMAPD_REQUIRE_KERNEL") == "1":
            raise pytest.UsageError(f"RMAPD_REQUIRE_KERNEL=1 and {reason}")
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def daemons_user() -> pwd.struct_passwd:
    """Return the user that `rmapd run` becomes on this machine."""
    try:
        return pwd.getpwnam("rmapd")
    except KeyError:
        return pwd.getpwnam("nobody")


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """Make a folder that the daemon's user owns and every user can read.

    pytest's own temporary folders are closed to all users but root.
    """
    with tempfile.TemporaryDirectory(prefix="rmapd-test-") as name:
        os.chown(name, daemons_user().pw_uid, daemons_user().pw_gid)
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def reachable() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def rmapd(
    *args: str, timeout: float = 180, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RMAPD, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


def run_exec(
    tmp_path: Path, *args: str, command: list[str]
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run `rmapd exec --report`; return the process and the report."""
    report = tmp_path / "report.json"
    done = rmapd("exec", "--report", str(report), *args, "--", *command)
    assert report.exists(), done.stderr
    return done, json.loads(report.read_text())


@contextlib.contextmanager
def daemon(
    *args: str, command: Sequence[str] = (RMAPD,), env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `rmapd run`, wait until its gate is open, and yield the process and its URL."""
    port = 20000 + os.getpid() % 20000
    url = f"http://127.0.0.1:{port}"
    run, environment = (
        [*command, "run", "--listen", f"127.0.0.1:{port}", *args],
        {**os.environ, **(env or {})},
    )
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            for _ in range(600):
                if process.poll() is not None:
                    pytest.fail(
                        f"rmapd ended with {process.returncode}: {process.communicate()[1]}"
                    )
                if is_ready(url):
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the gate did not open")
            yield process, url
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def entries_hold(url: str, more: float) -> None:
    """Compact memory until M1 holds for `more` further entries.

    It takes several rounds, because the number of mapped pages among the moved ones is random.
    """
    line = 'rmapd_checks_total{invariant="M1",verdict="holds"}'
    before = sample(url, line)
    for _ in range(10):
        subprocess.run([*WORKLOAD, "20000"], check=True, stdout=subprocess.DEVNULL)
        time.sleep(2.5)
        if sample(url, line) > before + more:
            return
    pytest.fail(f"{sample(url, line) - before:g} entries of {more:g} hold")
