"""Writes BTF, so that tests have kernels of their own making."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tracer import btf as b


@dataclass
class Blob:
    """Types are added in order and numbered from 1; members name earlier ids."""

    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    types: bytearray = field(default_factory=bytearray)
    count: int = 0
    names: dict[str, int] = field(default_factory=dict)

    def text(self, name: str) -> int:
        if not name:
            return 0
        if name not in self.names:
            self.names[name] = len(self.strings)
            self.strings += name.encode() + b"\0"
        return self.names[name]

    def add(self, kind: int, name: str, size_or_type: int, trailer: bytes = b"", vlen: int = 0, flag: int = 0) -> int:
        self.types += struct.pack("<III", self.text(name), flag << 31 | kind << 24 | vlen, size_or_type) + trailer
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(b.INT, name, size, struct.pack("<I", int(signed) << 24 | size * 8))

    def pointer(self, target: int = 0) -> int:
        return self.add(b.PTR, "", target)

    def array(self, element: int, count: int, index: int) -> int:
        return self.add(b.ARRAY, "", 0, struct.pack("<III", element, index, count))

    def record(self, name: str, size: int, members: list[tuple[str, int, int] | tuple[str, int, int, int]], union: bool = False) -> int:
        """members: (name, type, bit offset[, bitfield size])."""
        flag = any(len(m) == 4 for m in members)
        trailer = b""
        for member in members:
            bits = member[3] if len(member) == 4 else 0
            trailer += struct.pack("<III", self.text(member[0]), member[1], member[2] | bits << 24)
        return self.add(b.UNION if union else b.STRUCT, name, size, trailer, len(members), int(flag))

    def enum(self, name: str, values: dict[str, int]) -> int:
        trailer = b"".join(struct.pack("<II", self.text(k), v) for k, v in values.items())
        return self.add(b.ENUM, name, 4, trailer, len(values))

    def typedef(self, name: str, target: int) -> int:
        return self.add(b.TYPEDEF, name, target)

    def prototype(self, parameters: list[int] | dict[str, int], returns: int = 0) -> int:
        pairs = list(parameters.items()) if isinstance(parameters, dict) else [("", p) for p in parameters]
        trailer = b"".join(struct.pack("<II", self.text(name), p) for name, p in pairs)
        return self.add(b.FUNC_PROTO, "", returns, trailer, len(pairs))

    def function(self, name: str, parameters: list[int] | dict[str, int], returns: int = 0) -> int:
        return self.add(b.FUNC, name, self.prototype(parameters, returns))

    def tracepoint(self, name: str, parameters: list[int]) -> int:
        return self.typedef(f"btf_trace_{name}", self.pointer(self.prototype([self.pointer(), *parameters])))

    def bytes(self) -> bytes:
        head = struct.pack("<HBBI", 0xEB9F, 1, 0, 24) + struct.pack("<IIII", 0, len(self.types), len(self.types), len(self.strings))
        return head + bytes(self.types) + bytes(self.strings)


def kernel_types() -> bytes:
    """A small kernel that has what the probes read, at offsets of our own choosing."""
    blob = Blob()
    u32, u64, s32 = blob.integer("unsigned int", 4), blob.integer("unsigned long", 8), blob.integer("int", 4, signed=True)
    boolean, char = blob.integer("_Bool", 1), blob.integer("char", 1)
    boolean = blob.typedef("bool", boolean)
    void = blob.pointer()
    comm = blob.array(char, 16, u32)
    context = blob.record("", 16, [("ctx_id", u64, 64)])
    mm = blob.record("mm_struct", 128, [("pgd", void, 64), ("context", context, 512)])
    mm_pointer = blob.pointer(mm)
    task = blob.record(
        "task_struct",
        256,
        [
            ("mm", mm_pointer, 128),
            ("files", void, 192),
            ("group_leader", void, 256),
            ("tgid", s32, 320),
            ("pid", s32, 352),
            ("comm", comm, 512),
        ],
    )
    task_pointer = blob.pointer(task)
    blob.record("files_struct", 64, [("fdt", void, 256)])
    blob.record("fdtable", 64, [("fd", void, 64)])
    blob.record("file", 64, [("f_mapping", void, 128)])
    xarray = blob.record("xarray", 16, [("xa_head", void, 64)])
    blob.record("address_space", 64, [("i_pages", xarray, 64)])
    flags = blob.typedef("memdesc_flags_t", blob.record("", 8, [("f", u64, 0)]))
    blob.record("page", 64, [("flags", flags, 0), ("compound_head", u64, 64)])
    blob.record("ptdesc", 64, [("pt_mm", mm_pointer, 256)])
    blob.enum("pageflags", {"PG_locked": 0, "PG_writeback": 1})
    mode = blob.enum("migrate_mode", {"MIGRATE_ASYNC": 0, "MIGRATE_SYNC": 2})
    blob.enum("migrate_reason", {"MR_COMPACTION": 0, "MR_SYSCALL": 3})
    blob.tracepoint("mm_migrate_pages_start", [mode, s32])
    blob.tracepoint("mm_migrate_pages", [u64, u64, u64, u64, u64, u64, mode, s32])
    for name in ("set_migration_pte", "remove_migration_pte"):
        blob.tracepoint(name, [u64, u64, s32])
    for name in ("set_migration_pmd", "remove_migration_pmd"):
        blob.tracepoint(name, [u64, u64])
    blob.tracepoint("sched_process_exit", [task_pointer, boolean])
    blob.tracepoint("exit_mmap", [mm_pointer])
    blob.tracepoint("mmap_lock_start_locking", [mm_pointer, boolean])
    blob.tracepoint("mmap_lock_acquire_returned", [mm_pointer, boolean, boolean])
    blob.tracepoint("mmap_lock_released", [mm_pointer, boolean])
    blob.function("bpf_iter_task", [void])
    vma = blob.pointer(blob.record("vm_area_struct", 64, [("vm_mm", mm_pointer, 64), ("vm_start", u64, 192), ("vm_end", u64, 256)]))
    folio = blob.pointer(blob.record("folio", 64, [("flags", flags, 0)]))
    blob.record("rmap_walk_arg", 16, [("map_unused_to_zeropage", boolean, 0), ("folio", folio, 64)])
    blob.function("try_to_migrate_one", {"folio": folio, "vma": vma, "address": u64, "arg": void}, boolean)
    blob.function("remove_migration_pte", {"folio": folio, "vma": vma, "addr": u64, "arg": void}, boolean)
    blob.function("__split_huge_pmd_locked", {"vma": vma, "pmd": void, "haddr": u64, "freeze": boolean})
    blob.function("split_huge_page_to_list_to_order", {"page": void, "list": void, "new_order": u32}, s32)
    return blob.bytes()
