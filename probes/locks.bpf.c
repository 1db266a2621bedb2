/*
 * Rwsem operations of a task in a window. A blocking acquisition is recorded at its entry, where
 * it can deadlock; a killable or try form is recorded at its return, where it has succeeded.
 */
#include "mm_ids.h"
#include "task_windows.h"

/* Rwsems beyond the HELD_RWSEMS of a task; a lock that is released outside of windows ages out. */
BPF_TABLE("lru_hash", struct hold_key, struct hold, holds, HOLD_ROWS);
BPF_PERCPU_ARRAY(lock_waits, struct histogram, LOCK_CLASSES);
BPF_PERCPU_ARRAY(lock_holds, struct histogram, LOCK_CLASSES);

/*
 * The class of an rwsem, by the struct that it is part of. For each candidate struct the check is
 * whether its members refer back to it, as they do in a real one.
 */
static __always_inline u32 class_of(struct open_window *w, rwsem_t rwsem)
{
	if (rwsem.addr == w->anon.addr)
		return CLASS_anon;
	if (rwsem.addr == w->i_mmap.addr)
		return CLASS_i_mmap;
	if (rwsem.addr == w->mmap.addr)
		return CLASS_mmap;
	if (rwsem.addr == w->mmap2.addr)
		return CLASS_mmap2;
	anon_vma_t anon_vma = ANON_VMA(rwsem.addr - OFFSET(anon_vma, rwsem));
	if (READ_ANON_VMA(anon_vma, root) == anon_vma.addr) {
		if (w->anon.addr)
			return CLASS_anon2;
		w->anon = rwsem;
		return CLASS_anon;
	}
	mapping_t mapping = MAPPING(rwsem.addr - OFFSET(address_space, i_mmap_rwsem));
	u64 host = READ_MAPPING(mapping, host);
	if (host && host + OFFSET(inode, i_data) == mapping.addr) {
		if (w->i_mmap.addr)
			return CLASS_i_mmap2;
		w->i_mmap = rwsem;
		return CLASS_i_mmap;
	}
	/*
	 * A rebuilt dup_mmap() has no argument with the child's mm. The child is known by its age,
	 * and because no other task knows it yet.
	 */
	if (w->key.window == WINDOW_dup_mmap) {
		mm_t mm = MM(rwsem.addr - OFFSET(mm_struct, mmap_lock));
		if (is_newborn(mm, w->mm)) {
			w->mmap2 = rwsem;
			return CLASS_mmap2;
		}
	}
#ifdef HAVE_vm_area_struct_vm_lock
	if (w->vma.addr && READ_VMA(w->vma, vm_lock) + OFFSET(vma_lock, lock) == rwsem.addr)
		return CLASS_vma;
#endif
	u64 inode = rwsem.addr - OFFSET(inode, i_rwsem);
	u64 own = READ(inode, inode, i_mapping);
	if (own && own == inode + OFFSET(inode, i_data))
		return CLASS_i_rwsem;
	mapping = MAPPING(rwsem.addr - OFFSET(address_space, invalidate_lock));
	host = READ_MAPPING(mapping, host);
	if (host && host + OFFSET(inode, i_data) == mapping.addr)
		return CLASS_invalidate;
#ifdef HAVE_hugetlb_vma_lock_vma
	u64 lock = rwsem.addr - OFFSET(hugetlb_vma_lock, rw_sema);
	vma_t vma = VMA(READ(hugetlb_vma_lock, lock, vma));
	/* The low bits are flags: HPAGE_RESV_MASK, mm/hugetlb.c. */
	if (vma.addr && (READ_VMA(vma, vm_private_data) & ~7ULL) == lock)
		return CLASS_hugetlb;
#endif
	return CLASS_other;
}

/* The place of an rwsem among those held; HELD_RWSEMS: not there. */
static __always_inline u32 place_of(struct held_rwsems *h, rwsem_t rwsem)
{
	u32 at = 0;
#pragma unroll
	for (at = 0; at < HELD_RWSEMS; at++)
		if (h->rwsem[at].addr == rwsem.addr)
			break;
	return at;
}

/* Forget all locks where hooks have changed since they were taken: a release may be missing. */
static __always_inline void drop_old_epoch(struct held_rwsems *h, u64 epoch)
{
	if (h->epoch == epoch)
		return;
	__builtin_memset(h, 0, sizeof(*h));
	h->epoch = epoch;
}

static __always_inline void fill_hold_key(struct hold_key *key, rwsem_t rwsem)
{
	key->rwsem = rwsem.addr;
	key->tid = (u32)bpf_get_current_pid_tgid();
}

/*
 * Add an rwsem to those held, of which it is none. Where there is no room the oldest one moves to
 * the LRU map.
 */
static __always_inline void add_hold(struct held_rwsems *h, rwsem_t rwsem, struct hold *fresh)
{
	u32 at = place_of(h, RWSEM(0));
	if (at == HELD_RWSEMS) {
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
_Static_assert(HELD_RWSEMS == 8, "the bound of a place");

/* Remove an rwsem from those held. Returns whether it was there; `found` receives its hold. */
static __always_inline u32 remove_hold(struct held_rwsems *h, rwsem_t rwsem, struct hold *found)
{
	u32 at = place_of(h, rwsem);
	if (at < HELD_RWSEMS) {
		BOUND(at, 7);
		*found = h->hold[at];
		h->rwsem[at] = RWSEM(0);
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

/* Record one operation: as a step of the window, and its wait and hold times by lock class. */
static __always_inline void record_operation(struct task_windows *t, struct open_window *w,
					     rwsem_t rwsem, u32 kind)
{
	u32 class = class_of(w, rwsem);
	struct held_rwsems *h = &t->held;
	struct hold held = {};
	drop_old_epoch(h, w->epoch);
	if (kind < KIND_up_read) {
		/* It is held already, so a release was missed; a reader may take it twice. */
		u32 again = remove_hold(h, rwsem, &held);
		if (again && kind != KIND_down_read)
			append_step(w, STEP_LOST);
		held.state = again ? HOLD_AGAIN : 0;
		if (kind == KIND_down_read || kind == KIND_down_write)
			held.state |= HOLD_ENTERED;
		held.wait_ns = 0;
		held.since_ns = bpf_ktime_get_ns();
		held.lock_class = class;
		/* A form that is recorded at its return: the wait is over. */
		if (t->waited && t->contended.addr == rwsem.addr) {
			held.wait_ns = t->contended_ns;
			held.since_ns -= held.wait_ns;
		}
		t->waited = 0;
		add_hold(h, rwsem, &held);
	} else if (kind != KIND_downgrade_write && remove_hold(h, rwsem, &held)) {
		u32 which = held.lock_class;
		struct histogram *sums = lock_holds.lookup(&which);
		if (sums)
			add_to(sums, bpf_ktime_get_ns() - held.since_ns - held.wait_ns);
		sums = lock_waits.lookup(&which);
		if (sums)
			add_to(sums, held.wait_ns);
	}
	append_step(w, lock_step(class, kind));
}
_Static_assert(KIND_down_write_trylock < KIND_up_read, "acquisitions come before releases");

HOOK(rwsem)
{
	struct task_windows *t = current_task_windows();
	struct open_window *w = t ? drop_missed_returns(t, ON_STACK(ctx)) : 0;
	if (w)
		record_operation(t, w, RWSEM(ARGUMENT(rwsem)), CONSTANT(kind));
	return 0;
}

/* The entry of a killable or try form, for a kretprobe: the return has no arguments. */
HOOK(rwsem_trying)
{
	struct task_windows *t = current_task_windows();
	if (t)
		t->trying = RWSEM(ARGUMENT(rwsem));
	return 0;
}

/* The return of such a form. A killable form returns 0 with the lock, a try form 1 (`success`). */
HOOK(rwsem_tried)
{
	struct task_windows *t = current_task_windows();
	if (!t)
		return 0;
	if ((u32)PLACE(returned) != CONSTANT(success)) {
		t->waited = 0;
		return 0;
	}
	rwsem_t rwsem = RWSEM(ARGUMENT(rwsem));
	struct open_window *w = drop_missed_returns(t, ON_STACK(ctx));
	if (!rwsem.addr)
		rwsem = t->trying;
	if (w && rwsem.addr)
		record_operation(t, w, rwsem, CONSTANT(kind));
	return 0;
}

/*
 * L7: report a wait for an rwsem that this task holds for read, as far as was recorded. What it
 * holds for write waits.bpf.c sees in the owner field.
 */
static __always_inline void report_own_read(void *ctx, struct hold *hold, rwsem_t rwsem, u32 wanted)
{
	/* A blocking form is recorded at its entry, before this wait; others after it. */
	u32 own = hold->state & HOLD_ENTERED ? hold->state & HOLD_AGAIN : 1;
	hold->state &= ~HOLD_ENTERED;
	if (!own || owner_of(rwsem) != OWNER_READ)
		return;
	struct event *e = new_event(WAITS_FOR_ITSELF);
	if (!e)
		return;
	e->stack = stack_of(ctx);
	e->detail.own.lock = rwsem.addr;
	e->detail.own.count = READ_RWSEM(rwsem, count);
	e->detail.own.owner = READ_RWSEM(rwsem, owner);
	e->detail.own.lock_class = hold->lock_class;
	e->detail.own.wanted = wanted;
	e->detail.own.held = WAIT_READ;
	events.ringbuf_submit(e, 0);
}

/*
 * A wait begins. Spinning waits are ignored: a task that waits for an rwsem may spin for other
 * locks meanwhile, such as the rwsem's own wait_lock or those of an interrupt.
 */
HOOK(contention_begin)
{
	struct task_windows *t = current_task_windows();
	u64 flags = ARG(contention_begin, flags);
	if (!t || !t->depth || flags & LCB_F_SPIN)
		return 0;
	t->contended = RWSEM(contended_rwsem(ARG(contention_begin, lock), flags));
	t->contended_ns = bpf_ktime_get_ns();
	t->waited = 0;
	/* The rtmutex keeps writers apart: a task's own read hold keeps it from what comes then. */
	if (is_rtmutex_wait(flags))
		return 0;
	struct held_rwsems *h = &t->held;
	u32 at = place_of(h, t->contended);
	if (at < HELD_RWSEMS) {
		BOUND(at, 7);
		report_own_read(ctx, &h->hold[at], t->contended,
				flags & LCB_F_WRITE ? WAIT_WRITE : WAIT_READ);
	}
	return 0;
}

HOOK(contention_end)
{
	struct task_windows *t = current_task_windows();
	if (!t || t->waited || !t->contended.addr ||
	    !ends_wait(t->contended.addr, ARG(contention_end, lock)))
		return 0;
	struct held_rwsems *h = &t->held;
	u64 wait = bpf_ktime_get_ns() - t->contended_ns;
	u32 at = place_of(h, t->contended);
	if (at < HELD_RWSEMS) { /* recorded at its entry, just before the wait */
		BOUND(at, 7);
		h->hold[at].wait_ns += wait; /* PREEMPT_RT: for a writer, then for readers */
		t->contended = RWSEM(0);
	} else {
		t->contended_ns = wait;
		t->waited = 1;
	}
	return 0;
}
