/* The flight recorder: the last windows of each CPU, with the stacks of their tasks. */
#ifndef RMAPD_FLIGHT_H
#define RMAPD_FLIGHT_H

#include "freeze.h"
#include "task_windows.h"

/* The second half of the rows is for rmap walks. */
BPF_PERCPU_ARRAY(flights, struct flight, FLIGHT_ROWS + FLIGHT_ROWS);
BPF_PERCPU_ARRAY(next_flight, u32, 2);
/* Apart from the stacks of events: every window takes a stack, and a full bucket loses one. */
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, flight_stacks, STACK_ROWS);

#define PT_REGS_ORIG_AX 120 /* struct pt_regs: arch/x86/include/asm/ptrace.h; `ip` follows */

/*
 * Take the stack of an outermost window. A stack takes longer than the rest of a window, and one
 * system call may open thousands of windows by the same path, as exit_mmap() does. So a window of
 * the same function, at the same stack position, in a system call of the same number from the same
 * place keeps the stack of the one before.
 */
static __always_inline void record_stack(void *ctx, struct task_windows *t, u64 mark, u32 window)
{
	u64 called_from[2] = {};
	bpf_probe_read_kernel(called_from, sizeof(called_from),
			      (void *)(bpf_task_pt_regs(CURRENT) + PT_REGS_ORIG_AX));
	if (t->mark == mark && t->window == window && t->called_from[0] == called_from[0] &&
	    t->called_from[1] == called_from[1])
		return;
	t->mark = mark;
	t->window = window;
	t->called_from[0] = called_from[0];
	t->called_from[1] = called_from[1];
	t->stack = flight_stacks.get_stackid(ctx, 0);
}

/*
 * Write a window that has ended over the oldest row.
 *
 * protocol: protocol_row.first_ns. vm_start, vm_end: of its VMA now; 0 where not read.
 */
static __always_inline void record_flight(struct task_windows *t, struct open_window *w, u64 now,
					  u64 protocol, u64 vm_start, u64 vm_end)
{
	if (is_frozen(now))
		return;
	u32 walks = w->flags & WINDOW_WALKS ? 1 : 0;
	u32 *next = next_flight.lookup(&walks);
	if (!next)
		return;
	u32 at = (*next & (FLIGHT_ROWS - 1)) + walks * FLIGHT_ROWS;
	*next += 1;
	struct flight *flight = flights.lookup(&at);
	if (!flight)
		return;
	u64 task = bpf_get_current_pid_tgid();
	flight->start_ns = w->start_ns;
	flight->end_ns = now;
	flight->protocol = protocol;
	flight->mm = w->mm.addr;
	flight->vma = w->vma.addr;
	flight->was_start = w->was_start;
	flight->was_end = w->was_end;
	flight->vm_start = vm_start;
	flight->vm_end = vm_end;
	flight->anon = w->anon.addr;
	flight->i_mmap = w->i_mmap.addr;
	flight->folio = w->folio.addr;
	flight->tid = task;
	flight->tgid = task >> 32;
	flight->window = w->key.window;
	flight->stack = walks ? -1 : t->stack;
}

#endif
