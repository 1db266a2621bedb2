/*
 * Migrations and their entries, by tracepoints. The tracepoints have an address and no mm. The mm
 * is that of the rmap walk's visit in which they fire, where visits are hooked (ledger.bpf.c);
 * elsewhere one row stands for an address in all mms, and the entry itself names the page whose
 * folio is checked (folios.h).
 */
#include "copies.h"
#include "mm_ids.h"

BPF_HASH(dying_mms, u64, struct dying_mm, MM_ROWS);

HOOK(mm_migrate_pages_start)
{
	begin_migration(ctx, ARG(mm_migrate_pages_start, mode),
			ARG(mm_migrate_pages_start, reason));
	return 0;
}

HOOK(mm_migrate_pages)
{
	end_migration(ctx, MIGRATIONS_ENDED);
	return 0;
}

/* Add an insertion to a row. The row describes the VMA of the newest insertion only. */
static __always_inline void add_insertion(struct ledger_row *row, struct migration *visiting,
					  u64 entry)
{
	row->last_ns = bpf_ktime_get_ns();
	row->entry = entry;
	row->count += 1;
#ifdef HAVE_folio_flags
	if (!visiting)
		return;
	row->folio = visiting->folio;
	row->at = visiting->at;
	row->vma = visiting->vma;
	row->vm_start = READ_VMA(VMA(visiting->vma), vm_start);
	row->vm_end = READ_VMA(VMA(visiting->vma), vm_end);
	row->visits = 0;
	row->to = 0;
#endif
}

static __always_inline void record_insertion(void *ctx, u64 addr, u64 entry, u32 level)
{
	struct params *p = open_gate();
	if (!p)
		return;
	u64 task = bpf_get_current_pid_tgid();
	u32 tid = task;
	learn_type(p, entry);
	struct migration *m = migrations.lookup(&tid);
	struct migration *visiting = if_visiting(m, WALK_FIRST);
	struct ledger_key key = {};
#ifdef HAVE_FOLIO_STATE
	if (!visiting && p->unhooked & FIRST_WALK_UNHOOKED)
		check_inserted_page(ctx, p, m, addr, entry);
#endif
	fill_key(&key, m, tid, MM(visiting ? visiting->mm : 0), addr, level);
	struct ledger_row *row = ledger.lookup(&key);
	if (row) {
		row->mixed |= entry_pfn(p, row->entry) != entry_pfn(p, entry);
		add_insertion(row, visiting, entry);
	} else {
		struct ledger_row fresh = {};
		fresh.first_ns = bpf_ktime_get_ns();
		fresh.tgid = task >> 32;
		add_insertion(&fresh, visiting, entry);
		if (ledger.update(&key, &fresh)) {
			count(LEDGER_LOST);
			if (m)
				m->lossy = 1;
			return;
		}
	}
	count(ENTRIES_RECORDED);
	if (m)
		m->outstanding++;
#ifdef HAVE_folio_flags
	if (visiting)
		check_insertion(ctx, visiting, addr);
#endif
}

/*
 * Record a removal without a row in a child's mm: the second walk has visited the child before the
 * parent, whose removal would have recorded the copy (record_copies()).
 */
static __always_inline void record_removed_copy(struct params *p, struct migration *m)
{
	m->copied_ns = 0;
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (w && w->mm == m->mm && (!w->end_ns || w->end_ns >= m->start_ns))
			m->copied_ns = w->start_ns;
	}
	if (!m->copied_ns) {
		count(REMOVALS_UNRECORDED);
		return;
	}
	count(ENTRIES_COPIED);
	m->outstanding += 1;
	settle(p, m, MM(m->mm), m->copied_ns, m->copied_ns);
}

/*
 * Match a removal with a row, or with an entry of a frozen PMD. Where both are there the row has no
 * VMA: it is a copy that a fork made of a PMD frozen itself, and both are settled.
 */
static __always_inline void record_removal(void *ctx, u64 addr, u64 entry, u32 level)
{
	struct params *p = open_gate();
	if (!p)
		return;
	u32 tid = bpf_get_current_pid_tgid();
	u32 tgid;
	struct migration *m = migrations.lookup(&tid);
	struct migration *visiting = if_visiting(m, WALK_SECOND);
	u64 first_ns, pfn;
	u64 at = addr;
	folio_t folio;
	struct ledger_key key = {};
	struct ledger_key frozen_key = {};
	struct frozen *f = 0;
	fill_key(&key, m, tid, MM(visiting ? visiting->mm : 0), addr, level);
	struct ledger_row *row = ledger.lookup(&key);
	if (visiting)
		visiting->removed += 1;
#ifdef HAVE_FOLIO_STATE
	if (!visiting && p->unhooked & SECOND_WALK_UNHOOKED) {
		folio_t to = check_restored_page(ctx, p, m, addr, entry, level);
		if (to.addr && row && !row->mixed)
			check_source_page(ctx, p, m, addr, row->entry, to);
	}
#endif
	if (visiting && level == 1 && (!row || !row->vma)) {
		frozen_key = key;
		f = frozen_at(&frozen_key, addr);
	}
	/* A visit that began before the gate opened has recorded the entry without an mm. */
	if (visiting && !row && !f) {
		key.mm = 0;
		row = ledger.lookup(&key);
		if (!row) {
			record_removed_copy(p, visiting);
			return;
		}
	}
	if (row) {
		first_ns = row->first_ns;
		pfn = entry_pfn(p, row->entry);
		folio = FOLIO(row->folio);
		at = row->at;
		tgid = row->tgid;
	} else if (f) {
		first_ns = f->first_ns;
		pfn = entry_pfn(p, f->entry) + PTE_INDEX(addr);
		folio = FOLIO(f->folio);
		tgid = f->tgid;
	} else {
		count(REMOVALS_UNRECORDED);
		return;
	}
	record_copies(p, m, &key, folio, at, first_ns, pfn, tgid);
	if (f)
		settle_frozen(p, m, &frozen_key, f, PTE_INDEX(addr));
	if (row)
		settle_row(p, m, &key, row);
}

HOOK(set_migration_pte)
{
	record_insertion(ctx, ARG(set_migration_pte, addr), ARG(set_migration_pte, entry), 1);
	return 0;
}

HOOK(remove_migration_pte)
{
	record_removal(ctx, ARG(remove_migration_pte, addr), ARG(remove_migration_pte, pte), 1);
	return 0;
}

HOOK(set_migration_pmd)
{
	record_insertion(ctx, ARG(set_migration_pmd, addr), ARG(set_migration_pmd, entry), 2);
	return 0;
}

HOOK(remove_migration_pmd)
{
	record_removal(ctx, ARG(remove_migration_pmd, addr), ARG(remove_migration_pmd, pmd), 2);
	return 0;
}

/*
 * A task that exits inside a migration never ends it. From 6.16 on the tracepoint runs before
 * exit_mm(): the task's mm is still known, and stays in dying_mms until exit_mmap() has torn its
 * page tables down.
 */
HOOK(sched_process_exit)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	u64 task = bpf_get_current_pid_tgid();
	u32 tid = task;
	struct migration *m = migrations.lookup(&tid);
	if (m) {
		emit_leftover(ctx, m, MIGRATOR_DIED);
		migrations.delete(&tid);
	}
	mm_t mm = MM(READ(task_struct, ARG(sched_process_exit, task), mm));
	if (!mm.addr)
		return 0;
	struct dying_mm dying = {};
	dying.pgd = READ_MM(mm, pgd);
	dying.id = mm_id(mm);
	dying.since_ns = bpf_ktime_get_ns();
	dying.tgid = task >> 32;
	if (dying_mms.update(&mm.addr, &dying))
		count(MMS_LOST);
	return 0;
}

HOOK(exit_mmap)
{
	u64 mm = ARG(exit_mmap, mm);
	forget_mm_id(MM(mm));
	struct params *p = open_gate();
	if (!p)
		return 0;
	count(MMS_EXITED);
	dying_mms.delete(&mm);
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (w && w->mm == mm) {
			w->mm = 0;
			w->pgd = 0;
		}
	}
	return 0;
}
