"""What is kept for long is small, and comes back as it was."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.checking.findings import Draft, Explanation
from tracer.checking.trail import Trail
from tracer.invariants.verdict import Finding, Tally, Verdict
from tracer.packed import pack, unpack

_ANY = st.characters()  # lone surrogates, too
_PLAIN = (
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text(_ANY, max_size=9)
)
_JSON = _PLAIN | st.lists(_PLAIN, max_size=3) | st.dictionaries(st.just("pid"), _PLAIN)


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.text(max_size=9), _JSON, max_size=3), max_size=3))
def test_what_was_packed_comes_back(rows: list[dict[str, Any]]) -> None:
    assert unpack(pack(rows)) == rows
    assert bool(pack(rows)) == bool(rows)


def steps(number: int) -> tuple[dict[str, Any], ...]:
    """Return a trail of 32 windows, as the flight recorder has them."""
    stack = [f"function_{frame}+0x{number:x}" for frame in range(12)]
    return tuple(
        {
            "time_ns": 10**14 + number * 10**9 + step,
            "duration_ns": 4000 + step,
            "function": "vma_expand",
            "task": {"pid": number, "tgid": number},
            "vma": {name: hex(1 << 46 | number << 12 | step) for name in ("vma", "vm_start")},
            "protocol": f"vma_expand[file anon mmap:w]  anon↓w i_mmap↓w {step}",
            "stack": list(stack),
        }
        for step in range(32)
    )


def test_a_thousand_findings_with_their_trails_take_five_megabytes() -> None:
    tally = Tally()
    tracemalloc.start()
    try:
        for number in range(1000):
            outline = Finding("L1", Verdict.VIOLATED, "vma_expand", f"shape {number}", "")
            trail = Trail(steps(number))
            draft = Draft(outline, lambda trail=trail: Explanation("why", trail=trail))  # type: ignore[misc]
            tally.record(draft.complete(), 1.0)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken < 5 << 20
    assert next(iter(tally.violations.values())).first.trail == pack(steps(0))


def test_the_signature_of_a_finding_is_one_text() -> None:
    """A dozen tables have it as their key."""
    finding = Finding("L1", Verdict.VIOLATED, "vma_expand", "shape", "")
    assert finding.signature is finding.signature
    assert finding.id is finding.id
