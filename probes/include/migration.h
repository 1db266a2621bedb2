/* Migrations: who migrates, and which VMA the task's rmap walk visits now. */
#ifndef RMAPD_MIGRATION_H
#define RMAPD_MIGRATION_H

#include "common.h"

BPF_HASH(migrations, u32, struct migration, MIGRATION_ROWS);
BPF_TABLE("lru_hash", struct visit_key, struct visit, visits, VISIT_ROWS);
BPF_ARRAY(visit_clock, u64, 1);

static __always_inline u64 visits_so_far(void)
{
	u32 zero = 0;
	u64 *clock = visit_clock.lookup(&zero);
	return clock ? *clock : 0;
}

static __always_inline void tell_of_left(void *ctx, struct migration *m, u32 kind)
{
	if (!m->outstanding)
		return;
	struct event *e = new_event(kind);
	if (!e)
		return;
	e->start_ns = m->start_ns;
	e->a = m->outstanding;
	e->b = m->visits;
	e->mode = m->mode;
	e->reason = m->reason;
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}

/* What is inside of a migration begins deeper on the stack. What does not, through the same hook, shows that the end was missed: without
   that, a kernel thread would be in its migration for ever, and nothing left in it would be judged. */
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
		tell_of_left(ctx, m, MIGRATION_LEFT);
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

/* The outermost end: whatever its rows still hold is a suspect, and Python is woken for it. */
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
	tell_of_left(ctx, m, MIGRATION_LEFT);
	migrations.delete(&tid);
}

/* The migration, where its task is in this walk's callback; never where no callback can be hooked. */
static __always_inline struct migration *visiting_in(struct migration *m, u32 walk)
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
