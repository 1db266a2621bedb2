// A workload: exactly N of each change of a VMA, so that a tracer knows how often each window ran.
//
// usage: vma N WAIT OPERATION...     compiled and run by vma.py
//
// All areas are mapped, touched and counted during the set-up, whichever operations are requested.
// Afterwards this process makes only the requested VMA changes: no libc allocation, no libc fork,
// addresses fixed and apart from each other. With WAIT it stops itself (SIGSTOP) after the set-up
// and again before it exits.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE  ((unsigned long)sysconf(_SC_PAGESIZE))
#define AREA  16 // pages: too few for a huge page
#define AT(n) ((char *)(0x100000000000UL + ((unsigned long)(n) << 32)))

static char *anon, *file, *grown, *moved, *elsewhere, *stack;
static char listed[1 << 16];
static int vmas;

static void must(int good, const char *what)
{
	if (!good) {
		dprintf(2, "vma: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static char *area(char *where, int fd)
{
	int kind = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (fd < 0 ? MAP_ANONYMOUS : 0);
	char *got = mmap(where, AREA * PAGE, PROT_READ | PROT_WRITE, kind, fd, 0);

	must(got == where, "mmap");
	for (int page = 0; page < AREA; page++)
		got[page * PAGE] = 1;
	return got;
}

// Count the VMAs (the vsyscall page is none), and find the lowest address of the stack.
static void look(void)
{
	int fd = open("/proc/self/maps", O_RDONLY), length = 0, more;

	must(fd >= 0, "/proc/self/maps");
	while ((more = read(fd, listed + length, sizeof(listed) - 1 - length)) > 0)
		length += more;
	close(fd);
	for (char *line = listed, *end; (end = strchr(line, '\n')); line = end + 1) {
		*end = 0;
		vmas += !strstr(line, "[vsyscall]");
		if (strstr(line, "[stack]"))
			stack = (char *)strtoul(line, NULL, 16);
	}
	must(stack != NULL, "no stack");
}

static void set_up(void)
{
	int fd = memfd_create("vma", 0);

	must(fd >= 0 && !ftruncate(fd, AREA * PAGE), "memfd");
	anon = area(AT(0), -1);
	file = area(AT(1), fd);
	grown = area(AT(2), -1) + AREA * PAGE;
	moved = area(AT(3), -1);
	elsewhere = AT(4);
	must(syscall(SYS_brk, (char *)syscall(SYS_brk, 0) + PAGE) > 0, "brk");
	((volatile char *)syscall(SYS_brk, 0))[-1] = 1;
	look();
}

static void halve(char *where)
{
	must(!mprotect(where + AREA / 2 * PAGE, AREA / 2 * PAGE, PROT_READ), "mprotect");
}

static void heal(char *where)
{
	must(!mprotect(where + AREA / 2 * PAGE, AREA / 2 * PAGE, PROT_READ | PROT_WRITE),
	     "mprotect back");
}

// Split an anonymous VMA by mprotect() of its second half, and merge it by mprotect() back.
static void split_merge(void)
{
	halve(anon);
	heal(anon);
}

// The same with a private mapping of a file that was written to.
static void file_split_merge(void)
{
	halve(file);
	heal(file);
}

// Map a page right behind a touched VMA, which makes that one larger.
static void expand(void)
{
	must(mmap(grown, PAGE, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == grown,
	     "mmap beside");
	grown += PAGE;
}

static void grow_heap(void)
{
	char *end = (char *)syscall(SYS_brk, 0);

	must((char *)syscall(SYS_brk, end + PAGE) == end + PAGE, "brk");
}

static void fork_exit(void)
{
	long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); /* fork(2); arm64 has none */

	if (!child)
		syscall(SYS_exit_group, 0);
	must(child > 0 && syscall(SYS_wait4, child, NULL, 0, NULL) == child, "fork");
}

static void move(void)
{
	char *from = moved;

	must(mremap(from, AREA * PAGE, AREA * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) ==
		     elsewhere,
	     "mremap");
	moved = elsewhere;
	elsewhere = from;
}

// Write to the page below the stack.
static void grow_stack(void)
{
	stack -= PAGE;
	*(volatile char *)stack = 1;
}

static const struct {
	const char *name;
	void (*run)(void);
} operations[] = {
	{"split_merge", split_merge}, {"file_split_merge", file_split_merge},
	{"expand", expand},           {"brk", grow_heap},
	{"fork", fork_exit},          {"move", move},
	{"stack", grow_stack},
};

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[1]) : 0, waits = argc > 2 && atoi(argv[2]);
	char text[1024];
	int length;

	must(count > 0 && count <= 1000, "usage: vma N WAIT OPERATION..., N from 1 to 1000");
	prctl(PR_SET_NAME, "vma");
	set_up();
	length = snprintf(text, sizeof(text), "{\"pid\": %d, \"vmas\": %d", getpid(), vmas);
	if (waits)
		syscall(SYS_kill, getpid(), SIGSTOP);
	for (unsigned at = 0; at < sizeof(operations) / sizeof(*operations); at++) {
		int wanted = argc == 3;

		for (int arg = 3; arg < argc; arg++)
			wanted |= !strcmp(argv[arg], operations[at].name);
		for (int done = 0; wanted && done < count; done++)
			operations[at].run();
		length += snprintf(text + length, sizeof(text) - length, ", \"%s\": %d",
				   operations[at].name, wanted ? count : 0);
	}
	length += snprintf(text + length, sizeof(text) - length, "}\n");
	must(write(1, text, length) == length, "write");
	if (waits)
		syscall(SYS_kill, getpid(), SIGSTOP);
	return 0;
}
