/*
 * An open window, and the string of steps that it collects.
 *
 * All members of kernel objects are read by value: a stale pointer gives a wrong step, never a
 * fault.
 */
#ifndef RMAPD_STEPS_H
#define RMAPD_STEPS_H

#include "rwsem.h"

struct open_window {
	u8 before[8]; /* zeros: steps_before() may read eight bytes before the first step */
	struct protocol_key key;
	u64 mark; /* STACK_MARK() at entry */
	u64 start_ns;
	vma_t vma;
	mm_t mm;
	folio_t folio;
	u64 was_start; /* of `vma`, at entry */
	u64 was_end;
	u64 was_pgoff;
	u64 asked_start;
	u64 asked_end;
	rwsem_t mmap; /* the instance of each lock class that is the window's own */
	rwsem_t mmap2;
	rwsem_t i_mmap;
	rwsem_t anon;
	rwsem_t source;    /* V5: root lock of the anon_vma whose pages are taken over */
	vma_t stored;      /* the last stored VMA that is not `vma` */
	vma_t stored_last; /* the last stored VMA */
	u32 visits;
	u32 epoch;     /* params.window_epoch when the window was opened */
	u16 stored_at; /* the number of steps after the last store */
	u8 n;          /* the number of steps */
	u8 flags;
	u8 asked;
	u8 returns;
	u8 pad[2];
};

/* The arguments of a window's function. 0 where the function has no such argument. */
struct window_args {
	u32 asked;   /* enum asked: what `start` and `end` request */
	u32 returns; /* enum returns */
	vma_t vma;
	mm_t mm; /* read from the VMA where there is one; else 0 stands for the task's own mm */
	mm_t mm2;
	folio_t folio;
	mapping_t mapping;
	u64 start;
	u64 end;
	u64 locked; /* bool: the caller states that it holds the lock of the walk */
};

static __always_inline void set_field(u32 *context, u32 value, u32 shift)
{
	*context |= value << shift;
}

/*
 * Step bytes. Each kind of step has a range of its own, which starts at its value in enum step.
 * tracer/protocol/codec.py has the inverse.
 */
static __always_inline u32 repeat_step(u32 steps)
{
	return STEP_REPEAT + steps - 1;
}

static __always_inline u32 new_tree_step(u32 part, u32 entering)
{
	return STEP_TREE_NEW + part * 2 + entering;
}

static __always_inline u32 lock_step(u32 class, u32 kind)
{
	return STEP_LOCK + class * LOCK_KINDS + kind;
}

static __always_inline u32 tree_step(u32 part, u64 entering, u32 owner)
{
	return STEP_TREE + (part * 2 + entering) * OWNERS + owner;
}

static __always_inline u32 commit_step(u32 part, u32 owner)
{
	return STEP_COMMIT + part * OWNERS + owner;
}

static __always_inline u32 visit_step(u32 owner)
{
	return STEP_VISIT + owner;
}

static __always_inline u32 call_step(u32 window)
{
	return STEP_CALL + window;
}

#define RANGE_ENDS_BEFORE(first, count, next) \
	_Static_assert((first) + (count) <= (next), #first " runs into " #next)
RANGE_ENDS_BEFORE(STEP_OVERLONG, 1, STEP_REPEAT);
RANGE_ENDS_BEFORE(STEP_REPEAT, LONGEST_REPEAT, STEP_TREE_NEW);
RANGE_ENDS_BEFORE(STEP_TREE_NEW, TREES * 2, STEP_LOCK);
RANGE_ENDS_BEFORE(STEP_LOCK, LOCK_CLASSES *LOCK_KINDS, STEP_TREE);
RANGE_ENDS_BEFORE(STEP_TREE, TREES * 2 * OWNERS, STEP_COMMIT);
RANGE_ENDS_BEFORE(STEP_COMMIT, PARTS_OF_COMMIT *OWNERS, STEP_VISIT);
RANGE_ENDS_BEFORE(STEP_VISIT, OWNERS, STEP_CALL);
RANGE_ENDS_BEFORE(STEP_CALL, WINDOWS, 256);

/* Whether a step is a tree change of a tree that no other task can reach. */
static __always_inline u32 is_new_tree_step(u32 step)
{
	return step < STEP_LOCK;
}

/* The owner state in a tree step. */
static __always_inline u32 owner_in_tree_step(u32 step)
{
	return step & (OWNERS - 1);
}
_Static_assert(STEP_TREE % OWNERS == 0 && !(OWNERS & (OWNERS - 1)),
	       "the owner state is in the low bits of a tree step");

/* The eight steps before position `end`, the last one in the highest byte. */
static __always_inline u64 steps_before(struct open_window *w, u64 end)
{
	BOUND(end, 63);
	return *(u64 *)((u8 *)w + OFFSET(open_window, key) - 8 + end);
}

/*
 * Append a step. Repeats are folded: `a b a b` becomes `a b REPEAT(2)`, and each further `a b` is
 * dropped. So the protocol does not depend on how often a loop ran.
 */
static __always_inline void append_step(struct open_window *w, u32 step)
{
	u64 n = w->n;
	if (n >= MOST_STEPS) {
		if (n == MOST_STEPS) {
			w->key.steps[MOST_STEPS] = STEP_OVERLONG;
			w->n = MOST_STEPS + 1;
			count(WINDOWS_OVERLONG);
		}
		return;
	}
	BOUND(n, 63);
	w->key.steps[n] = step;
	n += 1;
	u64 last = steps_before(w, n);
	/* How far back the repeats among the last k steps reach. */
	u32 reach = 0;
#pragma unroll
	for (u32 k = 1; k <= LONGEST_REPEAT; k++) {
		u32 drop = 0; /* groups of k steps to remove */
		u32 first = last >> (64 - 8 * k) & 0xff;
		if (n < 2 * k)
			break;
		if (first >= STEP_REPEAT && first < STEP_REPEAT + LONGEST_REPEAT &&
		    k + first - STEP_REPEAT > reach)
			reach = k + first - STEP_REPEAT;
		if (reach >= k)
			continue; /* a group must not cut through another one */
		u64 with_repeat = steps_before(w, n - k);
		u64 without_repeat = steps_before(w, n - k - 1);
		if (n > 2 * k && with_repeat >> 56 == repeat_step(k) &&
		    !((last ^ without_repeat) >> (64 - 8 * k)))
			drop = 1; /* `group REPEAT group`: the repeat stands for this one, too */
		else if (!((last ^ with_repeat) >> (64 - 8 * k)))
			drop = 2; /* `group group`: a repeat replaces the second one */
		if (!drop)
			continue;
		n -= k;
		BOUND(n, 63);
		*(u64 *)((u8 *)w + OFFSET(open_window, key) + n) = 0;
		if (drop == 2) {
			w->key.steps[n] = repeat_step(k);
			n += 1;
		}
		break;
	}
	w->n = n;
}

#endif
