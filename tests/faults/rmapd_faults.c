// SPDX-License-Identifier: GPL-2.0
/*
 * Faults for the tests of rmapd: breaks the kernel's promises on purpose, in a test guest only. It refuses to load where the kernel
 * command line does not have rmapd_faults=guest. Functions are redirected by ftrace; each fault counts how often it struck.
 *
 * left_behind: remove_migration_pte() does nothing for processes named `victim`, which must not share an anon_vma with another process:
 * the walk visits VMAs that do not map the page, too, and a strike there leaves nothing (seen: 5 strikes left 4). What it leaves, the kernel's own BUG finds at the
 * next touch (pfn_swap_entry_to_page(), include/linux/swapops.h).
 */
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>

static int left_behind;
module_param(left_behind, int, 0644);
MODULE_PARM_DESC(left_behind, "how many entries to leave behind");
static int struck;
module_param(struck, int, 0444);
static char *victim = "victim";
module_param(victim, charp, 0444);

static bool remove_nothing(struct folio *folio, struct vm_area_struct *vma, unsigned long addr, void *old)
{
	return true;
}

static void notrace redirect(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *regs = ftrace_get_regs(fregs);
	struct vm_area_struct *vma;
	struct task_struct *owner;

	if (!regs || READ_ONCE(left_behind) <= 0)
		return;
	/*
	 * folio == old: a failed migration puts the old page back. What is left then, a retry of the same page finds and removes
	 * (seen: 5 strikes left 3 entries), so only successful migrations are struck.
	 */
	if (regs->di == regs->cx)
		return;
	vma = (struct vm_area_struct *)regs->si;
	if (!vma_is_anonymous(vma)) /* a file's page is looked for in every VMA of the file, mapped there or not */
		return;
	owner = READ_ONCE(vma->vm_mm->owner);
	if (!owner || strcmp(owner->comm, victim))
		return;
	left_behind--;
	struck++;
	ftrace_instruction_pointer_set(fregs, (unsigned long)remove_nothing);
}

static struct ftrace_ops ops = {
	.func = redirect,
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
	return error ? error : register_ftrace_function(&ops);
}

static void __exit faults_exit(void)
{
	unregister_ftrace_function(&ops);
}

module_init(faults_init);
module_exit(faults_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Breaks the promises of the reverse map on purpose, in a test guest");
