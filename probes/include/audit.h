/* Shared by the programs of the state audit: who took an mmap_lock for write, where the mm does not
 * count that itself.
 */
#ifndef RMAPD_AUDIT_H
#define RMAPD_AUDIT_H

#include "mm_ids.h"

/*
 * Acquisitions of mmap_locks for write, by a hash of the mm. mmap_lock_acquire_returned fires
 * between the acquisition and the first change of the mm, so a writer that came and went has raised
 * its number. mmap_lock_released would miss mmap_write_downgrade(). Two mms of one number only make
 * a look disturbed that was not.
 */
BPF_ARRAY(audit_writes, u64, AUDIT_WRITERS);

/* An mm_struct's slab object is larger than a cache line: the lowest six bits are 0. */
#define AUDIT_WRITER(mm) ((mm) >> 6 & (AUDIT_WRITERS - 1))

#endif
