/* What a task in a window does with rwsems. Blocking forms are booked where they are asked for, the others where they succeed. */
#include "task_windows.h"

/* The rwsems that a task took in windows: the last eight by task, those before in an LRU map (mm_take_all_locks() takes thousands), where what
   is released outside of any window ages out. */
enum {
	HELD_RWSEMS = 8
};
struct held_rwsems {
	u64 rwsem[HELD_RWSEMS];
	struct hold hold[HELD_RWSEMS];
	u64 epoch; /* of the frames that took them */
	u32 oldest;
	u32 spilled; /* how many went to the LRU map and were not seen to be given back */
};
BPF_TASK_STORAGE(held_rwsems, struct held_rwsems);
BPF_TABLE("lru_hash", struct hold_key, struct hold, holds, HOLD_ROWS);
BPF_PERCPU_ARRAY(lock_waits, struct histogram, LOCK_CLASSES);
BPF_PERCPU_ARRAY(lock_holds, struct histogram, LOCK_CLASSES);

/* The class of an rwsem by what it is part of: the structure around it refers back to itself. */
static __always_inline u32 class_of(struct frame *f, u64 rwsem)
{
	if (rwsem == f->anon)
		return CLASS_anon;
	if (rwsem == f->i_mmap)
		return CLASS_i_mmap;
	if (rwsem == f->mmap)
		return CLASS_mmap;
	if (rwsem == f->mmap2)
		return CLASS_mmap2;
	u64 anon_vma = rwsem - OFFSET(anon_vma, rwsem);
	if (READ(anon_vma, anon_vma, root) == anon_vma) {
		if (f->anon)
			return CLASS_anon2;
		f->anon = rwsem;
		return CLASS_anon;
	}
	u64 mapping = rwsem - OFFSET(address_space, i_mmap_rwsem),
	    host = READ(address_space, mapping, host);
	if (host && host + OFFSET(inode, i_data) == mapping) {
		if (f->i_mmap)
			return CLASS_i_mmap2;
		f->i_mmap = rwsem;
		return CLASS_i_mmap;
	}
	if (f->key.window ==
	    WINDOW_dup_mmap) { /* rebuilt: the child's mm is in no argument; nobody else knows it yet */
		u64 mm = rwsem - OFFSET(mm_struct, mmap_lock);
		if (NEWBORN(mm, READ(mm_struct, mm, id), READ(mm_struct, f->mm, id))) {
			f->mmap2 = rwsem;
			return CLASS_mmap2;
		}
	}
#ifdef HAVE_vm_area_struct_vm_lock
	if (f->vma && READ(vm_area_struct, f->vma, vm_lock) + OFFSET(vma_lock, lock) == rwsem)
		return CLASS_vma;
#endif
	u64 inode = rwsem - OFFSET(inode, i_rwsem), own = READ(inode, inode, i_mapping);
	if (own && own == inode + OFFSET(inode, i_data))
		return CLASS_i_rwsem;
	mapping = rwsem - OFFSET(address_space, invalidate_lock);
	host = READ(address_space, mapping, host);
	if (host && host + OFFSET(inode, i_data) == mapping)
		return CLASS_invalidate;
#ifdef HAVE_hugetlb_vma_lock_vma
	u64 lock = rwsem - OFFSET(hugetlb_vma_lock, rw_sema),
	    vma = READ(hugetlb_vma_lock, lock, vma);
	if (vma && (READ(vm_area_struct, vma, vm_private_data) & ~7ULL) == lock)
		return CLASS_hugetlb;
#endif
	return CLASS_other;
}

static __always_inline u32 slot_of(struct held_rwsems *h, u64 rwsem)
{
	u32 at = 0;
#pragma unroll
	for (at = 0; at < HELD_RWSEMS; at++)
		if (h->rwsem[at] == rwsem)
			break;
	return at;
}

/* Where hooks have changed since, what was held then may have been given back unseen. */
static __always_inline void forget_old(struct held_rwsems *h, u64 epoch)
{
	if (h->epoch == epoch)
		return;
	__builtin_memset(h, 0, sizeof(*h));
	h->epoch = epoch;
}

static __always_inline void fill_hold_key(struct hold_key *key, u64 rwsem)
{
	key->rwsem = rwsem;
	key->tid = (u32)bpf_get_current_pid_tgid();
}

static __always_inline void take_down(struct held_rwsems *h, u64 rwsem, struct hold *fresh)
{
	u32 at = slot_of(h, rwsem);
	if (at == HELD_RWSEMS)
		at = slot_of(h, 0);
	if (at == HELD_RWSEMS) { /* the oldest makes room */
		struct hold_key key = {};
		at = h->oldest++;
		BOUND(at, 7);
		fill_hold_key(&key, h->rwsem[at]);
		holds.update(&key, &h->hold[at]);
		h->spilled++;
	}
	BOUND(at, 7);
	h->rwsem[at] = rwsem;
	h->hold[at] = *fresh;
}

/* Whether it was down as held; it no longer is, and `found` says how. */
static __always_inline u32 take_off(struct held_rwsems *h, u64 rwsem, struct hold *found)
{
	u32 at = slot_of(h, rwsem);
	if (at < HELD_RWSEMS) {
		BOUND(at, 7);
		*found = h->hold[at];
		h->rwsem[at] = 0;
		return 1;
	}
	struct hold_key key = {};
	fill_hold_key(&key, rwsem);
	struct hold *spilled = h->spilled ? holds.lookup(&key) : 0;
	if (!spilled)
		return 0;
	*found = *spilled;
	h->spilled--;
	holds.delete(&key);
	return 1;
}

static __always_inline void lock_step(struct insider *t, struct frame *f, u64 rwsem, u32 kind)
{
	u32 class = class_of(f, rwsem);
	struct held_rwsems *h = held_rwsems.task_storage_get(CURRENT, 0, CREATED);
	struct hold held = {};
	if (h)
		forget_old(h, f->epoch);
	if (!h) {
		count(LOCKS_LOST);
	} else if (kind < KIND_up_read) {
		if (take_off(h, rwsem, &held) && kind != KIND_down_read)
			put(f, STEP_LOST); /* its release was missed; a reader may come twice */
		held.wait_ns = 0;
		held.since_ns = bpf_ktime_get_ns();
		held.lock_class = class;
		if (t->waited &&
		    t->contended == rwsem) { /* booked where it succeeded, the wait is over */
			held.wait_ns = t->contended_ns;
			held.since_ns -= held.wait_ns;
		}
		t->waited = 0;
		take_down(h, rwsem, &held);
	} else if (kind != KIND_downgrade_write && take_off(h, rwsem, &held)) {
		u32 which = held.lock_class;
		struct histogram *sums = lock_holds.lookup(&which);
		if (sums)
			add_to(sums, bpf_ktime_get_ns() - held.since_ns - held.wait_ns);
		sums = lock_waits.lookup(&which);
		if (sums)
			add_to(sums, held.wait_ns);
	}
	put(f, STEP_LOCK + class * LOCK_KINDS + kind);
}

HOOK(rwsem)
{
	struct insider *t = insider();
	struct frame *f = t ? alive(t, ON_STACK(ctx)) : 0;
	if (f)
		lock_step(t, f, ARGUMENT(rwsem), CONSTANT(kind));
	return 0;
}

HOOK(rwsem_trying)
{
	struct insider *t = insider();
	if (t)
		t->trying = ARGUMENT(rwsem);
	return 0;
}

/* Killable forms return 0 when they have the lock, try forms 1. */
HOOK(rwsem_tried)
{
	struct insider *t = insider();
	if (!t)
		return 0;
	if ((u32)PLACE(returned) != CONSTANT(success)) {
		t->waited = 0;
		return 0;
	}
	u64 rwsem = ARGUMENT(rwsem);
	struct frame *f = alive(t, ON_STACK(ctx));
	if (!rwsem)
		rwsem = t->trying;
	if (f && rwsem)
		lock_step(t, f, rwsem, CONSTANT(kind));
	return 0;
}

/* Who waits for an rwsem may spin for others meanwhile: the rwsem's own wait_lock, those of an interrupt. */
HOOK(contention_begin)
{
	struct insider *t = insider();
	if (!t || !t->depth || ARG(contention_begin, flags) & LCB_F_SPIN)
		return 0;
	t->contended = ARG(contention_begin, lock);
	t->contended_ns = bpf_ktime_get_ns();
	t->waited = 0;
	return 0;
}

HOOK(contention_end)
{
	struct insider *t = insider();
	if (!t || t->waited || !t->contended || t->contended != ARG(contention_end, lock))
		return 0;
	struct held_rwsems *h = held_rwsems.task_storage_get(CURRENT, 0, 0);
	u64 wait = bpf_ktime_get_ns() - t->contended_ns;
	u32 at = h ? slot_of(h, t->contended) : HELD_RWSEMS;
	if (h && at < HELD_RWSEMS) { /* booked where it was asked for: lately */
		BOUND(at, 7);
		h->hold[at].wait_ns = wait;
		t->contended = 0;
	} else {
		t->contended_ns = wait;
		t->waited = 1;
	}
	return 0;
}
