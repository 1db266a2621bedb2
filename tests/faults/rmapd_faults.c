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
 * entry of down_write() would otherwise record calls that do not take place. Only
 * remove_migration_pte() is called through a pointer, and is redirected with ftrace.
 */
#include <linux/ftrace.h>
#include <linux/huge_mm.h>
#include <linux/kallsyms.h>
#include <linux/maple_tree.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/timekeeping.h>

#include "guest.h"

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
	/* __vma_adjust() takes invalidate_lock, then i_mmap_rwsem; do_brk_flags() the reverse */
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

/* Kernel functions that are not exported: their addresses are found when the module is loaded. */
static typeof(anon_vma_clone) *real_clone;
static typeof(anon_vma_interval_tree_remove) *real_remove;
static typeof(anon_vma_interval_tree_insert) *real_insert;
static typeof(anon_vma_interval_tree_iter_next) *real_next;
static typeof(vma_adjust_trans_huge) *real_adjust_huge;
static typeof(mas_preallocate) *real_preallocate;
static typeof(try_to_migrate) *real_try_to_migrate;
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

/* The callers call it before they take locks, so CYCLE takes its own locks here. */
static void our_adjust_huge(struct vm_area_struct *vma, unsigned long start, unsigned long end,
			    long adjust_next)
{
	static struct address_space *mapping;

	if (current == by)
		adjusted = vma;
	if ((vma->vm_file || mapping) && strike(CYCLE)) {
		struct rw_semaphore *outer, *inner;

		if (vma->vm_file)
			mapping = vma->vm_file->f_mapping;
		outer = vma->vm_file ? &mapping->invalidate_lock : &mapping->i_mmap_rwsem;
		inner = vma->vm_file ? &mapping->i_mmap_rwsem : &mapping->invalidate_lock;
		down_write(outer);
		down_write(inner);
		up_write(inner);
		up_write(outer);
	}
	real_adjust_huge(vma, start, end, adjust_next);
}

static int our_preallocate(struct ma_state *mas, void *vma, gfp_t gfp)
{
	if (!strike(ERROR_LOCKED))
		return real_preallocate(mas, vma, gfp);
	kept = &((struct vm_area_struct *)vma)->anon_vma->root->rwsem;
	down_write(kept);
	return -ENOMEM;
}

static int our_clone(struct vm_area_struct *to, struct vm_area_struct *from)
{
	if (!strike(IMPORT_LOST))
		return real_clone(to, from);
	to->anon_vma = NULL;
	return 0;
}

static struct anon_vma_chain *unmoved;

static void our_remove(struct anon_vma_chain *node, struct rb_root_cached *root)
{
	if (strike(NOT_PAIRED))
		unmoved = node;
	else
		real_remove(node, root);
}

static void our_insert(struct anon_vma_chain *node, struct rb_root_cached *root)
{
	if (current == by && node == unmoved)
		unmoved = NULL;
	else
		real_insert(node, root);
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
	anon_vma = (struct anon_vma *)((unsigned long)folio->mapping & ~PAGE_MAPPING_FLAGS);
	first = rb_first_cached(&anon_vma->rb_root);
	return first && is_victim(rb_entry(first, struct anon_vma_chain, rb)->vma);
}

static bool second_walk; /* whether task `by` walks the VMAs of a victim's moved page */

static void our_walk_anon(struct folio *folio, struct rmap_walk_control *rwc, bool locked)
{
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
	 * rwc->arg == folio: a failed migration restores the old page; a retry would find and
	 * remove entries left behind.
	 */
	second_walk = !strncmp(name, "remove_migration_pte+", 21) && rwc->arg != folio;
	if (second_walk && strike(PASSED_OVER)) {
		second_walk = false;
	} else if (second_walk && strike(RESTORED_UNLOCKED)) {
		folio_unlock(folio);
		real_walk_anon(folio, rwc, locked);
		folio_lock(folio);
	} else if (second_walk && !folio_test_large(folio) && strike(SOURCE_MAPPED)) {
		struct folio *src = rwc->arg;

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
	pmd_t *pmd = pud && pud_present(*pud) && !pud_large(*pud) ? pmd_offset(pud, addr) : NULL;
	pte_t pte = pmd && pmd_present(*pmd) && !pmd_large(*pmd) ?
			    READ_ONCE(*pte_offset_kernel(pmd, addr)) :
			    __pte(0);

	return is_swap_pte(pte) && is_migration_entry(pte_to_swp_entry(pte));
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

/*
 * Each call of `callee` in `caller` is redirected to `ours`. `real` is the pointer that receives
 * the address of a callee that is not exported.
 */
static const struct site {
	const char *caller, *callee;
	void *ours, *real;
} sites[] = {
	{"__vma_adjust", "down_write", our_down_write},
	{"__vma_adjust", "up_write", our_up_write},
	{"__vma_adjust", "vma_adjust_trans_huge", our_adjust_huge, &real_adjust_huge},
	{"__vma_adjust", "anon_vma_clone", our_clone, &real_clone},
	{"__vma_adjust", "anon_vma_interval_tree_remove", our_remove, &real_remove},
	{"__vma_adjust", "anon_vma_interval_tree_insert", our_insert, &real_insert},
	{"do_brk_flags", "vma_adjust_trans_huge", our_adjust_huge, &real_adjust_huge},
	{"do_brk_flags", "mas_preallocate", our_preallocate, &real_preallocate},
	{"move_page_tables", "down_write", our_down_write},
	{"rmap_walk", "rmap_walk_anon", our_walk_anon, &real_walk_anon},
	{"try_to_migrate", "rmap_walk_anon", our_walk_anon, &real_walk_anon},
	{"rmap_walk_anon", "anon_vma_interval_tree_iter_next", our_next, &real_next},
	{"migrate_pages_batch", "try_to_migrate", our_try_to_migrate, &real_try_to_migrate},
};

/* The changed instructions, to be restored at unload. */
static struct {
	void *at;
	s32 was;
} patched[64];
static int patches;

static unsigned long (*lookup)(const char *name);
static typeof(kallsyms_lookup_size_offset) *size_of;
static void (*poke)(void *at, const void *code, size_t size, const void *emulated);
static struct mutex *text;

static void patch(u8 *at, s32 to)
{
	u8 code[5] = {*at};

	memcpy(code + 1, &to, sizeof(to));
	mutex_lock(text);
	poke(at, code, sizeof(code), NULL);
	mutex_unlock(text);
}

/* Redirects each call or jmp rel32 (0xe8, 0xe9) with this target. */
static int redirect_calls(const struct site *site)
{
	u8 *caller = (u8 *)lookup(site->caller);
	unsigned long callee = lookup(site->callee), size = 0, offset;
	int found = 0;
	s32 was;

	if (!caller || !callee || !size_of((unsigned long)caller, &size, &offset))
		return -ENOENT;
	if (site->real)
		*(unsigned long *)site->real = callee;
	for (u8 *at = caller; at + 5 <= caller + size; at++) {
		memcpy(&was, at + 1, sizeof(was));
		if ((*at & 0xfe) != 0xe8 || (unsigned long)at + 5 + was != callee)
			continue;
		if (patches == ARRAY_SIZE(patched))
			return -ENOSPC;
		patched[patches].at = at;
		patched[patches++].was = was;
		patch(at, (s32)((u8 *)site->ours - at - 5));
		found++;
	}
	pr_info("rmapd_faults: %s calls %s %d times\n", site->caller, site->callee, found);
	return found ? 0 : -ENOENT;
}

static void restore_calls(void)
{
	while (patches--)
		patch(patched[patches].at, patched[patches].was);
}

static bool remove_nothing(struct folio *folio, struct vm_area_struct *vma, unsigned long addr,
			   void *old)
{
	return true;
}

static void notrace redirect(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops,
			     struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (regs && regs->di != regs->cx && is_victim((struct vm_area_struct *)regs->si) &&
	    strike(LEFT_BEHIND))
		ftrace_instruction_pointer_set(fregs, (unsigned long)remove_nothing);
}

static struct ftrace_ops ops = {
	.func = redirect,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

static int find_symbols(void)
{
	lookup = address_of("kallsyms_lookup_name");
	if (!lookup)
		return -ENOENT;
	size_of = (void *)lookup("kallsyms_lookup_size_offset");
	poke = (void *)lookup("text_poke_bp");
	text = (void *)lookup("text_mutex");
	return size_of && poke && text ? 0 : -ENOENT;
}

static int __init faults_init(void)
{
	int error;

	if (!in_a_test_guest())
		return -EPERM;
	error = find_symbols();
	for (int at = 0; !error && at < ARRAY_SIZE(sites); at++)
		error = redirect_calls(&sites[at]);
	error = error ? error :
			ftrace_set_filter(&ops, "remove_migration_pte",
					  strlen("remove_migration_pte"), 1);
	error = error ? error : register_ftrace_function(&ops);
	if (error)
		restore_calls();
	return error;
}

static void __exit faults_exit(void)
{
	unregister_ftrace_function(&ops);
	restore_calls();
}

module_init(faults_init);
module_exit(faults_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Violates invariants of the reverse map on purpose, in a test guest");
