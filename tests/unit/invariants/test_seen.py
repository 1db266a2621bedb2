"""Every protocol that a healthy kernel showed (docs/measurements/SEEN.md) stays legal."""

from __future__ import annotations

import re

import pytest

from tests.support.native import LAYOUTS, ROOT
from tracer.invariants.catalogue import discover
from tracer.invariants.verdict import Verdict
from tracer.protocol.codec import Encoding
from tracer.protocol.text import parse, text

SEEN = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/measurements/SEEN.md").read_text(), flags=re.M)
KNOWN = {name: invariant.judge for name, invariant in discover().items() if invariant.judge}


def test_table_of_seen_protocols_is_complete() -> None:
    assert len(SEEN) > 200
    assert {"vma_expand", "commit_merge", "dup_mmap", "rmap_walk_file"} <= {
        parse(line).window for line in SEEN
    }


@pytest.mark.parametrize("name", KNOWN)
def test_what_healthy_kernels_do_is_no_violation(name: str) -> None:
    judge = KNOWN[name]
    wrong = {
        line: ruling
        for line in SEEN
        if (ruling := judge(parse(line))) and ruling.verdict in (Verdict.VIOLATED, Verdict.SUSPECT)
    }
    assert not wrong


def test_seen_protocols_round_trip() -> None:
    encoding = Encoding(LAYOUTS)
    for line in SEEN:
        assert text(parse(line)) == line
        assert encoding.decode(encoding.encode(parse(line))) == parse(line)
