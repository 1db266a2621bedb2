/*
 * V6: a merge, a split or a move changes nothing but what it was asked for.
 *
 * At the entry of its window the attributes of the addresses right beside the range are recorded,
 * and those that the range is to have. They are compared at the return, by address: which VMA was
 * merged with which, and which one is freed meanwhile, does not matter.
 */
#ifndef RMAPD_KEPT_H
#define RMAPD_KEPT_H

#include "task_windows.h"

/* include/linux/mm.h */
#define VM_MAYBE_GUARD 0x00000800ULL /* 6.19 on; a flag of nothing since 5.16 */
#define VM_SOFTDIRTY   0x08000000ULL
#define VM_LOCKED_MASK 0x00082000ULL
#define VM_PAT         0x01000000ULL /* arch/x86: untrack_pfn_clear(), up to 6.15 */
/* VM_UFFD_MISSING, VM_UFFD_WP, and the bits that VM_UFFD_MINOR has had: 37, 38 and 41. */
#define VM_UFFD_FLAGS (0x1200ULL | 0x13ULL << 37)
/* VM_IGNORE_MERGE: VMAs that differ in these are merged. */
#define MAY_DIFFER (VM_SOFTDIRTY | VM_MAYBE_GUARD)

/*
 * What a window keeps. The pointer is opaque: the compiler would compute a pointer to each member
 * of it at the beginning, and keep them all on the stack.
 */
static __always_inline struct keeping *keeping_of(struct task_windows *t, u32 window)
{
	struct keeping *k = &t->keeping[KEEPING_OF(window)];
	TESTED(k);
	return k;
}

/*
 * Points are visited in a loop, whose state is in memory: the verifier then sees the same state in
 * each turn, and follows the search for a VMA once a point. Its bound reaches beyond the points,
 * into what follows them in struct task_windows.
 */
static __always_inline struct kept_point *point_at(struct keeping *k, u32 i)
{
	BOUND(i, 7);
	struct kept_point *point = &k->point[i];
	TESTED(point);
	return point;
}
_Static_assert(POINTS <= 8, "the bound of point_at()");

/* Read the VMA at an address into s->vma; is_mapped_at() tells whether there is one. */
static __always_inline void find_vma_at(struct attribute_scratch *s, mm_t mm, u64 at)
{
	if (!is_mapped_at(s, at))
		read_vma(s, vma_at(s, mm, at));
}

/* Set the addresses of the points of a window. */
static __always_inline void set_points(struct keeping *k, u32 window)
{
	u64 start = k->asked.start;
	u64 end = k->asked.end;
#pragma unroll
	for (u32 i = 0; i < POINTS; i++) {
		k->point[i].at = 0;
		k->point[i].may_differ = MAY_DIFFER;
	}
	k->point[POINT_BELOW].at = start - 1;
	k->point[POINT_ABOVE].at = end;
	if (window == WINDOW___split_vma)
		k->point[POINT_ABOVE].at = start;
	if (window == WINDOW_move_vma) {
		u64 source = k->asked.source;
		k->point[POINT_SOURCE].at = source;
		k->point[POINT_BELOW_SOURCE].at = source - 1;
		k->point[POINT_ABOVE_SOURCE].at = source + k->asked.source_length;
		/* MREMAP_DONTUNMAP unlocks the whole source, a moved PFNMAP is not tracked. */
		k->point[POINT_SOURCE].may_differ |= VM_LOCKED_MASK | VM_PAT;
		k->point[POINT_BELOW_SOURCE].may_differ |= VM_LOCKED_MASK | VM_PAT;
		k->point[POINT_ABOVE_SOURCE].may_differ |= VM_LOCKED_MASK | VM_PAT;
	}
}

/* The moved range is to have what its source had. What is beside it may be what moves. */
static __always_inline void complete_move(struct keeping *k)
{
	u64 start = k->asked.start;
	u64 source = k->asked.source;
	u64 source_end = source + k->asked.source_length;
	if (k->point[POINT_SOURCE].at) {
		k->point[POINT_MOVED].at = start;
		k->point[POINT_MOVED].was = k->point[POINT_SOURCE].was;
		k->point[POINT_MOVED].was.offset += (source >> PAGE_SHIFT) - (start >> PAGE_SHIFT);
	}
	if (start > source && start <= source_end)
		k->point[POINT_BELOW].at = 0;
	if (k->asked.end >= source && k->asked.end < source_end)
		k->point[POINT_ABOVE].at = 0;
}

/* What a merge was asked for. */
static __always_inline void complete_merge(struct attribute_scratch *s, struct keeping *k)
{
	struct request *asked = &k->asked;
	k->wanted.flags = asked->flags;
	k->wanted.uffd = asked->uffd;
	k->wanted.policy = digest_of_policy(asked->policy);
	k->wanted.file = asked->file;
	k->wanted.offset = asked->pgoff - (asked->start >> PAGE_SHIFT);
	k->wanted.placed = 1;
	k->wanted.name = 0;
#ifdef HAVE_vm_area_struct_anon_name
	k->wanted.name = digest_of_name(s, asked->name);
#endif
	if (asked->middle) {
		read_vma(s, VMA(asked->middle));
		k->outside = !is_mapped_at(s, asked->start) || asked->end > s->vma.vm_end;
	}
	if (asked->start >= asked->end)
		k->outside = 1;
}

/* Record what a window must keep, at its entry. Its request is recorded already. */
static __always_inline void record_kept(struct task_windows *t, struct open_window *w, u32 window)
{
	struct attribute_scratch *s = &t->scratch;
	TESTED(s);
	struct keeping *k = keeping_of(t, window);

	k->mark = 0;
	k->outside = 0;
	if (held_by_us(w->mmap) != OWNER_SELF)
		return;
	k->mark = w->mark;
	read_vma(s, VMA(0));
	set_points(k, window);
#pragma nounroll
	for (u32 i = 0; i < POINTS; i++) {
		if (i == POINT_BELOW_SOURCE && window != WINDOW_move_vma)
			break;
		struct kept_point *point = point_at(k, i);
		u64 at = point->at;
		if (!at)
			continue;
		find_vma_at(s, w->mm, at);
		point->at = 0;
		if (!is_mapped_at(s, at))
			continue;
		point->at = at;
		take_attributes(s, &point->was);
	}
	if (window == WINDOW_move_vma)
		complete_move(k);
	else if (window != WINDOW___split_vma)
		complete_merge(s, k);
}

/*
 * Compare s->is with what was, and add what differs to s->lost: a bit for each enum kept. There is
 * no branch: the verifier would follow each way to the end of the program.
 *
 * may_differ: flags that are not compared.
 */
static __always_inline void compare(struct attribute_scratch *s, struct vma_attributes *was,
				    u64 may_differ)
{
	struct vma_attributes *is = &s->is;
	s->lost |= 1 << KEPT_HOLDS | is_not_zero(was->uffd ^ is->uffd) << KEPT_UFFD |
		   is_not_zero(was->policy ^ is->policy) << KEPT_POLICY |
		   is_not_zero(was->file ^ is->file) << KEPT_FILE |
		   (is_not_zero(was->offset ^ is->offset) & was->placed & is->placed) << KEPT_FILE |
		   is_not_zero(was->name ^ is->name) << KEPT_NAME |
		   is_not_zero((was->flags ^ is->flags) & ~may_differ) << KEPT_FLAGS;
}

/* Check the VMA that a merge has returned. */
static __always_inline void check_result(struct attribute_scratch *s, struct keeping *k,
					 vma_t result)
{
	u64 start = k->asked.start;
	u64 end = k->asked.end;
	s->lost |= 1 << KEPT_HOLDS;
	read_vma(s, result);
	if (!is_mapped_at(s, start) || end > s->vma.vm_end) {
		s->lost |= 1 << KEPT_RANGE;
	} else if (result.addr != k->asked.middle) {
		take_attributes(s, &s->is);
		compare(s, &k->wanted, MAY_DIFFER);
	} else if (start != s->vma.vm_start || end != s->vma.vm_end) {
		s->lost |= 1 << KEPT_RANGE; /* not merged, so it has been split */
	}
}

/* Compare a point with what is there now. */
static __always_inline void check_point(struct attribute_scratch *s, struct kept_point *point,
					mm_t mm, u32 i)
{
	u64 may_differ = point->may_differ;
	u64 at = point->at;
	if (!at)
		return;
	find_vma_at(s, mm, at);
	if (!is_mapped_at(s, at)) {
		if (i != POINT_SOURCE)
			s->lost |= 1 << KEPT_RANGE;
		return;
	}
	take_attributes(s, &s->is);
	if (i == POINT_MOVED && !s->is.uffd) {
		/* mremap_userfaultfd_prep(), without UFFD_FEATURE_EVENT_REMAP */
		s->is.uffd = point->was.uffd;
		may_differ |= VM_UFFD_FLAGS;
	}
	compare(s, &point->was, may_differ);
}

/* Compare at the return of a window. result: the VMA that it returned, or 0. */
static __always_inline void check_kept(struct task_windows *t, struct open_window *w, u32 window,
				       vma_t result)
{
	struct attribute_scratch *s = &t->scratch;
	TESTED(s);
	struct keeping *k = keeping_of(t, window);

	if (k->mark != w->mark || held_by_us(w->mmap) != OWNER_SELF)
		return;
	k->mark = 0;
	s->lost = k->outside << KEPT_RANGE;
	read_vma(s, VMA(0));
	if (window == WINDOW_move_vma) {
		if (w->key.error)
			k->point[POINT_MOVED].at = 0;
	} else if (result.addr) {
		check_result(s, k, result);
	}
#pragma nounroll
	for (u32 i = 0; i < POINTS; i++) {
		if (i == POINT_BELOW_SOURCE && window != WINDOW_move_vma)
			break;
		check_point(s, point_at(k, i), w->mm, i);
	}
	u64 lost = s->lost;
	u32 kept = lost >> KEPT_RANGE & 1  ? KEPT_RANGE :
		   lost >> KEPT_UFFD & 1   ? KEPT_UFFD :
		   lost >> KEPT_POLICY & 1 ? KEPT_POLICY :
		   lost >> KEPT_FILE & 1   ? KEPT_FILE :
		   lost >> KEPT_NAME & 1   ? KEPT_NAME :
		   lost >> KEPT_FLAGS & 1  ? KEPT_FLAGS :
		   lost                    ? KEPT_HOLDS :
					     KEPT_NONE;
	set_field(&w->key.context, kept, CONTEXT_KEPT_SHIFT);
}

#endif
