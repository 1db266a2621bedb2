"""What was needed for a moment is given back to the kernel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tracer.config import Config
from tracer.daemon import exec_supervisor, run_supervisor
from tracer.process import allocator

_KEPT_AFTER = """
import re, sys
from pathlib import Path
from tracer.process import allocator

def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssAnon:\\s+(\\d+)", text, re.M)[1]) << 10

if sys.argv[1] == "set":
    allocator.return_large_blocks()
b"1" * (30 << 20)  # freed at once: glibc's own limit is 30 MiB from here on
before, kept = anonymous(), []
for _ in range(4):
    large = b"1" * (8 << 20)
    kept += [bytes(2000) for _ in range(100)]  # on the heap, above the large block
    del large
print(anonymous() - before - sum(map(len, kept)))
"""


def kept_after(setting: str) -> int:
    """Return the bytes that a process keeps of large blocks that it has freed."""
    done = subprocess.run(
        [sys.executable, "-c", _KEPT_AFTER, setting], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_large_blocks_are_given_back() -> None:
    assert kept_after("set") < 1 << 20


def test_freed_large_blocks_are_kept_where_the_limit_is_not_set() -> None:
    """Otherwise the test above could not fail."""
    assert kept_after("unset") > 4 << 20


@pytest.mark.parametrize(
    ("start", "given"), [(run_supervisor.start, Config()), (exec_supervisor.run, None)]
)
def test_run_and_exec_begin_with_it(
    start: Callable[[Any], object], given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisor and checker have it then, and what they fork."""

    class Called(Exception):
        pass

    def called() -> None:
        raise Called

    monkeypatch.setattr(allocator, "return_large_blocks", called)
    with pytest.raises(Called):
        start(given)
