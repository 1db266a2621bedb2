"""The notation and the kernel's encoding: protocols round-trip, invalid input is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.native import LAYOUTS
from tracer.errors import RmapdError
from tracer.protocol.codec import Encoding
from tracer.protocol.model import (
    NULL,
    Call,
    Commit,
    Context,
    Follows,
    Geometry,
    Group,
    Held,
    Kind,
    Lock,
    Locking,
    Lost,
    Overlong,
    Owner,
    Part,
    Protocol,
    Tree,
    TreeStep,
    Visit,
    Walker,
    joined,
)
from tracer.protocol.text import parse, text

ENCODING = Encoding(LAYOUTS)
KEY = LAYOUTS.structs["protocol_key"]

owners, flags = st.sampled_from(Owner), st.booleans()
held = st.builds(Held, owners, owners, owners)
contexts = st.builds(
    Context,
    flags,
    flags,
    flags,
    flags,
    flags,
    flags,
    flags,
    flags,
    flags,
    held,
    held,
    *map(st.sampled_from, (Geometry, Follows, Walker)),
)
commits = st.lists(st.sampled_from(Part), min_size=1, unique=True).flatmap(
    lambda parts: st.tuples(
        *(st.tuples(st.just(part), owners) for part in sorted(parts, key=list(Part).index))
    ).map(Commit)
)
plain = st.one_of(
    st.builds(Locking, st.sampled_from(Lock), st.sampled_from(Kind)),
    st.builds(TreeStep, st.sampled_from(Tree), flags, st.none() | owners),
    commits,
    st.builds(Visit, owners),
    st.builds(Call, st.sampled_from(ENCODING.windows)),
    st.just(Lost()),
    st.just(Overlong()),
)
runs = st.recursive(
    st.lists(plain, min_size=1, max_size=2).map(joined),
    lambda inner: st.tuples(inner.map(Group), plain).map(joined),
    max_leaves=3,
)
steps = st.lists(st.one_of(plain.map(lambda step: (step,)), runs), max_size=8).map(
    lambda lists: joined(s for each in lists for s in each)
)
errors = st.just(0) | st.integers(1, 133) | st.just(512) | st.just(NULL)
protocols = st.builds(Protocol, st.sampled_from(ENCODING.windows), contexts, errors, steps)


@given(protocols)
def test_protocol_text_round_trips(protocol: Protocol) -> None:
    assert parse(text(protocol)) == protocol
    assert parse(text(protocol, ascii=True)) == protocol
    assert text(protocol, ascii=True).isascii()


@given(protocols)
def test_protocol_bytes_round_trip(protocol: Protocol) -> None:
    try:
        key = ENCODING.encode(protocol)
    except RmapdError:  # a repeat of more than eight steps
        return
    assert len(key) == KEY.size
    assert ENCODING.decode(key) == protocol
    assert ENCODING.encode(ENCODING.decode(key)) == key


@given(st.binary(min_size=64, max_size=64), st.integers(0, 2**28 - 1))
def test_arbitrary_bytes_are_decoded_or_refused(codes: bytes, context: int) -> None:
    key = codes + context.to_bytes(4, "little") + bytes(4)
    try:
        protocol = ENCODING.decode(key)
    except RmapdError:
        return
    assert ENCODING.encode(protocol) == key


def test_python_knows_every_enumerator_of_the_header() -> None:
    def names(enum: str, prefix: str) -> list[str]:
        return [
            name.removeprefix(prefix).lower()
            for name in LAYOUTS.enums[enum]
            if name.startswith(prefix)
        ]

    assert names("lock_class", "CLASS_") == list(Lock)
    assert names("lock_kind", "KIND_") == list(Kind)
    assert names("owner_state", "OWNER_") == [owner.name.lower() for owner in Owner]
    assert names("tree_part", "TREE_") == list(Tree)
    assert names("commit_part", "COMMIT_") == list(Part)
    assert names("geometry", "GEOMETRY_") == list(Geometry)
    assert names("follows", "FOLLOWS_") == list(Follows)
    assert names("walker", "WALKER_") == list(Walker)


def test_unicode_and_ascii_forms_are_equal() -> None:
    arrows = (
        "vma_expand[file anon=imported moved mmap:w ok] -ENOMEM  i_mmap↓w anon↓wk anon2↓r? "
        "{anon-}* file-(x) commit(mmap:w anon:-) "
        "anon+(new) anon_vma_clone() ? {{file+}* anon↑w}* mmap⇓ … → [mmap:r]"
    )
    ascii = (
        "vma_expand[file anon=imported moved mmap:w ok] -ENOMEM  lock(i_mmap:w) "
        "lock(anon:w killable) trylock(anon2:r) {anon-}* file-(x) "
        "commit(mmap:w anon:-) anon+(new) anon_vma_clone() ? {{file+}* unlock(anon:w)}* "
        "downgrade(mmap) ... -> [mmap:r]"
    )
    assert parse(arrows) == parse(ascii)
    assert text(parse(ascii)) == arrows
    assert text(parse(arrows), ascii=True) == ascii
    assert parse("copy_vma -NULL") == Protocol("copy_vma", error=NULL)
    assert parse("unlink_anon_vmas[anon:w]  anon↑w → []").context.exit == Held()
    assert (
        text(parse("rmap_walk_ksm[folio:locked other_walker]  visit(r)"))
        == "rmap_walk_ksm[folio:locked other_walker]  visit(r)"
    )


def test_adjacent_parts_are_one_commit_while_their_order_rises() -> None:
    assert parse("outside[]  commit(mmap:w) commit(anon:w)").steps == (
        Commit(((Part.MMAP, Owner.SELF), (Part.ANON, Owner.SELF))),
    )
    assert len(parse("outside[]  commit(anon:w) commit(mmap:w)").steps) == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "begin with a window"),
        ("vma_expand[odd]", "no word 'odd'"),
        ("vma_expand[vma:w]", "no word 'vma:w'"),
        ("vma_expand[] -EODD", "no error 'EODD'"),
        ("vma_expand[] -0", "no error '0'"),
        ("vma_expand[]  anon↓", "no step 'anon↓'"),
        ("vma_expand[]  {anon+", "without a }"),
        ("vma_expand[]  anon+}*", "without a {"),
        ("vma_expand[]  {}*", "without steps between them"),
        ("vma_expand[]  commit()", "must be some of"),
        ("vma_expand[]  commit(anon:w mmap:w)", "in this order"),
        ("vma_expand[]  commit(folio:w)", "no part 'folio:w'"),
        ("vma_expand[]  anon+ ] file+", "at '] file+'"),
    ],
)
def test_invalid_text_is_an_error(line: str, why: str) -> None:
    with pytest.raises(RmapdError, match=r"cannot read the protocol") as raised:
        parse(line)
    assert why in raised.value.why
    assert raised.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "munmap[]",
        "outside[]  munmap()",
        "outside[]  " + "visit(r) " * 65,
        "outside[]  {" + "visit(r) " * 9 + "}*",
    ],
)
def test_protocol_that_kernel_cannot_write_is_not_encoded(line: str) -> None:
    with pytest.raises(RmapdError, match="cannot encode"):
        ENCODING.encode(parse(line))


def test_full_key_needs_no_terminator() -> None:
    protocol = parse("outside[]  " + "visit(r) " * 64)
    assert ENCODING.decode(ENCODING.encode(protocol)) == protocol


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (b"\x03", "1 bytes"),
        (bytes((3,)).ljust(72, b"\0"), "not there"),
        (bytes((0, 156)).ljust(72, b"\0"), "step 0"),
        (bytes((156, 3, 3)).ljust(72, b"\0"), "not there"),
        (bytes((255,)).ljust(72, b"\0"), "step 255"),
        (bytes(68) + bytes((32, 0, 0, 0)), "window 32"),
        (bytes(67) + bytes((0x0E, 0, 0, 0, 0)), "context"),
    ],
)
def test_invalid_bytes_are_an_error(key: bytes, why: str) -> None:
    with pytest.raises(RmapdError, match="cannot read the protocol") as raised:
        ENCODING.decode(key)
    assert why in raised.value.why
