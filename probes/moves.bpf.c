/*
 * V7: nothing is mapped where move_page_tables() is about to move page tables to.
 *
 * At its entry the caller holds the mmap_lock for write, and the destination belongs to no VMA, or
 * to one that nothing was mapped in. What stands there is overwritten without being unmapped: the
 * page stays, and mm_counter is wrong from then on. No fault can map anything meanwhile, and a page
 * table that khugepaged takes away is freed after an RCU grace period, so one reading is proof.
 */
#include "rwsem.h"
#include "walk.h"

/* include/linux/mm.h */
#define VM_PFNMAP   0x00000400ULL
#define VM_IO       0x00004000ULL
#define VM_MIXEDMAP 0x10000000ULL

/*
 * munmap() has freed the page tables that lay in the destination as a whole. What is left are those
 * that it shares with its neighbours, two of each level at most: a turn walks to one, and further
 * turns go through its entries.
 */
enum {
	ENTRIES_A_TURN = 64,
	MOST_TURNS = 64
};

enum destination_state {
	DESTINATION_GOES_ON,
	DESTINATION_EMPTY,
	DESTINATION_TAKEN,
	DESTINATION_UNREADABLE
};
struct destination {
	u64 state; /* enum destination_state */
	u64 task;  /* fentry programs can be preempted: another task may use this CPU's meanwhile */
	u64 pgd;
	u64 at; /* the next address to look at, and the one to stop before */
	u64 end;
	u64 entry; /* the last one that a walk ended at, and its level */
	u64 level;
	/* In the copied table: the next index, how many are left (0: walk), and are these all? */
	u64 index;
	u64 left;
	u64 ends;
	u64 shift;
};
struct destination_table {
	u64 entry[PTRS_PER_PTE];
};
BPF_PERCPU_ARRAY(destination, struct destination, 1);
BPF_PERCPU_ARRAY(destination_table, struct destination_table, 1);

/* Walk to d->at. Where nothing is mapped there, copy the table for scan_table(). */
static __always_inline u32 walk_to_destination(struct params *p, struct destination *d,
					       struct destination_table *copy)
{
	struct place_of_entry found = {};
	if (walk_at_once(p, end_of_ram(p), d->pgd, d->at, &found))
		return DESTINATION_UNREADABLE;
	d->entry = found.entry;
	d->level = found.level;
	if (!is_none(p, d->entry))
		return DESTINATION_TAKEN;
	u64 shift = ENTRY_SHIFT(d->level) & 63;
	u64 number = d->at >> shift; /* of the entry, counted from address 0 on */
	u64 index = number & (PTRS_PER_PTE - 1);
	u64 to_end = ((d->end - 1) >> shift) - number;
	u64 in_table = PTRS_PER_PTE - 1 - index;
	u64 table = found.at - 8 * index; /* a small top-level table is not aligned to a page */
	if (!to_end)
		return DESTINATION_EMPTY;
	d->at = (number + 1) << shift;
	d->shift = shift;
	d->index = index + 1;
	d->left = to_end < in_table ? to_end : in_table;
	d->ends = to_end <= in_table;
	if (bpf_probe_read_kernel(copy, sizeof(*copy), (void *)table))
		return DESTINATION_UNREADABLE;
	return DESTINATION_GOES_ON;
}

/*
 * Look at the next entries of the copied table. There is no branch for each of them: these too
 * would be too many for the verifier.
 */
static __always_inline u32 scan_table(struct params *p, struct destination *d,
				      struct destination_table *copy)
{
	u64 ignored = p->format.ignored;
	u64 found = 0; /* number of the first entry that is not none, from 1 on */
	u64 left = d->left;
	u64 index = d->index;
	for (u64 i = 0; i < ENTRIES_A_TURN; i++) {
		u64 entry = copy->entry[(index + i) & (PTRS_PER_PTE - 1)];
		u64 behind = (left - 1 - i) >> 63;
		u64 first = is_set(entry & ~ignored) & ~is_set(found) & ~behind;
		found |= (i + 1) & -(first & 1);
	}
	if (!found && left <= ENTRIES_A_TURN && d->ends)
		return DESTINATION_EMPTY;
	u64 passed = found ? found - 1 : left < ENTRIES_A_TURN ? left : ENTRIES_A_TURN;
	d->at += passed << (d->shift & 63);
	d->index = index + passed;
	d->left = found ? 0 : left - passed; /* 0: walk there */
	return DESTINATION_GOES_ON;
}

static __always_inline void emit_mapped(void *ctx, struct params *p, u64 at, u64 entry, u32 level,
					vma_t vma, mm_t mm)
{
	struct event *e = new_event(DESTINATION_MAPPED);
	if (!e)
		return;
	struct mapped_destination *found = &e->detail.mapped;
	found->mm = mm.addr;
	found->vma = vma.addr;
	found->addr = at;
	found->entry = entry;
	found->level = level;
	if (p->vmemmap && level < 3 && is_present(p, entry, level))
		found->folio = head_page(p, mapped_pfn(p, entry, level));
	e->stack = stack_of(ctx);
	events.ringbuf_submit(e, 0);
}

HOOK(move_destination)
{
	u32 zero = 0;
	struct params *p = open_gate();
	struct destination *d = destination.lookup(&zero);
	struct destination_table *copy = destination_table.lookup(&zero);
	if (!p || !d || !copy)
		return 0;
	vma_t vma = VMA(ARGUMENT(vma));
	u64 from = ARGUMENT(from);
	u64 to = ARGUMENT(to);
	u64 length = ARGUMENT(length);
	/* hugetlb has page tables of its own; a driver may map its pages before any fault. */
	if (!length || READ_VMA(vma, vm_flags) & (VM_HUGETLB | VM_PFNMAP | VM_IO | VM_MIXEDMAP))
		return 0;
	/* execve() moves its stack down by less than its length: pages stand there, its own. */
	if (from < to + length && to < from + length)
		return 0;
	mm_t mm = MM((u64)READ_VMA(vma, vm_mm));
	u64 pgd = (u64)READ_MM(mm, pgd);
	u64 task = bpf_get_current_pid_tgid();
	d->task = task;
	d->pgd = pgd;
	d->at = to;
	d->end = to + length;
	d->left = 0;
	d->state = DESTINATION_UNREADABLE;
	if (p->page_offset && owner_of(mmap_lock_of(mm)) == OWNER_SELF)
		d->state = DESTINATION_GOES_ON;
	for (u32 turn = 0; turn < MOST_TURNS; turn++) {
		if (d->state != DESTINATION_GOES_ON)
			break;
		if (!d->left)
			d->state = walk_to_destination(p, d, copy);
		if (d->state == DESTINATION_GOES_ON)
			d->state = scan_table(p, d, copy);
	}
	u64 state = d->task == task ? d->state : DESTINATION_UNREADABLE;
	u64 at = d->at;
	u64 entry = 0;
	u32 level = 0;
	/* Proven is what a walk finds that shares nothing with another task. */
	if (state == DESTINATION_TAKEN &&
	    (at - to >= length || walk(p, pgd, at, &entry, &level) || is_none(p, entry)))
		state = DESTINATION_UNREADABLE;
	if (state == DESTINATION_TAKEN)
		emit_mapped(ctx, p, at, entry, level, vma, mm);
	count(state == DESTINATION_EMPTY ? V7_HOLDS :
	      state == DESTINATION_TAKEN ? V7_VIOLATED :
					   V7_UNVERIFIABLE);
	return 0;
}
