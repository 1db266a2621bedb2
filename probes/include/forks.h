/* Forks: when which mm was copied into which, told by mmap_lock's tracepoints or by what dup_mmap() calls. */
#ifndef RMAPD_FORKS_H
#define RMAPD_FORKS_H

#include "common.h"

BPF_ARRAY(next_fork_window, u64, 1);

static __always_inline void forking(u64 mm, u64 now)
{
	u32 zero = 0;
	u64 *next = next_fork_window.lookup(&zero);
	if (!next)
		return;
	u32 slot = (*next - 1) % FORK_WINDOWS;
	struct fork_window *last = fork_windows.lookup(&slot);
	if (last && last->mm == mm && !last->end_ns)
		return; /* told already */
	slot = *next % FORK_WINDOWS;
	*next += 1; /* two forks in the same instant may share a slot: see ARCHITECTURE.md */
	struct fork_window window = {};
	window.mm = mm;
	window.pgd = READ(mm_struct, mm, pgd);
	window.id = READ(mm_struct, mm, id);
	window.start_ns = now;
	window.tid = bpf_get_current_pid_tgid();
	fork_windows.update(&slot, &window);
	count(FORKS_SEEN);
}

#endif
