/*
 * Shared by all probe objects: maps, macros for hooks and for reading kernel memory, typed handles
 * of kernel objects, counters, histograms and events.
 */
#ifndef RMAPD_COMMON_H
#define RMAPD_COMMON_H

#include "shared.h"

BPF_ARRAY(params, struct params, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_PERCPU_ARRAY(histograms, struct histogram, HISTS);
BPF_ARRAY(entry_types, u64, 32); /* insertions of migration entries by swap type */
BPF_ARRAY(fork_windows, struct fork_window, FORK_WINDOWS);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* BCC does not link functions: each call must be inlined into its program. */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define HOOK(name) int rmapd_##name(struct bpf_raw_tracepoint_args *ctx)

/*
 * One compiled program is loaded once per function that it is attached to. The loader writes the
 * function's own constants, argument places and offsets into the instructions marked here
 * (tracer/attach/relocations.py). The verifier then sees constants, and removes the branches that
 * this function does not need.
 */
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

/*
 * The stack position of a function's call. It is the same at the call's entry and return, and
 * lower for the functions that it calls. A trampoline's context is on the stack, at the same place
 * for both. A kretprobe finds the stack pointer one word above its value at the kprobe (`popped`).
 */
#define STACK_MARK()                                        \
	({                                                  \
		u64 s_ = PLACE(stack);                      \
		s_ ? s_ - CONSTANT(popped) : ON_STACK(ctx); \
	})

/*
 * A number of 1, 2, 4 or 8 bytes at any address; 0 where the address is bad. bpf_rdonly_cast()
 * (from 6.10 on) is no call when the program runs: the verifier makes it a move. The load behind it
 * has a fault handler. Whatever is there is taken for a struct that begins with a number of 8 bytes
 * (tracer/attach/plain_loads.py).
 */
#ifdef RDONLY_CAST
static u64 (*bpf_rdonly_cast)(u64 addr, u64 type) = (void *)RDONLY_CAST;
#define LOAD_(type, number, from) \
	asm volatile("%0 = *(" #type " *)(%1 + 0)" : "=r"(number) : "r"(from))
static __always_inline u64 load(u64 addr, u32 size)
{
	u64 number = 0;
	u64 from = bpf_rdonly_cast(addr, RDONLY_TYPE);
	if (size == 1)
		LOAD_(u8, number, from);
	else if (size == 2)
		LOAD_(u16, number, from);
	else if (size == 4)
		LOAD_(u32, number, from);
	else
		LOAD_(u64, number, from);
	return number;
}
#define LOAD(type, addr) ((type)load((u64)(addr), sizeof(type)))
#else
#define LOAD(type, addr)                                                \
	({                                                              \
		type v_ = 0;                                            \
		bpf_probe_read_kernel(&v_, sizeof(v_), (void *)(addr)); \
		v_;                                                     \
	})
#endif

/*
 * An argument of the hooked function, or a member of the struct that it points to; 0 where this
 * kernel's function has no such argument. The argument is read as a number: in a trampoline the
 * verifier knows the type of a pointer argument and refuses arithmetic with it. Where the argument
 * does not exist the verifier sees 0 and removes the read.
 */
#define ARGUMENT(name)                                                                     \
	({                                                                                 \
		u64 a_ = PLACE(name), o_ = CONSTANT(offset_of_##name), m_ = 0;             \
		if (a_)                                                                    \
			m_ = LOAD(u64, o_ == NO_OFFSET ? (void *)&a_ : (void *)(a_ + o_)); \
		m_;                                                                        \
	})
#define ARG(hook, arg) (ctx->args[ARG_##hook##_##arg])

#define OFFSET(type, member) __builtin_offsetof(struct type, member)
/* Read a member by value. The read cannot fault: a bad address yields 0. */
#define READ(type, at, member) \
	LOAD(__typeof__(((struct type *)0)->member), (u64)(at) + OFFSET(type, member))

/*
 * Handles of kernel objects. Each kind is a struct of its own, as pte_t is, so that a VMA passed
 * for an mm does not compile. addr 0: no object.
 */
typedef struct {
	u64 addr;
} mm_t; /* struct mm_struct */
typedef struct {
	u64 addr;
} vma_t; /* struct vm_area_struct */
typedef struct {
	u64 addr;
} folio_t; /* struct folio */
typedef struct {
	u64 addr;
} rwsem_t; /* struct rw_semaphore */
typedef struct {
	u64 addr;
} anon_vma_t; /* struct anon_vma */
typedef struct {
	u64 addr;
} mapping_t; /* struct address_space */

#define MM(address)       ((mm_t){address})
#define VMA(address)      ((vma_t){address})
#define FOLIO(address)    ((folio_t){address})
#define RWSEM(address)    ((rwsem_t){address})
#define ANON_VMA(address) ((anon_vma_t){address})
#define MAPPING(address)  ((mapping_t){address})

#define ADDRESS(handle_t, handle)       \
	({                              \
		handle_t h_ = (handle); \
		h_.addr;                \
	})
#define READ_HANDLE(handle_t, type, handle, member) READ(type, ADDRESS(handle_t, handle), member)
#define READ_MM(o, member)                          READ_HANDLE(mm_t, mm_struct, o, member)
#define READ_VMA(o, member)                         READ_HANDLE(vma_t, vm_area_struct, o, member)
#define READ_FOLIO(o, member)                       READ_HANDLE(folio_t, folio, o, member)
#define READ_RWSEM(o, member)                       READ_HANDLE(rwsem_t, rw_semaphore, o, member)
#define READ_ANON_VMA(o, member)                    READ_HANDLE(anon_vma_t, anon_vma, o, member)
#define READ_MAPPING(o, member)                     READ_HANDLE(mapping_t, address_space, o, member)

#define PAGE_MASK (~((1ULL << PAGE_SHIFT) - 1))

/* include/linux/page-flags.h, later FOLIO_MAPPING_*: the low bits of folio->mapping. */
#define PAGE_MAPPING_ANON  0x1ULL
#define PAGE_MAPPING_KSM   0x3ULL
#define PAGE_MAPPING_FLAGS 0x3ULL

/* include/linux/mm.h */
#define VM_HUGETLB 0x00400000ULL

/* arch/x86/include/asm/e820/api.h */
#define ISA_END_ADDRESS 0x100000ULL

#define NSEC_PER_SEC 1000000000

/*
 * include/trace/events/lock.h: the kind of a wait. An rwsem has READ or WRITE and no other bit,
 * on PREEMPT_RT RT beside it.
 */
#define LCB_F_SPIN  (1U << 0)
#define LCB_F_READ  (1U << 1)
#define LCB_F_WRITE (1U << 2)
#define LCB_F_RT    (1U << 3)

static __always_inline u32 is_rwsem_wait(u64 flags)
{
	flags &= ~(u64)LCB_F_RT;
	return flags == LCB_F_READ || flags == LCB_F_WRITE;
}

/*
 * PREEMPT_RT: whether a wait is for an rtmutex. That may be a mutex, a spinlock, or the one inside
 * an rwsem: a task waits for that of a writer, and a reader reports the wait for its rwsem first.
 */
static __always_inline u32 is_rtmutex_wait(u64 flags)
{
#ifdef HAVE_rw_semaphore_rtmutex
	return flags == LCB_F_RT;
#else
	return 0;
#endif
}

/* The rwsem that a task waits for, if it is one, by an address in it. */
static __always_inline u64 contended_rwsem(u64 lock, u64 flags)
{
#ifdef HAVE_rw_semaphore_rtmutex
	if (is_rtmutex_wait(flags))
		return lock - __builtin_offsetof(struct rw_semaphore, rtmutex);
#endif
	return lock;
}

/* Whether a wait for an rwsem ends that contended_rwsem() gave: the end has no flags. */
static __always_inline u32 ends_wait(u64 rwsem, u64 lock)
{
#ifdef HAVE_rw_semaphore_rtmutex
	if (lock == rwsem + __builtin_offsetof(struct rw_semaphore, rtmutex))
		return 1;
#endif
	return lock == rwsem;
}

/*
 * A bound that the verifier can see. The compiler knows that the value is in range and would omit
 * the mask; the verifier of 6.1 forgets the range where the compiler spills the value.
 */
#ifndef HARNESS
#define BOUND(value, mask) asm volatile("%0 &= %1" : "+r"(value) : "i"(mask))
#else
#define BOUND(value, mask) ((value) &= (mask))
#endif

/*
 * Keep the test of this pointer. The compiler would test the values that it was made from instead,
 * and the verifier does not connect those with the pointer.
 */
#ifndef HARNESS
#define TESTED(pointer) asm volatile("" : "+r"(pointer))
#else
#define TESTED(pointer)
#endif

/*
 * Read what follows after what stands before. x86 keeps the order of loads. Elsewhere
 * bpf_ktime_get_ns() has the barrier: it ends with that of a seqcount (smp_rmb() in
 * read_seqcount_latch_retry()).
 */
#ifdef LOADS_ARE_REORDERED
#define READ_BARRIER() bpf_ktime_get_ns()
#else
#define READ_BARRIER()
#endif

/*
 * Task storage has one value per task: no key to hash, no bucket lock, and it is freed with the
 * task. With CREATED the lookup fails only where the kernel cannot make a value: there is no
 * memory, or the program has interrupted this CPU while it was making another one.
 */
#define CURRENT bpf_get_current_task_btf()
#define CREATED BPF_LOCAL_STORAGE_GET_F_CREATE

/*
 * The first address of the direct map from which a pointer that may be stale is followed. Below it
 * x86 maps the memory of VGA cards, which a read may change; the kernel hands none of it out.
 */
static __always_inline u64 direct_map_floor(struct params *p)
{
	return p->page_offset + ISA_END_ADDRESS;
}

/* The direct map from its floor to the end of RAM. An address in it cannot be a device's. */
static __always_inline u32 is_ram(struct params *p, u64 addr)
{
	return p->page_offset && addr >= direct_map_floor(p) && addr < p->direct_map_end;
}

static __always_inline struct params *open_gate(void)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	return p && p->gate ? p : 0;
}

static __always_inline void count_many(u32 which, u64 times)
{
	u64 *sum = counters.lookup(&which);
	if (sum)
		*sum += times;
}

static __always_inline void count(u32 which)
{
	count_many(which, 1);
}

/* Add a value to a histogram. times: the number of values that this one stands for. */
static __always_inline void add_times(struct histogram *h, u64 value, u64 times)
{
	u32 slot = 0; /* becomes the number of bits in value */
	u64 rest = value;
	if (!value) { /* most waits */
		h->slot[0] += times;
		return;
	}
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
	slot += rest;
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

BPF_TABLE("stacktrace", int, struct bpf_stacktrace, stacks, STACK_ROWS);
enum {
	MORE_STACKS = 512
};
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, more_stacks, MORE_STACKS);

/*
 * The stack id of an event. A stack map loses a stack whose hash bucket is taken: of two hundred
 * distinct stacks a few are lost. On a collision the second, smaller map is used; its ids start at
 * STACK_ROWS.
 */
static __always_inline s32 stack_of(void *ctx)
{
	s32 stack = stacks.get_stackid(ctx, 0);
	if (stack >= 0)
		return stack;
	stack = more_stacks.get_stackid(ctx, 0);
	return stack >= 0 ? STACK_ROWS + stack : stack;
}

/*
 * Fill in the current task's cgroup, from kernel memory. Reading /sys/fs/cgroup instead could wait
 * for a lock that the reported task holds.
 */
static __always_inline void fill_cgroup(struct event *e)
{
#if defined(HAVE_kernfs_node_name) && defined(HAVE_kernfs_node_id)
	u64 group = READ(css_set, READ(task_struct, bpf_get_current_task(), cgroups), dfl_cgrp);
	u64 node = READ(cgroup, group, kn);
	e->cgroup = READ(kernfs_node, node, id);
	bpf_probe_read_kernel_str(&e->cgroup_name, sizeof(e->cgroup_name),
				  (void *)READ(kernfs_node, node, name));
#endif
}

/* Fill in the members that every event has. */
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

/* Reserve an event, which the caller completes and submits. A full ring is counted: 0. */
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
