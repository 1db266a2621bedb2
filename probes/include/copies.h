/* Copies: migration entries that a fork has copied into a child's page tables. */
#ifndef RMAPD_COPIES_H
#define RMAPD_COPIES_H

#include "ledger.h"

/*
 * Record the copies of an entry that is being removed. A fork that overlapped the entry's life may
 * have copied it, and the second walk must find the copy, too. It is recorded under the child's mm
 * where the visits of rmap walks are hooked, else in the same row.
 *
 * The parent's entry has been replaced already, and either the page-table lock is held or nothing
 * is left to copy: no copy can be made later. A child whose PMD was frozen itself passes for a
 * copy; record_removal() settles both.
 *
 * folio, at, first_ns, tgid: of the removed entry. pfn: of its page.
 */
static __always_inline void record_copies(struct params *p, struct migration *m,
					  struct ledger_key *key, folio_t folio, u64 at,
					  u64 first_ns, u64 pfn, u32 tgid)
{
	u32 which = ENTRIES_COPIED;
	u64 *copied = counters.lookup(&which);
	if (!p->page_offset || !copied)
		return;
	struct ledger_key copy_key = *key;
	struct ledger_row copy = {};
	copy.first_ns = copy.last_ns = first_ns;
	copy.folio = folio.addr;
	copy.at = at;
	copy.count = 1;
	copy.tgid = tgid;
	/* All that changes is in maps: the verifier sees the same state in each turn. */
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		u64 entry = 0;
		u32 level = 0;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (!w || !w->pgd || (w->end_ns && w->end_ns < first_ns))
			continue;
		/* The level may differ: hugetlb entries are recorded as PTE, and found as PMD. */
		if (walk(p, w->pgd, key->addr, &entry, &level) || !is_migration(p, entry, level))
			continue;
		if (key->mm && entry_pfn(p, entry) != pfn)
			continue; /* an entry of another migration */
		copy_key.mm = key->mm ? w->mm : 0;
		struct ledger_row *row = ledger.lookup(&copy_key);
		if (row) {
			/* The first walk, or another removal, has recorded it. */
			if (key->mm || (row->copied_to >> i) & 1)
				continue;
			row->copied_to |= 1ULL << i;
			row->count += 1;
		} else {
			copy.entry = entry;
			if (ledger.update(&copy_key, &copy)) {
				count(LEDGER_LOST);
				if (m)
					m->lossy = 1;
				continue;
			}
		}
		*copied += 1;
		if (m)
			m->outstanding += 1;
	}
}

#endif
