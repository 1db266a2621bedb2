"""BTF and the slices made of it, on types of our own making: anonymous members, bitfields, unions, arrays, renamed members."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.btf_blob import Blob, kernel_types
from tracer.attach import struct_slices
from tracer.errors import RmapdError
from tracer.kernel import btf as b
from tracer.kernel.btf import Btf


def sample() -> Btf:
    blob = Blob()
    u32, u64, s32 = (
        blob.integer("unsigned int", 4),
        blob.integer("unsigned long", 8),
        blob.integer("int", 4, signed=True),
    )
    inner = blob.record("", 16, [("left", u64, 0), ("right", s32, 64)])
    either = blob.record(
        "", 8, [("as_long", u64, 0), ("as_pointer", blob.pointer(), 0)], union=True
    )
    words = blob.array(u32, 3, u32)
    flags = blob.typedef("flags_t", blob.record("", 8, [("f", u64, 0)]))
    blob.record(
        "deep",
        64,
        [
            ("first", u32, 0),
            ("", inner, 64),
            ("", either, 192),
            ("words", words, 256),
            ("flags", flags, 384),
        ],
    )
    blob.record("bits", 8, [("a", u32, 0, 3), ("b", u32, 3, 7), ("late", u32, 33, 1)])
    blob.record("plain", 8, [("flags", u64, 0)])
    blob.enum("colour", {"RED": 0, "GREEN": 5})
    return Btf(blob.bytes())


def test_members_of_anonymous_structs_are_found_at_their_offsets() -> None:
    types = sample()
    found = {
        path: types.resolve(f"deep.{path}")
        for path in ("first", "left", "right", "as_long", "as_pointer", "words", "flags.f")
    }
    assert [f.bit_offset // 8 if f else None for f in found.values()] == [0, 8, 16, 24, 24, 32, 48]


@pytest.mark.parametrize(
    "path", ["deep.nothing", "nothing.at_all", "deep", "deep.first.deeper", ""]
)
def test_what_is_not_there_is_none(path: str) -> None:
    assert sample().resolve(path) is None


def test_not_btf_and_truncated_btf_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="not BTF"):
        Btf(b"something else entirely, not types")
    blob = bytearray(kernel_types())
    blob[24 + 4 + 3] = 31  # the kind of the first type
    with pytest.raises(RmapdError, match="cannot be read"):
        Btf(bytes(blob))
    with pytest.raises(RmapdError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.read(tmp_path / "vmlinux")


def test_tracepoints_and_functions_by_type() -> None:
    types = Btf(kernel_types())
    assert types.raw_tracepoint("mmap_lock_acquire_returned") == [
        "struct mm_struct *",
        "bool",
        "bool",
    ]
    assert types.raw_tracepoint("set_migration_pte") == ["unsigned long", "unsigned long", "int"]
    assert types.raw_tracepoint("no_such") is None
    assert types.function("bpf_iter_task") == ["void *"]
    assert types.enumerators("migrate_reason") == {"MR_COMPACTION": 0, "MR_SYSCALL": 3}


WANTED = {
    "deep.right": ["deep.right"],
    "deep.as_long": ["deep.as_long"],
    "deep.as_pointer": ["deep.as_pointer"],
    "deep.words": ["deep.words"],
    "deep.flags": ["deep.flags.f", "deep.flags"],
    "plain.flags": ["plain.flags.f", "plain.flags"],
    "bits.b": ["bits.b"],
    "bits.late": ["bits.late"],
}


def test_a_compiler_sees_the_exact_offsets(tmp_path: Path) -> None:
    """The header is compiled and asked, overlapping union members, gaps and bitfields included."""
    made = struct_slices.make(sample(), WANTED, {"GREEN_NUMBER": ["colour.GREEN"]})
    assert not made.missing
    source = (
        "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n#include <stdio.h>\n"
        "typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64; typedef int32_t s32;\n"
        "#define bpf_probe_read_kernel(to, n, from) memcpy(to, from, n)\n"
        + made.header
        + "int main(void) { struct deep *d = 0; u64 bits = 0x2000003f8ULL; printf("
        '"%zu %zu %zu %zu %zu %zu %zu %d %d %d %zu", offsetof(struct deep, right), offsetof(struct deep, as_long), '
        "offsetof(struct deep, as_pointer), offsetof(struct deep, words), sizeof(d->words), offsetof(struct deep, flags), sizeof(*d), "
        "(int)bits_b((u64)&bits), (int)bits_late((u64)&bits), GREEN_NUMBER, sizeof(d->right)); return 0; }\n"
    )
    (tmp_path / "t.c").write_text(source)
    subprocess.run(["gcc", "-Werror", "-o", str(tmp_path / "t"), str(tmp_path / "t.c")], check=True)
    out = subprocess.run([str(tmp_path / "t")], check=True, capture_output=True, text=True).stdout
    assert out == "16 24 24 32 12 48 64 127 1 5 4"


def test_a_missing_member_is_reported_with_its_candidates_and_what_is_near() -> None:
    made = struct_slices.make(
        sample(), {"deep.rigth": ["deep.rigth"], "x.y": ["dep.left"]}, {"BLUE": ["colour.BLUE"]}
    )
    assert set(made.missing) == {"deep.rigth", "x.y", "BLUE"}
    assert "candidates: deep.rigth; nearest: right" in str(made.missing["deep.rigth"])
    assert "struct deep" in str(made.missing["x.y"])


def test_optional_members_are_defined_only_where_found() -> None:
    made = struct_slices.make(
        sample(), {"?deep.first": ["deep.first"], "?deep.gone": ["deep.gone"]}, {}
    )
    assert not made.missing
    assert "HAVE_deep_first" in made.header
    assert "gone" not in made.header


def test_a_real_kernel_if_it_shows_its_types() -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no BTF")
    types = Btf.read(path)
    assert types.size(types.find("page", b.STRUCT) or 0) == 64
    assert types.resolve("mm_struct.pgd")
    assert types.raw_tracepoint("set_migration_pte") == ["unsigned long", "unsigned long", "int"]
