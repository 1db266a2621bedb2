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
/* VM_UFFD_MISSING, VM_UFFD_WP, and the bits that VM_UFFD_MINOR has had: 37, 38 and 41. */
#define VM_UFFD_FLAGS (0x1200ULL | 0x13ULL << 37)
/* VM_IGNORE_MERGE: VMAs that differ in these are merged. */
#define MAY_DIFFER (VM_SOFTDIRTY | VM_MAYBE_GUARD)

/* Record the VMA at an address, with its attributes. 0: there is none. */
static __always_inline u64 record_point(struct attribute_scratch *s, struct kept_point *point,
					mm_t mm, u64 at)
{
	vma_t vma = vma_at(s, mm, at);
	point->at = 0;
	if (!read_vma(s, vma, at))
		return 0;
	take_attributes(s, &point->was);
	point->at = at;
	return vma.addr;
}

/* Record what a window must keep, at its entry. */
static __always_inline void record_kept(struct task_windows *t, struct open_window *w, u32 window)
{
	struct attribute_scratch *s = &t->scratch;
	struct keeping *k = &t->keeping[KEEPING_OF(window)];
	struct request *asked = &k->asked;
	u64 start = asked->start;
	u64 end = window == WINDOW___split_vma ? start : asked->end;
	struct vma_attributes *range = &k->point[POINT_RANGE].was;

	k->mark = 0;
	if (held_by_us(w->mmap) != OWNER_SELF)
		return;
	k->mark = w->mark;
	k->outside = 0;
	record_point(s, &k->point[POINT_BELOW], w->mm, start - 1);
	if (k->point[POINT_BELOW].at && end < s->vma.vm_end) {
		k->point[POINT_ABOVE].was = k->point[POINT_BELOW].was;
		k->point[POINT_ABOVE].at = end;
	} else {
		record_point(s, &k->point[POINT_ABOVE], w->mm, end);
	}
	if (window == WINDOW___split_vma)
		return;
	if (window == WINDOW_move_vma) {
		u64 source = asked->source;
		u64 source_end = source + asked->source_length;
		record_point(s, &k->point[POINT_RANGE], w->mm, source);
		record_point(s, &k->point[POINT_BELOW_SOURCE], w->mm, source - 1);
		record_point(s, &k->point[POINT_ABOVE_SOURCE], w->mm, source_end);
		/* What is beside the new range may be what moves. */
		if (start > source && start <= source_end)
			k->point[POINT_BELOW].at = 0;
		if (end >= source && end < source_end)
			k->point[POINT_ABOVE].at = 0;
		return;
	}
	range->flags = asked->flags;
	range->uffd = asked->uffd;
	range->policy = digest_of_policy(s, asked->policy);
	range->file = asked->file;
	range->offset = asked->pgoff - (start >> PAGE_SHIFT);
	range->name = 0;
#ifdef HAVE_vm_area_struct_anon_name
	if (!NAME_IN_UNION || !asked->file)
		range->name = digest_of_name(s, asked->name);
#endif
	if (window == WINDOW_vma_merge) {
		/* mm/mmap.c up to 6.10: the range is empty or in one VMA. */
		k->outside = vma_at(s, w->mm, start).addr != vma_at(s, w->mm, end - 1).addr;
	} else if (asked->middle) {
		k->outside = !read_vma(s, VMA(asked->middle), start) || end > s->vma.vm_end;
	}
	if (start >= end)
		k->outside = 1;
}

/* Compare attributes. may_differ: flags that are not compared. */
static __always_inline u32 compare(struct vma_attributes *was, struct vma_attributes *is,
				   u64 may_differ)
{
	if (was->uffd != is->uffd)
		return KEPT_UFFD;
	if (was->policy != is->policy)
		return KEPT_POLICY;
	if (was->file != is->file || was->offset != is->offset)
		return KEPT_FILE;
	if (was->name != is->name)
		return KEPT_NAME;
	if ((was->flags ^ is->flags) & ~may_differ)
		return KEPT_FLAGS;
	return KEPT_HOLDS;
}

static __always_inline u32 first_loss(u32 found, u32 more)
{
	return found > KEPT_HOLDS ? found : more > found ? more : found;
}

/*
 * Compare a point with what is there now.
 *
 * result: the VMA that s->vma has, or 0; it may be the one at this address.
 * may_go: the address may be unmapped by now.
 */
static __always_inline u32 check_point(struct attribute_scratch *s, struct kept_point *point,
				       mm_t mm, u64 may_differ, u32 may_go)
{
	u64 at = point->at;
	if (!at)
		return KEPT_NONE;
	if (!(s->vma.vm_start <= at && at < s->vma.vm_end) && !read_vma(s, vma_at(s, mm, at), at)) {
		s->vma.vm_end = 0;
		return may_go ? KEPT_NONE : KEPT_RANGE;
	}
	take_attributes(s, &s->is);
	return compare(&point->was, &s->is, may_differ);
}

/* Whether the moved range has what its source had. */
static __always_inline u32 check_moved(struct attribute_scratch *s, struct kept_point *source,
				       mm_t mm, u64 start)
{
	u64 may_differ = MAY_DIFFER;
	if (!source->at)
		return KEPT_NONE;
	if (!read_vma(s, vma_at(s, mm, start), start))
		return KEPT_RANGE;
	take_attributes(s, &s->is);
	s->is.offset += (start >> PAGE_SHIFT) - (source->at >> PAGE_SHIFT);
	if (!s->is.file)
		s->is.offset = source->was.offset; /* of pages that never were, it may change */
	if (!s->is.uffd) {
		/* mremap_userfaultfd_prep() ends it, unless it has UFFD_FEATURE_EVENT_REMAP. */
		s->is.uffd = source->was.uffd;
		may_differ |= VM_UFFD_FLAGS;
	}
	return compare(&source->was, &s->is, may_differ);
}

/* Compare at the return of a window. result: the VMA that it returned, or 0. */
static __always_inline u32 check_kept(struct task_windows *t, struct open_window *w, u32 window,
				      vma_t result)
{
	struct attribute_scratch *s = &t->scratch;
	struct keeping *k = &t->keeping[KEEPING_OF(window)];
	u64 start = k->asked.start;
	u64 end = k->asked.end;
	u32 found = KEPT_NONE;

	if (k->mark != w->mark || held_by_us(w->mmap) != OWNER_SELF)
		return KEPT_NONE;
	k->mark = 0;
	if (k->outside)
		return KEPT_RANGE;
	s->vma.vm_start = s->vma.vm_end = 0;
	if (window == WINDOW_move_vma) {
		/* MREMAP_DONTUNMAP ends mlock() of the whole source. */
		u64 may_differ = MAY_DIFFER | VM_LOCKED_MASK;
		if (!w->key.error)
			found = check_moved(s, &k->point[POINT_RANGE], w->mm, start);
		found = first_loss(found,
				   check_point(s, &k->point[POINT_RANGE], w->mm, may_differ, 1));
		found = first_loss(found, check_point(s, &k->point[POINT_BELOW_SOURCE], w->mm,
						      may_differ, 0));
		found = first_loss(found, check_point(s, &k->point[POINT_ABOVE_SOURCE], w->mm,
						      may_differ, 0));
	} else if (result.addr) {
		if (!read_vma(s, result, start) || end > s->vma.vm_end)
			return KEPT_RANGE;
		found = KEPT_HOLDS;
		if (result.addr != k->asked.middle) {
			take_attributes(s, &s->is);
			found = compare(&k->point[POINT_RANGE].was, &s->is, MAY_DIFFER);
		} else if (s->vma.vm_start != start || s->vma.vm_end != end) {
			return KEPT_RANGE; /* not merged, so it has been split */
		}
	}
	found = first_loss(found, check_point(s, &k->point[POINT_BELOW], w->mm, MAY_DIFFER, 0));
	return first_loss(found, check_point(s, &k->point[POINT_ABOVE], w->mm, MAY_DIFFER, 0));
}

#endif
