/* The state of a folio, by value: its flags, and whether it is mapped. */
#ifndef RMAPD_FOLIO_STATE_H
#define RMAPD_FOLIO_STATE_H

#include "common.h"

/* struct page exists with all that is read of it: a kernel that has enum pageflags has it. */
#if defined(HAVE_page_compound_head) && defined(HAVE_page_mapcount) && defined(PG_HEAD)
#define HAVE_FOLIO_STATE

/* Read the flags of a folio. Nonzero: they cannot be read. */
static __always_inline int read_flags(folio_t folio, u64 *flags)
{
	return bpf_probe_read_kernel(flags, sizeof(*flags),
				     (void *)(folio.addr + OFFSET(page, flags)));
}

enum mapped {
	NOT_MAPPED,
	IS_MAPPED,
	MAPPED_UNKNOWN
};

/*
 * folio_mapped(), where `beyond` mappings do not count. The counts begin at -1. A large folio has
 * one for all of its pages from 6.10 on (_large_mapcount), and two from 6.3 on, of pages and of
 * PMDs; earlier each page has one of its own, and they are not read.
 */
static __always_inline u32 is_mapped_beyond(folio_t folio, u64 flags, s32 beyond)
{
	s32 mapcount = 0;
	u64 at = folio.addr + OFFSET(page, mapcount);
	if (flags >> PG_HEAD & 1) {
#if defined(HAVE_folio_large_mapcount)
		at = folio.addr + OFFSET(folio, large_mapcount);
#elif defined(HAVE_folio_entire_mapcount) && defined(HAVE_folio_nr_pages_mapped)
		if (beyond)
			return MAPPED_UNKNOWN;
		if (READ_FOLIO(folio, nr_pages_mapped) > 0)
			return IS_MAPPED;
		at = folio.addr + OFFSET(folio, entire_mapcount);
#else
		return MAPPED_UNKNOWN;
#endif
	}
	if (bpf_probe_read_kernel(&mapcount, sizeof(mapcount), (void *)at))
		return MAPPED_UNKNOWN;
	return mapcount >= beyond ? IS_MAPPED : NOT_MAPPED;
}

static __always_inline u32 is_mapped(folio_t folio, u64 flags)
{
	return is_mapped_beyond(folio, flags, 0);
}
#endif

#endif
