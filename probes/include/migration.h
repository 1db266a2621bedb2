/*
 * Migrations: which task is in one, and which VMA its rmap walk visits now.
 *
 * A migration begins and ends in one task, which also inserts and removes all its entries: rows
 * are never shared between tasks.
 */
#ifndef RMAPD_MIGRATION_H
#define RMAPD_MIGRATION_H

#include "common.h"

BPF_HASH(migrations, u32, struct migration, MIGRATION_ROWS);
BPF_TABLE("lru_hash", struct visit_key, struct visit, visits, VISIT_ROWS);
BPF_ARRAY(visit_clock, u64, 1); /* counts the visits of second walks */

static __always_inline u64 visits_so_far(void)
{
	u32 zero = 0;
	u64 *clock = visit_clock.lookup(&zero);
	return clock ? *clock : 0;
}

/* Wake Python where a migration ends with outstanding entries. kind: how it ended. */
static __always_inline void emit_leftover(void *ctx, struct migration *m, u32 kind)
{
	if (!m->outstanding)
		return;
	struct event *e = new_event(kind);
	if (!e)
		return;
	e->start_ns = m->start_ns;
	e->detail.left.entries = m->outstanding;
	e->detail.left.visits = m->visits;
	e->detail.left.mode = m->mode;
	e->detail.left.reason = m->reason;
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}

/*
 * Begin a migration, or nest one. A nested call begins deeper on the stack. Where a call through
 * the same hook does not, the end of the earlier migration was missed, and it ends here: else a
 * kernel thread would stay in it for ever, and the entries it left would never be judged.
 */
static __always_inline void begin_migration(void *ctx, u32 mode, u32 reason)
{
	if (!open_gate())
		return;
	u32 tid = bpf_get_current_pid_tgid();
	struct migration *m = migrations.lookup(&tid);
	if (m && (ON_STACK(ctx) < m->mark ||
		  (m->reason == REASON_THP_SPLIT) != (reason == REASON_THP_SPLIT))) {
		m->depth++;
		return;
	}
	if (m) {
		count(MIGRATIONS_UNENDED);
		emit_leftover(ctx, m, MIGRATION_LEFT);
	}
	struct migration fresh = {};
	fresh.mark = ON_STACK(ctx);
	fresh.start_ns = bpf_ktime_get_ns();
	fresh.visits = visits_so_far();
	fresh.depth = 1;
	fresh.mode = mode;
	fresh.reason = reason;
	if (migrations.update(&tid, &fresh))
		count(MIGRATIONS_LOST);
}

/* End the innermost migration. The outermost end reports what is outstanding. */
static __always_inline void end_migration(void *ctx, u32 which)
{
	if (!open_gate())
		return;
	u32 tid = bpf_get_current_pid_tgid();
	struct migration *m = migrations.lookup(&tid);
	if (!m)
		return;
	if (m->depth > 1) {
		m->depth--;
		return;
	}
	count(which);
	emit_leftover(ctx, m, MIGRATION_LEFT);
	migrations.delete(&tid);
}

/*
 * The migration, if its task is in the callback of this walk now. Without hooks on the callbacks
 * (HAVE_folio_flags) the answer is always 0.
 */
static __always_inline struct migration *if_visiting(struct migration *m, u32 walk)
{
#ifdef HAVE_folio_flags
	struct migration *visiting = m && m->walk == walk ? m : 0;
	TESTED(visiting);
	return visiting;
#else
	return 0;
#endif
}

#endif
