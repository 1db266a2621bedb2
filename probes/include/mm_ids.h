/*
 * The id of an mm: no two mms have the same, and unlike an mm's address it is never reused.
 *
 * x86 has mm->context.ctx_id. Elsewhere an mm gets an id of ours when a program first asks for it,
 * and loses it when exit_mmap() is at its end. An mm without users gets none: it may be freed, and
 * what would take its address next would inherit the id.
 */
#ifndef RMAPD_MM_IDS_H
#define RMAPD_MM_IDS_H

#include "common.h"

#ifdef HAVE_mm_struct_id
static __always_inline u64 mm_id(mm_t mm)
{
	return READ_MM(mm, id);
}

static __always_inline void forget_mm_id(mm_t mm)
{
}

/* Whether this mm is younger than the outer one and has one user: no other task can know it. */
static __always_inline u32 is_newborn(mm_t mm, mm_t outer)
{
	return mm_id(mm) > mm_id(outer) && READ_MM(mm, mm_users) == 1;
}
#else
BPF_HASH(mm_ids, u64, u64, MM_ROWS);

/* 0: it has no users, or there is no room. */
static __always_inline u64 mm_id(mm_t mm)
{
	u64 *known = mm_ids.lookup(&mm.addr);
	if (known)
		return *known;
	if (!mm.addr || (s32)READ_MM(mm, mm_users) <= 0)
		return 0;
	/* Address and time of this look: no two mms of one time or of one address have the same. */
	u64 fresh = (mm.addr * 0x9e3779b97f4a7c15ULL ^ bpf_ktime_get_ns()) | 1;
	mm_ids.insert(&mm.addr, &fresh);
	known = mm_ids.lookup(&mm.addr); /* another CPU may have been first */
	return known ? *known : 0;
}

static __always_inline void forget_mm_id(mm_t mm)
{
	mm_ids.delete(&mm.addr);
}

/*
 * Whether this is an mm that no other task can know: it has one user, and mmlist, which
 * mm_init() lets point to itself, is what tells it from other memory.
 */
static __always_inline u32 is_newborn(mm_t mm, mm_t outer)
{
	return READ_MM(mm, mm_users) == 1 &&
	       READ_MM(mm, mmlist) == mm.addr + OFFSET(mm_struct, mmlist);
}
#endif

#endif
