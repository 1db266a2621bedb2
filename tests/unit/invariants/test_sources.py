"""What `rmapd explain` cites as the source of an invariant: something that a reader can look up."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from tracer.cli import main
from tracer.invariants.catalogue import discover

DICKINS = "<e2df94dc-f54c-ebb9-14f0-98b232358d4@google.com>"
"""Message-ID of Hugh Dickins's mail to maple-tree, linux-mm and linux-kernel, 7 July 2022: "Re:
[PATCH] maple_tree: Fix use of node for global range in mas_wr_spanning_store()". It reports a BUG
in mas_validate_gaps() and has an error return that keeps its lock."""


@pytest.mark.parametrize("invariant", ["L3", "V4"])
def test_explanation_cites_the_mail_by_author_date_and_message_id(invariant: str) -> None:
    printed = " ".join(CliRunner().invoke(main, ["explain", invariant]).output.split())
    assert "Hugh Dickins, 7 July 2022" in printed
    assert DICKINS in printed


def test_no_invariant_names_a_source_that_only_its_authors_know() -> None:
    for invariant in discover().values():
        texts = (invariant.claim, invariant.stated, invariant.not_violations, invariant.confirmed)
        assert not re.search(r"\bseed", " ".join((*texts, invariant.blind_spots))), invariant.id
