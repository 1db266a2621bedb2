// SPDX-License-Identifier: GPL-2.0
/*
 * Faults for the tests of rmapd: breaks the kernel's promises on purpose, in a test guest only. It refuses to load where the kernel
 * command line does not have rmapd_faults=guest. Functions are redirected by ftrace; each fault counts how often it struck.
 *
 * left_behind: remove_migration_pte() does nothing for processes named `victim`, which must not share an anon_vma with another process:
 * the walk visits VMAs that do not map the page, too, and a strike there leaves nothing (seen: 5 strikes left 4). What it leaves, the kernel's own BUG finds at the
 * next touch (pfn_swap_entry_to_page(), include/linux/swapops.h).
 *
 * passed_over: the second rmap walk of a page of such a process does not take place: rmap_walk_anon() returns at once.
 */
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/kallsyms.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/rmap.h>
#include <linux/sched.h>

static int left_behind;
module_param(left_behind, int, 0644);
MODULE_PARM_DESC(left_behind, "how many entries to leave behind");
static int passed_over;
module_param(passed_over, int, 0644);
MODULE_PARM_DESC(passed_over, "how many pages to pass over in the second walk");
static int struck;
module_param(struck, int, 0444);
static char *victim = "victim";
module_param(victim, charp, 0444);

static bool remove_nothing(struct folio *folio, struct vm_area_struct *vma, unsigned long addr, void *old)
{
	return true;
}

static void walk_nothing(struct folio *folio, struct rmap_walk_control *rwc, bool locked)
{
}

static bool is_victim(struct vm_area_struct *vma)
{
	struct task_struct *owner;

	if (!vma_is_anonymous(vma)) /* a file's page is looked for in every VMA of the file, mapped there or not */
		return false;
	owner = READ_ONCE(vma->vm_mm->owner);
	return owner && !strcmp(owner->comm, victim);
}

static void notrace redirect(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);

	if (!regs || READ_ONCE(left_behind) <= 0)
		return;
	/*
	 * folio == old: a failed migration puts the old page back. What is left then, a retry of the same page finds and removes
	 * (seen: 5 strikes left 3 entries), so only successful migrations are struck.
	 */
	if (regs->di == regs->cx)
		return;
	if (!is_victim((struct vm_area_struct *)regs->si))
		return;
	left_behind--;
	struck++;
	ftrace_instruction_pointer_set(fregs, (unsigned long)remove_nothing);
}

/* The tree is read without its lock: the victim sleeps and shares its anon_vmas with nobody. */
static void notrace redirect_walk(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	struct rmap_walk_control *rwc;
	struct anon_vma *anon_vma;
	struct folio *folio;
	struct rb_node *first;
	char name[KSYM_SYMBOL_LEN];

	if (!regs || READ_ONCE(passed_over) <= 0)
		return;
	folio = (struct folio *)regs->di;
	rwc = (struct rmap_walk_control *)regs->si;
	if (rwc->arg == folio)
		return;
	sprint_symbol(name, (unsigned long)rwc->rmap_one);
	if (strncmp(name, "remove_migration_pte+", 21))
		return;
	anon_vma = (struct anon_vma *)((unsigned long)folio->mapping & ~PAGE_MAPPING_FLAGS);
	first = anon_vma ? rb_first_cached(&anon_vma->rb_root) : NULL;
	if (!first || !is_victim(rb_entry(first, struct anon_vma_chain, rb)->vma))
		return;
	passed_over--;
	struck++;
	ftrace_instruction_pointer_set(fregs, (unsigned long)walk_nothing);
}

static struct ftrace_ops ops = {
	.func = redirect,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

static struct ftrace_ops walk_ops = {
	.func = redirect_walk,
	.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

static bool in_a_test_guest(void)
{
	static char line[2048];
	loff_t at = 0;
	struct file *file = filp_open("/proc/cmdline", O_RDONLY, 0);
	ssize_t got;

	if (IS_ERR(file))
		return false;
	got = kernel_read(file, line, sizeof(line) - 1, &at);
	filp_close(file, NULL);
	return got > 0 && strstr(line, "rmapd_faults=guest");
}

static int __init faults_init(void)
{
	int error;

	if (!in_a_test_guest()) {
		pr_err("rmapd_faults: this machine does not say rmapd_faults=guest on its command line: refused\n");
		return -EPERM;
	}
	error = ftrace_set_filter(&ops, "remove_migration_pte", strlen("remove_migration_pte"), 1);
	error = error ? error : ftrace_set_filter(&walk_ops, "rmap_walk_anon", strlen("rmap_walk_anon"), 1);
	error = error ? error : register_ftrace_function(&ops);
	if (error)
		return error;
	error = register_ftrace_function(&walk_ops);
	if (error)
		unregister_ftrace_function(&ops);
	return error;
}

static void __exit faults_exit(void)
{
	unregister_ftrace_function(&walk_ops);
	unregister_ftrace_function(&ops);
}

module_init(faults_init);
module_exit(faults_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Breaks the promises of the reverse map on purpose, in a test guest");
