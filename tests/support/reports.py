"""A made-up report in which every section has content and names are hostile."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.snapshots import FINDING, full
from tracer.invariants.verdict import Ruling, Tally, Verdict
from tracer.packed import pack
from tracer.protocol.text import parse
from tracer.report.timeline import TimelineSampler
from tracer.results import json_form
from tracer.results.protocols import LockNesting, ProtocolVerdict
from tracer.tables.histogram import SLOTS, Histogram

LEGAL = (
    "vma_expand[file anon moved mmap:w ok]  i_mmap↓w anon↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
SWAPPED = (
    "vma_expand[file anon moved mmap:w ok]  anon↓w i_mmap↓w anon- file- "
    "commit(mmap:w i_mmap:w anon:w) file+ anon+ anon↑w i_mmap↑w"
)
HOSTILE = "</style><script>alert(1)</script>`|](x)$\\frac{1}{\n# ok 1 <b>&amp;"
STARTED = 1_700_000_000.0


def unlucky() -> dict[str, Any]:
    """Return a report as `rmapd exec` writes it: L1 is violated, M4 is suspect."""
    loaded: dict[str, Any] = json.loads(_unlucky())
    return loaded


@functools.cache
def _unlucky() -> str:
    trail = (
        {
            "time_ns": 10_000_000,
            "function": "__split_vma",
            "task": {"pid": 7},
            "vma": {},
            "protocol": LEGAL,
            "stack": ["x+0x1"],
        },
        {
            "time_ns": 12_500_000,
            "function": "vma_expand",
            "task": {"pid": 7},
            "vma": {
                "was_start": "0x1000",
                "was_end": "0x2000",
                "vm_start": "0x1000",
                "vm_end": "0x3000",
            },
            "protocol": SWAPPED,
            "marked": True,
            "why": "it took the locks in the other order",
        },
    )
    order = replace(
        FINDING,
        invariant="L1",
        function="vma_expand",
        shape=SWAPPED,
        summary=HOSTILE,
        task={"pid": 7, "comm": HOSTILE},
        protocol=SWAPPED,
    )
    order = replace(
        order,
        trail=pack(trail),
        evidence={
            "edges": [{"held": "anon", "stack": ["a+0x1", "b+0x2"]}],
            "name": HOSTILE,
            "none": None,
            "trail_note": "the recorder goes no further back",
        },
    )
    late = replace(FINDING, invariant="M4", verdict=Verdict.SUSPECT, summary="an entry is old")
    tally, timeline = Tally(), TimelineSampler()
    for seconds in range(6):
        tally.record(order if seconds % 2 else late, STARTED + seconds)
        timeline.add(
            seconds,
            {
                "holds": 100 * seconds**2,
                "violated": seconds // 2,
                "suspect": 1,
                "unverifiable": 0,
                "windows": 10 * seconds,
            },
        )
    held = Histogram(tuple(40 if n == 0 else max(0, 10 - abs(n - 14)) for n in range(SLOTS)), 10**6)
    ruled = (
        ProtocolVerdict(parse(LEGAL), 900, {"L1": Ruling(Verdict.HOLDS)}),
        ProtocolVerdict(parse(SWAPPED), 3, {"L1": Ruling(Verdict.VIOLATED)}),
    )
    graph = (
        LockNesting(
            "i_mmap",
            "anon",
            {"write": 900},
            {"vma_expand": 900},
            parse(LEGAL),
            ("vma_expand+0x1",),
            True,
        ),
        LockNesting(
            "anon",
            "i_mmap",
            {"write": 3},
            {"vma_expand": 3},
            parse(SWAPPED),
            ("vma_expand+0x1",),
            True,
        ),
        LockNesting(
            "mmap", "anon", {"write": 9, "read": 8}, {"vma_expand": 17}, parse(LEGAL), (), False
        ),
    )
    seen = replace(
        full(),
        violations={v.first.id: v for v in tally.violations.values()},
        checks={**tally.checks, ("L1", Verdict.HOLDS): 18, ("L2", Verdict.UNVERIFIABLE): 18},
        histograms=dict.fromkeys(full().histograms, held),
        lock_waits={"i_mmap": held, "anon": Histogram((5, *[0] * 63), 0)},
        protocols=ruled,
        lock_graph=graph,
        taken_seconds=STARTED + 6,
        running_seconds=6.0,
    )
    found = json_form.as_json(seen, ["sh", "-c", HOSTILE], 1) | {"timeline": timeline.as_json()}
    return json.dumps(found)


def written(path: Path, found: dict[str, Any] | None = None) -> Path:
    """Write a report, by default the one of unlucky(), and return the path."""
    path.write_text(json.dumps(unlucky() if found is None else found))
    return path
