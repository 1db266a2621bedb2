/* mmap_lock from its tracepoints: wait and hold times, forks, and the order of two mmap_locks taken by one task. */
#include "forks.h"

BPF_TASK_STORAGE(lock_states, struct lock_state);
BPF_PERCPU_ARRAY(hold_turn, u32, 1);
BPF_TABLE("lru_hash", struct order_key, struct order_row, lock_order, ORDER_ROWS);

/* Some rwsem must be waited for: which is told when the lock is had. Called with the rwsem's wait_lock held, so nothing is made here: who waits
   for the very first mmap_lock of its life is taken not to have waited. */
HOOK(mmap_lock_contended)
{
	struct params *p = open_gate();
	u64 flags = ARG(mmap_lock_contended, flags);
	if (!p || (flags != LCB_F_READ && flags != LCB_F_WRITE))
		return 0;
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, 0);
	if (!state)
		return 0;
	state->contended = ARG(mmap_lock_contended, lock);
	state->since_ns = bpf_ktime_get_ns();
	return 0;
}

/* Reading the clock is half of what a program does here. Of so many acquisitions on a CPU the hold of one is timed, and stands for all, as it
   does among those that did not wait: the mean, the shares and the count stay right. A prime: what is done over and over takes each of its
   acquisitions in turn. */
enum {
	HOLDS_A_CLOCK = 7,
	JIFFY_MOST_NS = 10000000
};

static __always_inline u64 timed(void)
{
	u32 zero = 0;
	u32 *turn = hold_turn.lookup(&zero);
	if (!turn)
		return 0;
	if (*turn) {
		*turn -= 1;
		return 0;
	}
	*turn = HOLDS_A_CLOCK - 1;
	return bpf_ktime_get_ns();
}

static __always_inline void held_for(struct held_lock *held)
{
	u32 which = held->write ? HIST_MMAP_HOLD_WRITE : HIST_MMAP_HOLD_READ;
	if (held->since_ns)
		observe_times(which, bpf_ktime_get_ns() - held->since_ns, HOLDS_A_CLOCK);
}

/* dup_mmap() is the one place that takes the write lock of a second mm: the child's, which nobody else can know yet. Its end is told by mm
   here, and by task where it can be hooked itself (forks.bpf.c). */
static __always_inline void forked(u64 mm, u64 now)
{
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (w && w->mm == mm && !w->end_ns)
			w->end_ns = now;
	}
}

/* Since when, at the latest, a lock was held that was taken in this jiffy: HZ is 100 at least. */
static __always_inline u64 held_since(u64 jiffy, u64 now)
{
	u64 most = (bpf_jiffies64() - jiffy + 1) * JIFFY_MOST_NS;
	return most < now ? now - most : 0;
}

static __always_inline void nested(void *ctx, u64 outer, u64 inner, u64 held_ns, u64 now)
{
	struct order_key key = {}, reverse = {};
	key.outer = reverse.inner = READ(mm_struct, outer, id);
	key.inner = reverse.outer = READ(mm_struct, inner, id);
	struct order_row *opposite = lock_order.lookup(&reverse);
	struct order_row *row = lock_order.lookup(&key);
	u32 tid = bpf_get_current_pid_tgid();
	s32 stack = -1;
	/* a stack takes longer than all the rest of it, and a newborn mm is nested by dup_mmap(), always by the same way */
	if (opposite || (!row && !NEWBORN(inner, key.inner, key.outer)))
		stack = stack_of(ctx);
	if (row) {
		row->count++;
		row->last_ns = now;
		row->last_held_ns = held_ns;
	} else {
		struct order_row fresh = {};
		fresh.first_ns = fresh.last_ns = now;
		fresh.first_held_ns = fresh.last_held_ns = held_ns;
		fresh.count = 1;
		fresh.stack = stack;
		fresh.tid = tid;
		lock_order.update(&key, &fresh);
	}
	if (!opposite) {
		count(NESTED_HOLDS);
		return;
	}
	struct event *e = new_event(ORDER_REVERSED);
	if (!e)
		return;
	e->a = outer;
	e->b = inner;
	e->stack = stack;
	e->first_stack = opposite->stack;
	e->held_ns = held_ns;
	e->first_ns = opposite->first_ns;
	e->first_held_ns = opposite->first_held_ns;
	e->last_ns = opposite->last_ns;
	e->last_held_ns = opposite->last_held_ns;
	e->first_tid = opposite->tid;
	events.ringbuf_submit(e, 0);
}

/* A lock is taken under others: a fork, or an order to remember. */
static __always_inline void take_another(void *ctx, struct lock_state *state, u64 mm, u64 write,
					 u64 since, u64 jiffy)
{
	u64 outer = 0, outer_write = 0, outer_jiffy = 0;
	u32 placed = 0;
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm) {
			outer = held->mm;
			outer_write = held->write;
			outer_jiffy = held->jiffy;
		} else if (!placed) {
			held->mm = mm;
			held->write = write;
			held->since_ns = since;
			held->jiffy = jiffy;
			placed = 1;
		}
	}
	if (!placed) {
		count(LOCKS_LOST);
		return;
	}
	state->n++;
	if (!outer)
		return;
	u64 now = bpf_ktime_get_ns();
	if (write && outer_write)
		forking(mm, now);
	nested(ctx, outer, mm, held_since(outer_jiffy, now), now);
}

/* Nobody waits for its own lock. Who has it for write and says to have it for read went through mmap_write_downgrade(); else a release was
   missed: after four of them nothing more would be booked. */
static __always_inline u64 held_already(struct lock_state *state, u64 mm, u64 write, u64 since,
					u64 jiffy)
{
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm != mm)
			continue;
		if (held->write && !write)
			held_for(held);
		held->write = write;
		held->since_ns = since;
		held->jiffy = jiffy;
		return 1;
	}
	return 0;
}

HOOK(mmap_lock_acquire_returned)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	u64 mm = ARG(mmap_lock_acquire_returned, mm),
	    write = ARG(mmap_lock_acquire_returned, write) & 1;
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, CREATED);
	if (!state) {
		count(LOCKS_LOST);
		return 0;
	}
	if (state->epoch != p->mmap_epoch) { /* what it held then may be given back */
		__builtin_memset(state, 0, sizeof(*state));
		state->epoch = p->mmap_epoch;
	}
	u64 waited_for = state->contended;
	state->contended = 0;
	if (!(ARG(mmap_lock_acquire_returned, success) & 1))
		return 0;
	u64 since = timed(), jiffy = bpf_jiffies64();
	if (state->n && held_already(state, mm, write, since, jiffy))
		return 0;
	u32 waits = write ? HIST_MMAP_WAIT_WRITE : HIST_MMAP_WAIT_READ;
	if (waited_for == mm + OFFSET(mm_struct, mmap_lock))
		observe(waits, bpf_ktime_get_ns() - state->since_ns);
	else if (since)
		observe_times(waits, 0, HOLDS_A_CLOCK);
	struct held_lock *first = &state->held[0];
	if (!state->n) { /* the usual case */
		first->mm = mm;
		first->write = write;
		first->since_ns = since;
		first->jiffy = jiffy;
		state->n = 1;
		return 0;
	}
	take_another(ctx, state, mm, write, since, jiffy);
	return 0;
}

HOOK(mmap_lock_released)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	u64 mm = ARG(mmap_lock_released, mm);
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, 0);
	if (!state || !state->n || state->epoch != p->mmap_epoch) {
		count(LOCKS_UNBOOKED);
		return 0;
	}
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm != mm)
			continue;
		held_for(held);
		if (held->write && state->n > 1)
			forked(mm, bpf_ktime_get_ns());
		held->mm = 0;
		state->n--;
		return 0;
	}
	count(LOCKS_UNBOOKED);
	return 0;
}
