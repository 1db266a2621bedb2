/* What a VMA has beside its range, and which VMA is at an address of an mm: by value. */
#ifndef RMAPD_ATTRIBUTES_H
#define RMAPD_ATTRIBUTES_H

#include "common.h"

/* include/linux/maple_tree.h, lib/maple_tree.c */
#define MAPLE_ROOT_BITS      3ULL
#define MAPLE_ROOT_IS_NODE   2ULL
#define MAPLE_NODE_BYTES     256ULL
#define MAPLE_TYPE_OF(entry) ((entry) >> 3 & 0x0f)
/* A node has at least five entries: 5^7 VMAs are more than vm.max_map_count allows by default. */
#define MAPLE_LEVELS  8
#define ARANGE_PIVOTS ((OFFSET(maple_arange_64, slot) - OFFSET(maple_arange_64, pivot)) / 8)
#define PIVOTS        15
_Static_assert(OFFSET(maple_range_64, slot) == OFFSET(maple_range_64, pivot) + 8 * PIVOTS,
	       "pivots");
_Static_assert(OFFSET(maple_range_64, pivot) == OFFSET(maple_arange_64, pivot), "pivots");

/*
 * include/uapi/linux/mempolicy.h. The kernel does not set the nodes of MPOL_LOCAL, nor compares
 * mempolicy.w without MPOL_F_STATIC_NODES or MPOL_F_RELATIVE_NODES (mpol_store_user_nodemask();
 * before 3d702678f57e also with MPOL_F_NUMA_BALANCING).
 */
#define MPOL_LOCAL               4
#define MPOL_USER_NODEMASK_FLAGS 0xc000

struct vma_attributes {
	u64 flags;
	u64 uffd;
	u64 policy; /* a digest of its content: a merge keeps one of two equal policies */
	u64 file;
	u64 offset; /* vm_pgoff of address 0: the same for all addresses of a VMA */
	u64 placed; /* the offset counts: of no file and no anon_vma, it is that of no page */
	u64 name;   /* a digest of the text */
};

/* An address, what it must keep, and what was there at entry; at 0: nothing is compared. */
struct kept_point {
	u64 at;
	u64 may_differ; /* flags that are not compared */
	struct vma_attributes was;
};
enum kept_address {
	POINT_BELOW, /* the addresses before and behind the range that was asked for */
	POINT_ABOVE,
	POINT_BELOW_SOURCE, /* of a move: beside its source */
	POINT_ABOVE_SOURCE,
	POINT_SOURCE, /* the first address of the source: it may be unmapped when the move ends */
	POINT_MOVED,  /* the first address of the new range: what its source had */
	POINTS
};
/* What a merge, a split or a move was asked for; 0 where it has no such argument. */
struct request {
	u64 start;
	u64 end;
	u64 flags;
	u64 uffd;
	u64 policy;
	u64 file;
	u64 pgoff;
	u64 name;
	u64 middle; /* vma_modify(): the VMA that the range is in */
	u64 source; /* of a move: where its range begins, and how long it is */
	u64 source_length;
};
/* What a window must keep. A merge or a split may be inside a move. */
struct keeping {
	u64 mark;    /* of the window */
	u64 outside; /* the range was not in one VMA */
	struct request asked;
	struct vma_attributes wanted; /* of the range, by a merge */
	struct kept_point point[POINTS];
};
#define KEEPING_OF(window) ((window) == WINDOW_move_vma)
/* In the task's storage, as a program can lose its CPU and its stack is small. */
struct attribute_scratch {
	u64 pivot[PIVOTS];
	u64 name[10]; /* ANON_VMA_NAME_MAX_LEN */
	struct vm_area_struct vma;
	struct vma_attributes is;
	u64 lost; /* a bit for each enum kept */
};

/*
 * The VMA at an address, or 0. Only for a task that holds the mmap_lock for write: the tree does
 * not change meanwhile. The search has no branch in a node, so that the verifier follows one path.
 */
static __always_inline vma_t vma_at(struct attribute_scratch *s, mm_t mm, u64 addr)
{
	u64 entry = LOAD(u64, mm.addr + OFFSET(mm_struct, mm_mt) + OFFSET(maple_tree, ma_root));
	if ((entry & MAPLE_ROOT_BITS) != MAPLE_ROOT_IS_NODE)
		return VMA(0);
	entry &= ~MAPLE_ROOT_IS_NODE;
	u64 page = addr >> PAGE_SHIFT;
#pragma nounroll
	for (u32 level = 0; level < MAPLE_LEVELS; level++) {
		u64 node = entry & ~(MAPLE_NODE_BYTES - 1);
		u32 type = MAPLE_TYPE_OF(entry);
		u64 wide = type == MAPLE_ARANGE_64 ? 0 : ~0ULL;
		u64 slot = type == MAPLE_ARANGE_64 ? OFFSET(maple_arange_64, slot) :
						     OFFSET(maple_range_64, slot);
		u64 below = 1;
		bpf_probe_read_kernel(s->pivot, sizeof(s->pivot),
				      (void *)(node + OFFSET(maple_range_64, pivot)));
#pragma unroll
		for (u32 i = 0; i < PIVOTS; i++) {
			/* 0: the node ends here; ~0: it ends with the address space */
			u64 pivot = s->pivot[i];
			if (i >= ARANGE_PIVOTS)
				below &= wide;
			below &= (pivot >> PAGE_SHIFT) - page >> 63 & -pivot >> 63;
			slot += below << 3;
		}
		entry = LOAD(u64, node + slot);
		if (type <= MAPLE_LEAF_64)
			return VMA(entry & 3 ? 0 : entry);
		if (!entry)
			break;
	}
	return VMA(0);
}

static __always_inline u64 is_not_zero(u64 value)
{
	return (value | -value) >> 63;
}

static __always_inline u64 mixed(u64 sum, u64 word)
{
	sum = (sum ^ word) * 0x9e3779b97f4a7c15ULL;
	return sum ^ sum >> 29;
}

/* What mpol_equal() compares; of its nodes the first 64. */
static __always_inline u64 digest_of_policy(u64 policy)
{
	u64 sum = 0;
#ifdef HAVE_mempolicy_mode
	if (!policy)
		return 0;
	u64 mode = READ(mempolicy, policy, mode);
	u64 flags = READ(mempolicy, policy, flags);
	sum = mixed(1, mode << 16 | flags);
	sum = mixed(sum, (u32)READ(mempolicy, policy, home_node));
	if (mode != MPOL_LOCAL)
		sum = mixed(sum, LOAD(u64, policy + OFFSET(mempolicy, nodes)));
	if (flags & MPOL_USER_NODEMASK_FLAGS)
		sum = mixed(sum, LOAD(u64, policy + OFFSET(mempolicy, w)));
#endif
	return sum;
}

static __always_inline u64 digest_of_name(struct attribute_scratch *s, u64 name)
{
	u64 sum = 0;
#ifdef HAVE_anon_vma_name_name
	if (!name)
		return 0;
	__builtin_memset(s->name, 0, sizeof(s->name));
	bpf_probe_read_kernel_str(s->name, sizeof(s->name),
				  (void *)(name + OFFSET(anon_vma_name, name)));
	sum = 1;
#pragma unroll
	for (u32 i = 0; i < 10; i++)
		sum = mixed(sum, s->name[i]);
#endif
	return sum;
}

/* Whether s->vma, which was read in this run, is mapped at an address. */
static __always_inline u32 is_mapped_at(struct attribute_scratch *s, u64 at)
{
	return s->vma.vm_start <= at && at < s->vma.vm_end;
}

/* Read a VMA into s->vma. */
static __always_inline void read_vma(struct attribute_scratch *s, vma_t vma)
{
	s->vma.vm_start = s->vma.vm_end = 0;
	if (vma.addr)
		bpf_probe_read_kernel(&s->vma, sizeof(s->vma), (void *)vma.addr);
}

/* The attributes of s->vma. */
static __always_inline void take_attributes(struct attribute_scratch *s, struct vma_attributes *a)
{
	a->flags = s->vma.vm_flags;
	a->file = (u64)s->vma.vm_file;
	a->offset = s->vma.vm_pgoff - (s->vma.vm_start >> PAGE_SHIFT);
	a->placed = is_not_zero(a->file | (u64)s->vma.anon_vma);
	a->uffd = 0;
#ifdef HAVE_vm_area_struct_uffd
	a->uffd = (u64)s->vma.uffd;
#endif
	a->policy = 0;
#ifdef HAVE_vm_area_struct_vm_policy
	a->policy = digest_of_policy((u64)s->vma.vm_policy);
#endif
	a->name = 0;
#ifdef HAVE_vm_area_struct_anon_name
	a->name = digest_of_name(s, (u64)s->vma.anon_name);
#endif
}

#endif
