/*
 * Sampling of windows. Each function has a token bucket per CPU that gains one token per
 * params.window_ns. A window takes a token or is not recorded, with all windows inside of it.
 */
#ifndef RMAPD_SAMPLING_H
#define RMAPD_SAMPLING_H

#include "task_windows.h"

BPF_PERCPU_ARRAY(allowances, struct allowance, WINDOWS);

/*
 * Add the tokens earned since the last refill: once a jiffy, one second's worth at most. Another
 * task may run in between on this CPU and take a token, so `left` may fall below 0.
 *
 * window_ns: the time that earns one token.
 */
static __always_inline void refill(struct allowance *a, u64 window_ns)
{
	u64 jiffy = bpf_jiffies64();
	if (jiffy == a->jiffy)
		return;
	u64 now = bpf_ktime_get_ns();
	u64 earned = (now - a->earned_ns) / window_ns;
	u64 most = NSEC_PER_SEC / window_ns + 1;
	u64 left = (s64)a->left > 0 ? a->left + earned : earned;
	a->jiffy = jiffy;
	a->refilled_ns = now;
	a->earned_ns = earned < most ? a->earned_ns + earned * window_ns : now;
	a->left = left < most ? left : most;
}

static __always_inline void count_unsampled(struct allowance *a)
{
	a->unsampled += 1;
	a->unsampled_ns = a->refilled_ns;
}

/*
 * Take a token for a window of this function; 0: there is none. mm_take_all_locks() needs none,
 * because mm_drop_all_locks() releases its locks in a window of its own.
 */
static __always_inline u32 take_allowance(struct params *p, u32 window)
{
	u64 window_ns = p->window_ns;
	if (window == WINDOW_mm_take_all_locks || window == WINDOW_mm_drop_all_locks)
		return 1;
	struct allowance *a = window_ns ? allowances.lookup(&window) : 0;
	if (!a)
		return 1;
	refill(a, window_ns);
	if ((s64)a->left <= 0) {
		count_unsampled(a);
		return 0;
	}
	a->left -= 1;
	return 1;
}

/*
 * True inside a window that is not sampled. After its return the stack pointer is above
 * `unsampled`, even where the return was missed.
 */
static __always_inline u32 in_unsampled(struct task_windows *t, u64 mark)
{
	return t && t->unsampled && mark < t->unsampled;
}

/*
 * One to ten seconds: after that the return of an unsampled window counts as missed, though the
 * window may only be slow.
 */
enum {
	UNSAMPLED_MOST_JIFFIES = 1000
};

/*
 * Whether a window that begins now is inside of an unsampled one, and is not recorded either.
 *
 * idle: the window would not be recorded anyway, so it is not counted as unsampled.
 */
static __always_inline u32 begins_unsampled(struct task_windows *t, u64 mark, u32 window, u32 flags,
					    u32 idle, struct params *p)
{
	if (!t->unsampled)
		return 0;
	u64 window_ns = p->window_ns;
	if (in_unsampled(t, mark)) {
		if (flags & WINDOW_REBUILT)
			return 1; /* no window calls a rebuilt function */
		/* The functions do not recurse: a second window of one shows a missed return. */
		if (window_ns && t->unsampled_epoch == (u32)p->window_epoch &&
		    t->unsampled_window != window &&
		    bpf_jiffies64() - t->unsampled_jiffy < UNSAMPLED_MOST_JIFFIES) {
			struct allowance *a = idle ? 0 : allowances.lookup(&window);
			if (a) {
				refill(a, window_ns);
				count_unsampled(a);
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
