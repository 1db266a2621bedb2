"""The store on full file systems of 1 MiB, and `rmapd run` with a store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import daemon, daemons_user, rmapd
from tests.support.daemons import checker_of, fetch, sample
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.outputs.store import reader
from tracer.outputs.store.writer import Store

MIB = 1 << 20


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", *options, str(folder)], check=True)
    os.chown(folder, daemons_user().pw_uid, daemons_user().pw_gid)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, reachable: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB that the daemon's user owns."""
    if request.param == "tmpfs":
        with mounted(reachable / "small", "-t", "tmpfs", "-o", "size=1m", "none") as folder:
            yield folder
        return
    image = reachable / "image"
    with image.open("wb") as file:
        file.truncate(MIB)
    made = subprocess.run(
        ["mkfs.ext4", "-q", "-O", "^has_journal", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode or not list(Path("/dev").glob("loop-control")):
        pytest.skip(f"no ext4 on a loop device here: {made.stderr}")
    with mounted(reachable / "small", "-o", "loop", str(image)) as folder:
        yield folder


def fill(folder: Path) -> Path:
    """Fill the file system to the last byte; return the file that does."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return ballast


def finding(n: int) -> Finding:
    return Finding(
        "L3",
        Verdict.VIOLATED,
        "do_brk_flags",
        f"shape {n}",
        "s",
        {},
        ("f+0x1",),
        {"blob": "x" * 1000},
    )


def counts(path: Path) -> dict[str, int]:
    return {
        violation["signature"]: violation["count"] for violation in reader.read(path).violations
    }


@pytest.mark.parametrize("begun", [True, False])
def test_full_disk_causes_one_message_and_loses_no_count(
    small: Path, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """begun: the store is there when the disk becomes full."""
    path, tally, now = small / "rmapd.db", Tally(), [0.0]
    ballast = None if begun else fill(small)
    store = Store(path, "6.1-test", 64 * MIB, 90, must=True, monotonic=lambda: now[0])
    tally.record(finding(0), time.time())
    store.keep(tally.violations.values(), tally.rest)
    if begun:
        assert counts(path) == {finding(0).signature: 1}
        ballast = fill(small)
    for n in range(1000):
        now[0] += 1
        tally.record(finding(n % 250), time.time())
        store.keep(tally.violations.values(), tally.rest)
    assert "full" in store.state.reason
    assert store.state.unwritten > 500
    assert caplog.text.count("cannot be written") == 1, "the message is logged once"
    if begun:
        assert counts(path)[finding(0).signature] >= 1, (
            "stored results can be read on the full disk"
        )
    assert ballast
    ballast.unlink()
    now[0] += 6
    store.keep(tally.violations.values(), tally.rest)
    assert (store.state.reason, store.state.unwritten) == ("", 0)
    assert counts(path) == {
        violation.first.signature: violation.count for violation in tally.violations.values()
    }
    assert sum(counts(path).values()) == 1001
    store.close()
    assert sum(counts(path).values()) == 1001


def test_daemon_continues_with_a_full_disk_and_reports_it(small: Path) -> None:
    path = small / "rmapd.db"
    fill(small)
    with daemon("--store", str(path)) as (process, url):
        assert sample(url, "rmapd_store_writable") == 0
        assert fetch(f"{url}/-/ready")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr
        assert (
            f"the store {path} cannot be written (database or disk is full)"
            in process.stderr.read()
        )


def test_every_run_is_stored(reachable: Path) -> None:
    path = reachable / "rmapd.db"
    for _ in range(2):
        done = rmapd("run", "--duration", "1", "--listen", "127.0.0.1:0", "--store", str(path))
        assert done.returncode == 0, done.stderr
    first, second = reader.read(path).runs
    assert first["id"] != second["id"]
    assert first["ended"]
    assert first["ended"] <= second["started"]
    assert second["report"]["invariants"]["M1"]["coverage"] in ("full", "partial")
    assert "not be written" not in done.stderr


def test_killed_run_is_stored_without_an_end(reachable: Path) -> None:
    path = reachable / "rmapd.db"
    with daemon("--store", str(path)) as (process, url):
        assert sample(url, "rmapd_store_writable") == 1
        checker = checker_of(process.pid)
        process.kill()  # and then the checker, before it can store its results
        os.kill(checker, signal.SIGKILL)
        process.wait(30)
    (run,) = reader.read(path).runs
    assert run["ended"] is None
    assert run["report"]["kernel"] == run["kernel"]


def test_unusable_store_is_exit_2(reachable: Path) -> None:
    done = rmapd("run", "--store", str(reachable / "no/such/folder.db"), "--listen", "127.0.0.1:0")
    assert done.returncode == 2
    assert "cannot write the store" in done.stderr
    other = reachable / "theirs.db"
    with contextlib.closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE theirs (x)")
    os.chown(other, daemons_user().pw_uid, daemons_user().pw_gid)
    assert (
        "another program's database"
        in rmapd("run", "--store", str(other), "--listen", "127.0.0.1:0").stderr
    )


def test_stored_report_can_be_read_back(reachable: Path) -> None:
    path = reachable / "rmapd.db"
    rmapd("run", "--duration", "0", "--listen", "127.0.0.1:0", "--store", str(path))
    assert json.dumps(reader.read(path).runs[0]["report"])
