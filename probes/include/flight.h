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

/*
 * The stack of each path to an outermost window. To take a stack takes longer than the rest of a
 * window, and the same few paths lead to all of them. A path is the window's function, its depth on
 * the task's stack, and the number of the system call. A row has the path in its upper bits and the
 * stack's id, plus one, in the lower ones, so that it is written at once.
 */
enum {
	PATH_ROWS_LOG2 = 10,
	STACK_BITS = 28,
	CALL_BITS = 16,
	DEPTH_BITS = 12
};
BPF_ARRAY(path_stacks, u64, 1 << PATH_ROWS_LOG2);

#define BITS(value, bits) ((u64)(value) & ((1ULL << (bits)) - 1))

/* Return the id of the stack of a path to a window; -1 where it was lost. */
static __always_inline s32 stack_of_path(void *ctx, u64 mark, u32 window)
{
	u64 call = READ(registers, bpf_task_pt_regs(CURRENT), call);
	/* In a trampoline the verifier knows a pointer here: it is read as a number. */
	u64 depth = LOAD(u64, &mark);
	u64 path = (u64)window << DEPTH_BITS | BITS(depth >> 3, DEPTH_BITS);
	path = (path << CALL_BITS | BITS(call, CALL_BITS)) << STACK_BITS;
	u32 at = path * 0x9e3779b97f4a7c15ULL >> (64 - PATH_ROWS_LOG2);
	u64 *row = path_stacks.lookup(&at);
	if (!row)
		return -1;
	u64 known = *(volatile u64 *)row;
	if (known >> STACK_BITS != path >> STACK_BITS) {
		s32 stack = flight_stacks.get_stackid(ctx, 0);
		known = path | (stack < 0 ? 0 : stack + 1);
		*(volatile u64 *)row = known;
	}
	return (s32)BITS(known, STACK_BITS) - 1;
}
_Static_assert(WINDOWS <= 1 << (64 - STACK_BITS - CALL_BITS - DEPTH_BITS), "a window in a path");

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
