/* One open window and its steps. */
#ifndef RMAPD_STEPS_H
#define RMAPD_STEPS_H

#include "rwsem.h"

struct frame {        /* one open window */
	u8 before[8]; /* zeros: the eight bytes before any step can be read */
	struct protocol_key key;
	u64 mark; /* STACK_MARK() at entry */
	u64 start_ns, vma, mm, folio, was_start, was_end, was_pgoff, asked_start, asked_end;
	u64 mmap, mmap2, i_mmap, anon; /* rwsems by class */
	u64 source;                    /* root of the anon_vma whose pages are taken over */
	u64 stored,
		stored_last; /* VMAs stored into the tree: one that is not `vma`, and the last one */
	u32 visits, epoch;   /* params.window_epoch when it was opened */
	u16 stored_at;
	u8 n, flags, asked, returns, pad[2];
};

/* The eight steps before position `end`. */
static __always_inline u64 steps_before(struct frame *f, u64 end)
{
	BOUND(end, 63);
	return *(u64 *)((u8 *)f + OFFSET(frame, key) - 8 + end);
}

/* Append a step; fold what came twice in a row: `a b a b` becomes `a b REPEAT+1`, and a further `a b` is dropped. */
static __always_inline void put(struct frame *f, u32 step)
{
	u64 n = f->n;
	if (n >= MOST_STEPS) {
		if (n == MOST_STEPS) {
			f->key.steps[MOST_STEPS] = STEP_OVERLONG;
			f->n = MOST_STEPS + 1;
			count(WINDOWS_OVERLONG);
		}
		return;
	}
	BOUND(n, 63);
	f->key.steps[n] = step;
	n += 1;
	u64 last = steps_before(f, n);
	u32 reach = 0; /* how far back the repeats among the last k steps stand for */
#pragma unroll
	for (u32 k = 1; k <= 8; k++) {
		u32 drop = 0, first = last >> (64 - 8 * k) & 0xff;
		if (n < 2 * k)
			break;
		if (first >= STEP_REPEAT && first < STEP_REPEAT + 8 &&
		    k + first - STEP_REPEAT > reach)
			reach = k + first - STEP_REPEAT;
		if (reach >= k)
			continue; /* no group cuts through another */
		u64 with_mark = steps_before(f, n - k), without = steps_before(f, n - k - 1);
		if (n > 2 * k && with_mark >> 56 == STEP_REPEAT + k - 1 &&
		    !((last ^ without) >> (64 - 8 * k)))
			drop = 1;
		else if (!((last ^ with_mark) >> (64 - 8 * k)))
			drop = 2;
		if (!drop)
			continue;
		n -= k;
		BOUND(n, 63);
		*(u64 *)((u8 *)f + OFFSET(frame, key) + n) = 0;
		if (drop == 2) {
			f->key.steps[n] = STEP_REPEAT + k - 1;
			n += 1;
		}
		break;
	}
	f->n = n;
}

#endif
