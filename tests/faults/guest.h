/* SPDX-License-Identifier: GPL-2.0 */
/* What the test modules share: they load in guests alone, and find what is not exported. */
#ifndef RMAPD_FAULTS_GUEST_H
#define RMAPD_FAULTS_GUEST_H

#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/module.h>

/* Whether this is a guest that was booted for these modules; complains where it is not. */
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
	if (got > 0 && strstr(line, "rmapd_faults=guest"))
		return true;
	pr_err(KBUILD_MODNAME ": the kernel command line has no rmapd_faults=guest: refused\n");
	return false;
}

/* The address of a function, exported or not, or NULL: a kprobe on it has it. */
static void *address_of(const char *name)
{
	struct kprobe probe = {.symbol_name = name};
	void *found;

	if (register_kprobe(&probe))
		return NULL;
	found = probe.addr;
	unregister_kprobe(&probe);
	return found;
}

#endif
