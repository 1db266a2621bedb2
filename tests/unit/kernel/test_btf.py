"""BTF of our own making, and the running kernel's: types, members, prototypes, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.btf_blob import awkward_types, kernel_types
from tracer.errors import RmapdError
from tracer.kernel import btf as b
from tracer.kernel.btf import Btf


def test_members_of_anonymous_structs_are_found_at_their_offsets() -> None:
    types = awkward_types()
    found = {
        path: types.resolve(f"deep.{path}")
        for path in ("first", "left", "right", "as_long", "as_pointer", "words", "flags.f")
    }
    assert [f.bit_offset // 8 if f else None for f in found.values()] == [0, 8, 16, 24, 24, 32, 48]


@pytest.mark.parametrize(
    "path", ["deep.nothing", "nothing.at_all", "deep", "deep.first.deeper", ""]
)
def test_path_that_does_not_exist_is_none(path: str) -> None:
    assert awkward_types().resolve(path) is None


def test_wrong_truncated_and_absent_btf_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="not BTF"):
        Btf(b"something else entirely, not types")
    blob = bytearray(kernel_types())
    blob[24 + 4 + 3] = 31  # the kind of the first type
    with pytest.raises(RmapdError, match="cannot be read"):
        Btf(bytes(blob))
    with pytest.raises(RmapdError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.read(tmp_path / "vmlinux")


def test_tracepoints_functions_and_enums_are_found_by_name() -> None:
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


def test_running_kernels_btf_has_known_types() -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no BTF")
    types = Btf.read(path)
    assert types.size(types.find("page", b.STRUCT) or 0) == 64
    assert types.resolve("mm_struct.pgd")
    assert types.raw_tracepoint("set_migration_pte") == ["unsigned long", "unsigned long", "int"]
