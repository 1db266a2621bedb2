/* What the tracepoints of migration do not tell: the VMA that an rmap walk visits, THP splits, and the locks of the folios. */
#include "copies.h"

#define PFN_OF(p, folio) (((folio) - (p)->vmemmap) / sizeof(struct page))

static __always_inline struct migration *under_way(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	return migrations.lookup(&tid);
}

static __always_inline void visit(struct migration *m, u32 walk, u64 mm, u64 vma, u64 folio, u64 at)
{
	m->mm = mm;
	m->vma = vma;
	m->folio = folio;
	m->at = at;
	m->removed = 0;
	m->freezing = 0;
	m->walk = walk;
}

HOOK(first_walk)
{
	struct migration *m = open_gate() ? under_way() : 0;
	if (!m)
		return 0;
	u64 vma = ARGUMENT(vma);
	visit(m, WALK_FIRST, READ(vm_area_struct, vma, vm_mm), vma, ARGUMENT(folio),
	      ARGUMENT(addr));
	return 0;
}

HOOK(first_walk_leave)
{
	struct migration *m = under_way();
	if (m)
		m->walk = WALK_NONE;
	return 0;
}

/* M3, and a row for M5. A failed migration puts the old folio back: `src` is `folio` then. */
HOOK(second_walk)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	struct migration *m = under_way();
	u32 zero = 0;
	u64 folio = ARGUMENT(folio), src = ARGUMENT(src), vma = ARGUMENT(vma), at = ARGUMENT(addr),
	    mm = READ(vm_area_struct, vma, vm_mm);
	u64 unlocked = !is_locked(folio) ? folio : src && !is_locked(src) ? src : 0;
	count(unlocked ? M3_VIOLATED : M3_HOLDS);
	if (unlocked)
		tell_of_unlocked(ctx, m, REMOVED_UNLOCKED, vma, mm, at, unlocked);
	if (!m)
		return 0;
	visit(m, WALK_SECOND, mm, vma, src ? src : folio, at);
	struct visit_key key = {};
	struct visit now = {};
	key.start_ns = m->start_ns;
	key.mm = mm;
	key.at = at;
	key.tid = bpf_get_current_pid_tgid();
	now.folio = m->folio;
	now.vma = vma;
	visits.update(&key, &now);
	u64 *clock = visit_clock.lookup(&zero);
	if (clock)
		__sync_fetch_and_add(clock, 1);
	struct ledger_key row_key = {};
	fill_key(&row_key, m, key.tid, mm, at, 1);
	struct ledger_row *row = ledger.lookup(&row_key);
	if (!row) {
		row_key.level = 2;
		row = ledger.lookup(&row_key);
	}
	if (row && row->folio == m->folio) {
		row->visits++;
		row->to = folio;
	}
	return 0;
}

/* The tracepoint says what was removed, but for an unused page of a split THP, which the shared zeropage replaces in silence (6.12). Only the
   zeropage is believed: where there is nothing the entry was zapped, or moved elsewhere, and the oracle looks for it. */
static __always_inline void replaced_in_silence(struct params *p, struct migration *m, u32 tid)
{
	struct ledger_key key = {}, frozen_key = {};
	fill_key(&key, m, tid, m->mm, m->at, 1);
	frozen_key = key;
	struct ledger_row *row = ledger.lookup(&key);
	struct frozen *f = frozen_at(&frozen_key, m->at);
	if ((!row && !f) || !p->page_offset)
		return;
	u64 entry = 0, n = m->at >> 12 & 511, first_ns, pfn;
	u32 level = 0, tgid;
	if (walk(p, READ(mm_struct, m->mm, pgd), m->at, &entry, &level) || level != 1)
		return;
	if (!(entry & PTE_PRESENT) || !(entry & PTE_SPECIAL))
		return;
	if (row) {
		first_ns = row->first_ns;
		pfn = entry_pfn(p, row->entry);
		tgid = row->tgid;
	} else {
		first_ns = f->first_ns;
		pfn = entry_pfn(p, f->entry) + n;
		tgid = f->tgid;
	}
	book_copies(p, m, &key, m->folio, m->at, first_ns, pfn, tgid);
	count(ENTRIES_REPLACED);
	if (f)
		settle_frozen(p, m, &frozen_key, f, n);
	if (row)
		settle_row(p, m, &key, row);
}

HOOK(second_walk_leave)
{
	struct params *p = open_gate();
	u32 tid = bpf_get_current_pid_tgid();
	struct migration *m = migrations.lookup(&tid);
	if (!p || !m)
		return 0;
	if (m->walk == WALK_SECOND && !m->removed)
		replaced_in_silence(p, m, tid);
	m->walk = WALK_NONE;
	return 0;
}

/* A THP split turns a PMD into 512 entries without a tracepoint. Whether it did is read from the page table: it is called for what is mapped
   by PTEs, too, it gives up freezing where the page may be pinned, and it zaps the PMD of a file. */
HOOK(freeze)
{
	struct params *p = open_gate();
	struct migration *m = p ? under_way() : 0;
	u64 addr = ARGUMENT(addr) & ~(PMD_BYTES - 1), entry = 0;
	u32 level = 0;
	if (!p || !m || m->walk != WALK_FIRST || !p->page_offset || !(ARGUMENT(freeze) & 0xff))
		return 0;
	if (walk(p, READ(mm_struct, m->mm, pgd), addr, &entry, &level) || level != 2 ||
	    !is_present(entry, level))
		return 0;
	m->freezing = addr;
	return 0;
}

HOOK(freeze_leave)
{
	struct params *p = open_gate();
	u64 task = bpf_get_current_pid_tgid(), entry = 0;
	u32 tid = task, level = 0;
	struct migration *m = migrations.lookup(&tid);
	if (!p || !m || !m->freezing)
		return 0;
	u64 addr = m->freezing;
	m->freezing = 0;
	if (m->walk != WALK_FIRST || !p->vmemmap)
		return 0;
	if (walk(p, READ(mm_struct, m->mm, pgd), addr, &entry, &level) || level != 1 || !entry ||
	    is_present(entry, level))
		return 0;
	if (entry_pfn(p, entry) != PFN_OF(p, m->folio))
		return 0;
	learn_type(entry);
	struct ledger_key key = {};
	struct frozen fresh = {};
	fill_key(&key, m, tid, m->mm, addr, 3);
	fresh.first_ns = bpf_ktime_get_ns();
	fresh.entry = entry;
	fresh.folio = m->folio;
	fresh.vma = m->vma;
	fresh.vm_start = READ(vm_area_struct, m->vma, vm_start);
	fresh.vm_end = READ(vm_area_struct, m->vma, vm_end);
	fresh.count = 512;
	fresh.tgid = task >> 32;
	if (frozen.update(&key, &fresh)) {
		count(LEDGER_LOST);
		m->lossy = 1;
		return 0;
	}
	u32 which = ENTRIES_BOOKED;
	u64 *booked = counters.lookup(&which);
	if (booked)
		*booked += 512;
	m->outstanding += 512;
	count(PMDS_FROZEN);
	check_insertion(ctx, m, addr);
	return 0;
}

HOOK(thp_split)
{
	begin_migration(ctx, 0, REASON_THP_SPLIT);
	return 0;
}
HOOK(thp_split_leave)
{
	end_migration(ctx, SPLITS_ENDED);
	return 0;
}
