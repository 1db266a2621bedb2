/*
 * The BPF programs as ordinary C: the source that BCC compiles, with maps in this process. There is
 * one CPU and one thread.
 */
#define _GNU_SOURCE
#define HARNESS
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

struct bpf_raw_tracepoint_args {
	u64 args[12];
};
struct bpf_stacktrace {
	u64 ip[127];
};
struct seq_file {
	int unused;
};

/* The values that the loader writes into instructions (tracer/attach/relocations.py), by number. */
u64 harness_constants[1024];
s64 harness_places[1024]; /* offset in the context; -1: this function has no such argument */
static u64 harness_constant(u32 number)
{
	return harness_constants[number & 1023];
}
static u64 harness_place(void *ctx, u32 number)
{
	s64 at = harness_places[(number & 0xfff) >> 3];
	return at < 0 ? 0 : *(u64 *)((u8 *)ctx + at);
}

/* State of the kernel that the tests set. */
u64 harness_stack_id = 7;
u64 harness_regs[2];    /* orig_ax and ip of the system call */
u64 harness_frames[32]; /* the kernel stack of any other task */
u64 harness_pid_tgid, harness_task, harness_now, harness_stack;
u32 harness_ring_room = 1 << 20;

#define bpf_get_current_pid_tgid()     harness_pid_tgid
#define bpf_get_current_task()         harness_task
#define bpf_ktime_get_ns()             harness_now
#define bpf_jiffies64()                (harness_now / 4000000) /* HZ 250 */
#define bpf_get_current_task_btf()     harness_task
#define bpf_task_pt_regs(task)         ((u64)harness_regs - 120)
#define BPF_LOCAL_STORAGE_GET_F_CREATE 1
#define bpf_get_task_stack(task, to, size, flags) \
	(memcpy((to), harness_frames, (size)), (long)(size))
/* The random numbers that the programs get, as a test sets them. */
u64 harness_random;
#define bpf_get_prandom_u32()          ((u32)harness_random)
#define bpf_get_current_comm(to, size) (memcpy((to), "harness", 8), 0)

/*
 * A writer that interferes. The memory from harness_memory to harness_memory_end is read word by
 * word, as copy_from_kernel_nofault() does, and each store is made before the word with its number.
 */
struct harness_store {
	u64 when, at, value;
};
struct harness_store harness_stores[1024];
u64 harness_store_count, harness_stores_made, harness_words_read;
u64 harness_memory, harness_memory_end;

static void make_stores(void)
{
	u64 word = harness_words_read++;
	while (harness_stores_made < harness_store_count &&
	       harness_stores[harness_stores_made].when <= word) {
		struct harness_store *store = &harness_stores[harness_stores_made++];
		*(u64 *)store->at = store->value;
	}
}

static int bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	struct iovec local = {to, size}, remote = {(void *)from, size};
	u64 at = (u64)from;
	if (at >= harness_memory && at + size <= harness_memory_end) {
		for (u32 done = 0; done < size; done += 8) {
			make_stores();
			memcpy((u8 *)to + done, (u8 *)at + done, size - done < 8 ? size - done : 8);
		}
		return 0;
	}
	if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size)
		return 0;
	memset(to, 0, size);
	return -14;
}

static int bpf_probe_read_kernel_str(void *to, u32 size, const void *from)
{
	char *at = to;
	for (u32 i = 0; i < size; i++) {
		if (i == size - 1 || bpf_probe_read_kernel(at + i, 1, (const char *)from + i))
			at[i] = 0;
		if (!at[i])
			return i + 1;
	}
	return 0;
}

struct map {
	const char *name;
	u32 key, value, max, used, kind;
	u8 *keys, *values;
};
enum {
	HASH,
	ARRAY,
	LRU
};
static struct map *all_maps[64];
static u32 map_count;

static void map_new(struct map *m, const char *name, u32 key, u32 value, u32 max, u32 kind)
{
	*m = (struct map){name,
			  key,
			  value,
			  max,
			  kind == ARRAY ? max : 0,
			  kind,
			  calloc(max, key),
			  calloc(max, value)};
	for (u32 i = 0; kind == ARRAY && i < max; i++)
		memcpy(m->keys + i * key, &i, 4);
	all_maps[map_count++] = m;
}
static void *map_lookup(struct map *m, const void *key)
{
	u32 index;
	/* A number that another program counts, and this one reads from the map. */
	if (harness_memory && !strcmp(m->name, "audit_writes"))
		make_stores();
	if (m->kind == ARRAY) {
		memcpy(&index, key, 4);
		return index < m->max ? m->values + (u64)index * m->value : 0;
	}
	for (u32 i = 0; i < m->used; i++)
		if (!memcmp(m->keys + i * m->key, key, m->key))
			return m->values + i * m->value;
	return 0;
}
static int map_delete(struct map *m, const void *key)
{
	u8 *at = map_lookup(m, key);
	if (!at || m->kind == ARRAY)
		return -2;
	u32 i = (at - m->values) / m->value, last = m->used - 1;
	memmove(m->keys + i * m->key, m->keys + last * m->key, m->key);
	memmove(m->values + i * m->value, m->values + last * m->value, m->value);
	m->used = last;
	return 0;
}
static int map_update(struct map *m, const void *key, const void *value)
{
	u8 *at = map_lookup(m, key);
	if (!at && m->kind == ARRAY)
		return -7;
	if (!at && m->used == m->max && m->kind == LRU)
		map_delete(m, m->keys);
	if (!at && m->used == m->max)
		return -7;
	if (!at) {
		memcpy(m->keys + m->used * m->key, key, m->key);
		at = m->values + m->used++ * m->value;
	}
	memcpy(at, value, m->value);
	return 0;
}

#define MAP(nm, K, V, N, KIND)                                                       \
	static struct map nm##_map;                                                  \
	static __attribute__((constructor)) void nm##_new(void)                      \
	{                                                                            \
		map_new(&nm##_map, #nm, sizeof(K), sizeof(V), N, KIND);              \
	}                                                                            \
	static V *nm##_lookup(K *k)                                                  \
	{                                                                            \
		return map_lookup(&nm##_map, k);                                     \
	}                                                                            \
	static int nm##_update(K *k, V *v)                                           \
	{                                                                            \
		return map_update(&nm##_map, k, v);                                  \
	}                                                                            \
	static int nm##_insert(K *k, V *v)                                           \
	{                                                                            \
		return map_lookup(&nm##_map, k) ? -17 : map_update(&nm##_map, k, v); \
	}                                                                            \
	static int nm##_delete(K *k)                                                 \
	{                                                                            \
		return map_delete(&nm##_map, k);                                     \
	}                                                                            \
	static int nm##_stackid(void *ctx, u64 flags)                                \
	{                                                                            \
		return harness_stack_id;                                             \
	}                                                                            \
	static struct {                                                              \
		V *(*lookup)(K *);                                                   \
		int (*update)(K *, V *);                                             \
		int (*insert)(K *, V *);                                             \
		int (*delete)(K *);                                                  \
		int (*get_stackid)(void *, u64);                                     \
	} nm = {nm##_lookup, nm##_update, nm##_insert, nm##_delete, nm##_stackid};
#define BPF_HASH(nm, K, V, N)        MAP(nm, K, V, N, HASH)
#define BPF_ARRAY(nm, V, N)          MAP(nm, u32, V, N, ARRAY)
#define BPF_PERCPU_ARRAY(nm, V, N)   MAP(nm, u32, V, N, ARRAY)
#define BPF_TABLE(kind, K, V, nm, N) MAP(nm, K, V, N, LRU)

/*
 * Programs that tail calls go to. A program's number stands for its file descriptor. A tail call
 * that succeeds does not return; the 34th of a run, and one of an empty slot, do nothing
 * (MAX_TAIL_CALL_CNT, include/linux/bpf.h).
 */
typedef int program_fn(void *ctx);
enum {
	PROGRAMS = 64,
	MAX_TAIL_CALL_CNT = 33
};
static program_fn *programs[PROGRAMS];
static u32 program_count;
static program_fn *next_program;
static u32 tail_calls;
static jmp_buf running;
static void tail_call(struct map *m, u32 slot)
{
	u32 *number = map_lookup(m, &slot);
	if (!number || !*number || tail_calls == MAX_TAIL_CALL_CNT)
		return;
	tail_calls++;
	next_program = programs[*number];
	longjmp(running, 1);
}
#define BPF_PROG_ARRAY(nm, N)                                   \
	static struct map nm##_map;                             \
	static __attribute__((constructor)) void nm##_new(void) \
	{                                                       \
		map_new(&nm##_map, #nm, 4, 4, N, ARRAY);        \
	}                                                       \
	static void nm##_call(void *ctx, u32 slot)              \
	{                                                       \
		tail_call(&nm##_map, slot);                     \
	}                                                       \
	static struct {                                         \
		void (*call)(void *, u32);                      \
	} nm = {nm##_call};

/*
 * Task storage: one value per tid. No more than TASKS values can be created. While it is busy, on a
 * kernel before 6.2, no look-up succeeds.
 */
u64 harness_storage_busy;
static void *map_own(struct map *m, u64 flags)
{
	if (harness_storage_busy)
		return 0;
	u32 tid = harness_pid_tgid;
	static u8 zeros[1 << 16];
	if (flags && !map_lookup(m, &tid))
		map_update(m, &tid, zeros);
	return map_lookup(m, &tid);
}
#define BPF_TASK_STORAGE(nm, V)                                     \
	static struct map nm##_map;                                 \
	static __attribute__((constructor)) void nm##_new(void)     \
	{                                                           \
		map_new(&nm##_map, #nm, 4, sizeof(V), TASKS, HASH); \
	}                                                           \
	static void *nm##_own(u64 task, void *value, u64 flags)     \
	{                                                           \
		return map_own(&nm##_map, flags);                   \
	}                                                           \
	static struct {                                             \
		void *(*task_storage_get)(u64, void *, u64);        \
	} nm = {nm##_own};

static u8 ring[1 << 16], ring_pending[512];
static u32 ring_used, ring_sizes[512], ring_count;
static void *ring_reserve(u64 size)
{
	if (ring_used + size > sizeof(ring) || ring_used + size > harness_ring_room ||
	    ring_count == 512)
		return 0;
	ring_sizes[ring_count] = size;
	return ring_pending;
}
static void ring_submit(void *from, u64 flags)
{
	memcpy(ring + ring_used, from, ring_sizes[ring_count]);
	ring_used += ring_sizes[ring_count++];
}
#define BPF_RINGBUF_OUTPUT(nm, pages)                \
	static struct {                              \
		void *(*ringbuf_reserve)(u64);       \
		void (*ringbuf_submit)(void *, u64); \
	} nm = {ring_reserve, ring_submit};

static u8 sequence[1 << 16];
static u32 sequence_used;
static int bpf_seq_write(struct seq_file *seq, const void *from, u32 size)
{
	memcpy(sequence + sequence_used, from, size);
	sequence_used += size;
	return 0;
}

/* For Python. */
u32 harness_program(program_fn *program)
{
	for (u32 i = 1; i <= program_count; i++)
		if (programs[i] == program)
			return i;
	programs[++program_count] = program;
	return program_count;
}
u32 harness_run(program_fn *program, void *ctx)
{
	next_program = program;
	tail_calls = 0;
	setjmp(running);
	return next_program(ctx);
}
struct map *harness_map(const char *name)
{
	for (u32 i = 0; i < map_count; i++)
		if (!strcmp(all_maps[i]->name, name))
			return all_maps[i];
	return 0;
}
void *harness_lookup(struct map *m, const void *key)
{
	return map_lookup(m, key);
}
int harness_update(struct map *m, const void *key, const void *value)
{
	return map_update(m, key, value);
}
int harness_delete(struct map *m, const void *key)
{
	return map_delete(m, key);
}
u32 harness_ring(u8 *to)
{
	u32 used = ring_used;
	memcpy(to, ring, used);
	ring_used = ring_count = 0;
	return used;
}
u32 harness_sequence(u8 *to)
{
	u32 used = sequence_used;
	memcpy(to, sequence, used);
	sequence_used = 0;
	return used;
}
void harness_reset(void)
{
	for (u32 i = 0; i < map_count; i++) {
		struct map *m = all_maps[i];
		memset(m->values, 0, (u64)m->max * m->value);
		if (m->kind != ARRAY)
			m->used = 0;
	}
	ring_used = ring_count = sequence_used = 0;
	harness_stack_id = 7;
	harness_regs[0] = harness_regs[1] = 0;
	harness_ring_room = 1 << 20;
	harness_storage_busy = 0;
	harness_memory = harness_memory_end = 0;
	harness_store_count = harness_stores_made = harness_words_read = 0;
}
