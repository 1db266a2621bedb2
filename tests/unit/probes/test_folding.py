"""append_step() of probes/include/steps.h folds loops into codes that stand for all steps.

The Python codec decodes them.
"""

from __future__ import annotations

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.box import ENCODING
from tests.support.native import LAYOUTS, Native
from tracer.errors import RmapdError
from tracer.protocol.model import Group, Step
from tracer.protocol.text import parse, text

AT = LAYOUTS.constants
NATIVE = Native()
MOST = AT["MOST_STEPS"]


def is_step(code: int) -> bool:
    """Whether the code is a step by itself: 0 is padding, and a repeat needs steps before it."""
    try:
        return code > 0 and bool(ENCODING.decode(key_of(bytes((code,)))).steps)
    except RmapdError:
        return False


def folded(steps: bytes) -> bytes:
    return NATIVE.fold(steps).rstrip(b"\0")


def key_of(codes: bytes) -> bytes:
    return codes.ljust(64, b"\0") + LAYOUTS.structs["protocol_key"].pack()[64:]


STEPS = [code for code in range(256) if is_step(code)]


def pattern(codes: bytes) -> str:
    """Return a regular expression over steps for folded codes: each group two times or more."""
    found: list[tuple[str, int]] = []
    for code in codes:
        size = code - AT["STEP_REPEAT"] + 1
        if not 1 <= size <= 8:
            found.append((re.escape(chr(code)), 1))
            continue
        group: list[tuple[str, int]] = []
        while sum(width for _, width in group) < size:
            group.insert(0, found.pop())
        assert sum(width for _, width in group) == size, "groups overlap"
        found.append((f"(?:{''.join(each for each, _ in group)}){{2,}}", size + 1))
    return "".join(each for each, _ in found)


def stands_for(codes: bytes, steps: bytes) -> bool:
    return re.fullmatch(pattern(codes), steps.decode("latin-1"), re.DOTALL) is not None


def unfolded(codes: bytes) -> list[Step]:
    """Return the steps of a protocol with each group once and each commit in its parts."""

    def flat(steps: tuple[Step, ...]) -> list[Step]:
        return [
            each
            for step in steps
            for each in (flat(step.steps) if isinstance(step, Group) else [step])
        ]

    return flat(ENCODING.decode(key_of(codes)).steps)


def test_folded_codes_of_every_short_sequence_stand_for_it() -> None:
    first = AT["STEP_LOCK"]
    for letters, longest in ((2, 12), (3, 8)):
        for length in range(longest + 1):
            for steps in itertools.product(range(first, first + letters), repeat=length):
                codes = folded(bytes(steps))
                assert stands_for(codes, bytes(steps)), steps
                assert len(unfolded(codes)) <= length


groups = st.lists(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9), min_size=1, max_size=4)


@st.composite
def windows(draw: st.DrawFn) -> bytes:
    """Draw sequences of a few repeated groups: loops within loops, as kernel code makes them."""
    known, out = draw(groups), b""
    for _ in range(draw(st.integers(0, 12))):
        part = bytes(draw(st.sampled_from(known)))
        out += part * draw(st.integers(1, 4))
    return (out * draw(st.integers(1, 3)))[:200]


@settings(max_examples=500)
@given(windows())
def test_folded_codes_stand_for_the_recorded_steps(steps: bytes) -> None:
    steps = bytes(step for step in steps if step != AT["STEP_OVERLONG"])
    codes = folded(steps)
    protocol = ENCODING.decode(key_of(codes))
    if not protocol.overlong:
        assert stands_for(codes, steps), text(protocol)
    else:
        assert (len(codes), codes[-1]) == (MOST + 1, AT["STEP_OVERLONG"])
        assert any(stands_for(codes[:-1], steps[:n]) for n in range(len(steps))), (
            "the steps before the mark are a prefix"
        )


@settings(max_examples=300)
@given(windows())
def test_protocol_is_unchanged_by_conversion_to_text_and_to_bytes(steps: bytes) -> None:
    codes = folded(steps)
    protocol = ENCODING.decode(key_of(codes))
    assert parse(text(protocol)) == protocol
    assert parse(text(protocol, ascii=True)) == protocol
    assert ENCODING.encode(protocol) == key_of(codes)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(STEPS[2:]), min_size=1, max_size=8, unique=True),
    st.integers(2, 9),
    st.integers(2, 9),
)
def test_loop_folds_to_the_same_codes_for_any_number_of_runs(
    body: list[int], once: int, again: int
) -> None:
    assert (
        folded(bytes(body) * once)
        == folded(bytes(body) * again)
        == bytes((*body, AT["STEP_REPEAT"] + len(body) - 1))
    )


def test_repeated_group_of_nine_steps_is_not_folded() -> None:
    body = bytes(range(AT["STEP_LOCK"], AT["STEP_LOCK"] + 9))
    assert folded(body * 2) == body * 2


def test_nested_loops_fold_to_nested_groups() -> None:
    a, b, c = (bytes((AT["STEP_LOCK"] + n,)) for n in range(3))
    assert (
        text(ENCODING.decode(key_of(folded((a + b * 3 + c) * 4))))
        == "outside[]  {other↓r {other↓w}* other↓rk}*"
    )


def test_overlapping_repetitions_fold_to_groups_that_do_not_overlap() -> None:
    """b {a b}* then a b a: a group of the last three would begin inside of the group before it."""
    a, b = AT["STEP_LOCK"], AT["STEP_LOCK"] + 1
    steps = bytes((b, a, a, b, a, a, b, b, a, a, b, b, a, b))
    assert stands_for(folded(steps), steps)
