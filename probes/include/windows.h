/*
 * Windows: what one call of a function that changes VMAs or walks rmap does with locks and trees.
 * Each call is a string of steps (steps.h), counted under its protocol.
 */
#ifndef RMAPD_WINDOWS_H
#define RMAPD_WINDOWS_H

#include "flight.h"
#include "kept.h"
#include "sampling.h"

BPF_HASH(protocols, struct protocol_key, struct protocol_row, PROTOCOL_ROWS);
BPF_PERCPU_ARRAY(window_times, struct histogram, WINDOWS);

/* include/linux/mm.h */
#define VM_SEQ_READ  0x00008000ULL
#define VM_RAND_READ 0x00010000ULL
/* Both at once: execve() has not placed this stack yet (VM_STACK_INCOMPLETE_SETUP). */
#define VM_STACK_SETUP (VM_RAND_READ | VM_SEQ_READ)
/* include/linux/err.h */
#define MAX_ERRNO 4095

/* protocol_key.error of a window that returned NULL or false. */
#define ERROR_NULL 0xffff

static __always_inline void set_entry_locks(struct open_window *w)
{
	set_field(&w->key.context, held_by_us(w->mmap), CONTEXT_ENTRY_MMAP_SHIFT);
	set_field(&w->key.context, tree_held_by_us(w->i_mmap), CONTEXT_ENTRY_I_MMAP_SHIFT);
	set_field(&w->key.context, tree_held_by_us(w->anon), CONTEXT_ENTRY_ANON_SHIFT);
}

static __always_inline void set_exit_locks(struct open_window *w)
{
	set_field(&w->key.context, held_by_us(w->mmap), CONTEXT_EXIT_MMAP_SHIFT);
	set_field(&w->key.context, tree_held_by_us(w->i_mmap), CONTEXT_EXIT_I_MMAP_SHIFT);
	set_field(&w->key.context, tree_held_by_us(w->anon), CONTEXT_EXIT_ANON_SHIFT);
}

/*
 * Open a window at the entry of its function. The caller then describes it (describe_window()):
 * kernel objects are read only for windows that are recorded.
 *
 * mark: the stack position of the call.
 * idle: the function will do nothing. No window is opened, but the call may show that the return
 *	 of an earlier window was missed. Otherwise this call's return would close that window.
 * outer_: receives the window around this one.
 */
static __always_inline struct open_window *begin_window(void *ctx, u64 mark, u32 window, u32 flags,
							u32 idle, struct open_window **outer_)
{
	struct params *p = open_gate();
	if (!p)
		return 0;
	u64 epoch = p->window_epoch;
	if (epoch & 1)
		return 0; /* hooks are being attached or detached */
	struct task_windows *t = task_windows.task_storage_get(CURRENT, 0, idle ? 0 : CREATED);
	if (!t) {
		if (!idle)
			count(WINDOWS_LOST);
		return 0;
	}
	struct open_window *outer = drop_missed_returns(t, mark);
	if (outer) {
		if (flags & WINDOW_REBUILT)
			return 0; /* no window calls a rebuilt function */
		if (outer->key.window == window) {
			drop_window(t); /* the functions do not recurse: its return was missed */
		} else if (!idle) {
			append_step(outer, call_step(window));
			*outer_ = outer;
		}
	}
	u32 depth = t->depth;
	/*
	 * A rebuilt window begins in a call that its function makes. Its mark is put above that
	 * call's, so that the function's further calls are below it.
	 */
	u64 own_mark = flags & WINDOW_REBUILT ? mark + 512 : mark;
	if (!depth && begins_unsampled(t, mark, window, flags, idle, p))
		return 0;
	if (idle)
		return 0;
	if (depth >= DEEPEST_WINDOW) {
		count(WINDOWS_LOST);
		return 0;
	}
	if (!depth) {
		if (!take_allowance(p, window)) {
			t->unsampled = own_mark;
			t->unsampled_jiffy = bpf_jiffies64();
			t->unsampled_window = window;
			t->unsampled_epoch = epoch;
			return 0;
		}
		t->trying = t->contended = RWSEM(0);
		t->waited = 0;
		if (!(flags & WINDOW_WALKS))
			t->stack = stack_of_path(ctx, mark, window);
	}
	struct open_window *w = window_at(t, depth);
	t->depth = depth + 1;
	__builtin_memset(w, 0, sizeof(*w));
	w->epoch = epoch;
	w->mark = own_mark;
	w->key.window = window;
	w->flags = flags;
	return w;
}

/*
 * Describe a window that has just been opened: its objects, their locks, and the context at entry.
 *
 * was: room for a VMA.
 */
static __always_inline void describe_window(struct open_window *w, struct open_window *outer,
					    u32 window, u32 flags, struct window_args *args,
					    struct vm_area_struct *was)
{
	vma_t vma = args->vma;
	mm_t mm = args->mm;
	folio_t folio = args->folio;
	mapping_t mapping = args->mapping;
	w->asked = args->asked;
	w->returns = args->returns;
	w->asked_start = args->start;
	w->asked_end = args->end;
	w->folio = folio;
	w->vma = vma;
	w->start_ns = bpf_ktime_get_ns();
	u32 context = flags & WINDOW_REBUILT ? CONTEXT_REBUILT : 0;
	if (args->locked & 0xff)
		context |= CONTEXT_LOCKED;
	if (vma.addr) {
		__builtin_memset(was, 0, sizeof(*was));
		bpf_probe_read_kernel(was, sizeof(*was), (void *)vma.addr);
		mm = MM((u64)was->vm_mm);
		w->was_start = was->vm_start;
		w->was_end = was->vm_end;
		w->was_pgoff = was->vm_pgoff;
		w->i_mmap = lock_of_file((u64)was->vm_file);
		w->anon = root_lock_of(ANON_VMA((u64)was->anon_vma));
		if (was->vm_flags & VM_HUGETLB)
			context |= CONTEXT_HUGETLB;
		if (w->i_mmap.addr)
			context |= CONTEXT_FILE;
		if (w->anon.addr)
			context |= CONTEXT_ANON;
		if (flags & WINDOW_COPIES)
			w->source = w->anon;
		if (window == WINDOW_unlink_anon_vmas && w->anon.addr && outer &&
		    outer->flags & WINDOW_MERGES)
			outer->source = w->anon;
	}
	if (folio.addr) {
		u64 of = READ_FOLIO(folio, mapping);
		if (READ_FOLIO(folio, flags) >> PG_LOCKED & 1)
			context |= CONTEXT_FOLIO_LOCKED;
		if (flags & WINDOW_WALKS) {
			if ((of & PAGE_MAPPING_FLAGS) == PAGE_MAPPING_ANON) {
				w->anon = root_lock_of(ANON_VMA(of & ~PAGE_MAPPING_FLAGS));
				context |= CONTEXT_ANON;
			}
			if (of && !(of & PAGE_MAPPING_FLAGS) && !mapping.addr)
				mapping = MAPPING(of);
		}
	}
	if (mapping.addr) {
		w->i_mmap = i_mmap_lock_of(mapping);
		context |= CONTEXT_FILE;
	}
	if (!mm.addr && !folio.addr)
		mm = MM(READ(task_struct, bpf_get_current_task(), mm));
	w->mm = mm;
	w->mmap = mmap_lock_of(mm);
	w->mmap2 = mmap_lock_of(args->mm2);
	w->key.context = context;
	set_entry_locks(w);
}

/* V1: compare the VMA at the end of its window with its shape at entry and with the request. */
static __always_inline u32 geometry_of(struct open_window *w, struct vm_area_struct *is)
{
	u64 start = is->vm_start;
	u64 end = is->vm_end;
	u64 pages_moved = (s64)(start - w->was_start) >> PAGE_SHIFT;
	u64 placing = is->vm_flags & VM_STACK_SETUP;
	if (start >= end)
		return GEOMETRY_EMPTY;
	if ((start | end) & ~PAGE_MASK)
		return GEOMETRY_UNALIGNED;
	/*
	 * execve() moves its stack together with its pages, and vm_pgoff stays:
	 * shift_arg_pages(), later relocate_vma_down().
	 */
	if (placing != VM_STACK_SETUP && is->vm_pgoff - w->was_pgoff != pages_moved)
		return GEOMETRY_PGOFF;
	if (w->asked == ASKED_RANGE &&
	    ((w->asked_start && start != w->asked_start) || end != w->asked_end))
		return GEOMETRY_NOT_AS_ASKED;
	if (w->asked == ASKED_SPLIT && ((u32)w->asked_end ? start : end) != w->asked_start)
		return GEOMETRY_NOT_AS_ASKED;
	if (w->asked == ASKED_BELOW && start > w->asked_start)
		return GEOMETRY_NOT_AS_ASKED;
	if (w->asked == ASKED_SPLIT && w->stored.addr) {
		u64 other_start = READ_VMA(w->stored, vm_start);
		u64 other_end = READ_VMA(w->stored, vm_end);
		if (other_start < end && start < other_end)
			return GEOMETRY_OVERLAP;
	}
	return GEOMETRY_HOLDS;
}

static __always_inline u32 error_of(u32 returns, u64 value)
{
	if (returns == RETURNS_ERRNO)
		return (s32)value < 0 && (s32)value >= -MAX_ERRNO ? -(s32)value : 0;
	if (returns == RETURNS_POINTER)
		return !value                                     ? ERROR_NULL :
		       (s64)value < 0 && (s64)value >= -MAX_ERRNO ? -(s64)value :
								    0;
	return 0;
}

/* Count one more window of a protocol. Returns protocol_row.first_ns; 0 where the table is full. */
static __always_inline u64 count_protocol(struct protocol_key *key, u64 now, u32 *is_new)
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

/* A PROTOCOL_NEW event in the ring buffer. */
struct sighting_event {
	struct event event;
	struct sighting seen;
	struct protocol_key key;
};

/* Reserve the event of a new protocol, which the caller completes and submits. */
static __always_inline struct sighting_event *new_sighting(void *ctx, struct protocol_key *key,
							   vma_t vma)
{
	struct sighting_event *s = events.ringbuf_reserve(sizeof(struct sighting_event));
	if (!s) {
		count(EVIDENCE_LOST);
		return 0;
	}
	fill_event(&s->event, PROTOCOL_NEW);
	s->event.stack = stack_of(ctx);
	s->event.detail.protocol.vma = vma.addr;
	__builtin_memset(&s->seen, 0, sizeof(s->seen));
	if (vma.addr)
		s->seen.vm_flags = READ_VMA(vma, vm_flags);
	__builtin_memcpy(&s->key, key, sizeof(s->key));
	return s;
}

/*
 * Record a window, or a piece of it: count its protocol, report a new one, and write it to the
 * flight recorder.
 */
static __always_inline void record_window(void *ctx, struct task_windows *t, struct open_window *w,
					  u64 now, u64 vm_start, u64 vm_end)
{
	u32 is_new = 0;
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	if (!p || w->epoch != (u32)p->window_epoch)
		return; /* hooks have changed meanwhile: steps may be missing */
	u64 first_ns = count_protocol(&w->key, now, &is_new);
	if (!first_ns)
		return;
	struct sighting_event *s = is_new ? new_sighting(ctx, &w->key, w->vma) : 0;
	if (s) {
		s->event.start_ns = w->start_ns;
		s->event.detail.protocol.mm = w->mm.addr;
		s->seen.was_start = w->was_start;
		s->seen.was_end = w->was_end;
		s->seen.vm_start = vm_start;
		s->seen.vm_end = vm_end;
		s->seen.folio = w->folio.addr;
		s->seen.anon = w->anon.addr;
		s->seen.i_mmap = w->i_mmap.addr;
		events.ringbuf_submit(s, 0);
	}
	record_flight(t, w, now, first_ns, vm_start, vm_end);
}

static __always_inline u32 walk_histogram(u32 window)
{
	return window == WINDOW_rmap_walk_anon ? HIST_WALK_ANON :
	       window == WINDOW_rmap_walk_file ? HIST_WALK_FILE :
						 HIST_WALK_KSM;
}

/*
 * Complete a window with its state at return, and record it.
 *
 * value: what the function returned. keeps: as for end_window().
 */
static __always_inline void close_window(void *ctx, struct task_windows *t, struct open_window *w,
					 u64 value, u32 window, u32 keeps)
{
	u64 now = bpf_ktime_get_ns();
	u64 vm_start = 0;
	u64 vm_end = 0;
	u32 context = 0;
	w->key.error = error_of(w->returns, value);
	vma_t inheriting = w->flags & WINDOW_COPIES ? VMA(value) : w->vma;
	if (w->flags & WINDOW_SHAPES && w->vma.addr) {
		struct vm_area_struct on_stack;
		struct vm_area_struct *is = keeps ? &t->scratch.vma : &on_stack;
		__builtin_memset(is, 0, sizeof(*is));
		bpf_probe_read_kernel(is, sizeof(*is), (void *)w->vma.addr);
		vm_start = is->vm_start;
		vm_end = is->vm_end;
		if (vm_start != w->was_start || vm_end != w->was_end)
			context |= CONTEXT_MOVED;
		rwsem_t anon = root_lock_of(ANON_VMA((u64)is->anon_vma));
		if (anon.addr && !(w->key.context & CONTEXT_ANON)) {
			context |= CONTEXT_IMPORTED;
			w->anon = anon;
		}
		if (!w->key.error)
			set_field(&context, geometry_of(w, is), CONTEXT_GEOMETRY_SHIFT);
	}
	if (w->source.addr && !w->key.error && inheriting.addr &&
	    w->flags & (WINDOW_COPIES | WINDOW_MERGES)) {
		u64 root = anon_lock_of(inheriting).addr;
		set_field(&context,
			  root == w->source.addr ? FOLLOWS_HOLDS :
			  root                   ? FOLLOWS_OTHER :
						   FOLLOWS_MISSING,
			  CONTEXT_FOLLOWS_SHIFT);
	}
	if (keeps)
		check_kept(t, w, window,
			   VMA(w->returns == RETURNS_POINTER && !w->key.error ? value : 0));
	w->key.context |= context;
	set_exit_locks(w);
	record_window(ctx, t, w, now, vm_start, vm_end);
	struct histogram *h = window_times.lookup(&window);
	if (h)
		add_to(h, now - w->start_ns);
	if (w->flags & WINDOW_WALKS)
		observe(walk_histogram(window), w->visits);
}

/*
 * End the window that this call has opened, at the return of its function. Windows inside of it
 * whose return was missed end with it.
 *
 * mark: the stack position of the call; 0: end the innermost window of this function.
 * keeps: 1 if it keeps things (V6); known to the compiler.
 */
static __always_inline void end_window(void *ctx, u64 mark, u32 window, u64 value, u32 keeps)
{
	struct task_windows *t = current_task_windows();
	if (!t)
		return;
	struct open_window *w = 0;
	u32 depth = t->depth;
	u32 at = depth;
	if (!depth) {
		if (t->unsampled_window == window && (!mark || mark == t->unsampled))
			t->unsampled = 0;
		return;
	}
#pragma unroll
	for (u32 i = 0; i < DEEPEST_WINDOW; i++) {
		if (w || !at)
			continue;
		at -= 1;
		w = window_at(t, at);
		if (w->key.window != window || (mark && w->mark != mark))
			w = 0;
	}
	if (!w)
		return; /* it began before the gate opened, or was lost */
	close_window(ctx, t, w, value, window, keeps);
	if (at + 1 != depth)
		count(WINDOWS_UNCLOSED);
	t->depth = at;
}

#endif
