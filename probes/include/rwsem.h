/* Who holds an rwsem, and where the rwsems of a VMA are. */
#ifndef RMAPD_RWSEM_H
#define RMAPD_RWSEM_H

#include "common.h"

/* rwsem.owner without RWSEM_NONSPINNABLE. RWSEM_READER_OWNED stays in: a reader's name stands there until the next owner writes its own, and
   a writer has the lock before it has written (kernel/locking/rwsem.c): for that moment the last reader would pass for the writer. */
#define OWNER_TASK (~2ULL)

/* Who holds an rwsem. For a lock that this task holds the answer cannot be wrong: nobody else changes it meanwhile. */
static __always_inline u32 owner_of(u64 rwsem)
{
	if (!rwsem)
		return OWNER_FREE;
	u64 count = READ(rw_semaphore, rwsem, count);
	if (count & 1)
		return (READ(rw_semaphore, rwsem, owner) & OWNER_TASK) == bpf_get_current_task() ?
			       OWNER_SELF :
			       OWNER_OTHER;
	return (s64)count > 0 && count >> 8 ? OWNER_READ : OWNER_FREE;
}

static __always_inline u64 i_mmap_of(u64 mapping)
{
	return mapping ? mapping + OFFSET(address_space, i_mmap_rwsem) : 0;
}
static __always_inline u64 root_lock_of(u64 anon_vma)
{
	u64 root = anon_vma ? READ(anon_vma, anon_vma, root) : 0;
	return root ? root + OFFSET(anon_vma, rwsem) : 0;
}
static __always_inline u64 lock_of_file(u64 file)
{
	return file ? i_mmap_of(READ(file, file, f_mapping)) : 0;
}
static __always_inline u64 file_lock_of(u64 vma)
{
	return lock_of_file(READ(vm_area_struct, vma, vm_file));
}

#endif
