/* Forks by what dup_mmap() calls before it copies and after: it costs nothing but at a fork, and needs no tracepoint of mmap_lock. */
#include "forks.h"

HOOK(fork)
{
	u64 mm = ARGUMENT(mm);
	if (open_gate() && mm)
		forking(mm, bpf_ktime_get_ns());
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
