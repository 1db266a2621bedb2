/*
 * A plugin of QEMU that counts the instructions of a guest between two marks of the load.
 *
 * Arguments: begin=ADDRESS and end=ADDRESS, functions of the load at fixed addresses, and
 * out=PREFIX. At each `end` it writes PREFIX.N: a line per block of code, with its address, its
 * instructions, and how often it ran since `begin`.
 *
 * The declarations are those of QEMU's include/qemu/qemu-plugin.h, version 1 of its interface.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define BLOCKS   (1u << 21)

struct qemu_plugin_tb;
typedef void (*translated_t)(uint64_t id, struct qemu_plugin_tb *block);
typedef void (*executed_t)(unsigned int cpu, void *data);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, translated_t call);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, executed_t call,
						 int registers, void *data);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int add_u64,
						     void *sum, uint64_t added);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *block);

EXPORTED int qemu_plugin_version = 1;

struct block {
	uint64_t address;
	uint64_t instructions;
	uint64_t runs;
};
static struct block *blocks;
static uint64_t begin, end;
static const char *out = "profile";

/* The row of a block; the same code may be translated again, and cut in another way. */
static struct block *row_of(uint64_t address, uint64_t instructions)
{
	uint64_t at = (address * 31 + instructions) * 0x9e3779b97f4a7c15ULL >> 43;

	for (unsigned tries = 0; tries < BLOCKS; tries++, at++) {
		struct block *row = &blocks[at & (BLOCKS - 1)];

		if (!row->address) {
			row->address = address;
			row->instructions = instructions;
		}
		if (row->address == address && row->instructions == instructions)
			return row;
	}
	fprintf(stderr, "profile_plugin: more than %u blocks\n", BLOCKS);
	abort();
}

static void at_begin(unsigned int cpu, void *data)
{
	(void)cpu, (void)data;
	for (unsigned at = 0; at < BLOCKS; at++)
		blocks[at].runs = 0;
}

static void at_end(unsigned int cpu, void *data)
{
	static unsigned number;
	char path[4096];
	FILE *file;

	(void)cpu, (void)data;
	snprintf(path, sizeof(path), "%s.%u", out, number++);
	file = fopen(path, "w");
	if (!file)
		abort();
	for (unsigned at = 0; at < BLOCKS; at++)
		if (blocks[at].runs)
			fprintf(file, "%lx %lu %lu\n", blocks[at].address, blocks[at].instructions,
				blocks[at].runs);
	fclose(file);
}

static void translated(uint64_t id, struct qemu_plugin_tb *block)
{
	uint64_t address = qemu_plugin_tb_vaddr(block);
	struct block *row = row_of(address, qemu_plugin_tb_n_insns(block));

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &row->runs, 1);
	if (address == begin || address == end)
		qemu_plugin_register_vcpu_tb_exec_cb(block, address == begin ? at_begin : at_end, 0,
						     0);
}

EXPORTED int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
	(void)info;
	for (int n = 0; n < argc; n++) {
		char *value = strchr(argv[n], '=');

		if (!value)
			return 1;
		*value++ = 0;
		if (!strcmp(argv[n], "out"))
			out = strdup(value);
		else if (!strcmp(argv[n], "begin"))
			begin = strtoull(value, 0, 16);
		else if (!strcmp(argv[n], "end"))
			end = strtoull(value, 0, 16);
	}
	blocks = calloc(BLOCKS, sizeof(*blocks));
	if (!blocks)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
