"""Slices of the types of a kernel of our own making, as a compiler reads them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.btf_blob import awkward_types
from tracer.attach import struct_slices

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


def test_compiled_slices_have_the_kernels_offsets(tmp_path: Path) -> None:
    """A compiled program prints them, with overlapping union members, gaps and bitfields."""
    made = struct_slices.make(awkward_types(), WANTED, {"GREEN_NUMBER": ["colour.GREEN"]})
    assert not made.missing
    source = (
        "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n#include <stdio.h>\n"
        "typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;\n"
        "typedef int32_t s32;\n"
        "#define bpf_probe_read_kernel(to, n, from) memcpy(to, from, n)\n"
        + made.header
        + "int main(void) { struct deep *d = 0; u64 bits = 0x2000003f8ULL; printf("
        '"%zu %zu %zu %zu %zu %zu %zu %d %d %d %zu", '
        "offsetof(struct deep, right), offsetof(struct deep, as_long), "
        "offsetof(struct deep, as_pointer), offsetof(struct deep, words), sizeof(d->words), "
        "offsetof(struct deep, flags), sizeof(*d), "
        "(int)bits_b((u64)&bits), (int)bits_late((u64)&bits), GREEN_NUMBER, sizeof(d->right)); "
        "return 0; }\n"
    )
    (tmp_path / "t.c").write_text(source)
    subprocess.run(["gcc", "-Werror", "-o", str(tmp_path / "t"), str(tmp_path / "t.c")], check=True)
    out = subprocess.run([str(tmp_path / "t")], check=True, capture_output=True, text=True).stdout
    assert out == "16 24 24 32 12 48 64 127 1 5 4"


def test_missing_member_is_reported_with_its_candidates_and_similar_names() -> None:
    made = struct_slices.make(
        awkward_types(),
        {"deep.rigth": ["deep.rigth"], "x.y": ["dep.left"]},
        {"BLUE": ["colour.BLUE"]},
    )
    assert set(made.missing) == {"deep.rigth", "x.y", "BLUE"}
    assert "candidates: deep.rigth; nearest: right" in str(made.missing["deep.rigth"])
    assert "struct deep" in str(made.missing["x.y"])


def test_optional_member_is_defined_only_where_found() -> None:
    made = struct_slices.make(
        awkward_types(), {"?deep.first": ["deep.first"], "?deep.gone": ["deep.gone"]}, {}
    )
    assert not made.missing
    assert "HAVE_deep_first" in made.header
    assert "gone" not in made.header
