/*
 * What the tracepoints of migration lack: the VMA that an rmap walk visits, THP splits, and the
 * locks of the folios.
 */
#include "copies.h"

/* page_to_pfn() of a folio's head page, with CONFIG_SPARSEMEM_VMEMMAP. */
static __always_inline u64 pfn_of(struct params *p, folio_t folio)
{
	return (folio.addr - p->vmemmap) / sizeof(struct page);
}

static __always_inline struct migration *current_migration(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	return migrations.lookup(&tid);
}

/* A walk's callback begins. at: the address that rmap passes to it. */
static __always_inline void begin_visit(struct migration *m, u32 walk, mm_t mm, vma_t vma,
					folio_t folio, u64 at)
{
	m->mm = mm.addr;
	m->vma = vma.addr;
	m->folio = folio.addr;
	m->at = at;
	m->removed = 0;
	m->freezing = 0;
	m->walk = walk;
}

HOOK(first_walk)
{
	struct migration *m = open_gate() ? current_migration() : 0;
	if (!m)
		return 0;
	vma_t vma = VMA(ARGUMENT(vma));
	mm_t mm = MM(READ_VMA(vma, vm_mm));
	folio_t folio = FOLIO(ARGUMENT(folio));
	begin_visit(m, WALK_FIRST, mm, vma, folio, ARGUMENT(addr));
	return 0;
}

HOOK(first_walk_leave)
{
	struct migration *m = current_migration();
	if (m)
		m->walk = WALK_NONE;
	return 0;
}

/* R1: what a whole first walk leaves. */
HOOK(empty_folio)
{
	struct migration *m = open_gate() ? current_migration() : 0;
	if (m)
		m->source = ARGUMENT(folio);
	return 0;
}

HOOK(empty_folio_leave)
{
	struct migration *m = open_gate() ? current_migration() : 0;
	if (!m)
		return 0;
#ifdef HAVE_FOLIO_STATE
	count_first_walk(FOLIO(m->source), 0);
#endif
	m->source = 0;
	return 0;
}

/*
 * The second walk visits a VMA: check M3 and R1, and remember the visit for M5. A failed migration
 * puts the old folio back; `src` and `folio` are the same then.
 */
HOOK(second_walk)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	struct migration *m = current_migration();
	u32 zero = 0;
	folio_t folio = FOLIO(ARGUMENT(folio));
	folio_t src = FOLIO(ARGUMENT(src));
	vma_t vma = VMA(ARGUMENT(vma));
	u64 at = ARGUMENT(addr);
	mm_t mm = MM(READ_VMA(vma, vm_mm));
	folio_t unlocked = !is_locked(folio) ? folio : src.addr && !is_locked(src) ? src : FOLIO(0);
	count(unlocked.addr ? M3_VIOLATED : M3_HOLDS);
	if (unlocked.addr)
		emit_folio(ctx, m, REMOVED_UNLOCKED, vma, mm, at, unlocked);
#ifdef HAVE_FOLIO_STATE
	if (src.addr && src.addr != folio.addr)
		check_source(ctx, m, vma, mm, at, src);
#endif
	if (!m)
		return 0;
	begin_visit(m, WALK_SECOND, mm, vma, src.addr ? src : folio, at);
	struct visit_key key = {};
	struct visit now = {};
	key.start_ns = m->start_ns;
	key.mm = mm.addr;
	key.at = at;
	key.tid = bpf_get_current_pid_tgid();
	now.folio = m->folio;
	now.vma = vma.addr;
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
		row->to = folio.addr;
	}
	return 0;
}

/*
 * Settle an entry that the second walk has replaced without a tracepoint: from 6.12 on an unused
 * page of a split THP becomes the shared zeropage. Only a zeropage proves it. Where no entry is
 * left it was zapped or moved, and the page-table walker searches for it.
 */
static __always_inline void settle_zeropage(struct params *p, struct migration *m, u32 tid)
{
	struct ledger_key key = {};
	struct ledger_key frozen_key = {};
	fill_key(&key, m, tid, MM(m->mm), m->at, 1);
	frozen_key = key;
	struct ledger_row *row = ledger.lookup(&key);
	struct frozen *f = frozen_at(&frozen_key, m->at);
	if ((!row && !f) || !p->page_offset)
		return;
	u64 entry = 0;
	u64 n = PTE_INDEX(m->at);
	u64 first_ns, pfn;
	u32 level = 0;
	u32 tgid;
	if (walk(p, READ_MM(MM(m->mm), pgd), m->at, &entry, &level) || level != 1)
		return;
	if (!(entry & ENTRY_VALID) || !is_special(p, entry))
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
	record_copies(p, m, &key, FOLIO(m->folio), m->at, first_ns, pfn, tgid);
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
		settle_zeropage(p, m, tid);
	m->walk = WALK_NONE;
	return 0;
}

/*
 * A THP split turns a PMD into PTRS_PER_PTE migration entries without a tracepoint. Whether it did
 * is read from the page table, before and after: the function is also called where the THP is
 * mapped by PTEs, it does not freeze where the page may be pinned, and it zaps a file's PMD.
 */
HOOK(freeze)
{
	struct params *p = open_gate();
	struct migration *m = p ? current_migration() : 0;
	u64 addr = ARGUMENT(addr) & PMD_MASK;
	u64 entry = 0;
	u32 level = 0;
	if (!p || !m || m->walk != WALK_FIRST || !p->page_offset || !(ARGUMENT(freeze) & 0xff))
		return 0;
	if (walk(p, READ_MM(MM(m->mm), pgd), addr, &entry, &level) || level != 2 ||
	    !is_present(p, entry, level))
		return 0;
	m->freezing = addr;
	return 0;
}

HOOK(freeze_leave)
{
	struct params *p = open_gate();
	u64 task = bpf_get_current_pid_tgid();
	u64 entry = 0;
	u32 tid = task;
	u32 level = 0;
	struct migration *m = migrations.lookup(&tid);
	if (!p || !m || !m->freezing)
		return 0;
	u64 addr = m->freezing;
	m->freezing = 0;
	if (m->walk != WALK_FIRST || !p->vmemmap)
		return 0;
	if (walk(p, READ_MM(MM(m->mm), pgd), addr, &entry, &level) || level != 1 || !entry ||
	    is_present(p, entry, level))
		return 0;
	if (entry_pfn(p, entry) != pfn_of(p, FOLIO(m->folio)))
		return 0;
	learn_type(p, entry);
	struct ledger_key key = {};
	struct frozen fresh = {};
	fill_key(&key, m, tid, MM(m->mm), addr, 3);
	fresh.first_ns = bpf_ktime_get_ns();
	fresh.entry = entry;
	fresh.folio = m->folio;
	fresh.vma = m->vma;
	fresh.vm_start = READ_VMA(VMA(m->vma), vm_start);
	fresh.vm_end = READ_VMA(VMA(m->vma), vm_end);
	fresh.count = PTRS_PER_PTE;
	fresh.tgid = task >> 32;
	if (frozen.update(&key, &fresh)) {
		count(LEDGER_LOST);
		m->lossy = 1;
		return 0;
	}
	count_many(ENTRIES_RECORDED, PTRS_PER_PTE);
	m->outstanding += PTRS_PER_PTE;
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
