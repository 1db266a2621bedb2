/* The tasks that wait for an rwsem, and what an rwsem is a part of. */
#ifndef RMAPD_RWSEM_QUEUE_H
#define RMAPD_RWSEM_QUEUE_H

#include "rwsem.h"

enum {
	WAITERS_A_LOOK = 16
};

#ifdef HAVE_rw_semaphore_queue
static __always_inline u64 first_waiter(rwsem_t rwsem)
{
#ifdef HAVE_rw_semaphore_first_waiter
	return READ_RWSEM(rwsem, first_waiter);
#else
	return READ_RWSEM(rwsem, wait_list);
#endif
}

/*
 * The task's own entry in the queue of a lock: it sleeps until the lock is given back. A waiter is
 * on the stack of the task that waits, which is not in the direct map: the walk goes on from a
 * waiter only if that is true, and if the list leads back. No stack is freed while this runs, for
 * it is freed by RCU.
 */
static __always_inline u64 waiter_of(struct params *p, rwsem_t rwsem, u64 task, u64 stack_bytes)
{
	u64 first = first_waiter(rwsem);
	u64 at = first;
	u64 from = 0;
#pragma unroll
	for (u32 i = 0; i < WAITERS_A_LOOK; i++) {
		if (!at || at == rwsem.addr + OFFSET(rw_semaphore, queue))
			return 0;
		u64 waits = READ(rwsem_waiter, at, task);
		if (!is_ram(p, waits))
			return 0;
		u64 stack = READ(task_struct, waits, stack);
		if (at < stack || at >= stack + stack_bytes)
			return 0;
		if (from && READ(rwsem_waiter, at, prev) != from)
			return 0;
		if (waits == task)
			return at;
		from = at;
		at = READ(rwsem_waiter, at, next);
		if (at == first)
			return 0;
	}
	return 0;
}
#else
/*
 * PREEMPT_RT: what shows that the task waits for the lock. It is blocked on the rtmutex, or it owns
 * that and waits for readers (rwbase_write_lock()): then it is the lock itself.
 */
static __always_inline u64 waiter_of(struct params *p, rwsem_t rwsem, u64 task, u64 stack_bytes)
{
#if defined(HAVE_rw_semaphore_rtmutex) && defined(HAVE_task_struct_pi_blocked_on)
	u64 waiter = READ(task_struct, task, pi_blocked_on);
	if (waiter && READ(rt_mutex_waiter, waiter, task) == task &&
	    READ(rt_mutex_waiter, waiter, lock) == rwsem.addr + OFFSET(rw_semaphore, rtmutex))
		return waiter;
	u64 owner = READ_RWSEM(rwsem, owner) & OWNER_TASK;
	return owner == task && !is_written(READ_RWSEM(rwsem, count)) ? rwsem.addr : 0;
#else
	return 0;
#endif
}
#endif

/*
 * The class of an rwsem by the object that it is a part of, as far as that leads back to the lock.
 * CLASS_other: it is none of these. Pointers are followed only into RAM.
 *
 * own: the task's own mm. part_of: receives the object.
 */
static __always_inline u32 object_class(struct params *p, rwsem_t rwsem, mm_t own, u64 *part_of)
{
	if (own.addr && rwsem.addr == mmap_lock_of(own).addr) {
		*part_of = own.addr;
		return CLASS_mmap;
	}
	u64 anon_vma = rwsem.addr - OFFSET(anon_vma, rwsem);
	if (READ_ANON_VMA(ANON_VMA(anon_vma), root) == anon_vma) {
		*part_of = anon_vma;
		return CLASS_anon;
	}
	u64 mapping = rwsem.addr - OFFSET(address_space, i_mmap_rwsem);
	u64 host = READ_MAPPING(MAPPING(mapping), host);
	if (host && host + OFFSET(inode, i_data) == mapping) {
		*part_of = mapping;
		return CLASS_i_mmap;
	}
#ifdef HAVE_hugetlb_vma_lock_vma
	u64 lock = rwsem.addr - OFFSET(hugetlb_vma_lock, rw_sema);
	u64 vma = READ(hugetlb_vma_lock, lock, vma);
	/* The low bits are flags: HPAGE_RESV_MASK, mm/hugetlb.c. */
	if (is_ram(p, vma) && (READ_VMA(VMA(vma), vm_private_data) & ~7ULL) == lock) {
		*part_of = vma;
		return CLASS_hugetlb;
	}
#endif
#ifdef HAVE_mm_struct_owner
	u64 mm = rwsem.addr - OFFSET(mm_struct, mmap_lock);
	u64 owner = READ_MM(MM(mm), owner);
	if (is_ram(p, owner) && READ(task_struct, owner, mm) == mm) {
		*part_of = mm;
		return CLASS_mmap;
	}
#endif
	return CLASS_other;
}

#endif
