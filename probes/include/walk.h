/*
 * Walk x86-64 page tables by value: no lock is taken, and no read can fault.
 *
 * The constants are the kernel's, by their kernel names.
 */
#ifndef RMAPD_WALK_H
#define RMAPD_WALK_H

#include "common.h"

/* arch/x86/include/asm/pgtable_types.h */
#define _PAGE_PRESENT  0x001ULL
#define _PAGE_PSE      0x080ULL /* above the last level: the entry maps a page itself */
#define _PAGE_PROTNONE 0x100ULL /* _PAGE_GLOBAL where _PAGE_PRESENT is clear */
#define _PAGE_SPECIAL  0x200ULL /* the shared zeropage, or a pfn without a struct page */

/* arch/x86/include/asm/pgtable_64_types.h */
#define PMD_SHIFT          21
#define PTRS_PER_PTE       512
#define ENTRY_SHIFT(level) (3 + 9 * (level)) /* PAGE_SHIFT, PMD_SHIFT, PUD_SHIFT, ... */
#define PMD_SIZE           (1ULL << PMD_SHIFT)
#define PMD_MASK           (~(PMD_SIZE - 1))

/*
 * Swap entries: arch/x86/include/asm/pgtable_64.h. The type is in bits 63..59. The offset is in
 * bits 58..9, inverted; the low bits of a migration entry's offset are the pfn.
 */
#define SWP_TYPE_BITS    5
#define SWP_OFFSET_SHIFT 14

/* include/linux/swap.h: the types of migration entries are consecutive numbers. */
#define SWP_MIGRATION_NUM 3

/* The index of an address in its last-level table. */
#define PTE_INDEX(addr) ((addr) >> PAGE_SHIFT & (PTRS_PER_PTE - 1))

/*
 * The bits of an entry that hold a physical address. MAX_PHYSMEM_BITS is 46, or 52 with five
 * levels (arch/x86/include/asm/sparsemem.h).
 */
static __always_inline u64 table_mask(struct params *p)
{
	return p->levels == 5 ? 0x000ffffffffff000ULL : 0x00003ffffffff000ULL;
}

static __always_inline u32 entry_type(u64 entry)
{
	return entry >> (64 - SWP_TYPE_BITS);
}

static __always_inline u64 entry_pfn(struct params *p, u64 entry)
{
	return (~entry << SWP_TYPE_BITS >> SWP_OFFSET_SHIFT) & (table_mask(p) >> PAGE_SHIFT);
}

/* pte_none(): an erratum of Knights Landing may set these bits in an entry that is none. */
#define _PAGE_KNL_ERRATUM_MASK 0x060ULL

static __always_inline int is_none(u64 entry)
{
	return !(entry & ~_PAGE_KNL_ERRATUM_MASK);
}

/* pte_present(), pmd_present() */
static __always_inline int is_present(u64 entry, u32 level)
{
	return (entry & (_PAGE_PRESENT | _PAGE_PROTNONE | (level > 1 ? _PAGE_PSE : 0))) != 0;
}

/*
 * pte_pfn(), pmd_pfn(): of an entry that maps a page. Where the entry is not present the bits of
 * its pfn are inverted, so that speculation finds no memory there (L1TF; protnone_mask(),
 * arch/x86/include/asm/pgtable-invert.h).
 */
static __always_inline u64 mapped_pfn(struct params *p, u64 entry, u32 level)
{
	u64 frame = entry & _PAGE_PRESENT ? entry : ~entry;
	u64 mask = table_mask(p) & (level > 1 ? PMD_MASK : PAGE_MASK);
	return (frame & mask) >> PAGE_SHIFT;
}

static __always_inline int type_seen(u32 type)
{
	u64 *seen = entry_types.lookup(&type);
	return seen && *seen;
}

static __always_inline int is_migration(u64 entry, u32 level)
{
	return entry && !is_present(entry, level) && type_seen(entry_type(entry));
}

/* Whether the type is unknown, and close enough to a known one to be a migration entry, too. */
static __always_inline int is_possible(struct params *p, u64 entry, u32 level)
{
	u32 type = entry_type(entry);
	if (p->types_known || !entry || is_present(entry, level))
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
	u64 table = pgd;
	u64 level = p->levels;
	u64 entry = 0;
	s64 failed = 0;
#pragma unroll
	for (u32 i = 0; i < MOST_LEVELS; i++) {
		u64 index = addr >> (ENTRY_SHIFT(level) & 63) & (PTRS_PER_PTE - 1);
		found->at = table + 8 * index;
		failed |= bpf_probe_read_kernel(&entry, 8, (void *)found->at);
		/* 1 where the entry leads to a table: bit 0 is set, bit 7 (_PAGE_PSE) is not. */
		u64 down = entry & ~(entry >> 7) & is_set(level - 1);
		u64 frame = entry & table_mask(p);
		u64 behind = down & (end - frame) >> 63;
		u64 below = p->page_offset + frame;
		failed |= behind;
		down ^= behind;
		table ^= (table ^ below) & -down;
		level -= down;
	}
	found->entry = entry;
	found->level = level;
	return failed;
}

/* Find the entry at which the walk for addr ends, and its level. -1: a table is unreadable. */
static __always_inline int walk(struct params *p, u64 pgd, u64 addr, u64 *entry, u32 *level)
{
	u64 table = pgd;
	u64 e = 0;
#pragma unroll
	for (u32 l = 5; l >= 1; l--) {
		if (l > p->levels)
			continue;
		u64 index = (addr >> (3 + 9 * l)) & (PTRS_PER_PTE - 1);
		if (bpf_probe_read_kernel(&e, 8, (void *)(table + 8 * index)))
			return -1;
		*entry = e;
		*level = l;
		if (l == 1 || !(e & _PAGE_PRESENT) || (e & _PAGE_PSE))
			return 0;
		table = p->page_offset + (e & table_mask(p));
	}
	return 0;
}

#endif
