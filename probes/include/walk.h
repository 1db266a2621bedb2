/* Walking an x86-64 page table by value: no lock taken, no fault possible (bpf_probe_read_kernel).
   Bits as in arch/x86/include/asm/pgtable_types.h; swap entries as in arch/x86/include/asm/pgtable_64.h:
   the type is bits 63..59, the offset is bits 58..9 inverted, and its low bits are the pfn. */
#ifndef RMAPD_WALK_H
#define RMAPD_WALK_H

#include "common.h"

#define PTE_PRESENT  0x001ULL
#define PTE_PROTNONE 0x100ULL /* _PAGE_GLOBAL where not present */
#define PTE_SPECIAL  0x200ULL /* _PAGE_SOFTW1: the shared zeropage, or no struct page at all */
#define PTE_LEAF     0x080ULL /* _PAGE_PSE above the last level */

static __always_inline u64 table_mask(struct params *p)
{ /* MAX_PHYSMEM_BITS: 46, or 52 with five levels */
	return p->levels == 5 ? 0x000ffffffffff000ULL : 0x00003ffffffff000ULL;
}

static __always_inline u32 entry_type(u64 entry)
{
	return entry >> 59;
}

static __always_inline u64 entry_pfn(struct params *p, u64 entry)
{
	return (~entry << 5 >> 14) & (table_mask(p) >> 12);
}

static __always_inline int is_present(u64 entry, u32 level)
{
	return (entry & (PTE_PRESENT | PTE_PROTNONE | (level > 1 ? PTE_LEAF : 0))) != 0;
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

/* The types of migration entries are SWP_MIGRATION_NUM (3) consecutive numbers, include/linux/swap.h. */
static __always_inline int is_possible(struct params *p, u64 entry, u32 level)
{
	u32 type = entry_type(entry);
	if (p->types_known || !entry || is_present(entry, level))
		return 0;
	return type_seen(type - 2) || type_seen(type - 1) || type_seen(type + 1) ||
	       type_seen(type + 2);
}

/* The entry at which the walk for addr ends, and its level; -1 where a table could not be read. */
static __always_inline int walk(struct params *p, u64 pgd, u64 addr, u64 *entry, u32 *level)
{
	u64 table = pgd, e = 0;
#pragma unroll
	for (u32 l = 5; l >= 1; l--) {
		if (l > p->levels)
			continue;
		if (bpf_probe_read_kernel(&e, 8,
					  (void *)(table + 8 * ((addr >> (3 + 9 * l)) & 511))))
			return -1;
		*entry = e;
		*level = l;
		if (l == 1 || !(e & PTE_PRESENT) || (e & PTE_LEAF))
			return 0;
		table = p->page_offset + (e & table_mask(p));
	}
	return 0;
}

#endif
