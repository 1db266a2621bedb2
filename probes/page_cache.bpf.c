/*
 * R3: the folio that leaves the page cache. It is locked, and not mapped: the kernel looks at the
 * second after this tracepoint, in filemap_unaccount_folio(), and prints "Bad page cache". A folio
 * of hugetlbfs that is mapped by then is unmapped first, and is locked for that, too.
 */
#include "folio_state.h"
#include "walk.h"

/* include/uapi/linux/magic.h */
#define HUGETLBFS_MAGIC 0x958458f6

/* The depth to which an interval tree is searched: a red-black tree of 4096 nodes or more. */
#define TREE_DEPTH 24

/*
 * The current task in remove_inode_hugepages(), fs/hugetlbfs/inode.c, which takes the folios of a
 * range out of the page cache, one after the other. Truncation and holes unmap the whole range
 * before, without a folio lock and legally. What was mapped since is unmapped inside, folio by
 * folio: a migration that fails would map an unlocked folio again.
 */
struct removal {
	u64 inside;
	u64 folio;    /* unmapped inside, and not removed yet; 0: none */
	u64 unlocked; /* it was not locked when it was unmapped at `addr` of `vma` */
	u64 vma;
	u64 addr;
};
BPF_TASK_STORAGE(removals, struct removal);

static __always_inline struct removal *current_removal(void)
{
	return removals.task_storage_get(CURRENT, 0, 0);
}

/*
 * An earlier return may have been missed: what was unmapped before this call counts no more. Only
 * where the kernel leaves out this run as well does what hugetlb_vmdelete_list() unmaps count.
 */
HOOK(removal)
{
	if (!open_gate())
		return 0;
	struct removal *r = removals.task_storage_get(CURRENT, 0, CREATED);
	if (!r) {
		count(R3_UNVERIFIABLE);
		return 0;
	}
	r->inside = 1;
	r->folio = 0;
	return 0;
}

HOOK(removal_end)
{
	struct removal *r = current_removal();
	if (r)
		r->inside = 0;
	return 0;
}

#ifdef HAVE_FOLIO_STATE
/*
 * Note the folio that is about to be unmapped, and whether it is locked. i_mmap_rwsem is held for
 * write, the folio is referenced, and a fault of this page waits: only a migration of a folio that
 * is not locked can change the entry.
 */
static __always_inline void note_unmapping(struct params *p, struct removal *r, vma_t vma, u64 addr)
{
	u64 entry = 0;
	u32 level = 0;
	u64 flags = 0;
	folio_t folio = FOLIO(0);
	u64 pgd = (u64)READ_MM(MM((u64)READ_VMA(vma, vm_mm)), pgd);
	if (p->page_offset && p->vmemmap && !walk(p, pgd, addr, &entry, &level)) {
		if (is_none(p, entry))
			return;
		if (is_present(p, entry, level))
			folio = FOLIO(head_page(p, mapped_pfn(p, entry, level)));
	}
	if (!folio.addr || read_flags(folio, &flags)) {
		count(R3_UNVERIFIABLE);
		return;
	}
	if (r->folio != folio.addr) {
		r->folio = folio.addr;
		r->unlocked = 0;
	}
	if (r->unlocked || flags >> PG_LOCKED & 1)
		return;
	r->unlocked = 1;
	r->vma = vma.addr;
	r->addr = addr;
}
#endif

HOOK(removal_unmaps)
{
	struct params *p = open_gate();
	struct removal *r = current_removal();
	if (!p || !r || !r->inside)
		return 0;
#ifdef HAVE_FOLIO_STATE
	note_unmapping(p, r, VMA(ARGUMENT(vma)), ARGUMENT(start));
#else
	count(R3_UNVERIFIABLE);
#endif
	return 0;
}

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

/* vma, addr: where it is, or was, mapped; 0: look for a VMA that maps it. */
static __always_inline void emit_left_cache(void *ctx, u32 kind, folio_t folio, vma_t vma, u64 addr)
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
	if (!vma.addr) {
		vma = first_vma(mapping, left->index);
		addr = READ_VMA(vma, vm_start) +
		       ((left->index - READ_VMA(vma, vm_pgoff)) << PAGE_SHIFT);
	}
	if (vma.addr) {
		left->vma = vma.addr;
		left->mm = (u64)READ_VMA(vma, vm_mm);
		left->addr = addr;
	}
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}

/* The folio that leaves is the one that was unmapped for it: was it locked then? */
static __always_inline void check_unmapping(void *ctx, folio_t folio)
{
	struct removal *r = current_removal();
	if (!r || !r->inside || !r->folio)
		return;
	if (r->folio != folio.addr) {
		count(R3_UNVERIFIABLE);
	} else if (r->unlocked) {
		count(R3_VIOLATED);
		emit_left_cache(ctx, UNMAPPED_UNLOCKED, folio, VMA(r->vma), r->addr);
	} else {
		count(R3_HOLDS);
	}
	r->folio = 0;
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
	if (page.flags >> PG_HEAD & 1)
		check_unmapping(ctx, folio);
	u32 mapped = page.flags >> PG_HEAD & 1 ? is_large_mapped(folio, page.flags) :
		     (s32)page.mapcount >= 0   ? IS_MAPPED :
						 NOT_MAPPED;
	if (mapped == MAPPED_UNKNOWN) {
		count(R3_UNVERIFIABLE);
	} else if (mapped == IS_MAPPED) {
		count(R3_VIOLATED);
		emit_left_cache(ctx, LEFT_CACHE_MAPPED, folio, VMA(0), 0);
	} else if (!(page.flags >> PG_LOCKED & 1)) {
		count(R3_VIOLATED);
		emit_left_cache(ctx, LEFT_CACHE_UNLOCKED, folio, VMA(0), 0);
	} else {
		count(R3_HOLDS);
	}
#else
	count(R3_UNVERIFIABLE);
#endif
	return 0;
}
