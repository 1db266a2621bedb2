"""The legend of the notation: it has every sign, and docs/PROTOCOLS.md has them too."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from tests.support.native import ROOT
from tests.unit.invariants.test_golden import LEGAL, SEED
from tracer.protocol.legend import legend
from tracer.protocol.model import (
    FLAGS,
    Context,
    Follows,
    Geometry,
    Kind,
    Lock,
    Locking,
    Owner,
    Protocol,
    Step,
    Walker,
)
from tracer.protocol.text import parse, parts, text, words

SIGNS = {row.sign for group in legend() for row in group.rows}


def generalized(step: str) -> str:
    """Return a step with one lock, one tree and one state in place of those that it has."""
    for pattern, instead in (
        (r"^\{.*\}\*$", "{anon-}*"),
        (r"\([-rwx]\)$", "(r)"),
        (r"^commit\(.*\)$", "commit(mmap:w anon:w)"),
        (r"^(?!commit\(\))\w+\(\)$", "anon_vma_clone()"),
        (r"^(file|anon)(?=[-+])", "anon"),
        (r"^\w+(?=[↓↑⇓])", "anon"),
    ):
        step = re.sub(pattern, instead, step)
    return step


@pytest.mark.parametrize("name", FLAGS)
def test_every_word_of_a_context_is_in_the_legend(name: str) -> None:
    (word,) = parts(Protocol("f", Context(**{name: True})))[0]  # type: ignore[arg-type]
    assert word in SIGNS


def test_every_result_walker_lock_and_state_is_in_the_legend() -> None:
    contexts = [
        *(Context(geometry=one) for one in Geometry),
        *(Context(follows=one) for one in Follows),
        *(Context(walker=one) for one in Walker),
    ]
    for context in contexts:
        assert set(parts(Protocol("f", context))[0]) <= SIGNS, context
    assert {*Lock, *Owner} <= SIGNS
    kinds = {words([Locking(Lock.ANON, kind)])[0] for kind in Kind}
    assert kinds <= SIGNS


def test_every_kind_of_step_is_in_the_legend() -> None:
    signs = [
        row.sign for group in legend() if group.title.startswith("Steps") for row in group.rows
    ]
    kinds = {type(step) for sign in signs for step in parse(f"f[]  {sign}").steps}
    assert kinds == set(get_args(Step))


@pytest.mark.parametrize("line", [line for line, _ in (*LEGAL, *SEED)])
def test_legend_explains_every_step_of_real_protocols(line: str) -> None:
    known = {generalized(sign) for sign in SIGNS}
    for step in words(parse(line).flat()):
        assert generalized(step) in known, step


def test_signs_and_ascii_forms_of_steps_are_read_back_as_the_same() -> None:
    steps = next(group for group in legend() if group.title.startswith("Steps"))
    for row in steps.rows:
        whole = parse(f"f[]  {row.sign}")
        assert text(parse(f"f[]  {row.ascii or row.sign}")) == text(whole)
        assert text(whole).endswith(row.sign)


def test_each_sign_is_explained_once_in_words_without_a_full_stop() -> None:
    rows = [row for group in legend() for row in group.rows]
    for group in legend():
        signs = [row.sign for row in group.rows]
        assert len(signs) == len(set(signs))
    assert all(row.sign and row.meaning and not row.meaning.endswith(".") for row in rows)


def test_documentation_has_the_signs_of_the_legend() -> None:
    page = (ROOT / "docs/PROTOCOLS.md").read_text()
    codes = {generalized(one) for one in re.findall(r"`([^`\n]+)`", page)}
    for group in legend():
        for row in group.rows:
            value = row.sign.partition("=")[2]
            shortened = f"={value}" if value else row.sign  # after the first of its kind
            assert {generalized(row.sign), shortened} & codes, row
