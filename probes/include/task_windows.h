/* The windows that a task is in. */
#ifndef RMAPD_TASK_WINDOWS_H
#define RMAPD_TASK_WINDOWS_H

#include "attributes.h"
#include "steps.h"

/*
 * The rwsems that a task took in windows: the last eight. Older ones move to an LRU map
 * (locks.bpf.c), because mm_take_all_locks() takes thousands.
 */
enum {
	HELD_RWSEMS = 8
};
struct held_rwsems {
	rwsem_t rwsem[HELD_RWSEMS];
	struct hold hold[HELD_RWSEMS];
	u64 epoch; /* of the windows that took them */
	u32 oldest;
	u32 spilled; /* how many are in the LRU map, or were evicted from it */
};

/* Of each task that was in a window once. It is one struct, because look-ups are dear. */
struct task_windows {
	struct held_rwsems held;
	rwsem_t trying;    /* the rwsem of a killable or try form, where its return lacks it */
	rwsem_t contended; /* the rwsem that the task waits for */
	u64 contended_ns;  /* when the wait began; with `waited`: how long it was */
	u32 depth;         /* number of open windows */
	u32 waited;        /* the wait is over, and the lock is not recorded yet */
	s32 stack;         /* of the outermost window */
	u32 pad;
	/* Sampling: the outermost window that is not recorded. */
	u64 unsampled; /* its stack position; 0: none */
	u64 unsampled_jiffy;
	u32 unsampled_window;
	u32 unsampled_epoch; /* params.window_epoch at its entry */
	struct open_window windows[DEEPEST_WINDOW];
	struct keeping keeping[2]; /* KEEPING_OF() */
	struct attribute_scratch scratch;
	struct request unkept; /* of a split inside a merge */
};
BPF_TASK_STORAGE(task_windows, struct task_windows);

static __always_inline struct task_windows *current_task_windows(void)
{
	return task_windows.task_storage_get(CURRENT, 0, 0);
}

static __always_inline struct open_window *window_at(struct task_windows *t, u32 depth)
{
	BOUND(depth, 7);
	return &t->windows[depth];
}
_Static_assert(DEEPEST_WINDOW == 8, "the bound of window_at()");

static __always_inline struct open_window *innermost(struct task_windows *t)
{
	return t->depth ? window_at(t, t->depth - 1) : 0;
}

/* Drop the innermost window: its return was missed. */
static __always_inline void drop_window(struct task_windows *t)
{
	count(WINDOWS_UNCLOSED);
	t->depth -= 1;
}

/*
 * Drop windows whose return was missed, two at most, and return the innermost one that is left.
 * Code inside a window runs deeper on the stack than its entry; code that does not shows that the
 * window has ended.
 *
 * mark: the current stack position.
 */
static __always_inline struct open_window *drop_missed_returns(struct task_windows *t, u64 mark)
{
	struct open_window *w = innermost(t);
	if (!w || mark < w->mark)
		return w;
	drop_window(t);
	w = innermost(t);
	if (!w || mark < w->mark)
		return w;
	drop_window(t);
	return 0;
}

/* The window that the current task is in, or 0. A task outside of windows costs one lookup. */
static __always_inline struct open_window *current_window(void *ctx)
{
	struct task_windows *t = current_task_windows();
	return t ? drop_missed_returns(t, ON_STACK(ctx)) : 0;
}

#endif
