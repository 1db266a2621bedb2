// The loads of tests/bench: each repeats one operation and measures the loop without its set-up.
//
// usage: loads NAME COUNT
//
// Prints one JSON line: operations, nanoseconds of wall-clock time and of CPU time, which includes
// children that were waited for.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096UL
#define AREA  16 // pages: too few for a huge page
#define AT(n) ((char *)(0x100000000000UL + ((unsigned long)(n) << 32)))
#define VMAS  1000
#define STORM (8UL << 20)

static char *area, *other, *self;
static long done;
static int given_up;

static void must(int good, const char *what)
{
	if (!good) {
		dprintf(2, "loads: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static char *mapped(char *where, unsigned long bytes)
{
	int fixed = where ? MAP_FIXED_NOREPLACE : 0;
	char *got = mmap(where, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed,
			 -1, 0);

	must(got != MAP_FAILED && (!where || got == where), "mmap");
	madvise(got, bytes, MADV_NOHUGEPAGE);
	return got;
}

static char *touched(char *where, unsigned long bytes)
{
	char *got = mapped(where, bytes);

	for (unsigned long at = 0; at < bytes; at += PAGE)
		got[at] = 1;
	return got;
}

static void set_up_area(void)
{
	area = touched(AT(0), AREA * PAGE);
	other = AT(1);
	must(syscall(SYS_brk, (char *)syscall(SYS_brk, 0) + PAGE) > 0, "brk");
}

static void set_up_neighbour(void)
{
	area = mmap(AT(4), AREA * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(area == AT(4), "mmap");
	*area = 1;
}

// Neighbours differ in protection, so that they are not merged.
static void set_up_many(void)
{
	for (int n = 0; n < VMAS; n++) {
		char *one = touched(AT(2) + n * 2 * PAGE, PAGE);

		must(!mprotect(one, PAGE, n % 2 ? PROT_READ : PROT_READ | PROT_WRITE), "mprotect");
	}
}

static void set_up_storm(void)
{
	area = mapped(AT(3), STORM);
}

static void map(void)
{
	char *got = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(got != MAP_FAILED && !munmap(got, PAGE), "mmap");
}

/* It is merged with the VMA below it, which has an anon_vma, and split off again. */
static void merge(void)
{
	char *got = mmap(area + AREA * PAGE, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	must(got == area + AREA * PAGE, "mmap");
	*got = 1;
	must(!munmap(got, PAGE), "munmap");
}

static void protect(void)
{
	must(!mprotect(area + AREA / 2 * PAGE, AREA / 2 * PAGE, PROT_READ), "mprotect");
	must(!mprotect(area + AREA / 2 * PAGE, AREA / 2 * PAGE, PROT_READ | PROT_WRITE),
	     "mprotect back");
}

static void grow_heap(void)
{
	char *end = (char *)syscall(SYS_brk, 0);

	must((char *)syscall(SYS_brk, end + PAGE) == end + PAGE &&
		     (char *)syscall(SYS_brk, end) == end,
	     "brk");
}

static void move(void)
{
	char *from = area;

	must(mremap(from, AREA * PAGE, AREA * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other,
	     "mremap");
	area = other;
	other = from;
}

static void child(int runs)
{
	long pid = syscall(SYS_fork);

	if (!pid) {
		if (runs)
			execl(self, self, "nothing", "1", NULL);
		syscall(SYS_exit_group, 0);
	}
	must(pid > 0 && syscall(SYS_wait4, pid, NULL, 0, NULL) == pid, "fork");
}

static void forked(void)
{
	child(0);
}
static void executed(void)
{
	child(1);
}
static void nothing(void)
{
}

// One operation is one fault; a call causes STORM / PAGE of them.
static void storm(void)
{
	for (unsigned long at = 0; at < STORM; at += PAGE)
		area[at] = 1;
	madvise(area, STORM, MADV_DONTNEED);
	done += STORM / PAGE - 1;
}

static long migrated(void)
{
	static char text[1 << 16];
	int fd = open("/proc/vmstat", O_RDONLY), length = 0, more;

	while ((more = read(fd, text + length, sizeof(text) - 1 - length)) > 0)
		length += more;
	close(fd);
	text[length] = 0;
	return atol(strstr(text, "pgmigrate_success ") + strlen("pgmigrate_success "));
}

// One operation is one page that compaction migrates. Every second block is unmapped first, so that
// there are holes. The pauses are the time of this preparation.
static struct timespec pause_wall, pause_cpu;
static void compact(void)
{
	enum {
		BLOCKS = 128,
		BLOCK = 1 << 20
	};
	char *block[BLOCKS];
	int fd = open("/proc/sys/vm/compact_memory", O_WRONLY);
	static int rounds;
	struct timespec from[2], to[2];
	long before = migrated();

	clock_gettime(CLOCK_MONOTONIC, &from[0]);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from[1]);
	for (int n = 0; n < BLOCKS; n++)
		block[n] = touched(NULL, BLOCK);
	for (int n = 0; n < BLOCKS; n += 2)
		munmap(block[n], BLOCK);
	clock_gettime(CLOCK_MONOTONIC, &to[0]);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to[1]);
	pause_wall.tv_sec += to[0].tv_sec - from[0].tv_sec,
		pause_wall.tv_nsec += to[0].tv_nsec - from[0].tv_nsec;
	pause_cpu.tv_sec += to[1].tv_sec - from[1].tv_sec,
		pause_cpu.tv_nsec += to[1].tv_nsec - from[1].tv_nsec;
	must(fd >= 0 && write(fd, "1", 1) == 1, "compact_memory");
	close(fd);
	done += migrated() - before - 1;
	if (++rounds == 20)
		given_up = 1; // nothing to compact in this machine's memory
	for (int n = 1; n < BLOCKS; n += 2)
		munmap(block[n], BLOCK);
}

static const struct {
	const char *name;
	void (*set_up)(void);
	void (*run)(void);
} loads[] = {
	{"map", nothing, map},
	{"merge", set_up_neighbour, merge},
	{"protect", set_up_area, protect},
	{"brk", set_up_area, grow_heap},
	{"move", set_up_area, move},
	{"fork", set_up_many, forked},
	{"exec", nothing, executed},
	{"faults", set_up_storm, storm},
	{"compact", nothing, compact},
	{"nothing", nothing, nothing},
};

static long cpu(void)
{
	struct rusage own, children;

	getrusage(RUSAGE_SELF, &own);
	getrusage(RUSAGE_CHILDREN, &children);
#define NS(t) ((t).tv_sec * 1000000000L + (t).tv_usec * 1000L)
	return NS(own.ru_utime) + NS(own.ru_stime) + NS(children.ru_utime) + NS(children.ru_stime);
}

static long wall(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* tests/bench/profile_plugin.c counts from the first to the second. */
__attribute__((noipa)) static void count_begins(void)
{
	__asm__ volatile("");
}
__attribute__((noipa)) static void count_ends(void)
{
	__asm__ volatile("");
}

int main(int argc, char **argv)
{
	long count = argc == 3 ? atol(argv[2]) : 0;

	self = argv[0];
	for (unsigned at = 0; at < sizeof(loads) / sizeof(*loads); at++) {
		long cpu_ns, wall_ns;

		if (argc != 3 || strcmp(argv[1], loads[at].name))
			continue;
		if (loads[at].run == nothing)
			return 0;
		loads[at].set_up();
		cpu_ns = cpu();
		wall_ns = wall();
		count_begins();
		for (; done < count && !given_up; done++)
			loads[at].run();
		count_ends();
		wall_ns = wall() - wall_ns - pause_wall.tv_sec * 1000000000L - pause_wall.tv_nsec;
		cpu_ns = cpu() - cpu_ns - pause_cpu.tv_sec * 1000000000L - pause_cpu.tv_nsec;
		printf("{\"operations\": %ld, \"wall_ns\": %ld, \"cpu_ns\": %ld}\n", done, wall_ns,
		       cpu_ns);
		return 0;
	}
	dprintf(2, "usage: loads NAME COUNT\n");
	return 2;
}
