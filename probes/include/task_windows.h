/* The windows that a task is in. */
#ifndef RMAPD_TASK_WINDOWS_H
#define RMAPD_TASK_WINDOWS_H

#include "steps.h"

/* A task that was in a window once. */
struct insider {
	u64 trying;    /* the rwsem of a killable or try form, where its return does not show it */
	u64 contended; /* the rwsem that is waited for */
	u64 contended_ns; /* when the wait began; how long it was, with `waited` */
	u32 depth;        /* of windows open now */
	u32 waited; /* the wait is over, and the lock not booked yet (killable forms are at their return) */
	s32 stack;      /* of the outermost window's entry: what runs in it runs below */
	u32 window;     /* which that was, */
	u64 mark;       /* where on the stack, */
	u64 came_by[2]; /* and by which system call: struct pt_regs' orig_ax and ip */
	u64 unsampled; /* sampling: where on the stack the window is that is not booked, 0: none; */
	u64 unsampled_jiffy;  /* since when, */
	u32 unsampled_window; /* of which function, */
	u32 unsampled_epoch;  /* and params.window_epoch then */
	struct frame frames[DEEPEST_WINDOW];
};
BPF_TASK_STORAGE(insiders, struct insider);

static __always_inline struct insider *insider(void)
{
	return insiders.task_storage_get(CURRENT, 0, 0);
}

static __always_inline struct frame *frame_at(struct insider *t, u32 depth)
{
	BOUND(depth, 7);
	return &t->frames[depth];
}

static __always_inline struct frame *innermost(struct insider *t)
{
	return t->depth ? frame_at(t, t->depth - 1) : 0;
}

/* The innermost window's return was missed. */
static __always_inline void leave_behind(struct insider *t)
{
	count(WINDOWS_UNCLOSED);
	t->depth -= 1;
}

/* The innermost window, or the one around it: a window whose return was missed is left behind by its task, what runs now runs no deeper
   on the stack. */
static __always_inline struct frame *alive(struct insider *t, u64 mark)
{
	struct frame *f = innermost(t);
	if (!f || mark < f->mark)
		return f;
	leave_behind(t);
	f = innermost(t);
	if (!f || mark < f->mark)
		return f;
	leave_behind(t);
	return 0;
}

/* The window that the current task is in, or none: one look-up for a task that is in none. */
static __always_inline struct frame *here(void *ctx)
{
	struct insider *t = insider();
	return t ? alive(t, ON_STACK(ctx)) : 0;
}

#endif
