/* What the kernel writes and Python reads. tracer/layout.py reads this very file: enums and structs of plain scalars only. */
#ifndef RMAPD_SHARED_H
#define RMAPD_SHARED_H

/* Switches and addresses that Python sets; the gate is closed until everything is attached. */
struct params {
	u64 gate;
	u64 page_offset;  /* base of the direct map; 0: not calibrated */
	u64 vmemmap;      /* base of the struct page array; 0: not calibrated */
	u64 levels;       /* page-table levels: 4 or 5 */
	u64 welcome_ns;   /* M4: an entry settled within this time holds */
	u64 types_known;  /* every swap type of migration entries was seen inserted */
	u64 window_epoch; /* odd while hooks of windows change: none is opened then, and what began in another epoch is not counted */
	u64 mmap_epoch;   /* the same of mmap_lock */
	u64 missed_ns; /* up to when runs of the ledger's programs were missed: an entry from before it may have the age of another */
	u64 window_ns; /* sampling: one window per function, CPU and so long is booked, on the average; 0: all are */
};

/* Per-CPU sums; Python adds the CPUs up. */
enum counter {
	ENTRIES_BOOKED,  /* insertions that got a row or joined one */
	ENTRIES_COPIED,  /* copies of booked entries found in a child's page table */
	ENTRIES_REMOVED, /* removals matched with a row */
	REMOVALS_UNBOOKED, /* removals of entries that were never booked: freezing THP splits, inserted before the gate */
	M1_HOLDS,
	M1_UNVERIFIABLE, /* settled in a migration that lost an event */
	M4_HOLDS,
	M4_LATE,   /* settled, but after welcome_ns */
	M4_UNTOLD, /* settled late, if at all: which of several entries it was, an old one or a young one, cannot be told, or a run
                             was missed while it was there */
	LEDGER_LOST,     /* insertions that found the ledger full */
	MIGRATIONS_LOST, /* migrations that found their map full */
	EVIDENCE_LOST,   /* events that found the ring full */
	MIGRATIONS_ENDED,
	MIGRATIONS_UNENDED, /* migrations whose end was not seen: their task has begun another that is not inside */
	MMS_EXITED,
	MMS_LOST,       /* exiting mms that found their map full */
	LOCKS_LOST,     /* acquisitions that found lock_states full or four locks held already */
	LOCKS_UNBOOKED, /* releases of locks taken before the gate opened */
	NESTED_HOLDS, /* an mmap_lock taken while another is held, in an order never seen reversed */
	FORKS_SEEN,
	PROTOCOLS_LOST,   /* windows whose protocol found the table full */
	WINDOWS_LOST,     /* windows that found their map full, or were nested too deeply */
	WINDOWS_UNCLOSED, /* windows whose return was not seen */
	WINDOWS_OVERLONG, /* windows with more steps than a protocol holds; their protocol says so */
	M2_HOLDS,
	M2_VIOLATED,
	M2_UNSURE, /* the folio that is known is not locked, and may be that of another visit */
	M3_HOLDS,
	M3_VIOLATED,
	M5_HOLDS,
	ENTRIES_REPLACED, /* of those removed: by the shared zeropage, without a tracepoint */
	PMDS_FROZEN,      /* PMDs that THP splits turned into 512 entries each */
	SPLITS_ENDED,     /* THP splits: migrations that start and end without a tracepoint */
	COUNTERS
};

/* Book 1, the ledger: one row per migrating task, mm and address with entries outstanding. */
struct ledger_key {
	u64 start_ns; /* of the migration; 0 outside of one (splits that cannot be hooked) */
	u64 mm;       /* 0 where the walk's visits are not seen: one row for all mms then */
	u64 addr;
	u32 tid;
	u32 level; /* 1: PTE, 2: PMD, 3: a PMD that a THP split froze (struct frozen) */
};
struct ledger_row {
	u64 first_ns;  /* of the oldest entry */
	u64 last_ns;   /* of the insertion that came last */
	u64 entry;     /* as inserted last */
	u64 copied_to; /* mm 0: bit per fork window whose copy is counted already */
	u64 folio;     /* 0 from here on where the mm is not known */
	u64 at; /* where the first walk met the folio in the VMA: its first page, or the VMA's */
	u64 vma;
	u64 vm_start;
	u64 vm_end;
	u32 count; /* entries outstanding at this address */
	u32 tgid;
	u32 visits; /* by the second walk since the insertion, where `at` is this address */
	u32 pad;
	u64 to; /* the folio that its last visit brought */
};
struct frozen {
	u64 first_ns;
	u64 entry; /* the first of 512 */
	u64 folio;
	u64 vma;
	u64 vm_start;
	u64 vm_end;
	u64 settled[8]; /* bit per entry */
	u32 count;      /* entries outstanding */
	u32 tgid;
};

/* One row per task that is inside migrate_pages() or splits a THP. The second half is the VMA that its rmap walk visits now. */
enum walk {
	WALK_NONE,
	WALK_FIRST,
	WALK_SECOND
}; /* try_to_migrate_one(), remove_migration_pte() */
enum reason {
	REASON_THP_SPLIT = 1000
}; /* beside enum migrate_reason */
struct migration {
	u64 start_ns;
	u64 outstanding;
	u64 visits; /* the clock of visits when it began */
	u64 mark;   /* where on the stack it began */
	u32 depth;  /* migrate_pages() can nest: allocating a target may compact */
	u32 lossy;
	u32 mode;
	u32 reason;
	u64 mm;
	u64 vma;
	u64 folio;
	u64 at;
	u64 freezing; /* the PMD that is being split */
	u64 copied_ns; /* when the visited mm was forked, for a removal that nothing was booked for */
	u32 walk;
	u32 removed; /* entries removed by this visit */
};

/* What the second walks visited lately: an LRU map, whose rows are certain while the clock of visits shows that none can have aged out. */
struct visit_key {
	u64 start_ns;
	u64 mm;
	u64 at;
	u32 tid;
	u32 pad;
};
struct visit {
	u64 folio; /* the source */
	u64 vma;
};

/* A dup_mmap(): seen by what it calls, or as mmap_lock of a second mm taken for write under the first. */
struct fork_window {
	u64 mm;
	u64 pgd;
	u64 id; /* mm->context.ctx_id */
	u64 start_ns;
	u64 end_ns; /* 0: still copying */
	u32 tid;    /* who forks */
	u32 pad;
};

/* An mm whose last task may be gone while its page tables are not. */
struct dying_mm {
	u64 pgd;
	u64 id;
	u64 since_ns;
	u32 tgid;
	u32 pad;
};

enum event_kind {
	MIGRATION_LEFT = 1, /* a migration ended with entries outstanding */
	MIGRATOR_DIED,      /* a task exited inside a migration with entries outstanding */
	ORDER_REVERSED,     /* two mmap_locks nested in both orders */
	PROTOCOL_NEW,       /* a window of a kind never seen before: struct sighting */
	INSERTED_UNLOCKED,  /* M2: a migration entry is inserted and its folio is not locked */
	REMOVED_UNLOCKED,   /* M3: the second walk visits a VMA and its folio is not locked */
	EVENT_KINDS
};
struct event {
	u64 time_ns;
	u64 start_ns;
	u64 a; /* entries outstanding, or the outer mm, or the mm */
	u64 b; /* or the clock of visits when the migration began, or the inner mm, or the VMA */
	u64 first_ns;      /* when the opposite order was first seen */
	u64 first_held_ns; /* and since when, at the latest, its outer lock was held then */
	u64 last_ns;       /* the same of the last time before this one */
	u64 last_held_ns;
	u64 held_ns; /* and of this time */
	u64 addr;    /* M2, M3: the address */
	u64 folio;   /* and the folio that is not locked */
	u32 kind;
	u32 tid;
	u32 tgid;
	s32 stack;
	s32 first_stack;
	u32 mode;
	u32 reason;
	u32 first_tid;
	char comm[16];
	u64 cgroup; /* id of the task's cgroup in the unified hierarchy: the inode of its folder; 0 unknown */
	char cgroup_name[48]; /* the last part of its path */
};

enum hist {
	HIST_MIGRATION_ENTRY,
	HIST_MMAP_WAIT_READ,
	HIST_MMAP_WAIT_WRITE,
	HIST_MMAP_HOLD_READ,
	HIST_MMAP_HOLD_WRITE,
	HIST_WALK_ANON, /* VMAs visited by an rmap walk */
	HIST_WALK_FILE,
	HIST_WALK_KSM,
	HISTS
};
struct histogram {
	u64 slot[64]; /* slot n: values below 2^n (ns, or VMAs) and not below 2^(n-1) */
	u64 sum_ns;
};

/* mmap_lock: what a task waits for and holds. */
struct held_lock {
	u64 mm;
	u64 since_ns; /* 0: not timed */
	u64 jiffy;    /* when it was taken: reading the clock takes longer */
	u64 write;
};
struct lock_state {
	u64 contended; /* an rwsem that it waits for, or waited for before its last mmap_lock */
	u64 since_ns;
	u64 n;
	struct held_lock held[4];
	u64 epoch;
};
struct order_key {
	u64 outer; /* mm->context.ctx_id: never reused, unlike the address of an mm */
	u64 inner;
};
struct order_row {
	u64 first_ns;
	u64 first_held_ns; /* since when the outer lock was held then, at the latest */
	u64 last_ns;
	u64 last_held_ns;
	u64 count;
	s32 stack;
	u32 tid;
};

/* Book 2, the protocol table. A window is one call of a function below by one task; what the task does with locks and trees
   meanwhile is a string of one-byte steps, and windows are counted by (function, context, steps). tracer/protocol.py is the notation. */
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
	WINDOWS
};
enum lock_class {
	CLASS_other,
	CLASS_mmap,
	CLASS_mmap2, /* mm->mmap_lock of the window's mm, and of another */
	CLASS_i_mmap,
	CLASS_i_mmap2, /* address_space.i_mmap_rwsem: the first one met in the window, and others */
	CLASS_anon,
	CLASS_anon2, /* anon_vma.root->rwsem: likewise */
	CLASS_vma,   /* vma->vm_lock->lock of 6.4 to 6.14 */
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
	OWNER_OTHER,
	OWNER_SELF
}; /* OTHER, SELF: held for write by another task, by this one */
enum tree_part {
	TREE_FILE,
	TREE_ANON
};
enum commit_part {
	COMMIT_MMAP,
	COMMIT_VMA,
	COMMIT_I_MMAP,
	COMMIT_ANON
}; /* a commit is a run of parts in this order, at least one */
enum step {
	STEP_END,
	STEP_LOST, /* an event is missing here: what the books say and what the lock says differ */
	STEP_OVERLONG, /* more steps than fit: the rest is not here */
	STEP_REPEAT,   /* + n-1: the n steps before came at least twice in a row; n from 1 to 8 */
	STEP_TREE_NEW =
		11, /* + 2*part + enter: a tree that no other task can reach yet (anon_vma not published) */
	STEP_LOCK = 16,    /* + class*LOCK_KINDS + kind */
	STEP_TREE = 124,   /* + (part*2 + enter)*4 + owner_state of the tree's lock */
	STEP_COMMIT = 140, /* + part*4 + owner_state of the lock of the VMA that is stored */
	STEP_VISIT = 156,  /* + owner_state of the walk's lock: an rmap walk calls back */
	STEP_CALL = 160    /* + window: an inner window ran here */
};
enum context {                /* bits and shifts of protocol_key.context */
	CONTEXT_FILE = 1,     /* the VMA has a file */
	CONTEXT_ANON = 2,     /* the VMA has an anon_vma at entry */
	CONTEXT_IMPORTED = 4, /* the VMA had none at entry and has one at return */
	CONTEXT_HUGETLB = 8,
	CONTEXT_LOCKED = 16, /* the caller says that it holds the lock of the walk */
	CONTEXT_FOLIO_LOCKED = 32,
	CONTEXT_MOVED = 64, /* vm_start or vm_end changed */
	CONTEXT_REBUILT =
		128, /* the function cannot be probed: the window is made from what surrounds it */
	CONTEXT_ENTRY_MMAP_SHIFT = 8, /* owner_state at entry and return; 2 bits each */
	CONTEXT_ENTRY_I_MMAP_SHIFT = 10,
	CONTEXT_ENTRY_ANON_SHIFT = 12,
	CONTEXT_EXIT_MMAP_SHIFT = 14,
	CONTEXT_EXIT_I_MMAP_SHIFT = 16,
	CONTEXT_EXIT_ANON_SHIFT = 18,
	CONTEXT_GEOMETRY_SHIFT = 20, /* enum geometry, 3 bits */
	CONTEXT_FOLLOWS_SHIFT = 23,  /* enum follows, 2 bits */
	CONTEXT_WALKER_SHIFT = 25,   /* enum walker, 3 bits */
	CONTEXT_PIECE =
		0x10000000 /* dup_mmap(): the part of the window up to, between or after its copies of VMAs */
};
enum geometry {
	GEOMETRY_NONE,
	GEOMETRY_HOLDS,
	GEOMETRY_EMPTY,
	GEOMETRY_UNALIGNED,
	GEOMETRY_NOT_AS_ASKED,
	GEOMETRY_PGOFF,
	GEOMETRY_OVERLAP
};
enum follows {
	FOLLOWS_NONE,
	FOLLOWS_HOLDS,
	FOLLOWS_MISSING,
	FOLLOWS_OTHER
};            /* V5: does the anon_vma follow the pages? */
enum walker { /* whose rmap_one it is */
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
	u16 error; /* errno of a failed window; 0xffff for a NULL or a false */
};
struct protocol_row {
	u64 count;
	u64 first_ns; /* also its name in the flight recorder */
};
enum returns {
	RETURNS_NOTHING,
	RETURNS_ERRNO,
	RETURNS_POINTER
};           /* what tells a window's failure */
enum asked { /* what the arguments `start` and `end` ask for */
	ASKED_NOTHING,
	ASKED_RANGE, /* vm_start and vm_end */
	ASKED_SPLIT, /* `start` becomes vm_end, or with `end` (new_below) vm_start */
	ASKED_BELOW  /* vm_start is at or below `start` */
};
enum window_flags {
	WINDOW_MERGES =
		1, /* a VMA that loses its anon_vma inside is one whose pages are taken over (V5) */
	WINDOW_COPIES = 2, /* the VMA returned takes over the pages of `vma` (V5) */
	WINDOW_REBUILT = 4,
	WINDOW_WALKS = 8,   /* an rmap walk of `folio` */
	WINDOW_SHAPES = 16, /* `vma` outlives the window: its geometry is judged (V1) */
	WINDOW_OF_ANON =
		32, /* there is none where `vma` has neither anon_vma nor chain: the function returns at once (mm/rmap.c) */
	WINDOW_OF_FILE =
		64 /* there is none where `vma` has no vm_file: the function returns at once (unlink_file_vma()) */
};
enum flight_limits {
	DEEPEST_WINDOW = 8,
	MOST_STEPS = 55
};

/* Sampling, per function and CPU: what may still be booked, and what was not. */
struct allowance {
	u64 jiffy;     /* when it was last refilled, */
	u64 looked_ns; /* by the clock, */
	u64 since_ns;  /* and up to when that was earned */
	u64 left;
	u64 unsampled;    /* windows that were not booked, and those in them */
	u64 unsampled_ns; /* when the last one was, or a jiffy before */
};

struct hold_key {
	u64 rwsem;
	u64 tid;
};
struct hold {
	u64 since_ns;
	u64 wait_ns;
	u64 lock_class;
};

/* What PROTOCOL_NEW tells: struct event (a: VMA, b: mm, start_ns: the window's), then the window. */
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

/* Book 3, the flight recorder: what the last windows were. Rmap walks have rows of their own (the second half): there are many, and it is
   the changes of VMAs between two of them that explain what the second one missed. */
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
	u64 anon; /* the root's rwsem */
	u64 i_mmap;
	u64 folio;
	u32 tid;
	u32 tgid;
	u32 window;
	s32 stack;
};

/* What a suspect's VMA and folio are, read on demand: no lock, no fault, and perhaps no longer what they were. */
struct scene {
	u64 vm_mm;
	u64 vm_start;
	u64 vm_end;
	u64 vm_flags;
	u64 anon; /* the root's rwsem */
	u64 i_mmap;
	u64 folio_flags;
	u64 folio_mapping;
	u64 folio_order;
	char file[48]; /* the last part of the mapped file's path */
};

/* The oracle's questions and answers. */
enum found {
	FOUND_NOTHING, /* no entry at all: not mapped, or the tables end above */
	FOUND_PRESENT,
	FOUND_MIGRATION, /* not present, and of a swap type that the kernel was seen to insert for migrations */
	FOUND_POSSIBLE, /* of a type never seen inserted, but next to one that was: fork and mprotect make readable entries of writable */
	FOUND_OTHER,    /* not present, but no migration entry: swap, marker, device */
	FOUND_UNREADABLE
};
enum page_lock {
	LOCK_UNKNOWN,
	LOCK_FREE,
	LOCK_HELD
};
struct query {
	u64 pgd;
	u64 addr;
	u64 entry;
	u64 pfn;
	u64 page_flags; /* of the head page, read between two identical readings of the entry */
	u32 level;      /* where the walk ended: 1 PTE, 2 PMD, 3 PUD */
	u32 found;
	u32 stable; /* the entry was the same before and after page_flags was read */
	u32 lock;
};
enum run_limits {
	UPPER_ENTRIES_A_RUN = 128,
	LEAVES_A_RUN = 2,
	WALKS_A_RUN = 32
}; /* what the verifier can follow */
struct sweep_state {
	u64 wanted; /* bit per swap type to report */
	u64 uppers;
	u64 leaves;
	u64 hits;
	u64 lost;       /* tables or hits that found their array full: the sweep is incomplete */
	u64 unreadable; /* tables that were gone when they were read */
};
struct table {    /* a page-table page for the sweep */
	u64 at;   /* physical address, or the pgd's virtual one at the top level */
	u64 base; /* first address it translates */
	u32 level;
	u32 mm; /* index in the daemon's list of mms */
};
struct task_mm {
	u64 mm;
	u64 pgd;
	u64 id; /* mm->context.ctx_id */
	u32 tgid;
	u32 tid;
	char comm[16];
};
struct calibration {
	u64 mm;
	u64 pgd;
	u64 first_folio;
	u64 second_folio;
	u64 value; /* what stands at the address asked for */
	u64 owner; /* the mm named by the struct page of our pgd, if the guess is right */
};

#endif
