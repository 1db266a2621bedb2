// SPDX-License-Identifier: GPL-2.0
/*
 * Violates invariants of the reverse map on purpose, in a guest of rmapd's tests only. The module
 * does not load unless the kernel command line has rmapd_faults=guest.
 *
 * `echo NAME [N] > parameters/arm` arms a fault: it strikes the writing task, and no other, N
 * times. `parameters/struck` has a line per fault: name, number of strikes, time of the first one
 * (CLOCK_REALTIME, ns). Faults of migration strike anonymous pages of processes named `victim`, or
 * as set in parameters/victim. `release` releases the lock that error_locked kept and corrects the
 * vm_pgoff that pgoff_lost left wrong.
 *
 * Calls are redirected in the caller (`sites`), not at the entry of the callee: a tracer at the
 * entry of down_write() would otherwise record calls that do not take place. A fault whose calls
 * are not in this kernel cannot be armed (EOPNOTSUPP). On arm64 the kernel needs nokaslr (calls.h).
 */
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched.h>
#include <linux/swap.h>
#if __has_include(<linux/leafops.h>)
#include <linux/leafops.h>
#else
#include <linux/swapops.h>
#endif
#include <linux/timekeeping.h>

#include "calls.h"

enum fault {
	LEFT_BEHIND,       /* remove_migration_pte() restores nothing */
	PASSED_OVER,       /* the second walk of a page does not take place */
	ONE_SKIPPED,       /* the second walk ends before the last VMA of the tree */
	WALK_UNLOCKED,     /* the walk of try_to_migrate() runs with locked set and no lock held */
	ENTRY_UNLOCKED,    /* migration entries are inserted with the page unlocked */
	RESTORED_UNLOCKED, /* migration entries are removed with the page unlocked */
	SOURCE_MAPPED,     /* a page is moved, and its old folio is still mapped */
	ADJUST_SWAPPED,    /* __vma_adjust() takes the anon_vma lock, then i_mmap_rwsem */
	MOVE_SWAPPED,      /* take_rmap_locks() of move_page_tables() does the same */
	/* a merge takes invalidate_lock, then i_mmap_rwsem; brk() the reverse */
	CYCLE,
	COMMIT_UNLOCKED, /* __vma_adjust() does not take the anon_vma lock */
	IMPORT_UNLOCKED, /* the same for an anon_vma that it has just imported */
	TREE_UNLOCKED,   /* __vma_adjust() does not take i_mmap_rwsem */
	ERROR_LOCKED,    /* do_brk_flags() fails and keeps the anon_vma lock */
	NOT_PAIRED,      /* __vma_adjust() moves a boundary without an update of the anon tree */
	IMPORT_LOST,     /* __vma_adjust() takes over pages without their anon_vma */
	PGOFF_LOST,      /* __vma_adjust() leaves vm_pgoff one page off */
	FAULTS
};

static const char *const names[FAULTS] = {
	"left_behind",       "passed_over",     "one_skipped",    "walk_unlocked", "entry_unlocked",
	"restored_unlocked", "source_mapped",   "adjust_swapped", "move_swapped",  "cycle",
	"commit_unlocked",   "import_unlocked", "tree_unlocked",  "error_locked",  "not_paired",
	"import_lost",       "pgoff_lost",
};

static struct task_struct *by; /* the task that armed a fault and is struck by it */
static enum fault armed;
static int left;
static unsigned long struck[FAULTS];
static u64 first_ns[FAULTS];
static char victim[TASK_COMM_LEN] = "victim";
static unsigned long absent; /* bits of the faults that this kernel has no place for */
static struct rw_semaphore *kept;
static struct vm_area_struct *adjusted, *wrong;

static bool strike(enum fault fault)
{
	if (current != READ_ONCE(by) || armed != fault || left <= 0)
		return false;
	left--;
	if (!struck[fault]++)
		first_ns[fault] = ktime_get_real_ns();
	return true;
}

static int set_arm(const char *value, const struct kernel_param *parameter)
{
	char name[32];
	int count = 1, fault;

	if (sscanf(value, "%31s %d", name, &count) < 1)
		return -EINVAL;
	if (!strcmp(name, "release")) {
		if (kept)
			up_write(kept);
		if (wrong)
			wrong->vm_pgoff--;
		kept = NULL;
		wrong = NULL;
		return 0;
	}
	fault = match_string(names, FAULTS, name);
	if (fault < 0)
		return fault;
	if (absent & BIT(fault))
		return -EOPNOTSUPP;
	WRITE_ONCE(by, NULL);
	armed = fault;
	left = count;
	WRITE_ONCE(by, current);
	return 0;
}

static int get_struck(char *buffer, const struct kernel_param *parameter)
{
	int length = 0;

	for (int fault = 0; fault < FAULTS; fault++)
		length += scnprintf(buffer + length, PAGE_SIZE - length, "%s %lu %llu\n",
				    names[fault], struck[fault], first_ns[fault]);
	return length;
}

static const struct kernel_param_ops arm_ops = {.set = set_arm}, struck_ops = {.get = get_struck};
module_param_cb(arm, &arm_ops, NULL, 0200);
module_param_cb(struck, &struck_ops, NULL, 0444);
module_param_string(victim, victim, sizeof(victim), 0600);

/*
 * Kernel functions that are not exported: their addresses are found when the module is loaded. Some
 * have other last arguments in other kernels, which are passed on: each is in a register.
 */
static int (*real_clone)(struct vm_area_struct *to, struct vm_area_struct *from, long how);
static void (*real_remove)(struct anon_vma_chain *node, void *tree);
static void (*real_insert)(struct anon_vma_chain *node, void *tree);
static struct anon_vma_chain *(*real_next)(struct anon_vma_chain *node, unsigned long start,
					   unsigned long last);
static void (*real_adjust_huge)(struct vm_area_struct *vma, unsigned long start, unsigned long end,
				long adjust_next);
static int (*real_preallocate)(struct ma_state *mas, void *vma, gfp_t gfp);
static void (*real_try_to_migrate)(struct folio *folio, enum ttu_flags flags);
static typeof(page_vma_mapped_walk) *real_mapped_walk;
static void (*real_walk_anon)(struct folio *folio, struct rmap_walk_control *rwc, bool locked);

static bool is_anon_lock(struct rw_semaphore *rwsem)
{
	struct anon_vma *anon_vma = container_of(rwsem, struct anon_vma, rwsem);

	return anon_vma->root == anon_vma;
}

/*
 * Locks in a call of __vma_adjust() or move_page_tables(): `deferred` is taken after the next lock,
 * `spared` is not taken, and so its release is skipped.
 */
static struct rw_semaphore *deferred, *spared;

static void our_down_write(struct rw_semaphore *rwsem)
{
	bool anon = is_anon_lock(rwsem);

	if (anon ? strike(COMMIT_UNLOCKED) || strike(IMPORT_UNLOCKED) : strike(TREE_UNLOCKED)) {
		spared = rwsem;
		return;
	}
	if (!anon && (strike(ADJUST_SWAPPED) || strike(MOVE_SWAPPED))) {
		deferred = rwsem;
		return;
	}
	down_write(rwsem);
	if (current == by && deferred) {
		down_write(deferred);
		deferred = NULL;
	}
}

static void our_up_write(struct rw_semaphore *rwsem)
{
	if (is_anon_lock(rwsem) && strike(PGOFF_LOST)) {
		wrong = adjusted;
		wrong->vm_pgoff++;
	}
	if (current == by && rwsem == spared)
		spared = NULL;
	else
		up_write(rwsem);
}

static void our_adjust_huge(struct vm_area_struct *vma, unsigned long start, unsigned long end,
			    long adjust_next)
{
	if (current == by)
		adjusted = vma;
	real_adjust_huge(vma, start, end, adjust_next);
}

/* The callers preallocate before they take locks, so CYCLE takes its own locks there. */
static void take_in_a_cycle(struct vm_area_struct *vma)
{
	static struct address_space *mapping;
	struct rw_semaphore *outer, *inner;

	if ((!vma->vm_file && !mapping) || !strike(CYCLE))
		return;
	if (vma->vm_file)
		mapping = vma->vm_file->f_mapping;
	outer = vma->vm_file ? &mapping->invalidate_lock : &mapping->i_mmap_rwsem;
	inner = vma->vm_file ? &mapping->i_mmap_rwsem : &mapping->invalidate_lock;
	down_write(outer);
	down_write(inner);
	up_write(inner);
	up_write(outer);
}

static int our_adjust_preallocate(struct ma_state *mas, void *vma, gfp_t gfp)
{
	take_in_a_cycle(vma);
	return real_preallocate(mas, vma, gfp);
}

static int our_preallocate(struct ma_state *mas, void *vma, gfp_t gfp)
{
	take_in_a_cycle(vma);
	if (!strike(ERROR_LOCKED))
		return real_preallocate(mas, vma, gfp);
	kept = &((struct vm_area_struct *)vma)->anon_vma->root->rwsem;
	down_write(kept);
	return -ENOMEM;
}

static int our_clone(struct vm_area_struct *to, struct vm_area_struct *from, long how)
{
	if (!strike(IMPORT_LOST))
		return real_clone(to, from, how);
	to->anon_vma = NULL;
	return 0;
}

static struct anon_vma_chain *unmoved;

static void our_remove(struct anon_vma_chain *node, void *tree)
{
	if (strike(NOT_PAIRED))
		unmoved = node;
	else
		real_remove(node, tree);
}

static void our_insert(struct anon_vma_chain *node, void *tree)
{
	if (current == by && node == unmoved)
		unmoved = NULL;
	else
		real_insert(node, tree);
}

static bool is_victim(struct vm_area_struct *vma)
{
	struct task_struct *owner;

	if (!vma_is_anonymous(
		    vma)) /* a walk visits each VMA of a file, whether it maps the page or not */
		return false;
	owner = READ_ONCE(vma->vm_mm->owner);
	return owner && !strcmp(owner->comm, victim);
}

/* Reads the tree without its lock: the victim and its child, which share its anon_vmas, sleep. */
static bool of_victim(struct folio *folio)
{
	struct anon_vma *anon_vma;
	struct rb_node *first;

	if (!folio_test_anon(folio) || folio_test_ksm(folio))
		return false;
	anon_vma = (struct anon_vma *)((unsigned long)folio->mapping & ~3UL);
	first = rb_first_cached(&anon_vma->rb_root);
	return first && is_victim(rb_entry(first, struct anon_vma_chain, rb)->vma);
}

static bool second_walk; /* whether task `by` walks the VMAs of a victim's moved page */

static void our_walk_anon(struct folio *folio, struct rmap_walk_control *rwc, bool locked)
{
	struct folio *src = NULL;
	char name[KSYM_SYMBOL_LEN];

	if (current != READ_ONCE(by) || left <= 0 || !of_victim(folio)) {
		real_walk_anon(folio, rwc, locked);
		return;
	}
	sprint_symbol(name, (unsigned long)rwc->rmap_one);
	if (!strncmp(name, "try_to_migrate_one+", 19)) {
		real_walk_anon(folio, rwc, locked || strike(WALK_UNLOCKED));
		return;
	}
	/*
	 * src == folio: a failed migration restores the old page; a retry would find and remove
	 * entries left behind. From 6.12 on the argument is a structure that begins with src.
	 */
	if (!strncmp(name, "remove_migration_pte+", 21))
		src = object_is_on_stack(rwc->arg) ? *(struct folio **)rwc->arg : rwc->arg;
	second_walk = src && src != folio;
	if (second_walk && strike(PASSED_OVER)) {
		second_walk = false;
	} else if (second_walk && strike(RESTORED_UNLOCKED)) {
		folio_unlock(folio);
		real_walk_anon(folio, rwc, locked);
		folio_lock(folio);
	} else if (second_walk && !folio_test_large(folio) && strike(SOURCE_MAPPED)) {
		atomic_inc(&src->_mapcount);
		real_walk_anon(folio, rwc, locked);
		atomic_dec(&src->_mapcount);
	} else {
		real_walk_anon(folio, rwc, locked);
	}
	second_walk = false;
}

/* A VMA in the tree may not map the page: a child's does not after the parent wrote to it. */
static bool has_entry(struct vm_area_struct *vma, unsigned long pgoff)
{
	unsigned long addr = vma->vm_start + ((pgoff - vma->vm_pgoff) << PAGE_SHIFT);
	pgd_t *pgd = pgd_offset(vma->vm_mm, addr);
	p4d_t *p4d = pgd_present(*pgd) ? p4d_offset(pgd, addr) : NULL;
	pud_t *pud = p4d && p4d_present(*p4d) ? pud_offset(p4d, addr) : NULL;
	pmd_t *pmd = pud && pud_present(*pud) && !pud_leaf(*pud) ? pmd_offset(pud, addr) : NULL;
	pte_t pte = pmd && pmd_present(*pmd) && !pmd_leaf(*pmd) ?
			    READ_ONCE(*pte_offset_kernel(pmd, addr)) :
			    __pte(0);

#ifdef _LINUX_LEAFOPS_H
	return softleaf_is_migration(softleaf_from_pte(pte));
#else
	return is_swap_pte(pte) && is_migration_entry(pte_to_swp_entry(pte));
#endif
}

static struct anon_vma_chain *our_next(struct anon_vma_chain *node, unsigned long start,
				       unsigned long last)
{
	struct anon_vma_chain *next = real_next(node, start, last);

	if (current != by || !second_walk || !next || real_next(next, start, last) ||
	    !has_entry(next->vma, start))
		return next;
	return strike(ONE_SKIPPED) ? NULL : next;
}

static void our_try_to_migrate(struct folio *folio, enum ttu_flags flags)
{
	if (!of_victim(folio) || !strike(ENTRY_UNLOCKED)) {
		real_try_to_migrate(folio, flags);
		return;
	}
	folio_unlock(folio);
	real_try_to_migrate(folio, flags);
	folio_lock(folio);
}

static bool our_mapped_walk(struct page_vma_mapped_walk *pvmw)
{
	if (current == by && second_walk && is_victim(pvmw->vma) && strike(LEFT_BEHIND))
		return false;
	return real_mapped_walk(pvmw);
}

#define SECOND_WALK                                                                        \
	(BIT(LEFT_BEHIND) | BIT(PASSED_OVER) | BIT(ONE_SKIPPED) | BIT(RESTORED_UNLOCKED) | \
	 BIT(SOURCE_MAPPED))

static const struct site sites[] = {
	{"__vma_adjust vma_prepare", "down_write", our_down_write, NULL,
	 BIT(ADJUST_SWAPPED) | BIT(COMMIT_UNLOCKED) | BIT(IMPORT_UNLOCKED) | BIT(TREE_UNLOCKED)},
	{"__vma_adjust vma_complete", "up_write", our_up_write, NULL,
	 BIT(COMMIT_UNLOCKED) | BIT(IMPORT_UNLOCKED) | BIT(TREE_UNLOCKED) | BIT(PGOFF_LOST)},
	{"__vma_adjust commit_merge", "vma_adjust_trans_huge", our_adjust_huge, &real_adjust_huge,
	 BIT(PGOFF_LOST)},
	{"__vma_adjust vma_modify", "anon_vma_clone", our_clone, &real_clone, BIT(IMPORT_LOST)},
	{"__vma_adjust vma_prepare", "anon_vma_interval_tree_remove anon_rmap_tree_remove",
	 our_remove, &real_remove, BIT(NOT_PAIRED)},
	{"__vma_adjust vma_complete", "anon_vma_interval_tree_insert anon_rmap_tree_insert",
	 our_insert, &real_insert, BIT(NOT_PAIRED)},
	{"do_brk_flags commit_merge", "mas_preallocate", our_preallocate, &real_preallocate,
	 BIT(ERROR_LOCKED) | BIT(CYCLE)},
	{"__vma_adjust", "mas_preallocate", our_adjust_preallocate, &real_preallocate, 0},
	{"move_page_tables", "down_write", our_down_write, NULL, BIT(MOVE_SWAPPED)},
	{"rmap_walk", "rmap_walk_anon", our_walk_anon, &real_walk_anon,
	 SECOND_WALK | BIT(WALK_UNLOCKED)},
	{"try_to_migrate", "rmap_walk_anon", our_walk_anon, &real_walk_anon, BIT(WALK_UNLOCKED)},
	{"rmap_walk_anon", "anon_vma_interval_tree_iter_next anon_rmap_tree_iter_next", our_next,
	 &real_next, BIT(ONE_SKIPPED)},
	{"migrate_pages_batch", "try_to_migrate", our_try_to_migrate, &real_try_to_migrate,
	 BIT(ENTRY_UNLOCKED)},
	{"remove_migration_pte", "page_vma_mapped_walk", our_mapped_walk, &real_mapped_walk,
	 BIT(LEFT_BEHIND)},
};

static int __init faults_init(void)
{
	int found = 0;

	if (!in_a_test_guest())
		return -EPERM;
	if (!find_calls())
		return -ENOENT;
	for (int at = 0; found >= 0 && at < ARRAY_SIZE(sites); at++) {
		found = redirect_calls(&sites[at]);
		if (!found)
			absent |= sites[at].faults;
	}
	if (found < 0)
		restore_calls();
	return found < 0 ? found : 0;
}

static void __exit faults_exit(void)
{
	restore_calls();
}

module_init(faults_init);
module_exit(faults_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Violates invariants of the reverse map on purpose, in a test guest");
