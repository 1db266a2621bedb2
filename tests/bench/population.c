// Many idle processes with many VMAs each.
//
// usage: population PROCESSES VMAS
//
// Prints "ready" when all have mapped their VMAs. For each line on standard input every process
// unmaps and maps one VMA, then "done" is printed. The program and its processes end with standard
// input.

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE  4096UL
#define AT(n) ((char *)(0x100000000000UL + (n) * 2 * PAGE))

static void must(int good, const char *what)
{
	if (!good) {
		dprintf(2, "population: %s: %s\n", what, strerror(errno));
		_exit(1);
	}
}

static void map(unsigned long n, int touch)
{
	char *got = mmap(AT(n), PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	must(got == AT(n), "mmap");
	if (touch)
		*got = 1;
}

static void one(long vmas, int from, int to)
{
	char word;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (long n = 0; n < vmas; n++)
		map(n, n < 4);
	must(write(to, "r", 1) == 1, "answer");
	while (read(from, &word, 1) == 1) {
		must(!munmap(AT(0), PAGE), "munmap");
		map(0, 1);
		must(write(to, "d", 1) == 1, "answer");
	}
	_exit(0);
}

static void await(int from, long count)
{
	static char words[1 << 16];

	while (count > 0) {
		long got = read(from, words,
				count < (long)sizeof(words) ? count : (long)sizeof(words));

		must(got > 0, "await");
		count -= got;
	}
}

int main(int argc, char **argv)
{
	long processes = argc == 3 ? atol(argv[1]) : 0, vmas = argc == 3 ? atol(argv[2]) : 0;
	int orders[2], answers[2];
	char line[16];

	must(processes > 0 && vmas > 0 && !pipe(orders) && !pipe(answers),
	     "usage: population PROCESSES VMAS");
	for (long n = 0; n < processes; n++) {
		pid_t child = fork();

		must(child >= 0, "fork");
		if (!child) {
			close(orders[1]);
			one(vmas, orders[0], answers[1]);
		}
	}
	close(answers[1]);
	await(answers[0], processes);
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		for (long n = 0; n < processes; n++)
			must(write(orders[1], "x", 1) == 1, "order");
		await(answers[0], processes);
		printf("done\n");
		fflush(stdout);
	}
	close(orders[1]);
	while (wait(NULL) > 0)
		;
	return 0;
}
