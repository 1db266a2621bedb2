/*
 * K1: lines of the kernel's log that begin as a complaint does, with the task that was running.
 *
 * The text comes from /dev/kmsg as well, and Python decides there what is a complaint. What
 * /dev/kmsg cannot give is noted here: the task, its mm and its stack. printk() is called with any
 * lock held and in any context, so no value of a task is made here.
 */
#include "freeze.h"

/* include/linux/sched.h */
#define PF_EXITING 0x00000004

BPF_PERCPU_ARRAY(complaint_turns, struct complaint_turn, 1);
BPF_PERCPU_ARRAY(dropped_mms, struct dropped_mm, 1);

struct complaint_event {
	struct event event;
	struct complaint_line line;
};

#define HEAD(a, b, c, d) ((u32)(a) | (u32)(b) << 8 | (u32)(c) << 16 | (u32)(d) << 24)

/* The first four bytes of each kind of complaint: KINDS, tracer/invariants/kernel_reports.py. */
static __always_inline u32 may_complain(u32 head)
{
	return head == HEAD('B', 'U', 'G', ':') || head == HEAD('W', 'A', 'R', 'N') ||
	       head == HEAD('k', 'e', 'r', 'n') || head == HEAD('O', 'o', 'p', 's') ||
	       head == HEAD('g', 'e', 'n', 'e') || head == HEAD('I', 'N', 'F', 'O') ||
	       head == HEAD('U', 'n', 'a', 'b') || head == HEAD('I', 'n', 't', 'e') ||
	       head == HEAD('w', 'a', 't', 'c') || head == HEAD('r', 'c', 'u', ':');
}

/* Whether this CPU may send an event now: so many a second. */
static __always_inline u32 take_turn(u64 now)
{
	u32 zero = 0;
	u64 second = now / NSEC_PER_SEC;
	struct complaint_turn *turn = complaint_turns.lookup(&zero);
	if (!turn)
		return 0;
	if (turn->second != second) {
		turn->second = second;
		turn->sent = 0;
	}
	if (turn->sent >= COMPLAINTS_A_SECOND)
		return 0;
	turn->sent++;
	return 1;
}

HOOK(complaint)
{
	u32 head = 0;
	u64 text = ARG(complaint, text);
	if (ARG(complaint, length) < sizeof(head) ||
	    bpf_probe_read_kernel(&head, sizeof(head), (void *)text) || !may_complain(head) ||
	    !open_gate())
		return 0;
	u64 now = bpf_ktime_get_ns();
	if (!take_turn(now)) {
		count(COMPLAINTS_UNSENT);
		return 0;
	}
	struct complaint_event *c = events.ringbuf_reserve(sizeof(struct complaint_event));
	if (!c) {
		count(EVIDENCE_LOST);
		return 0;
	}
	freeze_flights(now);
	fill_event(&c->event, COMPLAINT);
	c->event.time_ns = now; /* not after the freeze has begun */
	c->event.stack = stack_of(ctx);
	u64 task = bpf_get_current_task();
	u64 mm = READ(task_struct, task, mm);
	if (!mm && READ(task_struct, task, flags) & PF_EXITING)
		mm = READ(task_struct, task, active_mm);
	c->event.detail.complaint.mm = mm;
	u32 zero = 0;
	struct dropped_mm *dropped = dropped_mms.lookup(&zero);
	if (dropped && dropped->task == task)
		c->event.detail.complaint.freed = dropped->mm;
	__builtin_memset(&c->line, 0, sizeof(c->line));
	c->line.length = ARG(complaint, length);
	/* What follows the line there up to a zero is read too, and cut off by Python. */
	if (bpf_probe_read_kernel_str(&c->line.text, sizeof(c->line.text), (void *)text) < 0)
		c->line.length = 0;
	events.ringbuf_submit(c, 0);
	return 0;
}

HOOK(mm_dropped)
{
	u32 zero = 0;
	struct dropped_mm *dropped = dropped_mms.lookup(&zero);
	if (!dropped)
		return 0;
	dropped->mm = ARGUMENT(mm);
	dropped->task = bpf_get_current_task();
	return 0;
}
