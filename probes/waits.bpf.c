/*
 * L7: tasks that wait for an rwsem that they hold themselves, and tasks that sleep for long.
 *
 * A task that begins to wait for an rwsem that it owns for write waits for ever: only it could give
 * the lock back. The owner field shows that with certainty, because a task writes its own name
 * there and takes it out again itself.
 */
#include "iterators.h"
#include "lock_states.h"
#include "rwsem_queue.h"

enum {
	WAIT_ROWS = 4096
};
BPF_TABLE("lru_hash", u64, struct lock_wait, last_waits, WAIT_ROWS);
BPF_PERCPU_ARRAY(sleeper_row, struct sleeper, 1);

/* include/linux/sched.h */
#define TASK_UNINTERRUPTIBLE 0x0002
#define TASK_NOLOAD          0x0400 /* idle: it waits for work */

static __always_inline mm_t mm_of_task(u64 task)
{
	return MM(READ(task_struct, task, mm));
}

/* Report that this task waits for a lock that it has. */
static __always_inline void report_own_wait(void *ctx, struct params *p, rwsem_t rwsem, u64 task,
					    u32 wanted)
{
	struct event *e = new_event(WAITS_FOR_ITSELF);
	if (!e)
		return;
	u64 part_of = 0;
	struct own_wait *own = &e->detail.own;
	e->stack = stack_of(ctx);
	own->lock = rwsem.addr;
	own->count = READ_RWSEM(rwsem, count);
	own->owner = READ_RWSEM(rwsem, owner);
	own->lock_class = object_class(p, rwsem, mm_of_task(task), &part_of);
	own->wanted = wanted;
	own->held = WAIT_WRITE;
	events.ringbuf_submit(e, 0);
}

/*
 * PREEMPT_RT: whether a wait for an rtmutex is that of a writer for an rwsem. A reader has reported
 * its wait just before, in the same piece of code without preemption. An rtmutex that is no part of
 * a known object may be a mutex or a spinlock; that a task waits for its own is certain for each.
 */
static __always_inline u32 is_writers_wait(struct params *p, struct lock_wait *wait, u64 task)
{
	u64 part_of = 0;
	struct lock_wait *last = last_waits.lookup(&task);
	if (last && last->lock == wait->lock && last->tid == wait->tid &&
	    last->switches == wait->switches)
		return 0;
	return owner_of(RWSEM(wait->lock)) == OWNER_SELF ||
	       object_class(p, RWSEM(wait->lock), mm_of_task(task), &part_of) != CLASS_other;
}

/*
 * A task begins to wait. The rwsem's wait_lock may be held here; waits for it, and for the locks of
 * maps, are spinning waits, which this program leaves at once.
 */
HOOK(lock_wait)
{
	struct params *p = open_gate();
	u64 flags = ARG(lock_wait, flags);
	if (!p || !(is_rwsem_wait(flags) || is_rtmutex_wait(flags)))
		return 0;
	rwsem_t rwsem = RWSEM(contended_rwsem(ARG(lock_wait, lock), flags));
	u64 task = bpf_get_current_task();
	struct lock_wait wait = {};
	wait.lock = rwsem.addr;
	wait.tid = bpf_get_current_pid_tgid();
	wait.wanted = flags & LCB_F_READ ? WAIT_READ : WAIT_WRITE;
	wait.switches = READ(task_struct, task, nvcsw) + READ(task_struct, task, nivcsw);
	if (is_rtmutex_wait(flags) && !is_writers_wait(p, &wait, task))
		return 0;
	if (owner_of(rwsem) == OWNER_SELF)
		report_own_wait(ctx, p, rwsem, task, wait.wanted);
	else
		count(RWSEM_WAITS);
	wait.since_ns = bpf_ktime_get_ns();
	if (last_waits.update(&task, &wait))
		count(WAITS_LOST);
	return 0;
}

/* Who has the lock for write. It may run just now, and then the iterator does not write it. */
static __always_inline void read_writer(struct sleeper *s, u64 writer)
{
	s->writer = writer;
	s->writer_tid = READ(task_struct, writer, pid);
	bpf_probe_read_kernel(&s->writer_comm, sizeof(s->writer_comm),
			      (void *)(writer + OFFSET(task_struct, comm)));
}

/* The last rwsem that a task began to wait for, and the lock as it is now. */
static __always_inline void read_wait(struct params *p, struct sleeper *s, u64 stack_bytes)
{
	struct lock_wait *wait = last_waits.lookup(&s->task);
	if (!wait || wait->tid != s->tid)
		return;
	rwsem_t rwsem = RWSEM(wait->lock);
	s->lock = rwsem.addr;
	s->since_ns = wait->since_ns;
	s->wanted = wait->wanted;
	u64 count = READ_RWSEM(rwsem, count);
	if (is_written(count))
		read_writer(s, READ_RWSEM(rwsem, owner) & OWNER_TASK);
	else
		s->readers = readers_of(count);
	s->waiter = waiter_of(p, rwsem, s->task, stack_bytes);
	s->lock_class = object_class(p, rwsem, MM(s->mm), &s->part_of);
}

/* The mmap_locks that a task has, if nothing has changed the hooks since. */
static __always_inline void read_held(struct params *p, struct sleeper *s, struct lock_state *state)
{
	if (state->epoch != p->mmap_epoch)
		return;
#pragma unroll
	for (u32 i = 0; i < 4; i++) {
		s->held[i] = state->held[i].mm;
		if (state->held[i].mm && state->held[i].write)
			s->written |= 1ULL << i;
	}
}

/* The iterator over tasks writes each one that sleeps uninterruptibly. */
int bpf_iter__sleepers(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = (struct bpf_iter_meta *)ctx->meta;
	struct task_struct *pointer = (struct task_struct *)ctx->task;
	u32 zero = 0;
	if (!pointer)
		return 0;
	u64 task = (u64)pointer;
	u32 state = READ(task_struct, task, state);
	if (!(state & TASK_UNINTERRUPTIBLE) || state & TASK_NOLOAD)
		return 0;
	struct params *p = params.lookup(&zero);
	struct sleeper *s = sleeper_row.lookup(&zero);
	if (!p || !s)
		return 0;
	__builtin_memset(s, 0, sizeof(*s));
	s->task = task;
	s->state = state;
	s->start_ns = READ(task_struct, task, start_time);
	s->switches = READ(task_struct, task, nvcsw) + READ(task_struct, task, nivcsw);
	s->mm = mm_of_task(task).addr;
	s->tid = READ(task_struct, task, pid);
	s->tgid = READ(task_struct, task, tgid);
	s->flags = READ(task_struct, task, flags);
	bpf_probe_read_kernel(&s->comm, sizeof(s->comm),
			      (void *)(task + OFFSET(task_struct, comm)));
	/* All stacks are of one size, with struct pt_regs at the same place (owners.bpf.c). */
	*(volatile u64 *)&s->waiter = bpf_task_pt_regs(CURRENT);
	u64 stack_bytes =
		*(volatile u64 *)&s->waiter - READ(task_struct, bpf_get_current_task(), stack);
	s->waiter = 0;
	read_wait(p, s, stack_bytes);
	struct lock_state *locks = lock_states.task_storage_get(pointer, 0, 0);
	if (locks)
		read_held(p, s, locks);
	bpf_get_task_stack(pointer, s->frames, sizeof(s->frames), 0);
	bpf_seq_write((struct seq_file *)meta->seq, s, sizeof(*s));
	return 0;
}
