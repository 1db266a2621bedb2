/* Windows: what one call of a VMA-changing or rmap-walking function does with locks and trees, as a string of steps, counted.
   All members are read with bpf_probe_read_kernel: a stale pointer gives a wrong byte at worst, never a fault. */
#ifndef RMAPD_WINDOWS_H
#define RMAPD_WINDOWS_H

#include "flight.h"
#include "sampling.h"

BPF_HASH(protocols, struct protocol_key, struct protocol_row, PROTOCOL_ROWS);
BPF_PERCPU_ARRAY(window_times, struct histogram, WINDOWS);

static __always_inline void shift_in(u32 *context, u32 value, u32 shift)
{
	*context |= value << shift;
}

/* Whether the lock is held by another writer or by nobody is chance: it would make many protocols of one. */
static __always_inline u32 held_by_us(u64 rwsem)
{
	u32 owner = owner_of(rwsem);
	return owner == OWNER_OTHER ? OWNER_FREE : owner;
}

static __always_inline void note_entry(struct frame *f)
{
	shift_in(&f->key.context, held_by_us(f->mmap), CONTEXT_ENTRY_MMAP_SHIFT);
	shift_in(&f->key.context, held_by_us(f->i_mmap), CONTEXT_ENTRY_I_MMAP_SHIFT);
	shift_in(&f->key.context, held_by_us(f->anon), CONTEXT_ENTRY_ANON_SHIFT);
}

#define FOLIO_ANON  1ULL
#define FOLIO_FLAGS 3ULL /* PAGE_MAPPING_FLAGS: anon, movable; both: KSM */
#define VM_HUGETLB  0x00400000ULL
#define VM_STACK_SETUP \
	0x00018000ULL /* VM_SEQ_READ | VM_RAND_READ: execve() has not placed this stack yet */

/* Open a window, which fill() then fills in: what it is about is read only if it is booked. outer: the window around it. idle: open none, but
   see what the call tells of those before it: the missed return of one of the same function would be taken for seen when this one returns. */
static __always_inline struct frame *open_window(void *ctx, u64 mark, u32 window, u32 flags,
						 u32 idle, struct frame **outer_)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	u64 epoch = p->window_epoch;
	if (epoch & 1)
		return 0;
	struct insider *t = insiders.task_storage_get(CURRENT, 0, idle ? 0 : CREATED);
	if (!t) {
		if (!idle)
			count(WINDOWS_LOST);
		return 0;
	}
	struct frame *outer = alive(t, mark);
	if (outer) {
		if (flags & WINDOW_REBUILT)
			return 0; /* the function that is rebuilt is not called by a window */
		if (outer->key.window ==
		    window) { /* none of these functions recurses: its return was missed */
			leave_behind(t);
		} else if (!idle) {
			put(outer, STEP_CALL + window);
			*outer_ = outer;
		}
	}
	u32 depth = t->depth;
	u64 own_mark =
		flags & WINDOW_REBUILT ?
			mark + 512 :
			mark; /* it began in a call that the function made, beside those to come */
	if (!depth && opens_unsampled(t, mark, window, flags, idle, p))
		return 0;
	if (idle)
		return 0;
	if (depth >= DEEPEST_WINDOW) {
		count(WINDOWS_LOST);
		return 0;
	}
	if (!depth) {
		if (!may_book(p, window)) {
			t->unsampled = own_mark;
			t->unsampled_jiffy = bpf_jiffies64();
			t->unsampled_window = window;
			t->unsampled_epoch = epoch;
			return 0;
		}
		t->trying = t->contended = t->waited = 0;
		if (!(flags & WINDOW_WALKS))
			take_stack(ctx, t, mark, window);
	}
	struct frame *f = frame_at(t, depth);
	t->depth = depth + 1;
	__builtin_memset(f, 0, sizeof(*f));
	f->epoch = epoch;
	f->mark = own_mark;
	f->key.window = window;
	f->flags = flags;
	return f;
}

/* `vma` may be 0; mm is then the task's own. */
static __always_inline void fill(struct frame *f, struct frame *outer, u32 window, u32 flags,
				 u32 asked, u32 returns, u64 vma, u64 mm, u64 mm2, u64 folio,
				 u64 mapping, u64 start, u64 end, u64 locked)
{
	f->asked = asked;
	f->returns = returns;
	f->asked_start = start;
	f->asked_end = end;
	f->folio = folio;
	f->vma = vma;
	f->start_ns = bpf_ktime_get_ns();
	u32 context = flags & WINDOW_REBUILT ? CONTEXT_REBUILT : 0;
	if (locked & 0xff)
		context |= CONTEXT_LOCKED;
	if (vma) {
		struct vm_area_struct was = {};
		bpf_probe_read_kernel(&was, sizeof(was), (void *)vma);
		mm = (u64)was.vm_mm;
		f->was_start = was.vm_start;
		f->was_end = was.vm_end;
		f->was_pgoff = was.vm_pgoff;
		f->i_mmap = lock_of_file((u64)was.vm_file);
		f->anon = root_lock_of((u64)was.anon_vma);
		if (was.vm_flags & VM_HUGETLB)
			context |= CONTEXT_HUGETLB;
		if (f->i_mmap)
			context |= CONTEXT_FILE;
		if (f->anon)
			context |= CONTEXT_ANON;
		if (flags & WINDOW_COPIES)
			f->source = f->anon;
		if (window == WINDOW_unlink_anon_vmas && f->anon && outer &&
		    outer->flags & WINDOW_MERGES)
			outer->source = f->anon;
	}
	if (folio) {
		u64 of = READ(folio, folio, mapping);
		if (READ(folio, folio, flags) >> PG_LOCKED & 1)
			context |= CONTEXT_FOLIO_LOCKED;
		if (flags & WINDOW_WALKS) {
			if ((of & FOLIO_FLAGS) == FOLIO_ANON) {
				f->anon = root_lock_of(of & ~FOLIO_FLAGS);
				context |= CONTEXT_ANON;
			}
			if (of && !(of & FOLIO_FLAGS) && !mapping)
				mapping = of;
		}
	}
	if (mapping) {
		f->i_mmap = i_mmap_of(mapping);
		context |= CONTEXT_FILE;
	}
	if (!mm && !folio)
		mm = READ(task_struct, bpf_get_current_task(), mm);
	f->mm = mm;
	f->mmap = mm ? mm + OFFSET(mm_struct, mmap_lock) : 0;
	f->mmap2 = mm2 ? mm2 + OFFSET(mm_struct, mmap_lock) : 0;
	f->key.context = context;
	note_entry(f);
}

/* Does the VMA look as it must when the window has ended (V1)? */
static __always_inline u32 geometry_of(struct frame *f, struct vm_area_struct *is)
{
	u64 start = is->vm_start, end = is->vm_end, d = (s64)(start - f->was_start) >> 12,
	    placing = is->vm_flags & VM_STACK_SETUP;
	if (start >= end)
		return GEOMETRY_EMPTY;
	if ((start | end) & 0xfff)
		return GEOMETRY_UNALIGNED;
	/* execve() moves its stack with the pages in it: shift_arg_pages(), relocate_vma_down() */
	if (placing != VM_STACK_SETUP && is->vm_pgoff - f->was_pgoff != d)
		return GEOMETRY_PGOFF;
	if (f->asked == ASKED_RANGE &&
	    ((f->asked_start && start != f->asked_start) || end != f->asked_end))
		return GEOMETRY_NOT_AS_ASKED;
	if (f->asked == ASKED_SPLIT && ((u32)f->asked_end ? start : end) != f->asked_start)
		return GEOMETRY_NOT_AS_ASKED;
	if (f->asked == ASKED_BELOW && start > f->asked_start)
		return GEOMETRY_NOT_AS_ASKED;
	if (f->asked == ASKED_SPLIT && f->stored) {
		u64 other_start = READ(vm_area_struct, f->stored, vm_start),
		    other_end = READ(vm_area_struct, f->stored, vm_end);
		if (other_start < end && start < other_end)
			return GEOMETRY_OVERLAP;
	}
	return GEOMETRY_HOLDS;
}

static __always_inline u32 error_of(u32 returns, u64 value)
{
	if (returns == RETURNS_ERRNO)
		return (s32)value < 0 && (s32)value >= -4095 ? -(s32)value : 0;
	if (returns == RETURNS_POINTER)
		return !value ? 0xffff : (s64)value < 0 && (s64)value >= -4095 ? -(s64)value : 0;
	return 0;
}

struct sighting_event {
	struct event event;
	struct sighting seen;
	struct protocol_key key;
};

/* Count one more of a protocol: when it was first seen, 0 where the table is full. */
static __always_inline u64 first_seen(struct protocol_key *key, u64 now, u32 *is_new)
{
	struct protocol_row *row = protocols.lookup(key);
	if (!row) {
		struct protocol_row fresh = {};
		fresh.count = 1;
		fresh.first_ns = now;
		if (!protocols.insert(key, &fresh)) {
			*is_new = 1;
			return now;
		}
		row = protocols.lookup(key); /* another CPU was first, or the table is full */
		if (!row) {
			count(PROTOCOLS_LOST);
			return 0;
		}
	}
	__sync_fetch_and_add(&row->count, 1);
	return row->first_ns;
}

/* Tell Python of a protocol never seen before: to be filled in and submitted. */
static __always_inline struct sighting_event *new_sighting(void *ctx, struct protocol_key *key,
							   u64 vma)
{
	struct sighting_event *s = events.ringbuf_reserve(sizeof(struct sighting_event));
	if (!s) {
		count(EVIDENCE_LOST);
		return 0;
	}
	fill_event(&s->event, PROTOCOL_NEW);
	s->event.stack = stack_of(ctx);
	s->event.a = vma;
	__builtin_memset(&s->seen, 0, sizeof(s->seen));
	if (vma)
		s->seen.vm_flags = READ(vm_area_struct, vma, vm_flags);
	__builtin_memcpy(&s->key, key, sizeof(s->key));
	return s;
}

/* Count the window (or a piece of it) under its protocol, and keep it in the flight recorder. */
static __always_inline void count_protocol(void *ctx, struct insider *t, struct frame *f, u64 now,
					   u64 vm_start, u64 vm_end)
{
	u32 is_new = 0, zero = 0;
	struct params *p = params.lookup(&zero);
	if (!p || f->epoch != (u32)p->window_epoch)
		return; /* hooks have changed since: a part of it may be missing */
	u64 first_ns = first_seen(&f->key, now, &is_new);
	if (!first_ns)
		return;
	struct sighting_event *s = is_new ? new_sighting(ctx, &f->key, f->vma) : 0;
	if (s) {
		s->event.start_ns = f->start_ns;
		s->event.b = f->mm;
		s->seen.was_start = f->was_start;
		s->seen.was_end = f->was_end;
		s->seen.vm_start = vm_start;
		s->seen.vm_end = vm_end;
		s->seen.folio = f->folio;
		s->seen.anon = f->anon;
		s->seen.i_mmap = f->i_mmap;
		events.ringbuf_submit(s, 0);
	}
	record_flight(t, f, now, first_ns, vm_start, vm_end);
}

static __always_inline void note_exit(struct frame *f)
{
	shift_in(&f->key.context, held_by_us(f->mmap), CONTEXT_EXIT_MMAP_SHIFT);
	shift_in(&f->key.context, held_by_us(f->i_mmap), CONTEXT_EXIT_I_MMAP_SHIFT);
	shift_in(&f->key.context, held_by_us(f->anon), CONTEXT_EXIT_ANON_SHIFT);
}

/* The window's return: what it left, against what it found. */
static __always_inline void finish(void *ctx, struct insider *t, struct frame *f, u64 value)
{
	u64 now = bpf_ktime_get_ns(), vm_start = 0, vm_end = 0;
	u32 context = 0, window = f->key.window;
	f->key.error = error_of(f->returns, value);
	u64 heir = f->flags & WINDOW_COPIES ? value : f->vma;
	if (f->flags & WINDOW_SHAPES && f->vma) {
		struct vm_area_struct is = {};
		bpf_probe_read_kernel(&is, sizeof(is), (void *)f->vma);
		vm_start = is.vm_start;
		vm_end = is.vm_end;
		if (vm_start != f->was_start || vm_end != f->was_end)
			context |= CONTEXT_MOVED;
		u64 anon = root_lock_of((u64)is.anon_vma);
		if (anon && !(f->key.context & CONTEXT_ANON)) {
			context |= CONTEXT_IMPORTED;
			f->anon = anon;
		}
		if (!f->key.error)
			shift_in(&context, geometry_of(f, &is), CONTEXT_GEOMETRY_SHIFT);
	}
	if (f->source && !f->key.error && heir && f->flags & (WINDOW_COPIES | WINDOW_MERGES)) {
		u64 root = root_lock_of(READ(vm_area_struct, heir, anon_vma));
		shift_in(&context,
			 root == f->source ? FOLLOWS_HOLDS :
			 root              ? FOLLOWS_OTHER :
					     FOLLOWS_MISSING,
			 CONTEXT_FOLLOWS_SHIFT);
	}
	f->key.context |= context;
	note_exit(f);
	count_protocol(ctx, t, f, now, vm_start, vm_end);
	struct histogram *h = window_times.lookup(&window);
	if (h)
		add_to(h, now - f->start_ns);
	if (f->flags & WINDOW_WALKS)
		observe(window == WINDOW_rmap_walk_anon ? HIST_WALK_ANON :
			window == WINDOW_rmap_walk_file ? HIST_WALK_FILE :
							  HIST_WALK_KSM,
			f->visits);
}

/* Close the window that this call opened (mark 0: the innermost of this function); windows inside it whose return was missed go with it. */
static __always_inline void leave(void *ctx, u64 mark, u32 window, u64 value)
{
	struct insider *t = insider();
	if (!t)
		return;
	struct frame *f = 0;
	u32 depth = t->depth, at = depth;
	if (!depth) {
		if (t->unsampled_window == window && (!mark || mark == t->unsampled))
			t->unsampled = 0;
		return;
	}
#pragma unroll
	for (u32 i = 0; i < DEEPEST_WINDOW; i++) {
		if (f || !at)
			continue;
		at -= 1;
		f = frame_at(t, at);
		if (f->key.window != window || (mark && f->mark != mark))
			f = 0;
	}
	if (!f)
		return; /* it began before the gate opened, or was lost */
	finish(ctx, t, f, value);
	if (at + 1 != depth)
		count(WINDOWS_UNCLOSED);
	t->depth = at;
}

#endif
