/*
 * The state audit: programs that are run on demand and check the maple tree of an mm, its VMAs, and
 * their places in the interval trees of mappings and anon_vmas. They read by value, take no lock,
 * cannot fault, and follow no pointer out of the direct map. docs/RACES.md has when a look is
 * believed.
 *
 * audit_nodes takes nodes off a stack, checks each against what its parent states of it, and lists
 * the VMAs of leaves. audit_links takes VMAs off that list: their range, their mm, their
 * anon_vma_chain, and the climb from each rb_node to the root of its tree. Both go on with each
 * other by tail calls; after 33 of them Python runs the next one (audit_look.next).
 *
 * One turn of a loop opens a node, looks at one slot of it, or closes it; it reads a VMA, or goes
 * one step of a climb or a chain. What a turn computes goes into a map, never from turn to turn in
 * a register: the verifier then sees the same state in each turn.
 *
 * Everything that is checked changes under the mmap_lock for write, which the stamps of a look
 * show, but for these:
 * - vma->anon_vma and its chain from none to the first one, by __anon_vma_prepare():
 *   is_being_linked();
 * - nodes of interval trees, under the rwsem of the tree: end_climb();
 * - a stack's start and the tree, by expand_downwards() of kernels before 6.1.37, 6.3.11 and 6.4.1:
 *   only that three looks show the same speaks against it.
 */
#include "audit.h"
#include "rwsem.h"
#include "walk.h"

/* include/linux/maple_tree.h, lib/maple_tree.c */
#define MAPLE_NODE_MASK         255ULL
#define MAPLE_NODE_TYPE_MASK    0x0f
#define MAPLE_NODE_TYPE_SHIFT   3
#define MAPLE_ENODE_NULL        0x04
#define MAPLE_ROOT_NODE         0x02
#define MA_ROOT_PARENT          1
#define MAPLE_PARENT_SLOT_SHIFT 3
#define MAPLE_PARENT_RANGE64    0x06
#define MAPLE_ARANGE64_META_MAX 15 /* up to 6.5: this node has no gap */
#define MT_FLAGS_HEIGHT_OFFSET  2
#define MT_FLAGS_HEIGHT_MASK    0x7c

/* include/linux/xarray.h: what a fork that failed leaves in the child's tree. */
#define XA_ZERO_ENTRY 1030ULL

enum {
	PROGRAM_NODES,
	PROGRAM_LINKS
};
enum {
	NODE_TURNS_A_RUN = 64,
	LINK_TURNS_A_RUN = 32,
	STACK_ROWS_OF_NODES = 512, /* 31 levels, of each at most 9 nodes that wait */
	LISTED_VMAS = 1024,
	LEVELS_OF_CLIMB = 80, /* a red-black tree of 2^40 nodes has no more */
	LONGEST_CHAIN = 1 << 20,
	NODE_WORDS = 32,
	RB_WORDS = 4 /* struct rb_node, and rb_subtree_last behind it */
};
/* What the next turn of audit_links does. */
enum audit_phase {
	PHASE_VMA,
	PHASE_RB_NODE, /* the rb_node that a climb begins at */
	PHASE_CLIMB,
	PHASE_CHAIN,
	PHASE_PAGE
};

#define WORD(type, member)     (OFFSET(type, member) / 8)
#define SLOTS(type)            (WORD(type, slot) - WORD(type, pivot) + 1)
#define LEAF_SLOTS             SLOTS(maple_range_64)
#define ARANGE_SLOTS           SLOTS(maple_arange_64)
#define SMALLEST_LEAF          (LEAF_SLOTS / 2 - 2) /* mt_min_slots[] */
#define SMALLEST_ARANGE        (ARANGE_SLOTS / 2 - 1)
#define SUBTREE_LAST           3 /* index in RB_WORDS */
#define BIT(problem)           (1ULL << (problem))
#define NODE_OF(entry)         ((entry) & ~MAPLE_NODE_MASK)
#define TYPE_OF(entry)         ((entry) >> MAPLE_NODE_TYPE_SHIFT & MAPLE_NODE_TYPE_MASK)
#define IS_NODE(entry)         (((entry) & 0x87) == MAPLE_ENODE_NULL && NODE_OF(entry))
#define PARENT_OF(node, slot)  ((node) | (slot) << MAPLE_PARENT_SLOT_SHIFT | MAPLE_PARENT_RANGE64)
#define MORE_THAN_A_NODE_OF(c) ((c)->listed > LISTED_VMAS - LEAF_SLOTS)
#define PAGES_OF(start, end)   (((end) - (start)) >> PAGE_SHIFT)
#define BYTES_OF(words)        (8 * (words))
#define VMA_BYTES              sizeof(struct vm_area_struct)
#define LONGEST_READ           sizeof(struct audit_vma)
#define VMA_WORDS              (VMA_BYTES / 8 > NODE_WORDS ? VMA_BYTES / 8 : NODE_WORDS)

_Static_assert(WORD(maple_range_64, pivot) == WORD(maple_arange_64, pivot), "pivots");
_Static_assert(OFFSET(vm_area_struct, rb_subtree_last) == OFFSET(vm_area_struct, rb) + 24, "rb");
_Static_assert(OFFSET(anon_vma_chain, rb_subtree_last) == OFFSET(anon_vma_chain, rb) + 24, "rb");

struct audit_words {
	u64 word[NODE_WORDS];
};
/* At least as long as the words of a doubt, so that these can be copied from it. */
struct audit_vma {
	u64 word[VMA_WORDS];
};
/* A node that the look has still to open; entry 0: nothing of it was asked for. */
struct audit_work {
	u64 entry;
	u64 min;
	u64 max;
	u64 gap; /* the parent's */
	u64 parent;
	u64 depth;
};
struct audit_listed {
	u64 vma;
	u64 first;
	u64 last;
};
/* Where a look stands. */
struct audit_cursor {
	u64 floor; /* room_of() */
	u64 room;
	u64 address; /* the one that is read now */
	u64 stacked;
	u64 listed;
	u64 taken;    /* VMAs listed by this look */
	u64 full;     /* the look ends before a VMA, after audit_look.most of them */
	u64 left_out; /* a node was not gone into */
	u64 height;
	u64 null_end; /* behind the last slot, where it was empty; else 0 */
	u64 wrong;    /* problems of what is looked at, and the numbers of the last one */
	u64 want;
	u64 got;
	u64 at; /* the object that is wrong; 0: nothing to report */
	u64 raced;
	u64 protected_by; /* enum audit_lock: of the doubt that the turn ends with */
	/* audit_nodes: the node that is open; 0: none */
	u64 node;
	u64 leaf;
	u64 is_root;
	u64 min;
	u64 max;
	u64 gap;
	u64 depth;
	u64 slots;
	u64 slot_word; /* index of the first slot in the node */
	u64 end;       /* the last slot in use */
	u64 gap_slot;
	u64 slot;
	u64 from; /* first address of that slot */
	u64 biggest;
	u64 named_gap; /* the gap of gap_slot */
	/* audit_links */
	u64 phase;
	u64 next; /* in the list */
	u64 vma;
	u64 first;
	u64 last;
	u64 start; /* the VMA's own */
	u64 end_of_vma;
	u64 anon_vma;
	u64 anon_root;
	u64 chain; /* vma->anon_vma_chain.next */
	u64 pos;
	u64 prev;
	u64 entries;
	u64 own_found;
	/* a climb */
	u64 kind; /* AUDIT_I_MMAP_RWSEM or AUDIT_ANON_VMA_RWSEM */
	u64 rb;
	u64 below; /* the rb_node that the climb has come to, and the one above */
	u64 up;
	u64 root_at;
	u64 lock;
	u64 first_page;
	u64 last_page;
	u64 level;
	u64 writer; /* the tree's lock had one when it was read */
	u64 again;  /* 1: the climb is made a second time; the first one found these */
	u64 was_wrong;
	u64 was_below;
	u64 was_want;
	u64 was_got;
	u64 last_owned; /* the lock that was noted last */
};

BPF_ARRAY(audit_look, struct audit_look, 1);
BPF_ARRAY(audit_doubts, struct audit_doubt, AUDIT_DOUBTS);
BPF_ARRAY(audit_owned, struct audit_owned, AUDIT_OWNED);
BPF_ARRAY(audit_copies, struct audit_copy, AUDIT_COPIES);
BPF_ARRAY(audit_cursor, struct audit_cursor, 1);
BPF_ARRAY(audit_node, struct audit_words, 1);
BPF_ARRAY(audit_vma, struct audit_vma, 1);
BPF_ARRAY(audit_stack, struct audit_work, STACK_ROWS_OF_NODES);
BPF_ARRAY(audit_list, struct audit_listed, LISTED_VMAS);
BPF_PROG_ARRAY(audit_programs, 2);

#ifdef AUDIT_INJECT
struct audit_inject {
	u64 at;
	u64 word;
	u64 flip;
};
BPF_ARRAY(audit_inject, struct audit_inject, 1);
#endif

/*
 * Flip bits of what was read of one object: a fault that the kernel does not have. Only tests
 * compile it in. count: a power of two.
 */
static __always_inline void inject(u64 *words, u32 count, u64 at)
{
#ifdef AUDIT_INJECT
	u32 zero = 0;
	struct audit_inject *fault = audit_inject.lookup(&zero);

	if (fault && fault->at == at)
		words[fault->word & (count - 1)] ^= fault->flip;
#endif
}

/* The same for one word of that object, read by itself. */
static __always_inline void inject_word(u64 *word, u64 at)
{
#ifdef AUDIT_INJECT
	u32 zero = 0;
	struct audit_inject *fault = audit_inject.lookup(&zero);

	if (fault && fault->at && fault->at + 8 * fault->word == at)
		*word ^= fault->flip;
#endif
}

/*
 * The number of words from the floor to the end of RAM; 0: not known. What is looked at are slab
 * objects, and these are in the direct map. Freed memory that is in use again may hold anything,
 * and an address elsewhere (vmalloc, ioremap) could be a register of a device.
 */
static __always_inline u64 room_of(struct params *p)
{
	u64 floor = direct_map_floor(p);

	if (!p->page_offset || p->direct_map_end < floor + LONGEST_READ)
		return 0;
	return (p->direct_map_end - floor) / 8;
}

/*
 * Whether `size` bytes, LONGEST_READ at most, may be read there: to the last word of RAM, which may
 * be an object's. Rotated, the offset of an address that is not aligned is huge. A room of 0 allows
 * nothing if `size` is 8; a longer read must not ask then, as the difference would wrap:
 * audit_start asks for 8 first, and each room but 0 is at least LONGEST_READ.
 */
static __always_inline int may_read(u64 floor, u64 room, u64 at, u32 size)
{
	u64 offset = at - floor;

	return (offset >> 3 | offset << 61) < room - (size - 1) / 8;
}

/*
 * An address that may not be read becomes 0, where a read fails and leaves zeroes. The address goes
 * through a map: both cases are one to the verifier then.
 */
static __always_inline u64 readable(struct audit_cursor *c, u64 at, u32 size)
{
	*(volatile u64 *)&c->address = may_read(c->floor, c->room, at, size) ? at : 0;
	return *(volatile u64 *)&c->address;
}

/* Copy `size` bytes, LONGEST_READ at most. */
static __always_inline int fetch(struct audit_cursor *c, void *to, u32 size, u64 at)
{
	return bpf_probe_read_kernel(to, size, (void *)readable(c, at, size));
}

static __always_inline u64 word_at(struct audit_cursor *c, u64 at)
{
	u64 word = LOAD(u64, readable(c, at, sizeof(word)));

	inject_word(&word, at);
	return word;
}

/* READ() of what the audit came upon, and not of the mm that it was given. */
#define FETCH(c, type, at, member) word_at(c, (at) + OFFSET(type, member))

/* Note a problem, and the numbers that show it. */
static __always_inline void problem(struct audit_cursor *c, u64 which, u64 want, u64 got)
{
	c->wrong |= BIT(which);
	c->want = want;
	c->got = got;
}

/* Have the turn end with a doubt about the object at this address. */
static __always_inline void report(struct audit_cursor *c, u64 at, u64 raced)
{
	c->at = at;
	c->raced = raced;
}

/*
 * Keep what is wrong with one object. vma 0: a node of the tree, or the mm. words: the object as it
 * was read, or 0.
 */
static __always_inline void doubt(struct audit_look *look, struct audit_cursor *c, u64 vma,
				  void *words)
{
	u32 slot = look->doubts;
	struct audit_doubt *d = audit_doubts.lookup(&slot);

	look->doubts = slot + 1;
	if (d) {
		d->problems = c->wrong;
		d->raced = c->raced;
		d->vma = vma;
		d->at = c->at;
		d->want = c->want;
		d->got = c->got;
		d->low = vma ? c->first : c->min;
		d->high = vma ? c->last : c->max;
		d->lock = c->protected_by;
		bpf_probe_read_kernel(&d->words, sizeof(d->words), words);
	}
	c->at = 0;
	c->protected_by = AUDIT_MMAP_LOCK;
}

/* Note a lock that is owned for write. A lock that many VMAs share is noted once in a row. */
static __always_inline void note_owner(struct audit_look *look, struct audit_cursor *c, u64 lock,
				       u64 kind, u64 vma)
{
	u32 slot = look->owned;
	struct audit_owned *o = audit_owned.lookup(&slot);

	if (c->last_owned == lock)
		return;
	c->last_owned = lock;
	look->owned = slot + 1;
	if (!o)
		return;
	o->lock = lock;
	o->owner = FETCH(c, rw_semaphore, lock, owner) & OWNER_TASK;
	o->kind = kind;
	o->mm = look->mm;
	o->vma = vma;
}

/*
 * How often the mmap_lock was taken for write. mm_lock_seq is raised before the lock is released or
 * downgraded (vma_end_write_all(), from 6.14 on mm_lock_seqcount_end()); audit_writer counts where
 * the kernel does not.
 */
static __always_inline u64 writes_of(mm_t mm)
{
#ifdef HAVE_mm_struct_mm_lock_seq
	return (u32)READ_MM(mm, mm_lock_seq);
#else
	u32 slot = AUDIT_WRITER(mm.addr);
	u64 *writes = audit_writes.lookup(&slot);

	return writes ? *writes : 0;
#endif
}

static __always_inline void stamp_before(struct audit_look *look, mm_t mm)
{
	look->users_before = (u32)READ_MM(mm, mm_users);
	look->id_before = mm_id(mm);
#ifdef HAVE_mm_struct_mm_lock_seq
	look->counts_writers = 1;
#endif
	look->seq_before = writes_of(mm);
	READ_BARRIER();
	look->writer_before = is_written(READ_RWSEM(mmap_lock_of(mm), count));
	READ_BARRIER();
	look->map_count_before = (u32)READ_MM(mm, map_count);
}

/* In the opposite order: a writer that is not seen in `count` any more has raised `seq`. */
static __always_inline void stamp_after(struct audit_look *look, mm_t mm)
{
	look->map_count_after = (u32)READ_MM(mm, map_count);
	READ_BARRIER();
	look->writer_after = is_written(READ_RWSEM(mmap_lock_of(mm), count));
	READ_BARRIER();
	look->seq_after = writes_of(mm);
	look->id_after = mm_id(mm);
	READ_BARRIER();
	look->users_after = (u32)READ_MM(mm, mm_users);
}

/* Stamp the mm and put the root of its tree on the stack. */
static __always_inline void begin_look(struct audit_look *look, struct audit_cursor *c)
{
	u32 bottom = 0;
	mm_t mm = MM(look->mm);
	u64 tree = mm.addr + OFFSET(mm_struct, mm_mt);
	struct audit_work *w = audit_stack.lookup(&bottom);

	stamp_before(look, mm);
	if (look->writer_before)
		note_owner(look, c, mmap_lock_of(mm).addr, AUDIT_MMAP_LOCK, 0);
	u64 root = READ(maple_tree, tree, ma_root);
	look->root = root;
	u32 flags = READ(maple_tree, tree, ma_flags);
	c->height = (flags & MT_FLAGS_HEIGHT_MASK) >> MT_FLAGS_HEIGHT_OFFSET;
	c->max = ~0ULL;
	if (!root || !w)
		return;
	/* A single entry at address 0 would stand at the root itself: no mm has it. */
	if (!(root & MAPLE_ROOT_NODE) || !IS_NODE(root & ~MAPLE_ROOT_NODE)) {
		problem(c, TREE_ROOT, MAPLE_ROOT_NODE, root);
		c->left_out = 1;
		report(c, tree, 0);
		doubt(look, c, 0, 0);
		return;
	}
	w->entry = root & ~MAPLE_ROOT_NODE;
	w->min = 0;
	w->max = ~0ULL;
	w->gap = 0;
	w->parent = tree | MA_ROOT_PARENT;
	w->depth = 1;
	c->stacked = 1;
}

/* Begin a look. args: the mm, the first and the last address, the most VMAs (0: no limit). */
HOOK(audit_start)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct audit_look *look = audit_look.lookup(&zero);
	struct audit_cursor *c = audit_cursor.lookup(&zero);

	if (!p || !look || !c)
		return 0;
	__builtin_memset(look, 0, sizeof(*look));
	__builtin_memset(c, 0, sizeof(*c));
	look->mm = ctx->args[0];
	look->low = ctx->args[1];
	look->high = ctx->args[2];
	look->most = ctx->args[3];
	look->next = AUDIT_ASTRAY;
	c->floor = direct_map_floor(p);
	c->room = room_of(p);
	if (!may_read(c->floor, c->room, look->mm, sizeof(u64)))
		return 0;
	begin_look(look, c);
	look->next = AUDIT_NODES;
	audit_programs.call(ctx, PROGRAM_NODES);
	return 0;
}

/* The last slot in use: ma_data_end(). */
static __always_inline u64 end_of_leaf(struct audit_words *node, u64 max)
{
	u64 last = node->word[WORD(maple_range_64, pivot) + LEAF_SLOTS - 2];

	if (!last)
		return node->word[WORD(maple_range_64, meta)] & 0xff;
	return last == max ? LEAF_SLOTS - 2 : LEAF_SLOTS - 1;
}

/* Find the slots that are in use, and the one that the metadata names for the largest gap. */
static __always_inline void measure_node(struct audit_look *look, struct audit_cursor *c,
					 struct audit_words *node)
{
	if (c->leaf) {
		look->leaves += 1;
		c->slots = LEAF_SLOTS;
		c->slot_word = WORD(maple_range_64, slot);
		c->gap_slot = MAPLE_ARANGE64_META_MAX;
		c->end = end_of_leaf(node, c->max);
		if (c->end < SMALLEST_LEAF && !c->is_root)
			look->small_nodes += 1;
	} else {
		u64 meta = node->word[WORD(maple_arange_64, meta)];
		c->slots = ARANGE_SLOTS;
		c->slot_word = WORD(maple_arange_64, slot);
		c->gap_slot = meta >> 8 & 0xff;
		c->end = meta & 0xff;
		if (c->end < SMALLEST_ARANGE && !c->is_root)
			look->small_nodes += 1;
	}
	if (c->end > c->slots - 1)
		problem(c, NODE_END, c->slots - 1, c->end);
	else if (!c->leaf && c->gap_slot > c->end && c->gap_slot != MAPLE_ARANGE64_META_MAX)
		problem(c, NODE_END, c->end, c->gap_slot);
}

/* Take a node off the stack, read it, and check what it is. */
static __always_inline void open_node(struct audit_look *look, struct audit_cursor *c,
				      struct audit_words *node)
{
	u32 top = c->stacked - 1;
	struct audit_work *w = audit_stack.lookup(&top);

	c->stacked = top;
	if (!w || !w->entry || w->min > look->high)
		return;
	u64 entry = w->entry;
	u64 at = NODE_OF(entry);
	u64 type = TYPE_OF(entry);
	look->nodes += 1;
	c->wrong = 0;
	c->min = w->min;
	c->max = w->max;
	c->gap = w->gap;
	c->depth = w->depth;
	c->is_root = w->parent & MA_ROOT_PARENT;
	c->from = w->min;
	c->slot = 0;
	c->biggest = 0;
	c->named_gap = 0;
	c->leaf = type == MAPLE_LEAF_64;
	if (fetch(c, node, sizeof(*node), at)) {
		problem(c, NODE_UNREADABLE, 0, entry);
		c->left_out = 1;
		report(c, at, 0);
		return;
	}
	inject(node->word, NODE_WORDS, at);
	u64 parent = node->word[0];
	if (NODE_OF(parent) == at)
		problem(c, NODE_DEAD, w->parent, parent);
	else if (parent != w->parent)
		problem(c, NODE_PARENT, w->parent, parent);
	if (w->depth > c->height)
		problem(c, NODE_TOO_DEEP, c->height, w->depth);
	else if (type != (w->depth == c->height ? MAPLE_LEAF_64 : MAPLE_ARANGE_64))
		problem(c, NODE_TYPE, c->height - w->depth, type);
	else if (!(c->wrong & BIT(NODE_DEAD)))
		measure_node(look, c, node);
	if (c->wrong & ~BIT(NODE_PARENT)) { /* what it holds means nothing then */
		c->left_out = 1;
		c->null_end = 0;
		report(c, at, 0);
		return;
	}
	c->node = at;
}

/*
 * Nothing may stand behind the last slot in use, but for the metadata in a leaf's last slot and a
 * stale last pivot: mas_validate_limits() forgives both.
 */
static __always_inline void check_unused_slot(struct audit_cursor *c, struct audit_words *node,
					      u64 slot, u64 pivot)
{
	u64 i = c->slot - 1;

	if (i < c->slots - 1 && slot)
		problem(c, NODE_BEYOND_END, 0, slot);
	if (i < c->slots - 2 && pivot)
		problem(c, NODE_BEYOND_END, 0, pivot);
	if (!c->leaf && node->word[(WORD(maple_arange_64, gap) + i) & (NODE_WORDS - 1)])
		problem(c, NODE_BEYOND_END, c->end, i);
}

/* A slot of a leaf: list its VMA where that was asked for. Returns its gap. */
static __always_inline u64 take_entry(struct audit_look *look, struct audit_cursor *c, u64 entry,
				      u64 from, u64 pivot)
{
	if (!entry) {
		if (c->null_end && c->null_end == from)
			problem(c, NODE_TWO_EMPTY, from, pivot);
		c->null_end = pivot + 1;
		return pivot - from + 1;
	}
	c->null_end = 0;
	if (pivot < look->low || from > look->high)
		return 0;
	if (look->most && c->taken >= look->most) {
		if (!c->full && from > look->low)
			look->high = from - 1;
		c->full = 1;
		return 0;
	}
	u32 slot = c->listed;
	struct audit_listed *l = audit_list.lookup(&slot);
	if (!l)
		return 0;
	l->vma = entry;
	l->first = from;
	l->last = pivot;
	c->listed = slot + 1;
	c->taken += 1;
	return 0;
}

/*
 * A slot of an inner node: its child goes onto the stack, the first one on top, so leaves are met
 * in the order of addresses. Returns the gap that the slot states; 1 in `*astray` where the stack,
 * which holds a whole tree's worst case, is full.
 */
static __always_inline u64 take_child(struct audit_look *look, struct audit_cursor *c,
				      struct audit_words *node, u64 entry, u64 from, u64 pivot,
				      u32 *astray)
{
	u64 i = c->slot - 1;
	u64 gap = node->word[(WORD(maple_arange_64, gap) + i) & (NODE_WORDS - 1)];
	u32 place = c->stacked + c->end - i;
	struct audit_work *w = audit_stack.lookup(&place);

	if (!IS_NODE(entry))
		problem(c, NODE_CHILD, 0, entry);
	if (gap > pivot - from + 1)
		problem(c, NODE_GAP, pivot - from + 1, gap);
	if (!w) {
		*astray = 1;
		return gap;
	}
	w->entry = pivot < look->low || from > look->high ? 0 : entry;
	w->min = from;
	w->max = pivot;
	w->gap = gap;
	w->parent = PARENT_OF(c->node, i);
	w->depth = c->depth + 1;
	return gap;
}

/* Look at the next slot of the open node. */
static __always_inline u32 take_slot(struct audit_look *look, struct audit_cursor *c,
				     struct audit_words *node)
{
	u64 i = c->slot;
	u64 end = c->end;
	u64 from = c->from;
	u64 max = c->max;
	u32 astray = 0;
	u64 slot = node->word[(c->slot_word + i) & (NODE_WORDS - 1)];
	u64 pivot = max;

	if (i < c->slots - 1)
		pivot = node->word[(WORD(maple_range_64, pivot) + i) & (NODE_WORDS - 1)];
	c->slot = i + 1;
	if (i > end) {
		check_unused_slot(c, node, slot, pivot);
		return 0;
	}
	if (i == end) {
		if (!pivot)
			pivot = max; /* not written: the parent's stands for it */
		if (pivot != max)
			problem(c, NODE_END, max, pivot);
	}
	if (pivot < from || pivot > max || (i < end && pivot == max))
		problem(c, NODE_PIVOT, from, pivot);
	u64 gap = c->leaf ? take_entry(look, c, slot, from, pivot) :
			    take_child(look, c, node, slot, from, pivot, &astray);
	if (gap > c->biggest)
		c->biggest = gap;
	if (i == c->gap_slot)
		c->named_gap = gap;
	c->from = pivot + 1;
	return astray;
}

/* All slots were seen: mas_validate_gaps() for the node, and its children may be opened. */
static __always_inline void close_node(struct audit_cursor *c)
{
	u64 named = c->gap_slot == MAPLE_ARANGE64_META_MAX ? 0 : c->named_gap;

	if (!c->leaf && named != c->biggest)
		problem(c, NODE_GAP_SLOT, c->biggest, named);
	if (!c->is_root && c->biggest != c->gap)
		problem(c, NODE_GAP_OF_PARENT, c->biggest, c->gap);
	if (c->wrong)
		report(c, c->node, 0);
	if (!c->leaf) {
		if (c->wrong & (BIT(NODE_PIVOT) | BIT(NODE_CHILD))) {
			c->left_out = 1;
			c->null_end = 0;
		} else {
			c->stacked += c->end + 1;
		}
	}
	c->node = 0;
}

HOOK(audit_nodes)
{
	u32 zero = 0;
	struct audit_look *look = audit_look.lookup(&zero);
	struct audit_cursor *c = audit_cursor.lookup(&zero);
	struct audit_words *node = audit_node.lookup(&zero);

	if (!look || !c || !node)
		return 0;
	for (u32 turn = 0; turn < NODE_TURNS_A_RUN; turn++) {
		if (!c->node) {
			if (!c->stacked || MORE_THAN_A_NODE_OF(c)) {
				look->next = AUDIT_LINKS;
				audit_programs.call(ctx, PROGRAM_LINKS);
				return 0;
			}
			open_node(look, c, node);
		} else if (c->slot >= c->slots) {
			close_node(c);
		} else if (take_slot(look, c, node)) {
			look->next = AUDIT_ASTRAY;
			return 0;
		}
		if (c->at)
			doubt(look, c, 0, node);
	}
	look->next = AUDIT_NODES;
	audit_programs.call(ctx, PROGRAM_NODES);
	return 0;
}

/* vma_start_anon_pgoff(): what the interval tree of an anon_vma is sorted by. */
static __always_inline u64 anon_pgoff(struct audit_cursor *c, u64 vma)
{
#if defined(HAVE_vm_area_struct_anon_pgoff_lo) && defined(HAVE_vm_area_struct_anon_pgoff_hi)
	/* A private file mapping has a number of its own from 7.3 on, in two places. */
	vma = readable(c, vma, VMA_BYTES);
	return (u32)READ(vm_area_struct, vma, anon_pgoff_lo) |
	       (u64)(u32)READ(vm_area_struct, vma, anon_pgoff_hi) << 32;
#else
	return FETCH(c, vm_area_struct, vma, vm_pgoff);
#endif
}

/* Read the lock of the climb's tree, and note that it has a writer. */
static __always_inline void read_lock_of_tree(struct audit_look *look, struct audit_cursor *c)
{
	READ_BARRIER();
	u64 count = FETCH(c, rw_semaphore, c->lock, count);
	READ_BARRIER();
	if (!is_written(count))
		return;
	c->writer = 1;
	note_owner(look, c, c->lock, c->kind, c->vma);
}

/* Prepare the climb from an rb_node whose interval is `pages` pages from `first` on. */
static __always_inline void begin_climb(struct audit_look *look, struct audit_cursor *c, u64 kind,
					u64 rb, u64 root_at, u64 lock, u64 first, u64 pages)
{
	c->kind = kind;
	c->rb = rb;
	c->below = rb;
	c->root_at = root_at;
	c->lock = lock;
	c->first_page = first;
	c->last_page = first + pages - 1;
	c->level = 0;
	c->writer = 0;
	c->again = 0;
	c->phase = PHASE_RB_NODE;
	look->climbs += 1;
}

/*
 * Whether the VMA's first anon_vma may just be being linked. __anon_vma_prepare() (mm/rmap.c) does
 * it under the mmap_lock for read only, with the root's rwsem held for write. A writer that is
 * under way has the lock; one that is done has changed what was read. Read in this order.
 */
static __always_inline u64 is_being_linked(struct audit_cursor *c)
{
	READ_BARRIER();
	u64 now = FETCH(c, vm_area_struct, c->vma, anon_vma);
	u64 root = FETCH(c, anon_vma, now, root);
	u64 count = word_at(c, root + OFFSET(anon_vma, rwsem) + OFFSET(rw_semaphore, count));

	READ_BARRIER();
	return is_written(count) || now != c->anon_vma ||
	       FETCH(c, vm_area_struct, c->vma, anon_vma) != c->anon_vma ||
	       FETCH(c, vm_area_struct, c->vma, anon_vma_chain) != c->chain;
}

/* Take the next VMA off the list: its range, its mm, its anon_vma, and the climb of its file. */
static __always_inline void take_vma(struct audit_look *look, struct audit_cursor *c,
				     struct audit_vma *v)
{
	u32 slot = c->next;
	struct audit_listed *l = audit_list.lookup(&slot);

	if (!l)
		return;
	c->next = slot + 1;
	u64 vma = l->vma;
	if (vma == XA_ZERO_ENTRY) {
		look->special += 1;
		return;
	}
	look->vmas += 1;
	c->wrong = 0;
	c->vma = vma;
	c->first = l->first;
	c->last = l->last;
	if (fetch(c, v, VMA_BYTES, vma)) {
		problem(c, VMA_UNREADABLE, 0, vma);
		report(c, vma, 0);
		return;
	}
	inject(v->word, NODE_WORDS, vma);
	u64 start = v->word[WORD(vm_area_struct, vm_start)];
	u64 end = v->word[WORD(vm_area_struct, vm_end)];
	u64 file = v->word[WORD(vm_area_struct, vm_file)];
	u64 anon_vma = v->word[WORD(vm_area_struct, anon_vma)];
	u64 chain = v->word[WORD(vm_area_struct, anon_vma_chain)];
	c->anon_vma = anon_vma;
	c->chain = chain;
	u64 head = vma + OFFSET(vm_area_struct, anon_vma_chain);
	u64 raced = 0;
	if (v->word[WORD(vm_area_struct, vm_mm)] != look->mm)
		problem(c, VMA_MM, look->mm, v->word[WORD(vm_area_struct, vm_mm)]);
	if (start != c->first)
		problem(c, VMA_RANGE, c->first, start);
	else if (end != c->last + 1 || (start | end) & ~PAGE_MASK || start >= end)
		problem(c, VMA_RANGE, c->last + 1, end);
	if (!anon_vma != (chain == head)) {
		problem(c, VMA_ANON_VMA, anon_vma, chain);
		raced = is_being_linked(c);
	}
	if (c->wrong)
		report(c, vma, raced);
	/* Another mm's VMA, or one in the wrong place: its trees are no business of this slot. */
	if (c->wrong & (BIT(VMA_RANGE) | BIT(VMA_MM)))
		return;
	c->start = start;
	c->end_of_vma = end;
	c->anon_root = FETCH(c, anon_vma, anon_vma, root);
	c->pos = chain;
	c->prev = head;
	c->entries = 0;
	c->own_found = 0;
	c->phase = PHASE_CHAIN;
	if (!file)
		return;
	u64 mapping = FETCH(c, file, file, f_mapping);
	look->files += 1;
	begin_climb(look, c, AUDIT_I_MMAP_RWSEM, vma + OFFSET(vm_area_struct, rb),
		    mapping + OFFSET(address_space, i_mmap_node),
		    mapping + OFFSET(address_space, i_mmap_rwsem),
		    v->word[WORD(vm_area_struct, vm_pgoff)], PAGES_OF(start, end));
}

/* The rb_node that a climb begins at: the end of its subtree is the largest one below. */
static __always_inline void check_rb_node(struct audit_look *look, struct audit_cursor *c)
{
	u64 rb[RB_WORDS] = {};
	u64 at = c->rb;
	u64 last = c->last_page;
	u64 left = 0;
	u64 right = 0;

	c->phase = PHASE_CLIMB;
	c->wrong = 0;
	c->up = 0;
	read_lock_of_tree(look, c);
	if (fetch(c, rb, sizeof(rb), at)) {
		problem(c, INTERVAL_UNREADABLE, 0, at);
		return;
	}
	inject(rb, RB_WORDS, at);
	/* RB_CLEAR_NODE(), or never inserted: a root is black, so its word is not 0. */
	if (rb[WORD(rb_node, parent)] == at || !rb[WORD(rb_node, parent)]) {
		problem(c, INTERVAL_UNLINKED, 0, rb[WORD(rb_node, parent)]);
		return;
	}
	if (rb[WORD(rb_node, rb_left)])
		left = word_at(c, rb[WORD(rb_node, rb_left)] + BYTES_OF(SUBTREE_LAST));
	if (rb[WORD(rb_node, rb_right)])
		right = word_at(c, rb[WORD(rb_node, rb_right)] + BYTES_OF(SUBTREE_LAST));
	if (left > last)
		last = left;
	if (right > last)
		last = right;
	if (rb[SUBTREE_LAST] != last)
		problem(c, INTERVAL_SUBTREE, last, rb[SUBTREE_LAST]);
	c->up = rb[WORD(rb_node, parent)] & ~3ULL;
}

/* The first page of the interval that the rb_node `up` stands for. */
static __always_inline u64 key_of(struct audit_cursor *c, u64 up)
{
	if (c->kind == AUDIT_I_MMAP_RWSEM)
		return FETCH(c, vm_area_struct, up - OFFSET(vm_area_struct, rb), vm_pgoff);
	return anon_pgoff(c, FETCH(c, anon_vma_chain, up - OFFSET(anon_vma_chain, rb), vma));
}

/* One level up: we are that node's child, on the right side of it, and inside its subtree's end. */
static __always_inline void climb(struct audit_look *look, struct audit_cursor *c)
{
	u64 rb[RB_WORDS] = {};
	u64 below = c->below;
	u64 up = c->up;

	look->levels += 1;
	c->level += 1;
	c->below = up;
	if (c->level > LEVELS_OF_CLIMB) {
		problem(c, INTERVAL_TOO_DEEP, LEVELS_OF_CLIMB, c->level);
		return;
	}
	if (fetch(c, rb, sizeof(rb), up)) {
		problem(c, INTERVAL_UNREADABLE, 0, up);
		return;
	}
	inject(rb, RB_WORDS, up);
	u64 key = key_of(c, up);
	if (rb[WORD(rb_node, rb_left)] == below) {
		if (c->first_page > key)
			problem(c, INTERVAL_ORDER, key, c->first_page);
	} else if (rb[WORD(rb_node, rb_right)] == below) {
		if (c->first_page < key)
			problem(c, INTERVAL_ORDER, key, c->first_page);
	} else {
		problem(c, INTERVAL_NO_CHILD, below, rb[WORD(rb_node, rb_left)]);
	}
	if (rb[SUBTREE_LAST] < c->last_page)
		problem(c, INTERVAL_COVER, c->last_page, rb[SUBTREE_LAST]);
	c->up = rb[WORD(rb_node, parent)] & ~3ULL;
}

/*
 * The climb is at its root, or found something wrong. Then it is made once more: a lock's count
 * does not tell of a writer that came and went between two readings of it. What both climbs read,
 * with no writer at the moment between them, was there at that moment.
 */
static __always_inline void end_climb(struct audit_look *look, struct audit_cursor *c)
{
	/* mm_take_all_locks() sets the lowest bit of an anon_vma's root. */
	u64 root = word_at(c, c->root_at) & ~1ULL;

	if (!c->wrong && root != c->below)
		problem(c, INTERVAL_TREE, root, c->below);
	read_lock_of_tree(look, c);
	if (c->wrong && !c->again) {
		c->again = 1;
		c->was_wrong = c->wrong;
		c->was_below = c->below;
		c->was_want = c->want;
		c->was_got = c->got;
		c->below = c->rb;
		c->level = 0;
		c->phase = PHASE_RB_NODE;
		return;
	}
	u64 changed = c->again && (c->was_wrong != c->wrong || c->was_below != c->below ||
				   c->was_want != c->want || c->was_got != c->got);
	if (c->writer || changed)
		look->raced_climbs += 1;
	if (c->wrong) {
		report(c, c->below, c->writer || changed);
		c->protected_by = c->kind;
	}
	if (c->level > look->deepest)
		look->deepest = c->level;
	c->phase = PHASE_CHAIN;
}

/* The chain is at its end. */
static __always_inline void end_chain(struct audit_look *look, struct audit_cursor *c)
{
	if (c->entries > look->longest)
		look->longest = c->entries;
	c->phase = c->anon_vma ? PHASE_PAGE : PHASE_VMA;
	/* Without an entry the VMA itself is wrong, and named so. */
	if (!c->anon_vma || c->own_found || !c->entries)
		return;
	c->wrong = 0;
	problem(c, CHAIN_LACKS_OWN, c->anon_vma, c->entries);
	report(c, c->vma, is_being_linked(c));
}

/* The next anon_vma_chain of the VMA. */
static __always_inline u32 take_chain_entry(struct audit_look *look, struct audit_cursor *c)
{
	u64 entry[RB_WORDS] = {};
	u64 pos = c->pos;
	u64 at = pos - OFFSET(anon_vma_chain, next);

	_Static_assert(OFFSET(anon_vma_chain, prev) < sizeof(entry), "anon_vma_chain");
	if (pos == c->vma + OFFSET(vm_area_struct, anon_vma_chain)) {
		end_chain(look, c);
		return 0;
	}
	c->wrong = 0;
	c->entries += 1;
	look->chain_entries += 1;
	if (c->entries > LONGEST_CHAIN)
		return 1;
	if (fetch(c, entry, sizeof(entry), at)) {
		problem(c, CHAIN_UNREADABLE, 0, at);
		report(c, at, is_being_linked(c));
		c->phase = PHASE_VMA;
		return 0;
	}
	inject(entry, RB_WORDS, at);
	u64 anon_vma = entry[WORD(anon_vma_chain, anon_vma)];
	u64 root = FETCH(c, anon_vma, anon_vma, root);
	if (entry[WORD(anon_vma_chain, vma)] != c->vma)
		problem(c, CHAIN_VMA, c->vma, entry[WORD(anon_vma_chain, vma)]);
	if (c->anon_root && root != c->anon_root)
		problem(c, CHAIN_ROOT, c->anon_root, root);
	if (entry[WORD(anon_vma_chain, prev)] != c->prev)
		problem(c, CHAIN_LIST, c->prev, entry[WORD(anon_vma_chain, prev)]);
	if (anon_vma == c->anon_vma)
		c->own_found = 1;
	if (c->wrong) {
		u64 raced = is_being_linked(c) ||
			    FETCH(c, anon_vma_chain, at, anon_vma) != anon_vma ||
			    FETCH(c, anon_vma_chain, at, vma) != entry[WORD(anon_vma_chain, vma)];
		report(c, at, raced);
		/* Without a way back the list need not end at its head. */
		if (c->wrong & BIT(CHAIN_LIST)) {
			c->phase = PHASE_VMA;
			return 0;
		}
	}
	c->prev = pos;
	c->pos = entry[WORD(anon_vma_chain, next)];
	if (!c->wrong)
		begin_climb(look, c, AUDIT_ANON_VMA_RWSEM, at + OFFSET(anon_vma_chain, rb),
			    anon_vma + OFFSET(anon_vma, rb_node), root + OFFSET(anon_vma, rwsem),
			    anon_pgoff(c, c->vma), PAGES_OF(c->start, c->end_of_vma));
	return 0;
}

/* An anon page that is mapped at an address: what rmap finds its place by. */
struct mapped_page {
	u64 entry;
	u64 head;  /* its folio; 0: no anon page is mapped there */
	u64 index; /* of the page: folio->index and its number in the folio */
};

/*
 * Read what is mapped at an address. KSM pages have no index of this VMA. struct pages are read up
 * to that of the last RAM: vmemmap has no device memory in it.
 */
static __always_inline void read_mapped(struct audit_cursor *c, struct params *p, u64 pgd, u64 addr,
					struct mapped_page *m)
{
	struct place_of_entry found = {};
	u64 frames = (p->direct_map_end - p->page_offset) >> PAGE_SHIFT;
	u64 mapping = 0;
	u64 index = 0;

	m->entry = 0;
	m->head = 0;
	if (walk_at_once(p, end_of_ram(p), pgd, addr, &found))
		return;
	m->entry = found.entry;
	if (found.level > 2 || is_special(p, found.entry) ||
	    !is_present(p, found.entry, found.level))
		return;
	u64 pfn = mapped_pfn(p, found.entry, found.level);
	if (found.level > 1)
		pfn += PTE_INDEX(addr);
	if (pfn >= frames)
		return;
	u64 head = head_page(p, pfn);
	u64 number = (page_of(p, pfn) - head) / sizeof(struct page);
	if (number >= frames)
		return; /* not a head page: it is being freed */
	if (bpf_probe_read_kernel(&mapping, 8, (void *)(head + OFFSET(folio, mapping))) ||
	    bpf_probe_read_kernel(&index, 8, (void *)(head + OFFSET(folio, index))) ||
	    (mapping & PAGE_MAPPING_FLAGS) != PAGE_MAPPING_ANON || !(mapping & ~PAGE_MAPPING_FLAGS))
		return; /* without an anon_vma it is PAGE_MAPPING_DAX_SHARED, of 6.1 to 6.14 */
	inject_word(&index, head + OFFSET(folio, index));
	m->head = head;
	m->index = index + number;
}

/*
 * R4: the anon page at one address of the VMA. The page table lock protects the entry, and the
 * entry the index: where both are the same in a second reading, they belonged together. Each look
 * takes another address; one that is about a single page takes that one.
 */
static __always_inline void sample_page(struct audit_look *look, struct audit_cursor *c,
					struct params *p, struct audit_vma *v)
{
	struct mapped_page m = {};
	struct mapped_page again = {};
	u64 low = c->first > look->low ? c->first : look->low & PAGE_MASK;
	u64 high = c->last < look->high ? c->last : look->high;
	u64 pages = ((high - low) >> PAGE_SHIFT) + 1;

	c->phase = PHASE_VMA;
	if (!p->vmemmap || v->word[WORD(vm_area_struct, vm_flags)] & VM_HUGETLB)
		return;
	if (pages > (u32)~0)
		pages = (u32)~0;
	u64 addr = low + ((u64)bpf_get_prandom_u32() * pages >> 32 << PAGE_SHIFT);
	u64 pgd = FETCH(c, mm_struct, look->mm, pgd);
	look->samples += 1;
	read_mapped(c, p, pgd, addr, &m);
	if (!m.head)
		return;
	look->anon_pages += 1;
	/* linear_page_index(), from 7.3 on linear_anon_page_index() */
	u64 index = anon_pgoff(c, c->vma) +
		    ((addr - FETCH(c, vm_area_struct, c->vma, vm_start)) >> PAGE_SHIFT);
	if (index == m.index)
		return;
	READ_BARRIER();
	read_mapped(c, p, pgd, addr, &again);
	c->wrong = 0;
	c->first = addr;
	c->last = addr | ~PAGE_MASK;
	problem(c, PAGE_INDEX, index, m.index);
	report(c, m.head, again.entry != m.entry || again.head != m.head || again.index != m.index);
}

/* The look is at its end: stamp the mm again, and compare the number of VMAs. */
static __always_inline void end_look(struct audit_look *look, struct audit_cursor *c)
{
	stamp_after(look, MM(look->mm));
	look->next = AUDIT_DONE;
	look->left_out = c->left_out;
	if (look->low || ~look->high || c->full || c->left_out)
		return; /* VMAs may be where it did not look */
	if (look->vmas == look->map_count_after)
		return;
	c->wrong = 0;
	c->min = 0;
	c->max = ~0ULL;
	problem(c, MAP_COUNT, look->vmas, look->map_count_after);
	report(c, look->mm, 0);
	doubt(look, c, 0, 0);
}

HOOK(audit_links)
{
	u32 zero = 0;
	struct audit_look *look = audit_look.lookup(&zero);
	struct audit_cursor *c = audit_cursor.lookup(&zero);
	struct audit_vma *v = audit_vma.lookup(&zero);
	struct params *p = params.lookup(&zero);

	if (!look || !c || !v || !p)
		return 0;
	for (u32 turn = 0; turn < LINK_TURNS_A_RUN; turn++) {
		if (c->phase == PHASE_VMA) {
			if (c->next >= c->listed)
				break;
			take_vma(look, c, v);
		} else if (c->phase == PHASE_RB_NODE) {
			check_rb_node(look, c);
		} else if (c->phase == PHASE_CLIMB) {
			if (!c->up || c->wrong)
				end_climb(look, c);
			else
				climb(look, c);
		} else if (c->phase == PHASE_PAGE) {
			sample_page(look, c, p, v);
		} else if (take_chain_entry(look, c)) {
			look->next = AUDIT_ASTRAY;
			return 0;
		}
		if (c->at)
			doubt(look, c, c->vma, v);
	}
	if (c->phase != PHASE_VMA || c->next < c->listed) {
		look->next = AUDIT_LINKS;
		audit_programs.call(ctx, PROGRAM_LINKS);
		return 0;
	}
	c->listed = 0;
	c->next = 0;
	if (!c->stacked) {
		end_look(look, c);
		return 0;
	}
	look->next = AUDIT_NODES;
	audit_programs.call(ctx, PROGRAM_NODES);
	return 0;
}

/* Copy kernel memory. args: the first copy, and the one to stop before. */
HOOK(audit_copy)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);

	if (!p)
		return 0;
	for (u32 i = 0; i < AUDIT_COPIES_A_RUN; i++) {
		u32 slot = ctx->args[0] + i;
		struct audit_copy *copy = audit_copies.lookup(&slot);
		if (!copy || slot >= ctx->args[1])
			break;
		u64 at = copy->at, room = room_of(p);
		if (!room || !may_read(direct_map_floor(p), room, at, sizeof(copy->words)))
			at = 0;
		if (bpf_probe_read_kernel(&copy->words, sizeof(copy->words), (void *)at))
			copy->at = 0;
	}
	return 0;
}
