// SPDX-License-Identifier: GPL-2.0
/*
 * Corrupts the maple tree, the VMAs and the rmap trees of one sleeping process on purpose, in a
 * guest of rmapd's tests only. The module does not load unless the kernel command line has
 * rmapd_faults=guest. It changes data and no code, so it builds for each kernel of the ladder.
 *
 * `echo NAME PID ADDRESS > parameters/corrupt` corrupts what belongs to the VMA at ADDRESS (hex) of
 * process PID; `echo undo > parameters/corrupt` restores it. One fault at a time. The process must
 * sleep meanwhile: nothing here keeps it from using what is corrupt.
 */
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>

#include "guest.h"

/*
 * Not exported: their addresses are found when the module is loaded. The second argument is the
 * rb_root_cached of the tree, from 7.3 on its owner.
 */
static void (*anon_tree_remove)(struct anon_vma_chain *avc, void *tree);
static void (*anon_tree_insert)(struct anon_vma_chain *avc, void *tree);
static void (*file_tree_remove)(struct vm_area_struct *vma, void *tree);
static void (*file_tree_insert)(struct vm_area_struct *vma, void *tree);
static bool by_owner;

static void *tree_of(struct anon_vma *anon_vma)
{
	return by_owner ? (void *)anon_vma : &anon_vma->rb_root;
}

static void *tree_of_file(struct address_space *mapping)
{
	return by_owner ? (void *)mapping : &mapping->i_mmap;
}

/* A VMA and the way to it. */
struct place {
	struct mm_struct *mm;
	unsigned long address;
	struct vm_area_struct *vma;
	struct anon_vma_chain *avc; /* the first one of the VMA's chain, or NULL */
	struct maple_node *parent;  /* the node above the leaf */
	unsigned int parent_slot;   /* the slot of the parent that leads to the leaf */
	struct maple_node *leaf;
	unsigned int slot; /* the slot of the leaf that leads to the VMA */
};

/* What the fault changed, to be restored. */
static struct place corrupt_place;
static void (*restore)(struct place *place);
static unsigned long was;

/* lib/maple_tree.c: mte_to_node(), mte_node_type(), xa_is_node(); a node is aligned to 256. */
static struct maple_node *node_of(void *entry)
{
	return (struct maple_node *)((unsigned long)entry & ~255UL);
}

static unsigned int type_of(void *entry)
{
	return ((unsigned long)entry >> 3) & 15;
}

/* The slot with the first pivot that is not below the address; a pivot of 0 is behind the last. */
static unsigned int slot_for(const unsigned long *pivots, unsigned int count, unsigned long address)
{
	unsigned int slot = 0;

	while (slot < count && pivots[slot] && pivots[slot] < address)
		slot++;
	return slot;
}

static int find_place(struct place *place, unsigned long address)
{
	void *entry = place->mm->mm_mt.ma_root;

	if (((unsigned long)entry & 3) != 2) /* a tree of one entry or none */
		return -EINVAL;
	while (type_of(entry) == maple_arange_64) {
		struct maple_node *node = node_of(entry);

		place->parent = node;
		place->parent_slot = slot_for(node->ma64.pivot, MAPLE_ARANGE64_SLOTS - 1, address);
		entry = node->ma64.slot[place->parent_slot];
	}
	if (type_of(entry) != maple_leaf_64 || !place->parent)
		return -EINVAL;
	place->leaf = node_of(entry);
	place->slot = slot_for(place->leaf->mr64.pivot, MAPLE_RANGE64_SLOTS - 1, address);
	place->vma = place->leaf->mr64.slot[place->slot];
	if (!place->vma || place->vma->vm_start > address || place->vma->vm_end <= address)
		return -EINVAL;
	place->avc = list_first_entry_or_null(&place->vma->anon_vma_chain, struct anon_vma_chain,
					      same_vma);
	return 0;
}

static void restore_gap(struct place *place)
{
	place->parent->ma64.gap[place->parent_slot] = was;
}

static int change_gap(struct place *place, long by)
{
	was = place->parent->ma64.gap[place->parent_slot];
	if (was < PAGE_SIZE)
		return -EINVAL;
	place->parent->ma64.gap[place->parent_slot] = was + by;
	restore = restore_gap;
	return 0;
}

static int gap_large(struct place *place)
{
	return change_gap(place, PAGE_SIZE);
}

static int gap_small(struct place *place)
{
	return change_gap(place, -(long)PAGE_SIZE);
}

static void restore_pivot(struct place *place)
{
	place->leaf->mr64.pivot[place->slot] = was;
}

/* The VMA's slot ends a page late, in the gap behind it. */
static int pivot_off(struct place *place)
{
	if (place->slot + 1 >= MAPLE_RANGE64_SLOTS - 1 || place->leaf->mr64.slot[place->slot + 1])
		return -EINVAL;
	was = place->leaf->mr64.pivot[place->slot];
	place->leaf->mr64.pivot[place->slot] = was + PAGE_SIZE;
	restore = restore_pivot;
	return 0;
}

static void restore_parent(struct place *place)
{
	place->leaf->parent = (struct maple_pnode *)was;
}

/* The leaf's parent pointer leads to its own first sibling, with the slot and type it had. */
static int parent_stale(struct place *place)
{
	unsigned int other = place->parent_slot ? 0 : 1;
	unsigned long sibling = (unsigned long)node_of(place->parent->ma64.slot[other]);

	was = (unsigned long)place->leaf->parent;
	place->leaf->parent = (struct maple_pnode *)(sibling | (was & 255));
	restore = restore_parent;
	return 0;
}

static void restore_slot(struct place *place)
{
	place->leaf->mr64.slot[place->slot] = place->vma;
}

static int vma_missing(struct place *place)
{
	place->leaf->mr64.slot[place->slot] = NULL;
	restore = restore_slot;
	return 0;
}

static void restore_count(struct place *place)
{
	place->mm->map_count--;
}

static int count_off(struct place *place)
{
	place->mm->map_count++;
	restore = restore_count;
	return 0;
}

static void restore_chain(struct place *place)
{
	struct anon_vma *anon_vma = place->avc->anon_vma;

	down_write(&anon_vma->root->rwsem);
	anon_tree_insert(place->avc, tree_of(anon_vma));
	up_write(&anon_vma->root->rwsem);
}

static int chain_outside(struct place *place)
{
	struct anon_vma *anon_vma;

	if (!place->avc)
		return -EINVAL;
	anon_vma = place->avc->anon_vma;
	down_write(&anon_vma->root->rwsem);
	anon_tree_remove(place->avc, tree_of(anon_vma));
	up_write(&anon_vma->root->rwsem);
	restore = restore_chain;
	return 0;
}

static void restore_subtree(struct place *place)
{
	place->avc->rb_subtree_last = was;
}

static int subtree_end(struct place *place)
{
	if (!place->avc)
		return -EINVAL;
	was = place->avc->rb_subtree_last;
	place->avc->rb_subtree_last = was + 1;
	restore = restore_subtree;
	return 0;
}

static void restore_file(struct place *place)
{
	struct address_space *mapping = place->vma->vm_file->f_mapping;

	i_mmap_lock_write(mapping);
	file_tree_insert(place->vma, tree_of_file(mapping));
	i_mmap_unlock_write(mapping);
}

static int file_missing(struct place *place)
{
	struct address_space *mapping;

	if (!place->vma->vm_file)
		return -EINVAL;
	mapping = place->vma->vm_file->f_mapping;
	i_mmap_lock_write(mapping);
	file_tree_remove(place->vma, tree_of_file(mapping));
	i_mmap_unlock_write(mapping);
	restore = restore_file;
	return 0;
}

static void restore_anon_vma(struct place *place)
{
	place->vma->anon_vma = NULL;
}

/* An untouched VMA takes over the anon_vma of another VMA of the mm, and no chain. */
static int anon_unchained(struct place *place)
{
	VMA_ITERATOR(others, place->mm, 0);
	struct vm_area_struct *other;

	if (place->vma->anon_vma)
		return -EINVAL;
	for_each_vma(others, other)
	{
		if (!other->anon_vma)
			continue;
		place->vma->anon_vma = other->anon_vma;
		restore = restore_anon_vma;
		return 0;
	}
	return -EINVAL;
}

/* The page that the last-level page table maps at the address; no lock: the process sleeps. */
static struct page *page_at(struct mm_struct *mm, unsigned long address)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d = pgd_none(*pgd) ? NULL : p4d_offset(pgd, address);
	pud_t *pud = !p4d || p4d_none(*p4d) ? NULL : pud_offset(p4d, address);
	pmd_t *pmd = !pud || pud_none(*pud) ? NULL : pmd_offset(pud, address);
	pte_t *pte;

	if (!pmd || !pmd_present(*pmd) || pmd_leaf(*pmd))
		return NULL;
	pte = pte_offset_kernel(pmd, address);
	return pte_present(*pte) && !pte_special(*pte) ? pte_page(*pte) : NULL;
}

static struct folio *corrupt_folio;

static void restore_index(struct place *place)
{
	corrupt_folio->index--;
	folio_put(corrupt_folio);
}

/* The anon page at the address has the index of the next one. */
static int index_off(struct place *place)
{
	struct page *page = page_at(place->mm, place->address);

	if (!page || !folio_test_anon(page_folio(page)))
		return -EINVAL;
	corrupt_folio = page_folio(page);
	folio_get(corrupt_folio);
	corrupt_folio->index++;
	restore = restore_index;
	return 0;
}

static const struct {
	const char *name;
	int (*corrupt)(struct place *place);
} faults[] = {
	{"gap_large", gap_large},         {"gap_small", gap_small},
	{"pivot_off", pivot_off},         {"parent_stale", parent_stale},
	{"vma_missing", vma_missing},     {"count_off", count_off},
	{"chain_outside", chain_outside}, {"subtree_end", subtree_end},
	{"file_missing", file_missing},   {"anon_unchained", anon_unchained},
	{"index_off", index_off},
};

static struct mm_struct *mm_of(int pid)
{
	struct mm_struct *mm = NULL;
	struct task_struct *task;
	struct pid *found = find_get_pid(pid);

	task = get_pid_task(found, PIDTYPE_PID);
	put_pid(found);
	if (!task)
		return NULL;
	mm = get_task_mm(task);
	put_task_struct(task);
	return mm;
}

static void undo(void)
{
	if (!restore)
		return;
	mmap_write_lock(corrupt_place.mm);
	restore(&corrupt_place);
	mmap_write_unlock(corrupt_place.mm);
	mmput(corrupt_place.mm);
	restore = NULL;
}

static int set_corrupt(const char *value, const struct kernel_param *parameter)
{
	unsigned long address;
	struct place place = {};
	char name[32];
	int pid, fault, error;

	if (sysfs_streq(value, "undo")) {
		undo();
		return 0;
	}
	if (restore)
		return -EBUSY;
	if (sscanf(value, "%31s %d %lx", name, &pid, &address) != 3)
		return -EINVAL;
	for (fault = 0; fault < ARRAY_SIZE(faults) && strcmp(faults[fault].name, name); fault++)
		;
	if (fault == ARRAY_SIZE(faults))
		return -EINVAL;
	place.address = address;
	place.mm = mm_of(pid);
	if (!place.mm)
		return -ESRCH;
	mmap_write_lock(place.mm);
	error = find_place(&place, address);
	error = error ? error : faults[fault].corrupt(&place);
	mmap_write_unlock(place.mm);
	if (error)
		mmput(place.mm);
	else
		corrupt_place = place;
	return error;
}

static const struct kernel_param_ops corrupt_ops = {.set = set_corrupt};
module_param_cb(corrupt, &corrupt_ops, NULL, 0200);

static int __init state_init(void)
{
	if (!in_a_test_guest())
		return -EPERM;
	by_owner = address_of("anon_rmap_tree_remove");
	anon_tree_remove =
		address_of(by_owner ? "anon_rmap_tree_remove" : "anon_vma_interval_tree_remove");
	anon_tree_insert =
		address_of(by_owner ? "anon_rmap_tree_insert" : "anon_vma_interval_tree_insert");
	file_tree_remove =
		address_of(by_owner ? "mapping_rmap_tree_remove" : "vma_interval_tree_remove");
	file_tree_insert =
		address_of(by_owner ? "mapping_rmap_tree_insert" : "vma_interval_tree_insert");
	return anon_tree_remove && anon_tree_insert && file_tree_remove && file_tree_insert ?
		       0 :
		       -ENOENT;
}

static void __exit state_exit(void)
{
	undo();
}

module_init(state_init);
module_exit(state_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Corrupts the VMAs and trees of a sleeping process, in a test guest");
