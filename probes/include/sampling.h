/* Which windows are recorded where not all are. */
#ifndef RMAPD_SAMPLING_H
#define RMAPD_SAMPLING_H

#include "task_windows.h"

BPF_PERCPU_ARRAY(allowances, struct allowance, WINDOWS);

/* Sampling. Once a jiffy what was earned meanwhile is added to what is left; a second's worth is saved up at most. Another task may come in
   between on this CPU: `left` may fall below 0. */
static __always_inline void refill(struct allowance *a, u64 each)
{
	u64 jiffy = bpf_jiffies64();
	if (jiffy == a->jiffy)
		return;
	u64 now = bpf_ktime_get_ns(), earned = (now - a->since_ns) / each,
	    most = 1000000000 / each + 1;
	u64 left = (s64)a->left > 0 ? a->left + earned : earned;
	a->jiffy = jiffy;
	a->looked_ns = now;
	a->since_ns = earned < most ? a->since_ns + earned * each : now;
	a->left = left < most ? left : most;
}

static __always_inline void note_unsampled(struct allowance *a)
{
	a->unsampled += 1;
	a->unsampled_ns = a->looked_ns;
}

/* Whether the allowance of this function on this CPU has room for one more window. What mm_take_all_locks() takes mm_drop_all_locks() gives back. */
static __always_inline u32 may_book(struct params *p, u32 window)
{
	u64 each = p->window_ns;
	if (window == WINDOW_mm_take_all_locks || window == WINDOW_mm_drop_all_locks)
		return 1;
	struct allowance *a = each ? allowances.lookup(&window) : 0;
	if (!a)
		return 1;
	refill(a, each);
	if ((s64)a->left <= 0) {
		note_unsampled(a);
		return 0;
	}
	a->left -= 1;
	return 1;
}

/* Whether this runs in a window that is not booked. Who left it unseen runs no deeper on the stack. */
static __always_inline u32 unsampled(struct insider *t, u64 mark)
{
	return t && t->unsampled && mark < t->unsampled;
}

enum {
	OVER_AFTER_JIFFIES = 1000
}; /* one to ten seconds: an unbooked window's return was missed, or it is a slow one */

/* The same of a window that is about to be opened, which is then not booked either (idle: it would not be anyway). */
static __always_inline u32 opens_unsampled(struct insider *t, u64 mark, u32 window, u32 flags,
					   u32 idle, struct params *p)
{
	if (!t->unsampled)
		return 0;
	u64 each = p->window_ns;
	if (unsampled(t, mark)) {
		if (flags & WINDOW_REBUILT)
			return 1; /* the function that is rebuilt is not called by a window */
		if (each && t->unsampled_epoch == (u32)p->window_epoch &&
		    t->unsampled_window != window && /* none of these functions recurses */
		    bpf_jiffies64() - t->unsampled_jiffy < OVER_AFTER_JIFFIES) {
			struct allowance *a = idle ? 0 : allowances.lookup(&window);
			if (a) {
				refill(a, each);
				note_unsampled(a);
			}
			return 1;
		}
	}
	if (t->unsampled_epoch == (u32)p->window_epoch)
		count(WINDOWS_UNCLOSED);
	t->unsampled = 0;
	return 0;
}

#endif
