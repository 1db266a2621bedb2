/* The ledger: migration entries that are inserted and not removed yet. */
#ifndef RMAPD_LEDGER_H
#define RMAPD_LEDGER_H

#include "migration.h"
#include "folios.h"

BPF_HASH(ledger, struct ledger_key, struct ledger_row, LEDGER_ROWS);
BPF_HASH(frozen, struct ledger_key, struct frozen, FROZEN_ROWS);

static __always_inline void fill_key(struct ledger_key *key, struct migration *m, u32 tid, mm_t mm,
				     u64 addr, u32 level)
{
	key->start_ns = m ? m->start_ns : 0;
	key->mm = mm.addr;
	key->addr = addr;
	key->tid = tid;
	key->level = level;
}

/*
 * Remember the entry's swap type as one of migration entries. Only zero or not zero matters, so a
 * lost increment is harmless.
 */
static __always_inline void learn_type(struct params *p, u64 entry)
{
	u32 type = entry_type(p, entry);
	u64 *seen = entry_types.lookup(&type);
	if (seen)
		*seen += 1;
}

#ifdef HAVE_folio_flags
static __always_inline int is_locked(folio_t folio)
{
	return READ_FOLIO(folio, flags) >> PG_LOCKED & 1;
}

/* M2: the folio of an inserted entry must be locked. m: visits the entry's VMA now. */
static __always_inline void check_insertion(void *ctx, struct migration *m, u64 addr)
{
	if (is_locked(FOLIO(m->folio))) {
		count(M2_HOLDS);
		return;
	}
	/* The entry of this visit may have been missed: then that folio is another visit's. */
	if (addr != m->at) {
		count(M2_UNVERIFIABLE);
		return;
	}
	count(M2_VIOLATED);
	emit_folio(ctx, m, INSERTED_UNLOCKED, VMA(m->vma), MM(m->mm), addr, FOLIO(m->folio));
}
#endif

/* The frozen PMD with an outstanding entry at this address, or 0. `key` becomes the PMD's. */
static __always_inline struct frozen *frozen_at(struct ledger_key *key, u64 addr)
{
	key->addr = addr & PMD_MASK;
	key->level = 3;
	struct frozen *f = frozen.lookup(key);
	u64 n = PTE_INDEX(addr);
	u64 word = n >> 6;
	BOUND(word, SETTLED_WORDS - 1);
	return f && !(f->settled[word] >> (n & 63) & 1) ? f : 0;
}

/*
 * Count a removed entry: M1 holds, M4 by its age, M5 where its mm is known.
 *
 * Which of its row's entries was removed is not known. first_ns, last_ns: when the oldest and the
 * newest one that it may be was inserted.
 */
static __always_inline void settle(struct params *p, struct migration *m, mm_t mm, u64 first_ns,
				   u64 last_ns)
{
	u64 now = bpf_ktime_get_ns();
	observe(HIST_MIGRATION_ENTRY, now - last_ns);
	count(ENTRIES_REMOVED);
	count(m && m->lossy ? M1_UNVERIFIABLE : M1_HOLDS);
	u32 age_unknown = now - last_ns <= p->max_entry_age_ns || first_ns <= p->missed_ns;
	count(now - first_ns <= p->max_entry_age_ns ? M4_HOLDS :
	      age_unknown                           ? M4_AGE_UNKNOWN :
						      M4_LATE);
	if (mm.addr)
		count(M5_HOLDS); /* the first walk left an entry here, and the second one came */
	if (m)
		m->outstanding -= 1;
}

/*
 * An entry of this row was removed. An address of one mm has one entry at a time, so where the mm
 * is known the entry is the newest one: older ones are gone, though their removal was not seen.
 */
static __always_inline void settle_row(struct params *p, struct migration *m,
				       struct ledger_key *key, struct ledger_row *row)
{
	settle(p, m, MM(key->mm), key->mm ? row->last_ns : row->first_ns, row->last_ns);
	row->count -= 1;
	if (!row->count)
		ledger.delete(key);
}

/* The n-th entry of a frozen PMD was removed. */
static __always_inline void settle_frozen(struct params *p, struct migration *m,
					  struct ledger_key *key, struct frozen *f, u64 n)
{
	u64 word = n >> 6;
	BOUND(word, SETTLED_WORDS - 1);
	f->settled[word] |= 1ULL << (n & 63);
	f->count -= 1;
	settle(p, m, MM(key->mm), f->first_ns, f->first_ns);
	if (!f->count)
		frozen.delete(key);
}

#endif
