/* mmap_lock, by tracepoints: waits and holds, forks, and the order of two locks of one task. */
#include "forks.h"
#include "lock_states.h"

BPF_PERCPU_ARRAY(hold_turn, u32, 1);
BPF_TABLE("lru_hash", struct order_key, struct order_row, lock_order, ORDER_ROWS);

/*
 * The jiffy in which a task last released an mmap_lock while its storage could not be reached, so
 * that the lock still looks held. Before 6.2 a look-up fails while a task that was preempted on
 * this CPU is in one of its own (bpf_task_storage_trylock(), kernel/bpf/bpf_task_storage.c):
 * PREEMPT_RT, preempt=full.
 */
BPF_TABLE("lru_hash", u32, u64, unseen_releases, ORDER_ROWS);

/*
 * A task begins to wait for an rwsem. Whether it is an mmap_lock is known when it is acquired. The
 * rwsem's wait_lock is held here, so no task storage is created: a task that waits for the first
 * mmap_lock of its life passes for one that did not wait.
 */
HOOK(mmap_lock_contended)
{
	struct params *p = open_gate();
	u64 flags = ARG(mmap_lock_contended, flags);
	if (!p || !(is_rwsem_wait(flags) || is_rtmutex_wait(flags)))
		return 0;
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, 0);
	if (!state)
		return 0;
	u64 rwsem = contended_rwsem(ARG(mmap_lock_contended, lock), flags);
	state->contended = rwsem;
	state->since_ns = bpf_ktime_get_ns();
	return 0;
}

/*
 * Reading the clock is half the cost of a program here. So on each CPU the hold of one acquisition
 * in HOLDS_A_CLOCK is timed, and stands for all of them; likewise for acquisitions that did not
 * wait. The mean, the shares and the count stay right. The number is a prime: in a loop of
 * acquisitions each one gets its turn.
 */
enum {
	HOLDS_A_CLOCK = 7,
	JIFFY_MOST_NS = 10000000 /* HZ is 100 at least */
};

/* The clock, in its turn; else 0. */
static __always_inline u64 clock_in_turn(void)
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

static __always_inline void observe_hold(struct held_lock *held)
{
	u32 which = held->write ? HIST_MMAP_HOLD_WRITE : HIST_MMAP_HOLD_READ;
	if (held->since_ns)
		observe_times(which, bpf_ktime_get_ns() - held->since_ns, HOLDS_A_CLOCK);
}

/*
 * A fork ends: dup_mmap() gives the child's mmap_lock back. No other function takes a second mm's
 * mmap_lock for write, and no other task knows the child. Here the fork is found by its mm, in
 * forks.bpf.c by its task.
 */
static __always_inline void end_fork(mm_t child, u64 now)
{
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (w && w->mm == child.addr && !w->end_ns)
			w->end_ns = now;
	}
}

/* A time that is not after the acquisition of a lock taken in this jiffy. */
static __always_inline u64 held_since(u64 jiffy, u64 now)
{
	u64 most = (bpf_jiffies64() - jiffy + 1) * JIFFY_MOST_NS;
	return most < now ? now - most : 0;
}

/* L2: record the order of two mmap_locks, and report it where the reverse order is known. */
static __always_inline void record_order(void *ctx, mm_t outer, mm_t inner, u64 held_ns, u64 now)
{
	struct order_key key = {};
	struct order_key reverse = {};
	key.outer = reverse.inner = mm_id(outer);
	key.inner = reverse.outer = mm_id(inner);
	if (!key.outer || !key.inner) {
		count(LOCKS_LOST); /* there was no room for an id */
		return;
	}
	struct order_row *opposite = lock_order.lookup(&reverse);
	struct order_row *row = lock_order.lookup(&key);
	u32 tid = bpf_get_current_pid_tgid();
	s32 stack = -1;
	/*
	 * A stack takes longer than all the rest. A newborn mm needs none: only dup_mmap() nests
	 * its lock, always by the same path.
	 */
	if (opposite || (!row && !is_newborn(inner, outer)))
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
	e->stack = stack;
	struct reversed_order *order = &e->detail.order;
	order->outer = outer.addr;
	order->inner = inner.addr;
	order->held_ns = held_ns;
	order->first_ns = opposite->first_ns;
	order->first_held_ns = opposite->first_held_ns;
	order->last_ns = opposite->last_ns;
	order->last_held_ns = opposite->last_held_ns;
	order->first_stack = opposite->stack;
	order->first_tid = opposite->tid;
	events.ringbuf_submit(e, 0);
}

static __always_inline void fill_held(struct held_lock *held, mm_t mm, u64 write, u64 since,
				      u64 jiffy)
{
	held->mm = mm.addr;
	held->write = write;
	held->since_ns = since;
	held->jiffy = jiffy;
}

/* include/linux/sched.h: the task frees memory. */
#define PF_MEMALLOC 0x00000800

static __always_inline u32 is_reclaiming(void)
{
	return (READ(task_struct, bpf_get_current_task(), flags) & PF_MEMALLOC) != 0;
}

/*
 * Forget the locks that the task may have released unseen. Return whether one of them was held for
 * write, and count the nesting as lost.
 */
static __always_inline u64 forget_released(struct lock_state *state)
{
	u32 tid = bpf_get_current_pid_tgid();
	u64 *last = unseen_releases.lookup(&tid);
	u64 write = 0;
	u32 forgotten = 0;
	if (!last)
		return 0;
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (!held->mm || held->jiffy > *last)
			continue;
		write |= held->write;
		held->mm = 0;
		state->n--;
		forgotten = 1;
	}
	if (forgotten)
		count(LOCKS_LOST);
	return write;
}

/*
 * Record an mmap_lock taken under others: a fork, or an order.
 *
 * Reclaim takes none that it may have to wait for: a page fault that ends in reclaim holds its own.
 * The multi-gen LRU walks the page tables of other mms under mmap_read_trylock() (walk_mm(),
 * mm/vmscan.c), so two such faults nest two mmap_locks in both orders.
 */
static __always_inline void take_nested(void *ctx, struct lock_state *state, mm_t mm, u64 write,
					u64 since, u64 jiffy, u32 waited)
{
	mm_t outer = {};
	u64 outer_write = 0;
	u64 outer_jiffy = 0;
	u32 placed = 0;
	u64 released_write = forget_released(state);
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm) {
			outer = MM(held->mm);
			outer_write = held->write;
			outer_jiffy = held->jiffy;
		} else if (!placed) {
			fill_held(held, mm, write, since, jiffy);
			placed = 1;
		}
	}
	if (!placed) {
		count(LOCKS_LOST);
		return;
	}
	state->n++;
	u64 now = bpf_ktime_get_ns();
	if (write && (outer_write || released_write))
		record_fork(mm, now);
	if (!outer.addr || (!waited && is_reclaiming()))
		return;
	record_order(ctx, outer, mm, held_since(outer_jiffy, now), now);
}

/*
 * Update a lock that is recorded as held already. A task does not wait for its own lock: either it
 * went through mmap_write_downgrade(), or its release was missed. Without this, four missed
 * releases would leave no room for further locks.
 */
static __always_inline u64 take_again(struct lock_state *state, mm_t mm, u64 write, u64 since,
				      u64 jiffy)
{
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm != mm.addr)
			continue;
		if (held->write && !write)
			observe_hold(held);
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
	mm_t mm = MM(ARG(mmap_lock_acquire_returned, mm));
	u64 write = ARG(mmap_lock_acquire_returned, write) & 1;
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, CREATED);
	if (!state) {
		count(LOCKS_LOST);
		return 0;
	}
	/* Hooks have changed: the locks held then may have been released unseen. */
	if (state->epoch != p->mmap_epoch) {
		__builtin_memset(state, 0, sizeof(*state));
		state->epoch = p->mmap_epoch;
	}
	u64 waited_for = state->contended;
	state->contended = 0;
	if (!(ARG(mmap_lock_acquire_returned, success) & 1))
		return 0;
	u64 since = clock_in_turn();
	u64 jiffy = bpf_jiffies64();
	if (state->n && take_again(state, mm, write, since, jiffy))
		return 0;
	u32 waits = write ? HIST_MMAP_WAIT_WRITE : HIST_MMAP_WAIT_READ;
	if (waited_for == mm.addr + OFFSET(mm_struct, mmap_lock))
		observe(waits, bpf_ktime_get_ns() - state->since_ns);
	else if (since)
		observe_times(waits, 0, HOLDS_A_CLOCK);
	if (!state->n) { /* the usual case: it holds no other */
		fill_held(&state->held[0], mm, write, since, jiffy);
		state->n = 1;
		return 0;
	}
	take_nested(ctx, state, mm, write, since, jiffy,
		    waited_for == mm.addr + OFFSET(mm_struct, mmap_lock));
	return 0;
}

HOOK(mmap_lock_released)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	mm_t mm = MM(ARG(mmap_lock_released, mm));
	struct lock_state *state = lock_states.task_storage_get(CURRENT, 0, 0);
	if (!state) { /* it holds none, or cannot be reached */
		u32 tid = bpf_get_current_pid_tgid();
		u64 jiffy = bpf_jiffies64();
		unseen_releases.update(&tid, &jiffy);
	}
	if (!state || !state->n || state->epoch != p->mmap_epoch) {
		count(LOCKS_UNRECORDED);
		return 0;
	}
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		struct held_lock *held = &state->held[i];
		if (held->mm != mm.addr)
			continue;
		observe_hold(held);
		if (held->write && state->n > 1)
			end_fork(mm, bpf_ktime_get_ns());
		held->mm = 0;
		state->n--;
		return 0;
	}
	count(LOCKS_UNRECORDED);
	return 0;
}
