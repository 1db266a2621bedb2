/*
 * Folios of a migration, by value: the lock, the mapcount, and the folio of a page frame. M2, M3
 * and R1 where the callbacks of the rmap walks are not hooked.
 */
#ifndef RMAPD_FOLIOS_H
#define RMAPD_FOLIOS_H

#include "folio_state.h"
#include "migration.h"
#include "walk.h"

/* include/linux/mm.h: a small folio with so many references may be pinned for DMA. */
#define GUP_PIN_COUNTING_BIAS (1 << 10)

/*
 * Report a folio that is not in the state that M2, M3 or R1 demand. mm, vma: 0 where they are not
 * known. Returns whether the ring buffer had room.
 */
static __always_inline int emit_folio(void *ctx, struct migration *m, u32 kind, vma_t vma, mm_t mm,
				      u64 addr, folio_t folio)
{
	struct event *e = new_event(kind);
	if (!e)
		return 0;
	struct unlocked_folio *found = &e->detail.unlocked;
	found->reason = REASON_UNKNOWN;
	if (m) {
		e->start_ns = m->start_ns;
		found->mode = m->mode;
		found->reason = m->reason;
	}
	found->mm = mm.addr;
	found->vma = vma.addr;
	found->addr = addr;
	found->folio = folio.addr;
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
	return 1;
}

#ifdef HAVE_FOLIO_STATE
/* folio_maybe_dma_pinned() */
static __always_inline int may_be_pinned(folio_t folio, u64 flags)
{
#ifdef HAVE_folio_pincount
	if (flags >> PG_HEAD & 1)
		return READ_FOLIO(folio, pincount) > 0;
#endif
	return (s32)READ(page, folio.addr, refcount) >= GUP_PIN_COUNTING_BIAS;
}

/*
 * Count a first walk by what it left. A folio that is still mapped is legal: migrate_folio_unmap()
 * looks at folio_mapped() and puts it back. try_to_migrate_one() does not replace an anonymous page
 * that may be pinned, and the walk leaves out the stack that exec() is moving; a mapping that is
 * made, moved or removed meanwhile can be missed.
 *
 * restored: mappings that the second walk has made since.
 */
static __always_inline void count_first_walk(folio_t folio, s32 restored)
{
	u64 flags = 0;
	if (!folio.addr || read_flags(folio, &flags))
		return;
	u32 mapped = is_mapped_beyond(folio, flags, restored);
	if (mapped == MAPPED_UNKNOWN)
		return;
	if (mapped == NOT_MAPPED) {
		count(FIRST_WALKS_EMPTIED);
		return;
	}
	u64 kind = READ(page, folio.addr, mapping) & PAGE_MAPPING_FLAGS;
	count(may_be_pinned(folio, flags) ? FIRST_WALKS_PINNED :
	      kind == PAGE_MAPPING_KSM    ? FIRST_WALKS_KSM :
	      kind == PAGE_MAPPING_ANON   ? FIRST_WALKS_ANON :
					    FIRST_WALKS_FILE);
}

/*
 * M2 by the tracepoint alone. The entry names its page. The page-table lock is held, the folio is
 * referenced, and its caller must have locked it: try_to_migrate(), mm/rmap.c.
 *
 * R1: a first walk is over where the next one begins.
 */
static __always_inline void check_inserted_page(void *ctx, struct params *p, struct migration *m,
						u64 addr, u64 entry)
{
	u64 flags = 0;
	folio_t folio = FOLIO(head_page(p, entry_pfn(p, entry)));
	if (read_flags(folio, &flags)) {
		count(M2_UNVERIFIABLE);
		return;
	}
	if (flags >> PG_LOCKED & 1) {
		count(M2_HOLDS);
	} else {
		count(M2_VIOLATED);
		emit_folio(ctx, m, INSERTED_UNLOCKED, VMA(0), MM(0), addr, folio);
	}
	if (m && m->source != folio.addr) {
		count_first_walk(FOLIO(m->source), 0);
		m->source = folio.addr;
	}
}

/*
 * M3 by the tracepoint alone, for the destination. The new entry maps the page, or is a swap entry
 * of a device-private page: remove_migration_pte(), mm/migrate.c. Returns the destination; 0 where
 * it cannot be read.
 */
static __always_inline folio_t check_restored_page(void *ctx, struct params *p, struct migration *m,
						   u64 addr, u64 entry, u32 level)
{
	u64 flags = 0;
	u64 pfn = is_present(p, entry, level) ? mapped_pfn(p, entry, level) : entry_pfn(p, entry);
	folio_t folio = FOLIO(head_page(p, pfn));
	if (read_flags(folio, &flags)) {
		count(M3_UNVERIFIABLE);
		return FOLIO(0);
	}
	if (flags >> PG_LOCKED & 1) {
		count(M3_HOLDS);
	} else {
		count(M3_VIOLATED);
		emit_folio(ctx, m, REMOVED_UNLOCKED, VMA(0), MM(0), addr, folio);
	}
	if (m) {
		count_first_walk(FOLIO(m->source), m->source == folio.addr);
		m->source = 0;
	}
	return folio;
}

/*
 * R1 by the tracepoint alone. The source is the page of the entries that this migration has
 * inserted at this address, if it is one page. It is locked until the walk is over. An entry of
 * another page may have been moved here by mremap(): so a source that is mapped is a suspect, and
 * one that is not locked proves nothing.
 *
 * source: the recorded entry. to: the folio that is mapped now; the same one was put back.
 */
static __always_inline void check_source_page(void *ctx, struct params *p, struct migration *m,
					      u64 addr, u64 source, folio_t to)
{
	u64 flags = 0;
	folio_t folio = FOLIO(head_page(p, entry_pfn(p, source)));
	if (folio.addr == to.addr)
		return;
	if (read_flags(folio, &flags) || !(flags >> PG_LOCKED & 1)) {
		count(R1_UNVERIFIABLE);
		return;
	}
	u32 mapped = is_mapped(folio, flags);
	if (mapped == NOT_MAPPED)
		count(R1_HOLDS);
	else if (mapped == IS_MAPPED &&
		 !emit_folio(ctx, m, MOVED_PERHAPS, VMA(0), MM(0), addr, folio))
		count(R1_UNVERIFIABLE);
}

/*
 * R1 by the hook on the second walk. Where the folio was moved, `source` is its old place:
 * migrate_folio_unmap() went on only because it was not mapped, and it is locked since.
 */
static __always_inline void check_source(void *ctx, struct migration *m, vma_t vma, mm_t mm, u64 at,
					 folio_t source)
{
	u64 flags = 0;
	u32 mapped = read_flags(source, &flags) ? MAPPED_UNKNOWN : is_mapped(source, flags);
	if (mapped == NOT_MAPPED) {
		count(R1_HOLDS);
	} else if (mapped == IS_MAPPED) {
		count(R1_VIOLATED);
		emit_folio(ctx, m, MOVED_MAPPED, vma, mm, at, source);
	}
}
#endif

#endif
