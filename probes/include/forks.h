/*
 * Forks: which mm was copied, and when. Two probe objects report them: mmap_lock.bpf.c by the
 * nesting of mmap_locks, forks.bpf.c by the functions that dup_mmap() calls.
 */
#ifndef RMAPD_FORKS_H
#define RMAPD_FORKS_H

#include "mm_ids.h"

BPF_ARRAY(next_fork_window, u64, 1);

static __always_inline void record_fork(mm_t child, u64 now)
{
	u32 zero = 0;
	u64 *next = next_fork_window.lookup(&zero);
	if (!next)
		return;
	u32 slot = (*next - 1) % FORK_WINDOWS;
	struct fork_window *last = fork_windows.lookup(&slot);
	if (last && last->mm == child.addr && !last->end_ns)
		return; /* the other object has reported it */
	/* Two forks in the same instant may share a slot: docs/ARCHITECTURE.md. */
	slot = *next % FORK_WINDOWS;
	*next += 1;
	struct fork_window window = {};
	window.mm = child.addr;
	window.pgd = READ_MM(child, pgd);
	window.id = mm_id(child);
	window.start_ns = now;
	window.tid = bpf_get_current_pid_tgid();
	fork_windows.update(&slot, &window);
	count(FORKS_SEEN);
}

#endif
