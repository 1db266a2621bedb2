"""VMAs and folios, read on demand."""

from __future__ import annotations

import ctypes

from tests.support.box import box
from tests.support.native import LAYOUTS, synthetic_kernel
from tracer.memory.objects import ObjectReader, vm_letters


def test_vma_and_folio_are_described_as_they_are_now() -> None:
    b = box()
    objects = ObjectReader(b.native.maps, b.native.programs["look"], LAYOUTS, synthetic_kernel())
    vma, folio = b.vma(0x1000, 0x3000, anon=b.anon_vma(), mapping=b.mapping()), b.take(128)
    file, dentry, name = b.take(64), b.take(64), ctypes.create_string_buffer(b"libc.so.6")
    b.memory.append(name)
    b.set(vma.at, "vm_area_struct.vm_flags", 0x100073)
    b.set(vma.at, "vm_area_struct.vm_file", file)
    b.set(file, "file.f_mapping", vma.mapping)
    b.set(file, "file.f_path.dentry", dentry)
    b.set(dentry, "dentry.d_name.name", ctypes.addressof(name))
    b.set(folio, "folio.flags.f", 1 << 6 | 1 << 8 | 1)
    b.set(folio, "folio.mapping", vma.anon_vma + 1)
    b.set(folio, "folio._flags_1", 0xAB09)
    found = objects.vma(vma.at, b.mm)
    assert (found["flags"], found["file"], found["same"]) == (
        "rw-p rd wr mr mw me ac",
        "libc.so.6",
        True,
    )
    assert (found["anon"], found["i_mmap"]) == (
        hex(b.anon_lock(vma.anon_vma)),
        hex(b.file_lock(vma.mapping)),
    )
    assert not objects.vma(vma.at, 0x1234)["same"]
    page = objects.folio(folio, 0x55)
    assert page == {
        "folio": hex(folio),
        "kind": "anon",
        "order": 9,
        "pfn": "0x55",
        "flags": ["locked", "head", "uptodate"],
        "locked": True,
    }
    assert [objects.folio(folio, vm_flags=1 << 22)["kind"]] == ["hugetlb"]
    b.set(folio, "folio.mapping", vma.anon_vma + 3)
    assert objects.folio(folio)["kind"] == "ksm"
    b.set(folio, "folio.mapping", vma.mapping)
    assert objects.folio(folio)["kind"] == "file"
    assert objects.vma(0) == {}
    assert ObjectReader({}, None, LAYOUTS, synthetic_kernel()).folio(folio) == {}


def test_vm_flags_are_written_as_letters() -> None:
    assert vm_letters(0x8) == "---s sh"
    assert vm_letters(0x7 | 1 << 22 | 1 << 31) == "rwxp rd wr ex ht mg"
