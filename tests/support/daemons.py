"""What tests read of a daemon that runs: its processes, its programs in the kernel, its pages."""

from __future__ import annotations

import contextlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracer.bpf import programs as program
from tracer.supervision.supervisor import CHECKER_NAME

RMAPD = str(Path(sys.executable).parent / "rmapd")


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


def status(of: Path) -> dict[str, str]:
    """Return the fields of a process's or a thread's /proc/…/status."""
    return {
        key: value.strip()
        for key, _, value in (
            line.partition(":") for line in (of / "status").read_text().splitlines()
        )
    }


def threads(pid: int) -> list[dict[str, str]]:
    """Return the status of each thread of a process."""
    return [status(task) for task in Path(f"/proc/{pid}/task").iterdir()]


def fetch(url: str) -> tuple[int, str]:
    """Return the HTTP status and the body of an answer, also of a refusal."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def is_ready(url: str) -> bool:
    """Return whether a daemon answers and its gate is open."""
    try:
        return fetch(f"{url}/-/ready")[0] == 200
    except OSError:
        return False


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
    raise AssertionError(f"not within {seconds:g} s: {why}")
