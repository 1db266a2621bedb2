/* Copies of migration entries that forks made. */
#ifndef RMAPD_COPIES_H
#define RMAPD_COPIES_H

#include "ledger.h"

/* A fork that overlapped the entry's life may have copied it. The second walk must find the copy too, so it is booked: under the child's
   mm where the walk's visits are seen, in the same row where not. It runs after the parent's entry is replaced, under the page-table
   lock or with nothing left to copy: no copy can come later. A child that was frozen itself is taken for a copy: removed() settles both. */
static __always_inline void book_copies(struct params *p, struct migration *m,
					struct ledger_key *key, u64 folio, u64 at, u64 first_ns,
					u64 pfn, u32 tgid)
{
	u32 which = ENTRIES_COPIED;
	u64 *copied = counters.lookup(&which);
	if (!p->page_offset || !copied)
		return;
	struct ledger_key copy_key = *key;
	struct ledger_row copy = {};
	copy.first_ns = copy.last_ns = first_ns;
	copy.folio = folio;
	copy.at = at;
	copy.count = 1;
	copy.tgid = tgid;
	for (u32 i = 0; i < FORK_WINDOWS;
	     i++) { /* all that changes is in maps: the verifier sees equal turns */
		u32 slot = i;
		u64 entry = 0;
		u32 level = 0;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (!w || !w->pgd || (w->end_ns && w->end_ns < first_ns))
			continue;
		if (walk(p, w->pgd, key->addr, &entry, &level) || !is_migration(entry, level))
			continue; /* hugetlb: booked as PTE, found as PMD */
		if (key->mm && entry_pfn(p, entry) != pfn)
			continue; /* another migration's */
		copy_key.mm = key->mm ? w->mm : 0;
		struct ledger_row *row = ledger.lookup(&copy_key);
		if (row) {
			if (key->mm || (row->copied_to >> i) & 1)
				continue; /* booked already: by the first walk, or by another removal */
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
