/*
 * R3: the folio that leaves the page cache. It is locked, and not mapped: the kernel looks at the
 * second after this tracepoint, in filemap_unaccount_folio(), and prints "Bad page cache".
 */
#include "folio_state.h"

/* include/uapi/linux/magic.h */
#define HUGETLBFS_MAGIC 0x958458f6

/* The depth to which an interval tree is searched: a red-black tree of 4096 nodes or more. */
#define TREE_DEPTH 24

#ifdef HAVE_FOLIO_STATE
static __always_inline u32 is_hugetlbfs(mapping_t mapping)
{
	u64 inode = READ_MAPPING(mapping, host);
	return inode && READ(super_block, READ(inode, inode, i_sb), s_magic) == HUGETLBFS_MAGIC;
}

/* folio_mapped() of a large folio. On 6.1 each page has a count of its own, hugetlb's not. */
static __always_inline u32 is_large_mapped(folio_t folio, u64 flags)
{
#ifdef HAVE_folio_total_mapcount
	return (s32)READ_FOLIO(folio, total_mapcount) >= 0       ? IS_MAPPED :
	       is_hugetlbfs(MAPPING(READ_FOLIO(folio, mapping))) ? NOT_MAPPED :
								   MAPPED_UNKNOWN;
#else
	return is_mapped(folio, flags);
#endif
}

/* vma_interval_tree_iter_first(): a VMA that maps this page of the file; 0: none was found. */
static __always_inline vma_t first_vma(mapping_t mapping, u64 index)
{
	u64 node = READ_MAPPING(mapping, i_mmap_node);
	for (u32 i = 0; node && i < TREE_DEPTH; i++) {
		vma_t vma = VMA(node - OFFSET(vm_area_struct, rb));
		u64 left = READ(rb_node, node, rb_left);
		if (left &&
		    READ_VMA(VMA(left - OFFSET(vm_area_struct, rb)), rb_subtree_last) >= index) {
			node = left;
			continue;
		}
		u64 first = READ_VMA(vma, vm_pgoff);
		u64 size = READ_VMA(vma, vm_end) - READ_VMA(vma, vm_start);
		if (index < first)
			break;
		if (index < first + (size >> PAGE_SHIFT))
			return vma;
		node = READ(rb_node, node, rb_right);
	}
	return VMA(0);
}

static __always_inline void emit_left_cache(void *ctx, u32 kind, folio_t folio)
{
	struct event *e = new_event(kind);
	if (!e)
		return;
	struct left_cache *left = &e->detail.left_cache;
	mapping_t mapping = MAPPING(READ_FOLIO(folio, mapping));
	left->folio = folio.addr;
	left->mapping = mapping.addr;
	left->index = READ_FOLIO(folio, index);
	left->hugetlb = is_hugetlbfs(mapping);
	vma_t vma = first_vma(mapping, left->index);
	if (vma.addr) {
		left->vma = vma.addr;
		left->mm = READ_VMA(vma, vm_mm);
		left->addr = READ_VMA(vma, vm_start) +
			     ((left->index - READ_VMA(vma, vm_pgoff)) << PAGE_SHIFT);
	}
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}
#endif

HOOK(mm_filemap_delete_from_page_cache)
{
	if (!open_gate())
		return 0;
#ifdef HAVE_FOLIO_STATE
	struct page page; /* read at once: the program runs for each page that is removed */
	folio_t folio = FOLIO(ARG(mm_filemap_delete_from_page_cache, folio));
	if (bpf_probe_read_kernel(&page, sizeof(page), (void *)folio.addr)) {
		count(R3_UNVERIFIABLE);
		return 0;
	}
	u32 mapped = page.flags >> PG_HEAD & 1 ? is_large_mapped(folio, page.flags) :
		     (s32)page.mapcount >= 0   ? IS_MAPPED :
						 NOT_MAPPED;
	if (mapped == MAPPED_UNKNOWN) {
		count(R3_UNVERIFIABLE);
	} else if (mapped == IS_MAPPED) {
		count(R3_VIOLATED);
		emit_left_cache(ctx, LEFT_CACHE_MAPPED, folio);
	} else if (!(page.flags >> PG_LOCKED & 1)) {
		count(R3_VIOLATED);
		emit_left_cache(ctx, LEFT_CACHE_UNLOCKED, folio);
	} else {
		count(R3_HOLDS);
	}
#else
	count(R3_UNVERIFIABLE);
#endif
	return 0;
}
