/* Book 3, the flight recorder. */
#ifndef RMAPD_FLIGHT_H
#define RMAPD_FLIGHT_H

#include "task_windows.h"

BPF_PERCPU_ARRAY(flights, struct flight, FLIGHT_ROWS + FLIGHT_ROWS);
BPF_PERCPU_ARRAY(next_flight, u32, 2);
/* Not among the events' stacks: a stack that finds its bucket taken is lost, and every window would take one. */
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, flight_stacks, STACK_ROWS);

#define PT_REGS_ORIG_AX 120 /* arch/x86/include/asm/ptrace.h; ip follows */

/* The stack of an outermost window. It takes longer than all the rest of a window, and one system call may open thousands by the same way, as
   exit does: the same function, as deep on the stack, in a call of the same number from the same place has the stack that was taken then. */
static __always_inline void take_stack(void *ctx, struct insider *t, u64 mark, u32 window)
{
	u64 came_by[2] = {};
	bpf_probe_read_kernel(came_by, sizeof(came_by),
			      (void *)(bpf_task_pt_regs(CURRENT) + PT_REGS_ORIG_AX));
	if (t->mark == mark && t->window == window && t->came_by[0] == came_by[0] &&
	    t->came_by[1] == came_by[1])
		return;
	t->mark = mark;
	t->window = window;
	t->came_by[0] = came_by[0];
	t->came_by[1] = came_by[1];
	t->stack = flight_stacks.get_stackid(ctx, 0);
}

/* Keep the window in the flight recorder. */
static __always_inline void record_flight(struct insider *t, struct frame *f, u64 now, u64 first_ns,
					  u64 vm_start, u64 vm_end)
{
	u32 walks = f->flags & WINDOW_WALKS ? 1 : 0;
	u32 *next = next_flight.lookup(&walks);
	if (!next)
		return;
	u32 at = (*next & (FLIGHT_ROWS - 1)) + walks * FLIGHT_ROWS;
	*next += 1;
	struct flight *flight = flights.lookup(&at);
	if (!flight)
		return;
	u64 task = bpf_get_current_pid_tgid();
	flight->start_ns = f->start_ns;
	flight->end_ns = now;
	flight->protocol = first_ns;
	flight->mm = f->mm;
	flight->vma = f->vma;
	flight->was_start = f->was_start;
	flight->was_end = f->was_end;
	flight->vm_start = vm_start;
	flight->vm_end = vm_end;
	flight->anon = f->anon;
	flight->i_mmap = f->i_mmap;
	flight->folio = f->folio;
	flight->tid = task;
	flight->tgid = task >> 32;
	flight->window = f->key.window;
	flight->stack = walks ? -1 : t->stack;
}

#endif
