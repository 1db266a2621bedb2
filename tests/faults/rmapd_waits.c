// SPDX-License-Identifier: GPL-2.0
/*
 * Lets tasks wait for themselves and for each other, in a guest of rmapd's tests only. The module
 * does not load unless the kernel command line has rmapd_faults=guest. It takes locks of its own
 * and the mmap_lock of the writing task, so it builds for each kernel of the ladder.
 *
 * `echo NAME > /proc/rmapd_waits` lets the writing task do what NAME says. Each wait ends with
 * SIGKILL, and what the task holds is given back then.
 */
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rwsem.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "guest.h"

static DECLARE_RWSEM(first);
static DECLARE_RWSEM(second);
static atomic_t arrived = ATOMIC_INIT(0);

/* Wait until both tasks have taken their first lock; SIGKILL ends it. */
static void meet(void)
{
	int others = atomic_inc_return(&arrived) & 1;

	while (others && (atomic_read(&arrived) & 1) && !fatal_signal_pending(current))
		msleep(20);
}

/* Take two locks for write, one after the other. */
static void nest(struct rw_semaphore *outer, struct rw_semaphore *inner)
{
	if (down_write_killable(outer))
		return;
	meet();
	if (!down_write_killable(inner))
		up_write(inner);
	up_write(outer);
}

static void own_write(void)
{
	atomic_inc(&arrived); /* nobody else comes */
	nest(&first, &first);
}

/* A wait for one's own mmap_lock, which is held for read. */
static void own_read(void)
{
	mmap_read_lock(current->mm);
	if (!mmap_write_lock_killable(current->mm))
		mmap_write_unlock(current->mm);
	mmap_read_unlock(current->mm);
}

static void ring_one(void)
{
	nest(&first, &second);
}

static void ring_two(void)
{
	nest(&second, &first);
}

static void read_one(void)
{
	mmap_read_lock(current->mm);
	meet();
	if (!down_write_killable(&first))
		up_write(&first);
	mmap_read_unlock(current->mm);
}

static void read_two(void)
{
	if (down_write_killable(&first))
		return;
	meet();
	if (!mmap_write_lock_killable(current->mm))
		mmap_write_unlock(current->mm);
	up_write(&first);
}

/* Sleep with the mmap_lock; another thread waits for it. */
static void hold(void)
{
	int i;

	if (mmap_write_lock_killable(current->mm))
		return;
	for (i = 0; i < 600 && !fatal_signal_pending(current); i++)
		schedule_timeout_killable(HZ / 10);
	mmap_write_unlock(current->mm);
}

static void want(void)
{
	if (!mmap_write_lock_killable(current->mm))
		mmap_write_unlock(current->mm);
}

static const struct {
	const char *name;
	void (*act)(void);
} acts[] = {
	{"own_write", own_write}, {"own_read", own_read}, {"ring_one", ring_one},
	{"ring_two", ring_two},   {"read_one", read_one}, {"read_two", read_two},
	{"hold", hold},           {"want", want},
};

static ssize_t act(struct file *file, const char __user *from, size_t size, loff_t *at)
{
	char name[16] = {};
	int i;

	if (size >= sizeof(name) || copy_from_user(name, from, size))
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(acts); i++)
		if (sysfs_streq(name, acts[i].name)) {
			acts[i].act();
			return size;
		}
	return -EINVAL;
}

/* A file of its own: writers of a module's parameter wait for each other. */
static const struct proc_ops wait_ops = {.proc_write = act};

static int __init waits_init(void)
{
	if (!in_a_test_guest())
		return -EPERM;
	return proc_create(KBUILD_MODNAME, 0200, NULL, &wait_ops) ? 0 : -ENOMEM;
}

static void __exit waits_exit(void)
{
	remove_proc_entry(KBUILD_MODNAME, NULL);
}

module_init(waits_init);
module_exit(waits_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Lets tasks wait for themselves and for each other, in a test guest");
