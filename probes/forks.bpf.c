/*
 * Forks, by functions that dup_mmap() calls before and after it copies. The hooks run only at a
 * fork, and need no tracepoint of mmap_lock.
 */
#include "forks.h"

HOOK(fork)
{
	mm_t child = MM(ARGUMENT(mm));
	if (open_gate() && child.addr)
		record_fork(child, bpf_ktime_get_ns());
	return 0;
}

HOOK(fork_end)
{
	if (!open_gate())
		return 0;
	u32 tid = bpf_get_current_pid_tgid();
	u64 now = bpf_ktime_get_ns();
	for (u32 i = 0; i < FORK_WINDOWS; i++) {
		u32 slot = i;
		struct fork_window *w = fork_windows.lookup(&slot);
		if (w && w->pgd && w->tid == tid && !w->end_ns)
			w->end_ns = now;
	}
	return 0;
}
