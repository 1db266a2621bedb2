/*
 * Walk page tables by value: no lock is taken, and no read can fault.
 *
 * Nothing here knows an architecture: struct page_format of shared.h has what an entry looks like,
 * and tracer/machine/ fills it in. The constants are the kernel's, by their kernel names.
 */
#ifndef RMAPD_WALK_H
#define RMAPD_WALK_H

#include "common.h"

#define PTRS_PER_PTE       (1 << (PAGE_SHIFT - 3))
#define ENTRY_SHIFT(level) (PAGE_SHIFT + (PAGE_SHIFT - 3) * ((level) - 1)) /* PMD_SHIFT, ... */
#define PMD_SHIFT          ENTRY_SHIFT(2)
#define PMD_SIZE           (1ULL << PMD_SHIFT)
#define PMD_MASK           (~(PMD_SIZE - 1))

/* _PAGE_PRESENT, PTE_VALID: the CPU uses the entry. */
#define ENTRY_VALID 1ULL

#define SWP_TYPE_BITS 5

/* include/linux/swap.h: the types of migration entries are consecutive numbers. */
#define SWP_MIGRATION_NUM 3

/* The index of an address in its last-level table. */
#define PTE_INDEX(addr) ((addr) >> PAGE_SHIFT & (PTRS_PER_PTE - 1))

/* A shift by a number that the verifier does not know. */
#define SHIFT(bits) ((bits) & 63)

/* The physical address in a valid entry: of the next table, or of memory. */
static __always_inline u64 frame_address(struct page_format *f, u64 entry)
{
	return (entry & f->frame) | (entry & f->frame_high) << SHIFT(f->frame_high_shift);
}

/* The type of a swap entry, and the pfn in that of a migration entry. */
static __always_inline u32 entry_type(struct params *p, u64 entry)
{
	return entry >> SHIFT(p->format.swap_type_shift) & ((1 << SWP_TYPE_BITS) - 1);
}

static __always_inline u64 entry_pfn(struct params *p, u64 entry)
{
	struct page_format *f = &p->format;
	return (entry ^ f->inverted) >> SHIFT(f->swap_pfn_shift) & f->swap_pfn;
}

/* pte_none() */
static __always_inline int is_none(struct params *p, u64 entry)
{
	return !(entry & ~p->format.ignored);
}

/* pte_present(), pmd_present() */
static __always_inline int is_present(struct params *p, u64 entry, u32 level)
{
	u64 bits = p->format.present | (level > 1 ? p->format.present_above : 0);
	return (entry & bits) != 0;
}

/* pte_special(): the shared zeropage, or a pfn without a struct page */
static __always_inline int is_special(struct params *p, u64 entry)
{
	return (entry & p->format.special) != 0;
}

/* pmd_leaf(), pud_leaf(): 1 where a valid entry above the last level maps memory itself. */
static __always_inline u64 is_leaf(struct page_format *f, u64 entry)
{
	return (entry >> SHIFT(f->leaf_shift) ^ f->leaf_clear) & 1;
}

/* pte_pfn(), pmd_pfn(): of an entry that maps a page. */
static __always_inline u64 mapped_pfn(struct params *p, u64 entry, u32 level)
{
	u64 as_valid = entry & ENTRY_VALID ? entry : entry ^ p->format.inverted;
	u64 mask = level > 1 ? PMD_MASK : PAGE_MASK;
	return (frame_address(&p->format, as_valid) & mask) >> PAGE_SHIFT;
}

static __always_inline int type_seen(u32 type)
{
	u64 *seen = entry_types.lookup(&type);
	return seen && *seen;
}

static __always_inline int is_migration(struct params *p, u64 entry, u32 level)
{
	return entry && !is_present(p, entry, level) && type_seen(entry_type(p, entry));
}

/* Whether the type is unknown, and close enough to a known one to be a migration entry, too. */
static __always_inline int is_possible(struct params *p, u64 entry, u32 level)
{
	u32 type = entry_type(p, entry);
	if (p->types_known || !entry || is_present(p, entry, level))
		return 0;
	return type_seen(type - 2) || type_seen(type - 1) || type_seen(type + 1) ||
	       type_seen(type + 2);
}
_Static_assert(SWP_MIGRATION_NUM == 3, "is_possible() looks at two types on each side");

#ifdef HAVE_page_compound_head
/* pfn_to_page() with CONFIG_SPARSEMEM_VMEMMAP. */
static __always_inline u64 page_of(struct params *p, u64 pfn)
{
	return p->vmemmap + pfn * sizeof(struct page);
}

/*
 * compound_head(). From 7.1 on compound_info holds a mask where sizeof(struct page) is a power of
 * two; earlier, and elsewhere, the head page's address. Bit 0 marks a tail page.
 */
static __always_inline u64 head_page(struct params *p, u64 pfn)
{
	u64 page = page_of(p, pfn);
	u64 head = READ(page, page, compound_head);
	if (!(head & 1))
		return page;
	return head >> 32 == 0xffffffff ? page & head : head - 1;
}
#endif

/* 1 where value is not 0, without a branch. */
static __always_inline u64 is_set(u64 value)
{
	u64 minus = -value;
	TESTED(minus); /* else the compiler makes a branch of it */
	return (value | minus) >> 63;
}

struct place_of_entry {
	u64 at; /* the address of the entry */
	u64 entry;
	u64 level;
};
enum {
	MOST_LEVELS = 5
};
#define NO_END (~0ULL >> 1)

/*
 * walk() without a branch: in a loop the verifier would follow each of its ways out in each turn.
 * Where the walk is at its end the same entry is read again. Nonzero: a table is unreadable.
 *
 * end: a table behind this physical address is not read.
 */
static __always_inline s64 walk_at_once(struct params *p, u64 end, u64 pgd, u64 addr,
					struct place_of_entry *found)
{
	struct page_format f = p->format;
	u64 page_offset = p->page_offset;
	u64 table = pgd;
	u64 level = f.levels;
	u64 entry = 0;
	s64 failed = 0;
#pragma unroll
	for (u32 i = 0; i < MOST_LEVELS; i++) {
		u64 index = addr >> SHIFT(ENTRY_SHIFT(level)) & (PTRS_PER_PTE - 1);
		found->at = table + 8 * index;
		failed |= bpf_probe_read_kernel(&entry, 8, (void *)found->at);
		/* 1 where the entry leads to a table */
		u64 down = entry & ENTRY_VALID & ~is_leaf(&f, entry) & is_set(level - 1);
		u64 frame = frame_address(&f, entry);
		u64 behind = down & (end - frame) >> 63;
		u64 below = page_offset + frame;
		failed |= behind;
		down ^= behind;
		table ^= (table ^ below) & -down;
		level -= down;
	}
	found->entry = entry;
	found->level = level;
	return failed;
}

/* The physical address behind the last RAM; what leads there was no page table. */
static __always_inline u64 end_of_ram(struct params *p)
{
	return p->direct_map_end ? p->direct_map_end - p->page_offset : NO_END;
}

/* Find the entry at which the walk for addr ends, and its level. -1: a table is unreadable. */
static __always_inline int walk(struct params *p, u64 pgd, u64 addr, u64 *entry, u32 *level)
{
	u64 table = pgd;
	u64 e = 0;
	u64 end = end_of_ram(p);
#pragma unroll
	for (u32 l = MOST_LEVELS; l >= 1; l--) {
		if (l > p->format.levels)
			continue;
		u64 index = addr >> SHIFT(ENTRY_SHIFT(l)) & (PTRS_PER_PTE - 1);
		if (bpf_probe_read_kernel(&e, 8, (void *)(table + 8 * index)))
			return -1;
		*entry = e;
		*level = l;
		if (l == 1 || !(e & ENTRY_VALID) || is_leaf(&p->format, e))
			return 0;
		u64 frame = frame_address(&p->format, e);
		if (frame >= end)
			return -1;
		table = p->page_offset + frame;
	}
	return 0;
}

#endif
