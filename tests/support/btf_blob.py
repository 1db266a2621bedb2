"""Write BTF, so that tests have kernels of their own making."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TypeAlias

from tracer.kernel import btf as b

Member: TypeAlias = tuple[str, int, int] | tuple[str, int, int, int]


@dataclass
class Blob:
    """BTF under construction; types are numbered from 1 as they are added.

    Members name earlier types.
    """

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

    def add(
        self,
        kind: int,
        name: str,
        size_or_type: int,
        trailer: bytes = b"",
        vlen: int = 0,
        flag: int = 0,
    ) -> int:
        self.types += (
            struct.pack("<III", self.text(name), flag << 31 | kind << 24 | vlen, size_or_type)
            + trailer
        )
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self.add(b.INT, name, size, struct.pack("<I", int(signed) << 24 | size * 8))

    def pointer(self, target: int = 0) -> int:
        return self.add(b.PTR, "", target)

    def array(self, element: int, count: int, index: int) -> int:
        return self.add(b.ARRAY, "", 0, struct.pack("<III", element, index, count))

    def record(self, name: str, size: int, members: list[Member], union: bool = False) -> int:
        """Add a struct or union; members: (name, type, bit offset[, bitfield size])."""
        flag = any(len(m) == 4 for m in members)
        trailer = b""
        for member in members:
            bits = member[3] if len(member) == 4 else 0
            trailer += struct.pack("<III", self.text(member[0]), member[1], member[2] | bits << 24)
        return self.add(
            b.UNION if union else b.STRUCT, name, size, trailer, len(members), int(flag)
        )

    def enum(self, name: str, values: dict[str, int]) -> int:
        trailer = b"".join(struct.pack("<II", self.text(k), v) for k, v in values.items())
        return self.add(b.ENUM, name, 4, trailer, len(values))

    def typedef(self, name: str, target: int) -> int:
        return self.add(b.TYPEDEF, name, target)

    def prototype(self, parameters: list[int] | dict[str, int], returns: int = 0) -> int:
        pairs = (
            list(parameters.items())
            if isinstance(parameters, dict)
            else [("", p) for p in parameters]
        )
        trailer = b"".join(struct.pack("<II", self.text(name), p) for name, p in pairs)
        return self.add(b.FUNC_PROTO, "", returns, trailer, len(pairs))

    def function(self, name: str, parameters: list[int] | dict[str, int], returns: int = 0) -> int:
        return self.add(b.FUNC, name, self.prototype(parameters, returns))

    def tracepoint(self, name: str, parameters: list[int]) -> int:
        return self.typedef(
            f"btf_trace_{name}", self.pointer(self.prototype([self.pointer(), *parameters]))
        )

    def bytes(self) -> bytes:
        head = struct.pack("<HBBI", 0xEB9F, 1, 0, 24) + struct.pack(
            "<IIII", 0, len(self.types), len(self.types), len(self.strings)
        )
        return head + bytes(self.types) + bytes(self.strings)


def awkward_types() -> b.Btf:
    """Return types that are hard to read: anonymous members, unions, arrays, bitfields."""
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
    return b.Btf(blob.bytes())


def kernel_types(
    vma_locks: bool = False,
    anon_pgoff: bool = False,
    realtime: bool = False,
    mapcount_each: bool = False,
    mm_ids: bool = True,
) -> bytes:
    """Return the types of a small kernel that has all that the probes read.

    The offsets are arbitrary. vma_locks: with the rwsem of each VMA, as in 6.4 to 6.14, and with
    that of hugetlb. anon_pgoff: mm_lock_seq is a seqcount, and VMAs have __vm_anon_pgoff, as in
    7.3. realtime: the rwsem of PREEMPT_RT. mapcount_each: each page of a large folio has a mapcount
    of its own, as in 6.1. mm_ids: an mm has an id of its own, as on x86.
    """
    blob = Blob()
    u32, u64, s32 = (
        blob.integer("unsigned int", 4),
        blob.integer("unsigned long", 8),
        blob.integer("int", 4, signed=True),
    )
    boolean, char = blob.integer("_Bool", 1), blob.integer("char", 1)
    boolean = blob.typedef("bool", boolean)
    void = blob.pointer()
    comm = blob.array(char, 16, u32)
    context = blob.record("", 16, [("ctx_id" if mm_ids else "id", u64, 64)])
    atomic = blob.record("", 8, [("counter", u64, 0)])
    queue = blob.record("list_head", 16, [("next", void, 0), ("prev", void, 64)])
    if realtime:
        readers = blob.record("", 4, [("counter", s32, 0)])
        mutex = blob.record("rt_mutex_base", 12, [("owner", void, 32)])
        base = blob.record("rwbase_rt", 16, [("readers", readers, 0), ("rtmutex", mutex, 32)])
        members: list[Member] = [("rwbase", base, 0)]
    else:
        members = [("count", atomic, 0), ("owner", atomic, 64), ("wait_list", queue, 128)]
    rwsem = blob.record("rw_semaphore", 16, members)
    blob.record("rt_mutex_waiter", 96, [("task", void, 384), ("lock", void, 448)])
    blob.record("rwsem_waiter", 24, [("list", queue, 0), ("task", void, 128)])
    links = blob.array(blob.record("hlist_node", 16, [("next", void, 0)]), 4, u32)
    heads = blob.array(blob.record("hlist_head", 8, [("first", void, 0)]), 4, u32)
    blob.record("pid", 40, [("tasks", heads, 64)])
    blob.record("pt_regs", 168, [("orig_ax", u64, 960), ("ip", u64, 1024)])
    thread_info = blob.record("thread_info", 4, [("cpu", u32, 0)])
    tree = blob.record("maple_tree", 16, [("ma_root", void, 64), ("ma_flags", u32, 0)])
    _maple_nodes(blob, u64, u32, char, void)
    seqcount = blob.record("seqcount", 4, [("sequence", u32, 0)])
    mm_members: list[Member] = [
        ("pgd", void, 64),
        ("context", context, 512),
        ("mmap_lock", rwsem, 1024),
        ("mm_mt", tree, 1152),
        ("mm_users", atomic, 1280),
        ("mm_count", atomic, 1408),
        ("map_count", s32, 1536),
        ("task_size", u64, 1600),
        ("mmlist", queue, 1664),
        *([("mm_lock_seq", s32, 1344)] if vma_locks else []),
        *([("mm_lock_seq", seqcount, 1344)] if anon_pgoff else []),
    ]
    mm = blob.record("mm_struct", 256, mm_members)
    mm_pointer = blob.pointer(mm)
    task = blob.record(
        "task_struct",
        256,
        [
            ("mm", mm_pointer, 128),
            ("active_mm", mm_pointer, 64),
            ("files", void, 192),
            ("group_leader", void, 256),
            ("tgid", s32, 320),
            ("pid", s32, 352),
            ("comm", comm, 512),
            ("cgroups", void, 704),
            ("stack", void, 768),
            ("__state", u32, 832),
            ("exit_state", s32, 864),
            ("flags", u32, 896),
            ("on_cpu", s32, 928),
            ("thread_info", thread_info, 960),
            ("start_time", u64, 1024),
            ("utime", u64, 1088),
            ("gtime", u64, 1152),
            ("stime", u64, 1216),
            ("nvcsw", u64, 1280),
            ("nivcsw", u64, 1344),
            ("thread_pid", void, 1408),
            ("pid_links", links, 1472),
            ("pi_blocked_on", void, 1984),
        ],
    )
    task_pointer = blob.pointer(task)
    blob.record("files_struct", 64, [("fdt", void, 256)])
    blob.record("fdtable", 64, [("fd", void, 64)])
    blob.record("css_set", 64, [("dfl_cgrp", void, 64)])
    blob.record("cgroup", 64, [("kn", void, 128)])
    blob.record("kernfs_node", 64, [("name", void, 64), ("id", u64, 128)])
    quick = blob.record("qstr", 16, [("name", void, 64)])
    blob.record("dentry", 64, [("d_name", quick, 128)])
    where = blob.record("path", 16, [("mnt", void, 0), ("dentry", void, 64)])
    file = blob.pointer(blob.record("file", 64, [("f_mapping", void, 128), ("f_path", where, 192)]))
    xarray = blob.record("xarray", 16, [("xa_head", void, 64)])
    rb_node = blob.record(
        "rb_node",
        24,
        [("__rb_parent_color", u64, 0), ("rb_right", void, 64), ("rb_left", void, 128)],
    )
    rb_root = blob.record("rb_root", 8, [("rb_node", void, 0)])
    cached = blob.record("rb_root_cached", 16, [("rb_root", rb_root, 0)])
    space_members = [
        ("host", void, 0),
        ("i_pages", xarray, 64),
        ("i_mmap", cached, 192),
        ("i_mmap_rwsem", rwsem, 320),
    ]
    blob.record("super_block", 16, [("s_magic", u64, 64)])
    space = blob.record("address_space", 64, [*space_members, ("invalidate_lock", rwsem, 448 - 64)])
    blob.record(
        "inode",
        160,
        [
            ("i_mapping", void, 0),
            ("i_rwsem", rwsem, 64),
            ("i_sb", void, 192),
            ("i_data", space, 256),
        ],
    )
    anon_vma = blob.record(
        "anon_vma", 48, [("root", void, 0), ("rwsem", rwsem, 64), ("rb_root", cached, 192)]
    )
    chain = queue
    chain_members: list[Member] = [
        ("vma", void, 0),
        ("anon_vma", void, 64),
        ("same_vma", chain, 128),
        ("rb", rb_node, 256),
        ("rb_subtree_last", u64, 448),
    ]
    blob.record("anon_vma_chain", 64, chain_members)
    mas = blob.pointer(blob.record("ma_state", 16, [("tree", void, 0)]))
    flags = blob.typedef("memdesc_flags_t", blob.record("", 8, [("f", u64, 0)]))
    mapcount = blob.record("", 4, [("counter", s32, 0)])
    page_members: list[Member] = [
        ("flags", flags, 0),
        ("compound_head", u64, 64),
        ("mapping", void, 192),
        ("_mapcount", mapcount, 384),
        ("_refcount", mapcount, 416),
    ]
    blob.record("page", 64, page_members)
    blob.record("ptdesc", 64, [("pt_mm", mm_pointer, 256)])
    blob.enum(
        "pageflags",
        {
            "PG_locked": 0,
            "PG_writeback": 1,
            "PG_head": 6,
            "PG_uptodate": 8,
            "PG_swapbacked": 9,
            "__NR_PAGEFLAGS": 10,
        },
    )
    mode = blob.enum("migrate_mode", {"MIGRATE_ASYNC": 0, "MIGRATE_SYNC": 2})
    blob.enum("migrate_reason", {"MR_COMPACTION": 0, "MR_SYSCALL": 3})
    blob.tracepoint("mm_migrate_pages_start", [mode, s32])
    blob.tracepoint("mm_migrate_pages", [u64, u64, u64, u64, u64, u64, mode, s32])
    for name in ("set_migration_pte", "remove_migration_pte"):
        blob.tracepoint(name, [u64, u64, s32])
    for name in ("set_migration_pmd", "remove_migration_pmd"):
        blob.tracepoint(name, [u64, u64])
    blob.tracepoint("sched_process_exit", [task_pointer, boolean])
    blob.tracepoint("sys_enter", [void, blob.integer("long", 8, signed=True)])
    blob.tracepoint("exit_mmap", [mm_pointer])
    blob.tracepoint("console", [blob.pointer(char), blob.typedef("size_t", u64)])
    blob.function("__mmdrop", {"mm": mm_pointer})
    blob.tracepoint("mmap_lock_acquire_returned", [mm_pointer, boolean, boolean])
    blob.tracepoint("mmap_lock_released", [mm_pointer, boolean])
    blob.function("bpf_iter_task", [void])
    u16 = blob.integer("unsigned short", 2)
    nodes = blob.record("nodemask", 16, [("bits", blob.array(u64, 2, u32), 0)])
    policy_members: list[Member] = [("mode", u16, 32), ("flags", u16, 48), ("nodes", nodes, 64)]
    policy_members += [("home_node", s32, 192), ("w", nodes, 256)]
    policy = blob.record("mempolicy", 48, policy_members)
    name_of_anon = blob.record("anon_vma_name", 4, [("name", blob.array(char, 0, u32), 32)])
    context_of_uffd = blob.record("", 8, [("ctx", void, 0)])
    vma_members: list[Member] = [
        ("vm_mm", mm_pointer, 64),
        ("vm_start", u64, 192),
        ("vm_end", u64, 256),
        ("vm_flags", u64, 320),
        ("vm_file", file, 384),
    ]
    shared = blob.record("", 32, [("rb", rb_node, 0), ("rb_subtree_last", u64, 192)])
    vma_members += [
        ("shared", shared, 896),
        ("vm_policy", blob.pointer(policy), 1280),
        ("vm_userfaultfd_ctx", context_of_uffd, 1344),
        ("anon_name", blob.pointer(name_of_anon), 1408),
        ("vm_pgoff", u64, 448),
        ("anon_vma", blob.pointer(anon_vma), 512),
        ("anon_vma_chain", chain, 768),
    ]
    if anon_pgoff:
        vma_members += [("__vm_anon_pgoff_lo", u32, 1152), ("__vm_anon_pgoff_hi", u32, 1216)]
    if vma_locks:
        vma_members += [
            ("vm_lock_seq", s32, 576),
            ("vm_lock", void, 640),
            ("vm_private_data", void, 704),
        ]
        blob.record("vma_lock", 16, [("lock", rwsem, 0)])
        blob.record("hugetlb_vma_lock", 32, [("rw_sema", rwsem, 64), ("vma", void, 192)])
    vma = blob.pointer(blob.record("vm_area_struct", 192, vma_members))
    folio = blob.pointer(
        blob.record(
            "folio",
            128,
            [
                ("flags", flags, 0),
                ("mapping", void, 192),
                ("index", u64, 256),
                ("_flags_1", u64, 512),
                ("_total_mapcount" if mapcount_each else "_large_mapcount", mapcount, 640),
                ("_pincount", mapcount, 672),
            ],
        )
    )
    blob.tracepoint("mm_filemap_delete_from_page_cache", [folio])
    blob.function("remove_inode_hugepages", {"inode": void, "lstart": u64, "lend": u64})
    blob.function("unmap_hugepage_range", {"vma": vma, "start": u64, "end": u64, "folio": folio})
    _window_functions(blob, vma, mm_pointer, folio, void, u64, s32, boolean)
    _moves(blob, vma, u64, boolean, by_struct=anon_pgoff)
    blob.tracepoint("ma_write", [blob.pointer(char), mas, u64, void])
    blob.tracepoint("contention_begin", [void, u32])
    blob.tracepoint("contention_end", [void, s32])
    blob.record("rmap_walk_arg", 16, [("map_unused_to_zeropage", boolean, 0), ("folio", folio, 64)])
    blob.function(
        "try_to_migrate_one", {"folio": folio, "vma": vma, "address": u64, "arg": void}, boolean
    )
    blob.function(
        "remove_migration_pte", {"folio": folio, "vma": vma, "addr": u64, "arg": void}, boolean
    )
    blob.function(
        "__split_huge_pmd_locked", {"vma": vma, "pmd": void, "haddr": u64, "freeze": boolean}
    )
    blob.function(
        "split_huge_page_to_list_to_order", {"page": void, "list": void, "new_order": u32}, s32
    )
    return blob.bytes()


def _maple_nodes(blob: Blob, u64: int, u32: int, char: int, void: int) -> None:
    """Add the nodes of maple trees, which are the same on every kernel of 64 bits."""
    meta = blob.record("maple_metadata", 2, [("end", char, 0), ("gap", char, 8)])
    pivots = {count: blob.array(u64, count, u32) for count in (9, 10, 15)}
    leaf: list[Member] = [
        ("parent", void, 0),
        ("pivot", pivots[15], 64),
        ("slot", blob.array(void, 16, u32), 1024),
        ("meta", meta, 1984),
    ]
    inner: list[Member] = [
        ("parent", void, 0),
        ("pivot", pivots[9], 64),
        ("slot", blob.array(void, 10, u32), 640),
        ("gap", pivots[10], 1280),
        ("meta", meta, 1920),
    ]
    blob.record("maple_range_64", 256, leaf)
    blob.record("maple_arange_64", 256, inner)
    types = ("maple_dense", "maple_leaf_64", "maple_range_64", "maple_arange_64")
    blob.enum("maple_type", {name: number for number, name in enumerate(types)})


def _moves(blob: Blob, vma: int, u64: int, boolean: int, *, by_struct: bool) -> None:
    """Add move_page_tables(). by_struct: as from 6.16 on; else as in 6.1."""
    if by_struct:
        members: list[Member] = [
            ("old", vma, 0),
            ("new", vma, 64),
            ("old_addr", u64, 128),
            ("old_end", u64, 192),
            ("new_addr", u64, 256),
            ("len_in", u64, 320),
        ]
        control = blob.pointer(blob.record("pagetable_move_control", 48, members))
        blob.function("move_page_tables", {"pmc": control}, u64)
        return
    parameters = {"vma": vma, "old_addr": u64, "new_vma": vma, "new_addr": u64, "len": u64}
    blob.function("move_page_tables", {**parameters, "need_rmap_locks": boolean}, u64)


def _window_functions(
    blob: Blob, vma: int, mm: int, folio: int, void: int, u64: int, s32: int, boolean: int
) -> None:
    """Add the functions that are windows, trees and locks, with the parameters of 6.1."""
    adjust = {"vma": vma, "start": u64, "end": u64, "pgoff": u64, "insert": vma, "expand": vma}
    blob.function("__vma_adjust", adjust, s32)
    blob.function("__split_vma", {"mm": mm, "vma": vma, "addr": u64, "new_below": s32}, s32)
    blob.function(
        "vma_adjust_trans_huge", {"vma": vma, "start": u64, "end": u64, "adjust_next": u64}
    )
    for name in ("khugepaged_enter_vma", "perf_event_mmap", "unlink_anon_vmas", "unlink_file_vma"):
        blob.function(name, {"vma": vma})
    blob.function("anon_vma_fork", {"vma": vma, "pvma": vma}, s32)
    blob.function("lru_add_drain", {})
    blob.function(
        "vma_shrink", {"vmi": void, "vma": vma, "start": u64, "end": u64, "pgoff": u64}, s32
    )
    blob.function(
        "do_brk_flags", {"vmi": void, "vma": vma, "addr": u64, "len": u64, "flags": u64}, s32
    )
    uffd = blob.record("vm_userfaultfd_ctx", 8, [("ctx", void, 0)])
    merge = {"mm": mm, "prev": vma, "addr": u64, "end": u64, "vm_flags": u64, "anon_vma": void}
    merge |= {"file": void, "pgoff": u64, "policy": void, "vm_userfaultfd_ctx": uffd}
    blob.function("vma_merge", merge | {"anon_name": void}, vma)
    vmg_members: list[Member] = [("mm", mm, 0), ("middle", vma, 64), ("start", u64, 128)]
    vmg_members += [("end", u64, 192), ("vm_flags", u64, 256), ("file", void, 320)]
    vmg_members += [("pgoff", u64, 384), ("policy", void, 448), ("uffd_ctx", uffd, 512)]
    vmg_members += [("anon_name", void, 576)]
    vmg = blob.pointer(blob.record("vma_merge_struct", 80, vmg_members))
    for name in ("vma_modify", "vma_merge_new_range"):
        blob.function(name, {"vmg": vmg}, vma)
    move = {"vma": vma, "old_addr": u64, "old_len": u64, "new_len": u64, "new_addr": u64}
    blob.function("move_vma", move | {"locked": void, "flags": u64, "uf": void}, u64)
    blob.function("expand_downwards", {"vma": vma, "address": u64}, s32)
    blob.function("copy_vma", {"vmap": blob.pointer(vma), "addr": u64, "len": u64}, vma)
    blob.function("anon_vma_clone", {"dst": vma, "src": vma}, s32)
    blob.function("dup_mmap", {"mm": mm, "oldmm": mm}, s32)
    blob.function("mm_take_all_locks", {"mm": mm}, s32)
    blob.function("mm_drop_all_locks", {"mm": mm})
    blob.function("vm_area_dup", {"orig": vma}, vma)
    blob.function("rmap_walk_anon", {"folio": folio, "rwc": void, "locked": boolean})
    blob.function("uprobe_start_dup_mmap", {})
    blob.function("uprobe_end_dup_mmap", {})
    blob.function("uprobe_dup_mmap", {"oldmm": mm, "newmm": mm})
    blob.function("rmap_walk_file", {"folio": folio, "rwc": void, "locked": boolean})
    blob.function("rmap_walk_ksm", {"folio": folio, "rwc": void})
    blob.function("try_to_migrate", {"folio": folio, "flags": u64})
    blob.function(
        "folio_referenced_one", {"folio": folio, "vma": vma, "address": u64, "arg": void}, boolean
    )
    for name in (
        "vma_interval_tree_insert",
        "vma_interval_tree_remove",
        "anon_vma_interval_tree_insert",
        "anon_vma_interval_tree_remove",
    ):
        blob.function(name, {"node": void, "root": void})
    for name in ("down_read", "down_write", "up_read", "up_write", "downgrade_write"):
        blob.function(name, {"sem": void})
    for name in (
        "down_write_killable",
        "down_read_killable",
        "down_read_trylock",
        "down_write_trylock",
    ):
        blob.function(name, {"sem": void}, s32)
