/* Book 1: who migrates, what is outstanding, and which VMA the task's rmap walk visits now.
   One task inserts, and the same task removes, all entries of a migration: rows are never shared between tasks. */
#ifndef RMAPD_LEDGER_H
#define RMAPD_LEDGER_H

#include "migration.h"
#include "walk.h"

BPF_HASH(ledger, struct ledger_key, struct ledger_row, LEDGER_ROWS);
BPF_HASH(frozen, struct ledger_key, struct frozen, FROZEN_ROWS);

#define PMD_BYTES 0x200000ULL

static __always_inline void fill_key(struct ledger_key *key, struct migration *m, u32 tid, u64 mm,
				     u64 addr, u32 level)
{
	key->start_ns = m ? m->start_ns : 0;
	key->mm = mm;
	key->addr = addr;
	key->tid = tid;
	key->level = level;
}

static __always_inline void learn_type(u64 entry)
{
	u32 type = entry_type(entry);
	u64 *seen = entry_types.lookup(&type);
	if (seen)
		*seen += 1; /* zero or not is all that counts: a lost increment is harmless */
}

#ifdef HAVE_folio_flags
static __always_inline int is_locked(u64 folio)
{
	return READ(folio, folio, flags) >> PG_LOCKED & 1;
}

/* M2, M3: proven by what the folio's flags say here and now. */
static __always_inline void tell_of_unlocked(void *ctx, struct migration *m, u32 kind, u64 vma,
					     u64 mm, u64 addr, u64 folio)
{
	struct event *e = new_event(kind);
	if (!e)
		return;
	if (m) {
		e->start_ns = m->start_ns;
		e->mode = m->mode;
		e->reason = m->reason;
	}
	e->a = mm;
	e->b = vma;
	e->addr = addr;
	e->folio = folio;
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}

static __always_inline void check_insertion(void *ctx, struct migration *m, u64 addr)
{
	if (is_locked(m->folio)) {
		count(M2_HOLDS);
		return;
	}
	if (addr != m->at) {
		count(M2_UNSURE);
		return;
	} /* this visit's entry may have been missed: then that folio is another visit's */
	count(M2_VIOLATED);
	tell_of_unlocked(ctx, m, INSERTED_UNLOCKED, m->vma, m->mm, addr, m->folio);
}
#endif

/* The frozen PMD with an outstanding entry at this address; `key` becomes its own. */
static __always_inline struct frozen *frozen_at(struct ledger_key *key, u64 addr)
{
	key->addr = addr & ~(PMD_BYTES - 1);
	key->level = 3;
	struct frozen *f = frozen.lookup(key);
	u64 n = addr >> 12 & 511, word = n >> 6;
	BOUND(word, 7);
	return f && !(f->settled[word] >> (n & 63) & 1) ? f : 0;
}

/* last_ns: of the youngest entry that it may be. */
static __always_inline void settle(struct params *p, struct migration *m, u64 mm, u64 first_ns,
				   u64 last_ns)
{
	u64 now = bpf_ktime_get_ns();
	observe(HIST_MIGRATION_ENTRY, now - last_ns);
	count(ENTRIES_REMOVED);
	count(m && m->lossy ? M1_UNVERIFIABLE : M1_HOLDS);
	u32 untold = now - last_ns <= p->welcome_ns || first_ns <= p->missed_ns;
	count(now - first_ns <= p->welcome_ns ? M4_HOLDS : untold ? M4_UNTOLD : M4_LATE);
	if (mm)
		count(M5_HOLDS); /* what the first walk left here, the second one visits */
	if (m)
		m->outstanding -= 1;
}

/* An address of an mm has one entry at a time: what was there before the last insertion is gone, though nothing told of it. */
static __always_inline void settle_row(struct params *p, struct migration *m,
				       struct ledger_key *key, struct ledger_row *row)
{
	settle(p, m, key->mm, key->mm ? row->last_ns : row->first_ns, row->last_ns);
	row->count -= 1;
	if (!row->count)
		ledger.delete(key);
}

/* An entry of a frozen PMD is gone. */
static __always_inline void settle_frozen(struct params *p, struct migration *m,
					  struct ledger_key *key, struct frozen *f, u64 n)
{
	u64 word = n >> 6;
	BOUND(word, 7);
	f->settled[word] |= 1ULL << (n & 63);
	f->count -= 1;
	settle(p, m, key->mm, f->first_ns, f->first_ns);
	if (!f->count)
		frozen.delete(key);
}

#endif
