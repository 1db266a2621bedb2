/* Rwsems: the owner of an rwsem, and the addresses of the rwsems of a VMA's trees. */
#ifndef RMAPD_RWSEM_H
#define RMAPD_RWSEM_H

#include "common.h"

/* kernel/locking/rwsem.c */
#define RWSEM_WRITER_LOCKED (1UL << 0)
#define RWSEM_READER_SHIFT  8
#define RWSEM_READER_OWNED  (1UL << 0)
#define RWSEM_NONSPINNABLE  (1UL << 1)
/* include/linux/rwbase_rt.h: PREEMPT_RT's rwsem, whose `readers` is read as `count` */
#define WRITER_BIAS (1UL << 30)
/* kernel/locking/rtmutex_common.h: a bit of rtmutex.owner, which PREEMPT_RT reads as `owner` */
#define RT_MUTEX_HAS_WAITERS (1UL << 0)

/*
 * The task in rwsem.owner, without RWSEM_NONSPINNABLE. RWSEM_READER_OWNED is kept: the last reader
 * stays in `owner` until the next owner writes its own name, and a writer has the lock before it
 * has written. Without that bit the reader would pass for the writer in between.
 */
#ifdef HAVE_rw_semaphore_rwbase
#define OWNER_TASK (~RT_MUTEX_HAS_WAITERS)
#else
#define OWNER_TASK (~RWSEM_NONSPINNABLE)
#endif

/* Whether a task holds an rwsem with this count for write. */
static __always_inline u64 is_written(u64 count)
{
#ifdef HAVE_rw_semaphore_rwbase
	return !!(count & WRITER_BIAS);
#else
	return count & RWSEM_WRITER_LOCKED;
#endif
}

/* How many tasks hold an rwsem with this count for read; no task holds it for write. */
static __always_inline u64 readers_of(u64 count)
{
#ifdef HAVE_rw_semaphore_rwbase
	return count & (WRITER_BIAS - 1);
#else
	/* RWSEM_FLAG_READFAIL is the sign: it may be set without a reader. */
	return (s64)count > 0 ? count >> RWSEM_READER_SHIFT : 0;
#endif
}

struct rwsem_state {
	u64 count, owner;
};

/* Count and owner: one read by a helper costs less than two, where they are side by side. */
static __always_inline struct rwsem_state state_of(rwsem_t rwsem)
{
	struct rwsem_state s = {};
#if defined(RDONLY_CAST) || defined(HAVE_rw_semaphore_rwbase)
	s.count = READ_RWSEM(rwsem, count);
#ifdef HAVE_rw_semaphore_rwbase
	if (is_written(s.count)) /* a free one has READER_BIAS, and no reader is an owner */
#else
	if (s.count)
#endif
		s.owner = READ_RWSEM(rwsem, owner);
#else
	_Static_assert(OFFSET(rw_semaphore, owner) == OFFSET(rw_semaphore, count) + 8, "");
	bpf_probe_read_kernel(&s, sizeof(s), (void *)(rwsem.addr + OFFSET(rw_semaphore, count)));
#endif
	return s;
}

/*
 * Whether a task has an rwsem for write. On PREEMPT_RT the owner of the rtmutex is a writer only
 * beside WRITER_BIAS: it may still wait for readers, or be a reader that had to wait for a writer.
 */
static __always_inline u64 has_for_write(struct rwsem_state s, u64 task)
{
	return is_written(s.count) && (s.owner & OWNER_TASK) == task;
}

static __always_inline u32 owner_in(struct rwsem_state s)
{
	if (is_written(s.count))
		return has_for_write(s, bpf_get_current_task()) ? OWNER_SELF : OWNER_OTHER;
	return readers_of(s.count) ? OWNER_READ : OWNER_FREE;
}

/*
 * The owner state of an rwsem. It cannot be wrong for a lock that this task holds, because no
 * other task changes such a lock.
 */
static __always_inline u32 owner_of(rwsem_t rwsem)
{
	return rwsem.addr ? owner_in(state_of(rwsem)) : OWNER_FREE;
}

static __always_inline rwsem_t mmap_lock_of(mm_t mm)
{
	return RWSEM(mm.addr ? mm.addr + OFFSET(mm_struct, mmap_lock) : 0);
}

static __always_inline rwsem_t i_mmap_lock_of(mapping_t mapping)
{
	return RWSEM(mapping.addr ? mapping.addr + OFFSET(address_space, i_mmap_rwsem) : 0);
}

static __always_inline rwsem_t root_lock_of(anon_vma_t anon_vma)
{
	u64 root = anon_vma.addr ? READ_ANON_VMA(anon_vma, root) : 0;
	return RWSEM(root ? root + OFFSET(anon_vma, rwsem) : 0);
}

static __always_inline rwsem_t lock_of_file(u64 file)
{
	return file ? i_mmap_lock_of(MAPPING(READ(file, file, f_mapping))) : RWSEM(0);
}

/* The locks of the two trees that a VMA is in. */
static __always_inline rwsem_t file_lock_of(vma_t vma)
{
	return lock_of_file(READ_VMA(vma, vm_file));
}

static __always_inline rwsem_t anon_lock_of(vma_t vma)
{
	return root_lock_of(ANON_VMA(READ_VMA(vma, anon_vma)));
}

/*
 * The owner state of a lock at entry or return. Whether another task or none holds it for write is
 * chance, and would split one protocol into many: both are OWNER_FREE.
 */
static __always_inline u32 held_by_us(rwsem_t rwsem)
{
	u32 owner = owner_of(rwsem);
	return owner == OWNER_OTHER ? OWNER_FREE : owner;
}

/*
 * The same for the lock of a tree: rmap walks of other tasks hold it for read at any time. `owner`
 * names a task that took it for read last (rwsem_set_reader_owned()); if it does not name this task
 * the lock is OWNER_FREE. PREEMPT_RT keeps no reader.
 */
static __always_inline u32 tree_held_by_us(rwsem_t rwsem)
{
	if (!rwsem.addr)
		return OWNER_FREE;
	struct rwsem_state s = state_of(rwsem);
	u32 owner = owner_in(s);
#ifndef HAVE_rw_semaphore_rwbase
	if (owner == OWNER_READ &&
	    (s.owner & ~(RWSEM_READER_OWNED | RWSEM_NONSPINNABLE)) != bpf_get_current_task())
		owner = OWNER_FREE;
#endif
	return owner == OWNER_OTHER ? OWNER_FREE : owner;
}

#endif
