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
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tracer.bpf import programs as program
from tracer.supervision.supervisor import CHECKER_NAME

RMAPD = str(Path(sys.executable).parent / "rmapd")
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


def own_programs() -> list[str]:
    """Return the names of rmapd's BPF programs in this kernel."""
    return [name for _, name in program.program_ids() if name.startswith("rmapd_")]


def remaining() -> list[str]:
    """Return rmapd's BPF programs that are still loaded after at most 10 s.

    The kernel frees a program an RCU grace period after its last reference is dropped.
    """
    for _ in range(100):
        if not own_programs():
            return []
        time.sleep(0.1)
    return own_programs()


def child_of(parent: int, name: str) -> int:
    """Return the pid of the child with this name; 0 while there is none."""
    for child in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                return child
    return 0


def checker_of(supervisor: int) -> int:
    """Return the pid of the checker, a child of the started process; 0 while there is none."""
    return child_of(supervisor, CHECKER_NAME)


def loaded_by(process: int | str) -> set[int]:
    """Return the ids of the BPF programs that a process holds."""
    found = set()
    for descriptor in Path(f"/proc/{process}/fdinfo").iterdir():
        # A descriptor may be closed meanwhile: a request's, a file's.
        with contextlib.suppress(FileNotFoundError):
            found |= {
                int(line.split()[1])
                for line in descriptor.read_text().splitlines()
                if line.startswith("prog_id:")
            }
    return found


def still_loaded(programs: set[int]) -> set[int]:
    """Return those of these program ids that are still loaded after at most 10 s."""
    for _ in range(100):
        if not (left := {number for number, _ in program.program_ids()} & programs):
            break
        time.sleep(0.1)
    return left


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


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


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
                with contextlib.suppress(OSError):
                    if fetch(f"{url}/-/ready")[0] == 200:
                        break
                time.sleep(0.05)
            else:
                pytest.fail("the gate did not open")
            yield process, url
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def sample(url: str, line: str) -> float:
    """Return the value of one exposition line."""
    text = fetch(f"{url}/metrics")[1]
    return float(next(row for row in text.splitlines() if row.startswith(line + " ")).split()[1])


def until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """Return the first true result of `what`; fail after this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.2)
    return pytest.fail(f"not within {seconds:g} s: {why}")


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
