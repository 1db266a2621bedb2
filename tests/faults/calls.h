/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Redirects calls of a kernel function in the function that calls it, and restores them. What is
 * particular to a machine is how a call is read and written: the six definitions below.
 */
#ifndef RMAPD_FAULTS_CALLS_H
#define RMAPD_FAULTS_CALLS_H

#include <linux/kallsyms.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "guest.h"

/*
 * Each call of a callee in a caller is redirected to `ours`. `callers` and `callees` are names that
 * other kernels have, in order of preference: of the callees the first one that is there counts, of
 * the callers the first one that calls it. `real` is the pointer that receives the address of a
 * callee that is not exported. `faults` are the bits of those that need the site.
 */
struct site {
	const char *callers, *callees;
	void *ours, *real;
	unsigned long faults;
};

static unsigned long (*lookup)(const char *name);
static typeof(kallsyms_lookup_size_offset) *size_of;

#ifdef CONFIG_X86_64
enum {
	CALL_STEP = 1,
	CALL_SIZE = 5
};

static void (*poke)(void *at, const void *code, size_t size, const void *emulated);
static struct mutex *text;

static bool find_poke(void)
{
	poke = (void *)lookup("text_poke_bp");
	text = (void *)lookup("text_mutex");
	return poke && text;
}

/* Where a call or jmp rel32 (0xe8, 0xe9) leads; NULL: it is none. */
static void *target_of(const u8 *at)
{
	s32 offset;

	memcpy(&offset, at + 1, sizeof(offset));
	return (*at & 0xfe) == 0xe8 ? (void *)(at + CALL_SIZE + offset) : NULL;
}

static int lead(u8 *at, void *target)
{
	s32 offset = (s32)((u8 *)target - at - CALL_SIZE);
	u8 code[CALL_SIZE] = {*at};

	memcpy(code + 1, &offset, sizeof(offset));
	mutex_lock(text);
	poke(at, code, sizeof(code), NULL);
	mutex_unlock(text);
	return 0;
}
#endif

#ifdef CONFIG_ARM64
enum {
	CALL_STEP = 4,
	CALL_SIZE = 4
};

static int (*poke)(void *at, u32 instruction);

static bool find_poke(void)
{
	poke = (void *)lookup("aarch64_insn_patch_text_nosync");
	return poke;
}

/* Where a bl or b leads, whose lower 26 bits are the distance in instructions; NULL: it is none. */
static void *target_of(const u8 *at)
{
	u32 code = le32_to_cpup((const __le32 *)at);

	return (code & 0x7c000000) == 0x14000000 ? (void *)(at + ((s32)(code << 6) >> 4)) : NULL;
}

/* It reaches 128 MiB: modules are as close as that where the kernel has nokaslr. */
static int lead(u8 *at, void *target)
{
	long offset = (u8 *)target - at;

	if (offset < -(128L << 20) || offset >= 128L << 20)
		return -ERANGE;
	return poke(at, (le32_to_cpup((__le32 *)at) & 0xfc000000) | (offset >> 2 & 0x03ffffff));
}
#endif

/* The changed calls, to be restored at unload. */
static struct {
	u8 *at;
	void *was;
} redirected[64];
static int redirections;

static bool find_calls(void)
{
	lookup = address_of("kallsyms_lookup_name");
	if (!lookup)
		return false;
	size_of = (void *)lookup("kallsyms_lookup_size_offset");
	return size_of && find_poke();
}

/* Redirect the calls in one caller; return how many, or an error. */
static int redirect_in(const char *name, unsigned long callee, void *ours)
{
	u8 *caller = (u8 *)lookup(name);
	unsigned long size = 0, offset;
	int found = 0, error;

	if (!caller || !size_of((unsigned long)caller, &size, &offset))
		return 0;
	for (u8 *at = caller; at + CALL_SIZE <= caller + size; at += CALL_STEP) {
		found += target_of(at) == ours; /* by an earlier site */
		if (target_of(at) != (void *)callee)
			continue;
		if (redirections == ARRAY_SIZE(redirected))
			return -ENOSPC;
		error = lead(at, ours);
		if (error)
			return error;
		redirected[redirections].at = at;
		redirected[redirections++].was = (void *)callee;
		found++;
	}
	return found;
}

/* Returns how many calls of the site were redirected; 0: it is not there in this kernel. */
static int redirect_calls(const struct site *site)
{
	char names[128], *left = names, *name;
	unsigned long callee = 0;
	int found = 0;

	strscpy(names, site->callees, sizeof(names));
	while (!callee && (name = strsep(&left, " ")))
		callee = lookup(name);
	if (callee && site->real)
		*(unsigned long *)site->real = callee;
	left = names;
	strscpy(names, site->callers, sizeof(names));
	while (callee && !found && (name = strsep(&left, " "))) {
		found = redirect_in(name, callee, site->ours);
		pr_info(KBUILD_MODNAME ": %s calls %ps %d times\n", name, (void *)callee, found);
	}
	return found;
}

static void restore_calls(void)
{
	while (redirections--)
		lead(redirected[redirections].at, redirected[redirections].was);
}

#endif
