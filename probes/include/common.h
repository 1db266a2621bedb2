/* What all stems share: the gate, the counters, the histograms, the ring. */
#ifndef RMAPD_COMMON_H
#define RMAPD_COMMON_H

#include "shared.h"
#include "kernel.h"

BPF_ARRAY(params, struct params, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_PERCPU_ARRAY(histograms, struct histogram, HISTS);
BPF_ARRAY(entry_types, u64, 32); /* how often each swap type was inserted as a migration entry */
BPF_ARRAY(fork_windows, struct fork_window, FORK_WINDOWS);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, stacks, STACK_ROWS);
enum {
	MORE_STACKS = 512
};
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, more_stacks, MORE_STACKS);

/* A call that is not inlined is a program of its own, which BCC does not link. */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* An event's stack. One that finds its bucket taken by another would be lost; of some two hundred distinct ones a few do: a second, smaller
   table is for them, and its numbers follow those of the first. */
static __always_inline s32 stack_of(void *ctx)
{
	s32 stack = stacks.get_stackid(ctx, 0);
	if (stack >= 0)
		return stack;
	stack = more_stacks.get_stackid(ctx, 0);
	return stack >= 0 ? STACK_ROWS + stack : stack;
}

#define HOOK(name) int rmapd_##name(struct bpf_raw_tracepoint_args *ctx)

/* One program, loaded once per function it is attached to: the loader puts the function's own constants, argument places and
   offsets into these instructions (tracer/template.py). The verifier then sees constants, and drops what a function does not need. */
#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)
#ifndef HARNESS
#define CONSTANT(name)                                                  \
	({                                                              \
		u64 v_;                                                 \
		asm volatile("%0 = " TEXT(CONSTANT_##name) : "=r"(v_)); \
		v_;                                                     \
	})
#define PLACE(name)                                                                               \
	({                                                                                        \
		u64 v_;                                                                           \
		asm volatile("%0 = *(u64 *)(%1 + " TEXT(PLACE_##name) ")" : "=r"(v_) : "r"(ctx)); \
		v_;                                                                               \
	})
#define ON_STACK(ctx) ((u64)(ctx))
#else
#define ON_STACK(ctx)  harness_stack
#define CONSTANT(name) harness_constant(CONSTANT_##name)
#define PLACE(name)    harness_place(ctx, PLACE_##name)
#endif
#define NO_OFFSET 0x7fffffff
/* Where on the stack this call of a function is: the same at its entry and its return, lower for what it calls. A trampoline's context lies
   on the stack at the same place for both; a kretprobe finds the stack pointer one word above where the kprobe did. */
#define STACK_MARK()                                        \
	({                                                  \
		u64 s_ = PLACE(stack);                      \
		s_ ? s_ - CONSTANT(popped) : ON_STACK(ctx); \
	})
/* An argument, or a member of the struct it points to; 0 where this function has none. Read as a number: the verifier knows the type of
   a pointer in a trampoline's context, and lets nothing be computed with it. Where there is none the verifier sees a 0, and drops the read. */
#define ARGUMENT(name)                                                                            \
	({                                                                                        \
		u64 a_ = PLACE(name), o_ = CONSTANT(offset_of_##name), m_ = 0;                    \
		if (a_)                                                                           \
			bpf_probe_read_kernel(&m_, 8,                                             \
					      o_ == NO_OFFSET ? (void *)&a_ : (void *)(a_ + o_)); \
		m_;                                                                               \
	})
#define ARG(hook, arg)       (ctx->args[ARG_##hook##_##arg])
#define OFFSET(type, member) __builtin_offsetof(struct type, member)
#define READ(type, at, member)                                                     \
	({                                                                         \
		__typeof__(((struct type *)0)->member) v_ = 0;                     \
		bpf_probe_read_kernel(&v_, sizeof(v_),                             \
				      (void *)((u64)(at) + OFFSET(type, member))); \
		v_;                                                                \
	})

/* include/trace/events/lock.h: how somebody waits; an rwsem has READ or WRITE and nothing else. */
#define LCB_F_SPIN  1
#define LCB_F_READ  2
#define LCB_F_WRITE 4

/* An mm younger than the outer one, with one user: nobody else can know of it yet. */
#define NEWBORN(mm, id, outer_id) ((id) > (outer_id) && READ(mm_struct, mm, mm_users) == 1)

/* A bound that the verifier sees: the compiler knows it already and would leave it out (6.1 forgets it, 6.18 does not). */
#ifndef HARNESS
#define BOUND(value, mask) asm volatile("%0 &= " #mask : "+r"(value))
#else
#define BOUND(value, mask) ((value) &= (mask))
#endif

/* A pointer that is tested as such: the compiler would test again what it was made from, which the verifier does not connect with it. */
#ifndef HARNESS
#define TESTED(pointer) asm volatile("" : "+r"(pointer))
#else
#define TESTED(pointer)
#endif

/* A map of kind TASK_STORAGE has a value per task: no key to hash, no bucket to lock, and it is gone with the task. With CREATED none is
   given only where none could be made: no memory, or this CPU was interrupted while it made one. */
#define CURRENT bpf_get_current_task_btf()
#define CREATED BPF_LOCAL_STORAGE_GET_F_CREATE

static __always_inline struct params *open_gate(void)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	return p && p->gate ? p : 0;
}

static __always_inline void count(u32 which)
{
	u64 *sum = counters.lookup(&which);
	if (sum)
		*sum += 1;
}

/* times: how many values this one stands for. */
static __always_inline void add_times(struct histogram *h, u64 value, u64 times)
{
	u32 slot = 0;
	u64 rest = value;
	if (rest >> 32) {
		slot += 32;
		rest >>= 32;
	}
	if (rest >> 16) {
		slot += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		slot += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		slot += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		slot += 2;
		rest >>= 2;
	}
	if (rest >> 1) {
		slot += 1;
		rest >>= 1;
	}
	slot += rest; /* the number of bits in value */
	BOUND(slot, 63);
	h->slot[slot] += times;
	h->sum_ns += value * times;
}

static __always_inline void add_to(struct histogram *h, u64 value)
{
	add_times(h, value, 1);
}

static __always_inline void observe_times(u32 which, u64 value, u64 times)
{
	struct histogram *h = histograms.lookup(&which);
	if (h)
		add_times(h, value, times);
}

static __always_inline void observe(u32 which, u64 value)
{
	observe_times(which, value, 1);
}

/* Which cgroup the current task is in, from the kernel's own memory: a look into /sys/fs/cgroup may wait for a lock that a suspect holds. */
static __always_inline void fill_cgroup(struct event *e)
{
#if defined(HAVE_kernfs_node_name) && defined(HAVE_kernfs_node_id)
	u64 group = READ(css_set, READ(task_struct, bpf_get_current_task(), cgroups), dfl_cgrp),
	    node = READ(cgroup, group, kn);
	e->cgroup = READ(kernfs_node, node, id);
	bpf_probe_read_kernel_str(&e->cgroup_name, sizeof(e->cgroup_name),
				  (void *)READ(kernfs_node, node, name));
#endif
}

/* What every event has. */
static __always_inline void fill_event(struct event *e, u32 kind)
{
	u64 task = bpf_get_current_pid_tgid();
	__builtin_memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->time_ns = bpf_ktime_get_ns();
	e->tid = task;
	e->tgid = task >> 32;
	bpf_get_current_comm(&e->comm, sizeof(e->comm));
	fill_cgroup(e);
}

/* The caller adds the rest and submits. A full ring is counted, never waited for. */
static __always_inline struct event *new_event(u32 kind)
{
	struct event *e = events.ringbuf_reserve(sizeof(struct event));
	if (e)
		fill_event(e, kind);
	else
		count(EVIDENCE_LOST);
	return e;
}

#endif
