"""A real task whose name has ESC, a newline and U+202E, from the kernel's comm to every output.

Data have the exact name; texts have it escaped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pyprctl

from tests.live.conftest import daemon, rmapd
from tests.support.daemons import fetch, until
from tests.support.rehearsal import WindowRecorder, make
from tests.support.violations import VIOLATING, variant

NAME = "\x1b]0;x\x07\n\u202ea"
SHOWN = "\\x1b]0;x\\x07\\n\\u202ea"


@contextlib.contextmanager
def renamed_task(name: str) -> Iterator[None]:
    """Give this task another name, by PR_SET_NAME, while the context is open."""
    before = pyprctl.get_name()
    pyprctl.set_name(name)
    try:
        yield
    finally:
        pyprctl.set_name(before)


def control_characters(text: str) -> set[str]:
    """Return the characters that a terminal would act on."""
    return {
        one
        for one in text
        if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") and one not in "\n\t\u2007"
    }


def test_control_characters_of_a_task_name_are_escaped_in_text(reachable: Path) -> None:
    altered = [sys.executable, "-m", "tests.support.altered", str(make(reachable / "probes")), "{}"]
    store = reachable / "rmapd.db"
    with (
        daemon("--store", str(store), command=altered) as (process, url),
        contextlib.closing(WindowRecorder.find()) as recorder,
    ):
        with renamed_task(NAME):
            assert Path("/proc/thread-self/comm").read_bytes() == NAME.encode() + b"\n"
            recorder.record(variant(VIOLATING["L3"], 0))
        violations = until(
            lambda: json.loads(fetch(f"{url}/api/v1/violations")[1]), 20, "the violation is found"
        )
        (found,) = [one for one in violations if one["invariant"] == "L3"]
        assert found["task"]["comm"] == NAME, "data is exact"
        assert not control_characters(fetch(f"{url}/api/v1/violations")[1])
        page = fetch(f"{url}/violations/{found['id']}")[1]
        assert SHOWN.replace("\\n", "\n") in page, "white space is harmless there"
        assert not control_characters(page)
        process.terminate()
        out, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert not control_characters(log)
    assert " CRITICAL violated L3: " in log
    lines = [json.loads(line) for line in out.splitlines()]
    assert next(line for line in lines if line["id"] == found["id"])["task"]["comm"] == NAME
    assert not control_characters(out)
    for form in ("text", "md", "json"):
        done = rmapd("explain", found["id"], "--store", str(store), "--format", form)
        assert (done.returncode, control_characters(done.stdout)) == (0, set())
        assert form != "text" or f"{SHOWN}[" in done.stdout
        assert form != "json" or json.loads(done.stdout)["violation"]["task"]["comm"] == NAME
    for args in (
        ("report", "--store", str(store)),
        ("report", "--store", str(store), "--output", str(reachable / "r.html")),
    ):
        done = rmapd(*args)
        assert (done.returncode, control_characters(done.stdout)) == (0, set())
    assert SHOWN in (reachable / "r.html").read_text()
    assert not control_characters((reachable / "r.html").read_text())
