/*
 * Layouts that the kernel side writes and Python reads.
 *
 * tracer/tables/c_structs.py parses this file: it may hold only enums, structs of fixed-width
 * scalars and arrays of them, and unions of such structs. SETTLED_WORDS is the only length of an
 * array that is not a number.
 */
#ifndef RMAPD_SHARED_H
#define RMAPD_SHARED_H

#include "kernel.h" /* generated from this kernel's BTF: tracer/attach/struct_slices.py */

#define SETTLED_WORDS ((1 << (PAGE_SHIFT - 3)) / 64)

/*
 * The entries of page tables on this machine: tracer/machine/page_format.py describes each member,
 * and has the formats.
 */
struct page_format {
	u64 levels;
	u64 top_entries;
	u64 present;
	u64 present_above;
	u64 leaf_shift;
	u64 leaf_clear;
	u64 ignored;
	u64 special;
	u64 frame;
	u64 frame_high;
	u64 frame_high_shift;
	u64 inverted;
	u64 swap_type_shift;
	u64 swap_pfn_shift;
	u64 swap_pfn;
};

/*
 * Switches and addresses that Python sets. The gate stays closed until every program is attached.
 */
struct params {
	u64 gate;
	u64 page_offset;      /* base of the direct map; 0: not calibrated */
	u64 vmemmap;          /* base of the struct page array; 0: not calibrated */
	u64 direct_map_end;   /* address behind the direct map's last RAM; 0: not known */
	u64 max_entry_age_ns; /* M4: an entry removed within this time holds */
	u64 types_known;      /* each swap type of migration entries was seen inserted */
	u64 window_epoch;     /* see below */
	u64 mmap_epoch;       /* the same for mmap_lock */
	u64 missed_ns;        /* the kernel skipped runs of the ledger's programs up to this time */
	u64 window_ns;        /* sampling: record one window per function, CPU and this time */
	u64 unhooked;         /* enum unhooked; 0 where vmemmap is not calibrated */
	struct page_format format;
};
/*
 * window_epoch is odd while hooks of windows are being attached or detached. No window is opened
 * then, and a window of another epoch is not counted: some of its hooks may not have run.
 *
 * missed_ns: an entry inserted before that time may have the age of another one, because the
 * removal or the insertion in between was not seen.
 *
 * window_ns is a mean. 0: record every window.
 */

/*
 * params.unhooked: callbacks of a migration's rmap walks that are not hooked. The tracepoints of
 * the entries check the folios in their place.
 */
enum unhooked {
	FIRST_WALK_UNHOOKED = 1,
	SECOND_WALK_UNHOOKED = 2
};

/* Per-CPU counters. Python adds the CPUs up. */
enum counter {
	ENTRIES_RECORDED,    /* insertions that made a row or joined one */
	ENTRIES_COPIED,      /* copies of recorded entries found in a child's page table */
	ENTRIES_REMOVED,     /* removals matched with a row */
	REMOVALS_UNRECORDED, /* removals without a row: inserted before the gate opened, or by a
				THP split that cannot be hooked */
	M1_HOLDS,
	M1_UNVERIFIABLE, /* removed in a migration that lost an event */
	M4_HOLDS,
	M4_LATE,         /* removed after max_entry_age_ns */
	M4_AGE_UNKNOWN,  /* removed, perhaps late: the oldest or the newest entry of its row, or a
			    run was missed while it existed */
	LEDGER_LOST,     /* insertions that found the ledger full */
	MIGRATIONS_LOST, /* migrations that found their map full */
	EVIDENCE_LOST,   /* events that found the ring buffer full */
	MIGRATIONS_ENDED,
	MIGRATIONS_UNENDED, /* migrations without an end event: their task began another one */
	MMS_EXITED,
	MMS_LOST,         /* exiting mms that found their map full */
	LOCKS_LOST,       /* acquisitions without room: no task storage, or four locks held */
	LOCKS_UNRECORDED, /* releases of locks taken before the gate opened */
	NESTED_HOLDS,     /* mmap_locks taken under another, in an order never seen reversed */
	FORKS_SEEN,
	PROTOCOLS_LOST,   /* windows whose protocol found the table full */
	WINDOWS_LOST,     /* windows that found their map full, or were nested too deeply */
	WINDOWS_UNCLOSED, /* windows whose return was not seen */
	WINDOWS_OVERLONG, /* windows with more steps than a protocol holds (STEP_OVERLONG) */
	M2_HOLDS,
	M2_VIOLATED,
	M2_UNVERIFIABLE, /* the known folio is not locked, but may be another visit's folio */
	M3_HOLDS,
	M3_VIOLATED,
	M5_HOLDS,
	ENTRIES_REPLACED, /* part of ENTRIES_REMOVED: by the shared zeropage, without tracepoint */
	PMDS_FROZEN,      /* PMDs that THP splits turned into PTRS_PER_PTE entries each */
	SPLITS_ENDED,     /* THP splits: migrations that begin and end without a tracepoint */
	M3_UNVERIFIABLE,  /* the struct page of a restored entry cannot be read */
	R1_HOLDS,
	R1_VIOLATED,
	R1_UNVERIFIABLE,     /* the source folio cannot be read, or is not known for certain */
	FIRST_WALKS_EMPTIED, /* try_to_migrate() left the folio without a mapping */
	FIRST_WALKS_PINNED,  /* it is still mapped, and may be pinned for DMA */
	FIRST_WALKS_KSM,     /* it is still mapped, and is a KSM folio */
	FIRST_WALKS_ANON,
	FIRST_WALKS_FILE,
	RWSEM_WAITS, /* waits for an rwsem that this task does not own for write */
	WAITS_LOST,  /* waits that found their map busy */
	V7_HOLDS,
	V7_VIOLATED,
	V7_UNVERIFIABLE,   /* page tables at the destination are not readable, too many, or another
			      task's: see struct destination */
	COMPLAINTS_UNSENT, /* lines that begin as complaints do, beyond COMPLAINTS_A_SECOND */
	R3_HOLDS,
	R3_VIOLATED,
	R3_UNVERIFIABLE, /* the folio cannot be read, or its pages have mapcounts of their own; or
			    what was unmapped for it is not known */
	COUNTERS
};

/*
 * The ledger: one row per migrating task, mm and address with outstanding entries.
 */
struct ledger_key {
	u64 start_ns; /* of the migration; 0: outside of one (a THP split that cannot be hooked) */
	u64 mm;       /* 0 where the visits of rmap walks are not hooked: one row for all mms */
	u64 addr;
	u32 tid;
	u32 level; /* 1: PTE, 2: PMD, 3: PMD frozen by a THP split (struct frozen) */
};
struct ledger_row {
	u64 first_ns;  /* when the oldest entry was inserted */
	u64 last_ns;   /* when the newest entry was inserted */
	u64 entry;     /* the newest entry */
	u64 copied_to; /* with key.mm 0: one bit per fork window whose copy is counted */
	/*
	 * The members from here to `vm_end` describe the visit of the newest insertion. They are
	 * 0 where key.mm is 0. A fork's copy has `folio` and `at` only.
	 */
	u64 folio;
	u64 at; /* address that rmap passed: the folio's first page in the VMA, or vm_start */
	u64 vma;
	u64 vm_start;
	u64 vm_end;
	u32 count; /* outstanding entries at this address */
	u32 tgid;
	u32 visits; /* by the second walk since the insertion, where `at` is this address */
	u32 mixed;  /* entries of more than one page were inserted */
	u64 to;     /* the destination folio of the last of these visits */
};
struct frozen {
	u64 first_ns;
	u64 entry; /* the first of PTRS_PER_PTE */
	u64 folio;
	u64 vma;
	u64 vm_start;
	u64 vm_end;
	u64 settled[SETTLED_WORDS]; /* one bit per entry: removed, or judged */
	u32 count;                  /* outstanding entries */
	u32 tgid;
};

/*
 * One row per task inside migrate_pages() or a THP split. The members from `mm` on describe the
 * VMA that its rmap walk visits now.
 */
enum walk {
	WALK_NONE,
	WALK_FIRST,  /* try_to_migrate_one() */
	WALK_SECOND, /* remove_migration_pte() */
};
enum reason {
	REASON_THP_SPLIT = 1000, /* beside the values of enum migrate_reason */
	REASON_UNKNOWN, /* outside of migrate_pages(), and of any THP split that is hooked */
};
struct migration {
	u64 start_ns;
	u64 outstanding;
	u64 visits; /* the visit clock when the migration began */
	u64 mark;   /* stack position where it began */
	u32 depth;  /* migrate_pages() can nest: allocating a target page may compact */
	u32 lossy;  /* an insertion of this migration was lost */
	u32 mode;
	u32 reason;
	u64 mm;
	u64 vma;
	u64 folio;
	u64 at;
	u64 freezing;  /* address of the PMD that is being split */
	u64 copied_ns; /* when the visited mm was forked, for a removal without a row */
	u32 walk;
	u32 removed; /* entries removed by this visit */
	u64 source;  /* R1: the folio that try_to_migrate() is emptying, or has emptied last */
};

/*
 * Recent visits of second walks, in an LRU map. A missing row proves a missing visit only while
 * the visit clock shows that no row of the migration can have been evicted.
 */
struct visit_key {
	u64 start_ns;
	u64 mm;
	u64 at;
	u32 tid;
	u32 pad;
};
struct visit {
	u64 folio; /* the source folio */
	u64 vma;
};

/*
 * One dup_mmap(). It is seen by the functions that it calls (forks.bpf.c), or as the mmap_lock of
 * a second mm taken for write under the first (mmap_lock.bpf.c).
 */
struct fork_window {
	u64 mm;
	u64 pgd;
	u64 id; /* mm->context.ctx_id */
	u64 start_ns;
	u64 end_ns; /* 0: still copying */
	u32 tid;    /* the forking task */
	u32 pad;
};

/* An mm whose last task may be gone while its page tables still exist. */
struct dying_mm {
	u64 pgd;
	u64 id;
	u64 since_ns;
	u32 tgid;
	u32 pad;
};

enum event_kind {
	MIGRATION_LEFT = 1,  /* a migration ended with outstanding entries */
	MIGRATOR_DIED,       /* a task exited inside a migration with outstanding entries */
	ORDER_REVERSED,      /* two mmap_locks were nested in both orders */
	PROTOCOL_NEW,        /* a window has a protocol that is not in the table: struct sighting */
	INSERTED_UNLOCKED,   /* M2: a migration entry is inserted while its folio is not locked */
	REMOVED_UNLOCKED,    /* M3: the second walk visits a VMA while its folio is not locked */
	MOVED_MAPPED,        /* R1: a folio was moved, and its source is still mapped */
	MOVED_PERHAPS,       /* R1: the same, and the source is not known for certain */
	WAITS_FOR_ITSELF,    /* L7: a task begins to wait for an rwsem that it holds */
	COMPLAINT,           /* K1: a line that may be a complaint: struct complaint_line */
	LEFT_CACHE_MAPPED,   /* R3: a folio leaves the page cache, and is mapped */
	LEFT_CACHE_UNLOCKED, /* R3: a folio leaves the page cache, and is not locked */
	UNMAPPED_UNLOCKED,   /* R3: a folio leaves it that was unmapped before it was locked */
	DESTINATION_MAPPED,  /* V7: page tables are about to be moved to where one is mapped */
	EVENT_KINDS
};

enum wait_mode {
	WAIT_READ,
	WAIT_WRITE
};

/* The union's members: what an event of one kind states besides its time and its task. */
/* MIGRATION_LEFT, MIGRATOR_DIED */
struct left_entries {
	u64 entries;
	u64 visits; /* the visit clock when the migration began */
	u32 mode;
	u32 reason;
};
/* ORDER_REVERSED. struct order_row explains the `held` times. */
struct reversed_order {
	u64 outer; /* mm */
	u64 inner;
	u64 held_ns;
	u64 first_ns; /* the opposite order: its first time, and its last time before this */
	u64 first_held_ns;
	u64 last_ns;
	u64 last_held_ns;
	s32 first_stack;
	u32 first_tid;
};
/* INSERTED_UNLOCKED, REMOVED_UNLOCKED, MOVED_MAPPED, MOVED_PERHAPS. mm, vma: 0: not known */
struct unlocked_folio {
	u64 mm;
	u64 vma;
	u64 addr;
	u64 folio;
	u32 mode;
	u32 reason;
};
/* PROTOCOL_NEW. event.start_ns is the window's. */
struct new_protocol {
	u64 mm;
	u64 vma;
};
/* WAITS_FOR_ITSELF. event.start_ns is that of the hold, where that is known. */
struct own_wait {
	u64 lock;
	u64 count; /* rwsem.count and rwsem.owner when the wait began */
	u64 owner;
	u64 lock_class;
	u32 wanted; /* enum wait_mode: how the task wants it */
	u32 held;   /* how it holds it */
};
/* DESTINATION_MAPPED. The first entry that is not none; folio: 0 where it maps no page. */
struct mapped_destination {
	u64 mm;
	u64 vma; /* the VMA that the page tables are moved to */
	u64 addr;
	u64 folio;
	u64 entry;
	u64 level; /* of the entry: 1 PTE, 2 PMD, 3 PUD */
};
/* COMPLAINT. freed: 0 unless this task has been in __mmdrop() on this CPU, and no task since. */
struct complaint {
	u64 mm; /* of the task; while it exits, the one that it still borrows; 0: none */
	u64 freed;
};
/*
 * LEFT_CACHE_MAPPED, LEFT_CACHE_UNLOCKED, UNMAPPED_UNLOCKED. mm, vma, addr: one that may map it, or
 * from which it was unmapped; 0: none was found
 */
struct left_cache {
	u64 folio;
	u64 mapping; /* address_space */
	u64 index;   /* folio->index: of hugetlb in huge pages before 6.7 */
	u64 mm;
	u64 vma;
	u64 addr;
	u64 hugetlb;
};
union event_detail {
	struct own_wait own;
	struct left_entries left;
	struct reversed_order order;
	struct unlocked_folio unlocked;
	struct new_protocol protocol;
	struct complaint complaint;
	struct left_cache left_cache;
	struct mapped_destination mapped;
};
struct event {
	u64 time_ns;
	u64 start_ns; /* of the migration or the window; 0: of neither */
	u32 kind;
	u32 tid;
	u32 tgid;
	s32 stack;
	char comm[16];
	u64 cgroup;           /* id of the task's cgroup in the unified hierarchy; 0: unknown */
	char cgroup_name[48]; /* the last component of its path */
	union event_detail detail;
};

/* K1 (complaints.bpf.c). The line follows struct event in the ring buffer. */
enum complaint_limits {
	COMPLAINTS_A_SECOND = 16, /* events of a CPU */
	FREEZE_NS = 100000000
};
struct complaint_line {
	u64 length;     /* of the line; 0: it could not be read */
	char text[120]; /* its beginning, and 0 */
};
struct complaint_turn {
	u64 second;
	u64 sent;
};
struct dropped_mm {
	u64 mm;
	u64 task; /* task_struct */
};
/*
 * While a complaint is read, no window is written to the flight recorder: the windows before it
 * would be overwritten. One freeze begins in FREEZE_NS * 10 at most.
 */
struct flight_freeze {
	u64 since_ns;
	u64 until_ns; /* since_ns + FREEZE_NS, or when Python had read the recorder */
};

enum hist {
	HIST_MIGRATION_ENTRY,
	HIST_MMAP_WAIT_READ,
	HIST_MMAP_WAIT_WRITE,
	HIST_MMAP_HOLD_READ,
	HIST_MMAP_HOLD_WRITE,
	HIST_WALK_ANON, /* VMAs visited by one rmap walk */
	HIST_WALK_FILE,
	HIST_WALK_KSM,
	HISTS
};
struct histogram {
	u64 slot[64]; /* slot n: values v (ns, or VMAs) with 2^(n-1) <= v < 2^n */
	u64 sum_ns;
};

/* mmap_lock: the lock that a task waits for, and the locks that it holds. */
struct held_lock {
	u64 mm;
	u64 since_ns; /* 0: this hold is not timed */
	u64 jiffy;    /* when it was taken; cheaper to read than the clock */
	u64 write;
};
struct lock_state {
	u64 contended; /* the rwsem of its current wait, or of the one before its last mmap_lock */
	u64 since_ns;
	u64 n;
	struct held_lock held[4];
	u64 epoch;
};
struct order_key {
	u64 outer; /* mm->context.ctx_id: unlike an mm's address it is never reused */
	u64 inner;
};
/* A `held` time is not after the acquisition of the outer lock. */
struct order_row {
	u64 first_ns;
	u64 first_held_ns;
	u64 last_ns;
	u64 last_held_ns;
	u64 count;
	s32 stack;
	u32 tid;
};

/*
 * The protocol table. A window is one call of one of the functions below by one task. The locks
 * that the task takes and the trees that it changes in a window are a string of one-byte steps.
 * Windows are counted by function, context and steps (struct protocol_key). tracer/protocol has
 * the text form.
 */
enum window {
	WINDOW_outside, /* no window: a single tree step */
	WINDOW___vma_adjust,
	WINDOW_vma_expand,
	WINDOW_vma_shrink,
	WINDOW_commit_merge,
	WINDOW___split_vma,
	WINDOW_vma_merge,
	WINDOW_vma_merge_new_range,
	WINDOW_vma_merge_existing_range,
	WINDOW_vma_modify,
	WINDOW_do_brk_flags,
	WINDOW_copy_vma,
	WINDOW_move_page_tables,
	WINDOW_expand_downwards,
	WINDOW_expand_upwards,
	WINDOW_anon_vma_clone,
	WINDOW_anon_vma_fork,
	WINDOW___anon_vma_prepare,
	WINDOW_unlink_anon_vmas,
	WINDOW_unlink_file_vma,
	WINDOW_unlink_file_vma_batch_process,
	WINDOW_dup_mmap,
	WINDOW_rmap_walk_anon,
	WINDOW_rmap_walk_file,
	WINDOW_rmap_walk_ksm,
	WINDOW_try_to_migrate,
	WINDOW_remove_migration_ptes,
	WINDOW_mm_take_all_locks,
	WINDOW_mm_drop_all_locks,
	WINDOW_collapse_huge_page,
	WINDOW_retract_page_tables,
	WINDOW_move_vma,
	WINDOWS
};
/* A class that ends in 2 is any further instance: not the first one met in the window. */
enum lock_class {
	CLASS_other,
	CLASS_mmap, /* mm->mmap_lock of the window's mm */
	CLASS_mmap2,
	CLASS_i_mmap, /* address_space.i_mmap_rwsem */
	CLASS_i_mmap2,
	CLASS_anon, /* anon_vma.root->rwsem */
	CLASS_anon2,
	CLASS_vma, /* vma->vm_lock->lock, in 6.4 to 6.14 */
	CLASS_i_rwsem,
	CLASS_invalidate,
	CLASS_hugetlb,
	LOCK_CLASSES
};
enum lock_kind {
	KIND_down_read,
	KIND_down_write,
	KIND_down_read_killable,
	KIND_down_write_killable,
	KIND_down_read_trylock,
	KIND_down_write_trylock,
	KIND_up_read,
	KIND_up_write,
	KIND_downgrade_write,
	LOCK_KINDS
};
enum owner_state {
	OWNER_FREE,
	OWNER_READ,
	OWNER_OTHER, /* held for write by another task */
	OWNER_SELF,  /* held for write by this task */
	OWNERS
};
enum tree_part {
	TREE_FILE,
	TREE_ANON,
	TREES
};
/* The locks that a commit step looks at. One commit is a run of at least one, in this order. */
enum commit_part {
	COMMIT_MMAP,
	COMMIT_VMA,
	COMMIT_I_MMAP,
	COMMIT_ANON,
	PARTS_OF_COMMIT
};
enum repeats {
	LONGEST_REPEAT = 8
};
/* The first byte of each kind of step. steps.h computes the bytes and asserts the ranges. */
enum step {
	STEP_END,
	STEP_LOST,          /* an event is missing here: recorded and real lock state differ */
	STEP_OVERLONG,      /* more steps than fit: the rest is not recorded */
	STEP_REPEAT,        /* the n steps before came at least twice in a row */
	STEP_TREE_NEW = 11, /* a change of a tree that no other task can reach yet */
	STEP_LOCK = 16,     /* an rwsem operation */
	STEP_TREE = 124,    /* a change of a tree, with the owner state of its lock */
	STEP_COMMIT = 140,  /* a VMA is stored, with the owner state of one of its locks */
	STEP_VISIT = 156,   /* an rmap walk calls back, with the owner state of its lock */
	STEP_CALL = 160     /* an inner window ran here */
};
/* Bits and shifts of protocol_key.context. */
enum context {
	CONTEXT_FILE = 1,     /* the VMA has a file */
	CONTEXT_ANON = 2,     /* the VMA has an anon_vma at entry */
	CONTEXT_IMPORTED = 4, /* the VMA has an anon_vma at return, and had none at entry */
	CONTEXT_HUGETLB = 8,
	CONTEXT_LOCKED = 16, /* the walk's caller states that it holds the lock */
	CONTEXT_FOLIO_LOCKED = 32,
	CONTEXT_MOVED = 64,           /* vm_start or vm_end changed */
	CONTEXT_REBUILT = 128,        /* made from surrounding functions: no hook on its own */
	CONTEXT_ENTRY_MMAP_SHIFT = 8, /* enum owner_state at entry and return, 2 bits each */
	CONTEXT_ENTRY_I_MMAP_SHIFT = 10,
	CONTEXT_ENTRY_ANON_SHIFT = 12,
	CONTEXT_EXIT_MMAP_SHIFT = 14,
	CONTEXT_EXIT_I_MMAP_SHIFT = 16,
	CONTEXT_EXIT_ANON_SHIFT = 18,
	CONTEXT_GEOMETRY_SHIFT = 20, /* enum geometry, 3 bits */
	CONTEXT_FOLLOWS_SHIFT = 23,  /* enum follows, 2 bits */
	CONTEXT_WALKER_SHIFT = 25,   /* enum walker, 3 bits */
	CONTEXT_PIECE = 0x10000000,  /* dup_mmap(): the part before, between or after its copies */
	CONTEXT_KEPT_SHIFT = 29      /* enum kept, 3 bits */
};
/* V1: the VMA when the window has ended. */
enum geometry {
	GEOMETRY_NONE,
	GEOMETRY_HOLDS,
	GEOMETRY_EMPTY,
	GEOMETRY_UNALIGNED,
	GEOMETRY_NOT_AS_ASKED,
	GEOMETRY_PGOFF,
	GEOMETRY_OVERLAP
};
/* V5: whether the anon_vma follows the pages. */
enum follows {
	FOLLOWS_NONE,
	FOLLOWS_HOLDS,
	FOLLOWS_MISSING,
	FOLLOWS_OTHER
};
/* V6: whether a merge, a split or a move kept what it was to keep; otherwise what differs. */
enum kept {
	KEPT_NONE,
	KEPT_HOLDS,
	KEPT_FLAGS,  /* vm_flags */
	KEPT_UFFD,   /* vm_userfaultfd_ctx */
	KEPT_POLICY, /* vm_policy */
	KEPT_FILE,   /* vm_file, or the offset in it */
	KEPT_NAME,   /* anon_name */
	KEPT_RANGE /* the range is not what was asked for, or an address beside it is not mapped */
};
/* The rmap_one callback of a walk. */
enum walker {
	WALKER_NONE,
	WALKER_TRY_TO_MIGRATE,
	WALKER_TRY_TO_UNMAP,
	WALKER_REMOVE_MIGRATION,
	WALKER_REFERENCED,
	WALKER_MKCLEAN,
	WALKER_OTHER
};
struct protocol_key {
	u8 steps[64];
	u32 context;
	u16 window;
	u16 error; /* errno of a failed window; 0xffff: it returned NULL or false */
};
struct protocol_row {
	u64 count;
	u64 first_ns; /* the flight recorder names the protocol by it */
};
/* How a window's return value states failure. */
enum returns {
	RETURNS_NOTHING,
	RETURNS_ERRNO,
	RETURNS_POINTER
};
/* What the arguments `start` and `end` of a window request. */
enum asked {
	ASKED_NOTHING,
	ASKED_RANGE, /* vm_start and vm_end */
	ASKED_SPLIT, /* `start` becomes vm_end, or vm_start where `end` (new_below) is set */
	ASKED_BELOW  /* vm_start is at or below `start` */
};
enum window_flags {
	WINDOW_MERGES = 1,  /* V5: a VMA that loses its anon_vma inside gives its pages away */
	WINDOW_COPIES = 2,  /* V5: the returned VMA takes the pages of `vma` over */
	WINDOW_REBUILT = 4, /* made from surrounding functions */
	WINDOW_WALKS = 8,   /* an rmap walk of `folio` */
	WINDOW_SHAPES = 16, /* V1: `vma` outlives the window, and its geometry is checked */
	WINDOW_OF_ANON =
		32,         /* skip VMAs without anon_vma and chain: the function returns at once */
	WINDOW_OF_FILE = 64 /* skip VMAs without vm_file: the function returns at once */
};
enum flight_limits {
	DEEPEST_WINDOW = 8,
	MOST_STEPS = 55
};

/* Sampling: a token bucket per function and CPU. */
struct allowance {
	u64 jiffy;       /* of the last refill */
	u64 refilled_ns; /* the clock at the last refill */
	u64 earned_ns;   /* tokens are added up to this time */
	u64 left;
	u64 unsampled;    /* windows that were not recorded, with those inside of them */
	u64 unsampled_ns; /* when the last one was, or a jiffy before */
};

struct hold_key {
	u64 rwsem;
	u64 tid;
};
struct hold {
	u64 since_ns;
	u64 wait_ns;
	u32 lock_class;
	u32 state; /* enum hold_state */
};
enum hold_state {
	HOLD_ENTERED = 1, /* recorded at the entry of a blocking form, whose wait may follow */
	HOLD_AGAIN = 2    /* the task held it already, as far as was recorded */
};

/* The window of a PROTOCOL_NEW: it follows struct event in the ring buffer, before the key. */
struct sighting {
	u64 was_start;
	u64 was_end;
	u64 vm_start;
	u64 vm_end;
	u64 folio;
	u64 anon;
	u64 i_mmap;
	u64 vm_flags;
};

/*
 * The flight recorder: the last windows of each CPU. Rmap walks are many, so they have rows of
 * their own (the second half): the changes of VMAs between two walks explain what the second walk
 * missed.
 */
struct flight {
	u64 start_ns;
	u64 end_ns;
	u64 protocol; /* protocol_row.first_ns */
	u64 mm;
	u64 vma;
	u64 was_start;
	u64 was_end;
	u64 vm_start;
	u64 vm_end;
	u64 anon; /* the rwsem of the anon_vma's root */
	u64 i_mmap;
	u64 folio;
	u32 tid;
	u32 tgid;
	u32 window;
	s32 stack;
};

/* A VMA and a folio, read on demand without a lock: either may have been freed or reused. */
struct object_info {
	u64 vm_mm;
	u64 vm_start;
	u64 vm_end;
	u64 vm_flags;
	u64 anon; /* the rwsem of the anon_vma's root */
	u64 i_mmap;
	u64 folio_flags;
	u64 folio_mapping;
	u64 folio_order;
	char file[48]; /* the last component of the mapped file's path */
};

/* The page-table walker: queries and their answers. */
enum found {
	FOUND_NOTHING, /* no entry: not mapped, or the tables end above */
	FOUND_PRESENT,
	FOUND_MIGRATION, /* not present, of a swap type seen inserted as a migration entry */
	FOUND_POSSIBLE,  /* of a type not seen, next to one that was: fork() and mprotect() turn
			    writable entries into readable ones */
	FOUND_OTHER,     /* not present and no migration entry: swap, marker, device */
	FOUND_UNREADABLE,
	FOUND_MM_GONE /* the mm_struct is freed, or is another mm by now: it holds nothing */
};
enum page_lock {
	LOCK_UNKNOWN,
	LOCK_FREE,
	LOCK_HELD
};
struct query {
	u64 mm;
	u64 id; /* mm->context.ctx_id: no two mms have the same */
	u64 pgd;
	u64 addr;
	u64 entry;
	u64 pfn;
	u64 page_flags; /* of the head page, read between two readings of the entry */
	u32 level;      /* where the walk ended: 1 PTE, 2 PMD, 3 PUD */
	u32 found;
	u32 stable; /* both readings of the entry agree */
	u32 lock;
};
/* Bounds of the loops of one run: the verifier follows no more. */
enum run_limits {
	UPPER_ENTRIES_A_RUN = 128,
	LEAVES_A_RUN = 2,
	PART_ENTRIES = 512, /* of a table that a sweep reads at a time */
	WALKS_A_RUN = 32
};
struct sweep_state {
	u64 wanted; /* one bit per swap type to report */
	u64 uppers;
	u64 leaves;
	u64 hits;
	u64 lost;       /* tables or hits that found their array full: the sweep is incomplete */
	u64 unreadable; /* tables that could not be read any more */
};
/* A page-table page of a sweep. */
struct table {
	u64 at;   /* physical address; at the top level the virtual address of the pgd */
	u64 base; /* first address that it translates */
	u32 level;
	u32 mm; /* index in the daemon's list of mms */
};
struct task_mm {
	u64 mm;
	u64 pgd;
	u64 id;      /* mm->context.ctx_id */
	u64 changed; /* differs after VMAs changed: mm_lock_seq, or before 6.4 map_count */
	u32 tgid;
	u32 tid;
	char comm[16];
};
struct calibration {
	u64 mm; /* of the task that runs the program, with its id and pgd */
	u64 id;
	u64 pgd;
	u64 first_folio;
	u64 second_folio;
	u64 task_size; /* mm->task_size */
	u64 value;     /* the u64 at the address that was passed */
	u64 owner;     /* the mm that the struct page of our pgd names, if the guess is right */
};

/*
 * The state audit (audit.bpf.c): programs that run on demand read the maple tree of an mm, its VMAs
 * and the interval trees that these are in, by value and without a lock. One look takes a range of
 * addresses of one mm. What looks wrong is a doubt; Python decides what a doubt is worth.
 */
enum audit_problem { /* bit n of audit_doubt.problems */
	/* the maple tree: lib/maple_tree.c, mt_validate() and mas_validate_gaps() */
	NODE_UNREADABLE,    /* the pointer leads out of the direct map, or the read fails */
	NODE_DEAD,          /* the tree leads to a node that is freed or about to be */
	NODE_PARENT,        /* the parent pointer is not the slot that leads here */
	NODE_TYPE,          /* a leaf above the last level, or no leaf at it */
	NODE_PIVOT,         /* pivots do not ascend, or leave the range of the parent */
	NODE_CHILD,         /* a slot of an inner node has no node */
	NODE_GAP,           /* a gap is larger than the range that it is in */
	NODE_GAP_SLOT,      /* the metadata does not name the slot with the largest gap */
	NODE_GAP_OF_PARENT, /* the parent's gap is not the largest one of the node */
	NODE_BEYOND_END,    /* something stands behind the last slot in use */
	NODE_TWO_EMPTY,     /* two neighbouring slots are empty */
	NODE_END,           /* the last pivot is not the node's end, or the metadata is no slot */
	NODE_TOO_DEEP,      /* the tree is deeper than its flags state */
	TREE_ROOT,          /* the root is no node */
	/* VMAs: mm/vma.c, validate_mm() */
	MAP_COUNT, /* mm->map_count is not the number of VMAs in the tree */
	VMA_UNREADABLE,
	VMA_RANGE,    /* vm_start and vm_end are not those of the slot */
	VMA_MM,       /* vm_mm is another mm */
	VMA_ANON_VMA, /* an anon_vma without a chain, or a chain without an anon_vma */
	/* interval trees: mm/interval_tree.c, include/linux/interval_tree_generic.h */
	CHAIN_UNREADABLE,
	CHAIN_VMA,       /* anon_vma_chain.vma is another VMA */
	CHAIN_LIST,      /* the list's prev is not where it was reached from */
	CHAIN_ROOT,      /* anon_vmas of one chain have different roots */
	CHAIN_LACKS_OWN, /* the VMA's own anon_vma is not in its chain */
	INTERVAL_UNREADABLE,
	INTERVAL_UNLINKED, /* the rb_node is in no tree */
	INTERVAL_SUBTREE,  /* rb_subtree_last is not the largest end below */
	INTERVAL_ORDER,    /* it is on the wrong side of a node above */
	INTERVAL_NO_CHILD, /* the node above has no such child */
	INTERVAL_COVER,    /* a node above ends its subtree earlier */
	INTERVAL_TREE,     /* the climb ends at another tree's root */
	INTERVAL_TOO_DEEP,
	/* pages: mm/rmap.c, __page_check_anon_rmap() */
	PAGE_INDEX, /* an anon page is mapped where its index does not lead to */
	AUDIT_PROBLEMS
};
enum audit_next {
	AUDIT_DONE,
	AUDIT_NODES, /* run audit_nodes to go on */
	AUDIT_LINKS,
	AUDIT_ASTRAY /* a list that cannot overflow did: the look is worth nothing */
};
enum audit_limits {
	AUDIT_DOUBTS = 128,
	AUDIT_OWNED = 64,
	AUDIT_COPIES = 256,
	AUDIT_COPIES_A_RUN = 64,
	AUDIT_WRITERS = 4096
};
/* A look: what was asked for, how far it came, and what was read of the mm around it. */
struct audit_look {
	u64 mm;
	u64 low;  /* first address that was asked for */
	u64 high; /* the last one; less where the look ended after `most` VMAs */
	u64 most; /* VMAs after which it ends; 0: no limit */
	u64 next; /* enum audit_next */
	u64 root; /* mm_mt.ma_root when the look began */
	/*
	 * Read in the order seq, writer before the tree, and writer, seq after it. writer: 1 if the
	 * mmap_lock is held for write at that time. A writer that came and went raised mm_lock_seq
	 * (6.4 on; before, the program audit_writer counts).
	 */
	u64 seq_before;
	u64 writer_before;
	u64 writer_after;
	u64 seq_after;
	u64 counts_writers; /* seq is mm_lock_seq; 0: it counts while audit_writer is attached */
	u64 id_before;      /* mm->context.ctx_id */
	u64 id_after;
	u64 users_before; /* mm_users; 0: the mm is going away */
	u64 users_after;
	u64 map_count_before;
	u64 map_count_after;
	/* Numbers of what was looked at. */
	u64 nodes;
	u64 leaves;
	u64 vmas;
	u64 files;         /* VMAs with a file */
	u64 chain_entries; /* anon_vma_chains */
	u64 climbs;        /* from a node of an interval tree to its root */
	u64 levels;        /* of all climbs */
	u64 raced_climbs;  /* the tree's lock had a writer before or after */
	u64 samples;       /* VMAs with an anon_vma, one address of each of which was looked at */
	u64 anon_pages;    /* ... and an anon page is mapped there, whose index was compared */
	u64 special;       /* XA_ZERO_ENTRY: what a failed fork leaves */
	u64 small_nodes;   /* with fewer entries than a node should have */
	u64 deepest;       /* levels of the longest climb */
	u64 longest;       /* entries of the longest anon_vma_chain */
	u64 doubts;        /* those beyond AUDIT_DOUBTS are not kept */
	u64 owned;         /* locks found owned for write; as many as AUDIT_OWNED are kept */
	u64 left_out;      /* 1: VMAs may be in a node that was not gone into */
};
struct audit_doubt {
	u64 problems; /* one bit per enum audit_problem */
	u64 raced;    /* the lock of the interval tree, or of the anon_vma's root, had a writer */
	u64 vma;      /* 0: a node of the maple tree, or the mm */
	u64 at;       /* the node, the VMA, the anon_vma_chain or the rb_node */
	u64 want;
	u64 got;
	u64 low; /* the range of addresses that it is about */
	u64 high;
	u64 lock;      /* enum audit_lock: which interval tree; AUDIT_MMAP_LOCK for all else */
	u64 words[32]; /* the node as it was read, or the VMA */
};
/* A rwsem that was owned for write when the look passed it. */
enum audit_lock {
	AUDIT_MMAP_LOCK,
	AUDIT_I_MMAP_RWSEM,
	AUDIT_ANON_VMA_RWSEM
};
struct audit_owned {
	u64 lock;
	u64 owner; /* the task, with RWSEM_READER_OWNED */
	u64 kind;  /* enum audit_lock */
	u64 mm;
	u64 vma;
};
/* Kernel memory by value, for evidence: 256 bytes at an address of the direct map. */
struct audit_copy {
	u64 at; /* Python sets it; 0: it could not be read */
	u64 words[32];
};

/*
 * L3 by audit (owners.bpf.c): a rwsem that the audit found owned for write and its owner, read by
 * value and on demand; and what a watched owner still owns when it enters a system call.
 */
enum owner_limits {
	WATCHED_LOCKS = 64,      /* of all tasks */
	WATCHED_LOCKS_A_TASK = 4 /* values of watch_key.slot */
};
struct owner_look {
	u64 lock;
	u64 task;         /* the supposed owner */
	u64 owned_before; /* it has the lock for write, before and after the rest is read */
	u64 owned_after;
	/*
	 * What the lock is a part of: mm->context.ctx_id, mapping->host or the root anon_vma. 0:
	 * there is no lock of this kind at the address (any more).
	 */
	u64 identity;
	u64 seq;       /* mm->mm_lock_seq: stays the same while one task holds the mmap_lock */
	u64 has_seq;   /* the kernel has it (6.4 on), and the lock is an mmap_lock */
	u64 start_ns;  /* task->start_time: tells tasks apart that use the same memory in turn */
	u64 user_ns;   /* task->utime, without the time of guests */
	u64 system_ns; /* task->stime */
	u64 switches;  /* context switches: the same while it sleeps */
	u64 call;      /* orig_ax of the task's struct pt_regs: its system call, if it is in one */
	u32 linked;    /* its struct pid leads back to it: it has not been released */
	u32 state;     /* task->__state */
	u32 exit_state;
	u32 flags; /* PF_* */
	u32 on_cpu;
	u32 cpu;
	u32 tid;
	u32 tgid;
	char comm[16];
};
struct watch_key {
	u64 task;
	u64 slot;
};
struct watched_lock {
	u64 lock;
	u64 kind;     /* enum audit_lock */
	u64 identity; /* as in struct owner_look */
	u64 start_ns;
	u64 kept;    /* system calls that the task entered with the lock */
	u64 let_go;  /* ... and without it */
	u64 kept_ns; /* when it first entered one with the lock */
	u64 call;    /* the number of that one */
};

/*
 * L7 (waits.bpf.c): the last rwsem that a task began to wait for; and a task that sleeps
 * uninterruptibly, as the iterator finds it.
 */
struct lock_wait {
	u64 lock;
	u64 since_ns;
	u64 switches; /* context switches of the task so far */
	u32 tid;
	u32 wanted; /* enum wait_mode */
};
struct sleeper {
	u64 task;
	u64 start_ns; /* task->start_time */
	u64 switches; /* context switches: the same while it sleeps */
	u64 mm;       /* its own */
	/* From here to `wanted`: the last wait for an rwsem. lock 0: none is known. */
	u64 lock;
	u64 since_ns;
	u64 writer;  /* the task that has it for write now; 0: none */
	u64 readers; /* how many have it for read now */
	u64 waiter;  /* what shows that it waits for this lock, as waiter_of(); 0: nothing does */
	u64 part_of; /* the mm, address_space, anon_vma or VMA that the lock is a part of */
	u32 lock_class;
	u32 wanted;
	u64 held[4];    /* mms whose mmap_lock it holds, as far as recorded */
	u64 written;    /* a bit for each of these: for write */
	u64 frames[32]; /* its kernel stack, innermost first */
	u32 tid;
	u32 tgid;
	u32 state; /* task->__state */
	u32 flags; /* PF_* */
	char comm[16];
	char writer_comm[16];
	u32 writer_tid;
	u32 unused;
};

#endif
