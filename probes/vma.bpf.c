/* Windows of functions that change VMAs, the trees they leave and enter, and what they store. */
#include "windows.h"

/* Functions that the kernel calls for every VMA, and that have nothing to do for most: no lock, no tree, nothing that could be wrong. */
static __always_inline u32 is_idle(u64 vma, u32 flags)
{
	if (flags & WINDOW_OF_FILE)
		return !READ(vm_area_struct, vma, vm_file);
	if (READ(vm_area_struct, vma, anon_vma))
		return 0;
	return READ(vm_area_struct, vma, anon_vma_chain) ==
	       vma + OFFSET(vm_area_struct, anon_vma_chain);
}

HOOK(window_enter)
{
	u32 window = CONSTANT(window), flags = CONSTANT(flags);
	u32 idle = flags & (WINDOW_OF_ANON | WINDOW_OF_FILE) ? is_idle(ARGUMENT(vma), flags) : 0;
	struct frame *outer = 0, *f = open_window(ctx, STACK_MARK(), window, flags, idle, &outer);
	if (!f)
		return 0;
	u64 vma = ARGUMENT(vma), heir = ARGUMENT(heir);
	fill(f, outer, window, flags, CONSTANT(asked), CONSTANT(returns), heir ? heir : vma,
	     ARGUMENT(mm), ARGUMENT(mm2), 0, ARGUMENT(mapping), ARGUMENT(start), ARGUMENT(end), 0);
	return 0;
}

HOOK(window_leave)
{
	leave(ctx, STACK_MARK(), CONSTANT(window), PLACE(returned));
	return 0;
}

/* The end of a rebuilt window is another function's entry. */
HOOK(window_end)
{
	leave(ctx, 0, CONSTANT(window), 0);
	return 0;
}

/* dup_mmap() copies one VMA after the other: each copy ends a piece, or no two processes would have the same protocol. */
HOOK(vm_area_dup)
{
	struct insider *t = insider();
	struct frame *f = t ? alive(t, ON_STACK(ctx)) : 0;
	if (!f || f->key.window != WINDOW_dup_mmap)
		return 0;
	f->key.context |= CONTEXT_PIECE;
	note_exit(f);
	count_protocol(ctx, t, f, bpf_ktime_get_ns(), 0, 0);
	__builtin_memset(f->key.steps, 0, sizeof(f->key.steps));
	f->key.context = (f->key.context & CONTEXT_REBUILT) | CONTEXT_PIECE;
	f->n = 0;
	f->i_mmap = f->anon = 0;
	note_entry(f);
	return 0;
}

/* A tree step in no window is a protocol by itself; so is one in a window that is not booked, unless the lock is held as it must be (or none
   need be: a new tree). */
static __always_inline void outside(void *ctx, struct insider *t, u32 step, u64 vma)
{
	struct protocol_key key = {};
	if (unsampled(t, ON_STACK(ctx)) && (step < STEP_LOCK || (step & 3) == OWNER_SELF))
		return;
	u32 is_new = 0;
	key.steps[0] = step;
	first_seen(&key, bpf_ktime_get_ns(), &is_new);
	struct sighting_event *s = is_new ? new_sighting(ctx, &key, vma) : 0;
	if (s)
		events.ringbuf_submit(s, 0);
}

HOOK(file_tree_step)
{
	if (!open_gate())
		return 0;
	u64 mapping = ARGUMENT(mapping),
	    rwsem = i_mmap_of(mapping ? mapping : ARGUMENT(root) - OFFSET(address_space, i_mmap));
	u32 step = STEP_TREE + (TREE_FILE * 2 + CONSTANT(entering)) * 4 + owner_of(rwsem);
	struct insider *t = insider();
	struct frame *f = t ? alive(t, ON_STACK(ctx)) : 0;
	if (!f) {
		outside(ctx, t, step, ARGUMENT(node));
		return 0;
	}
	if (!f->i_mmap)
		f->i_mmap = rwsem;
	put(f, step);
	return 0;
}

HOOK(anon_tree_step)
{
	if (!open_gate())
		return 0;
	u64 anon_vma = ARGUMENT(anon_vma), entering = CONSTANT(entering);
	if (!anon_vma)
		anon_vma = ARGUMENT(root) - OFFSET(anon_vma, rb_root);
	u64 rwsem = root_lock_of(anon_vma);
	u64 vma = READ(anon_vma_chain, ARGUMENT(node), vma);
	u32 owner = owner_of(rwsem), step = STEP_TREE + (TREE_ANON * 2 + entering) * 4 + owner;
	/* an empty tree of an anon_vma that the VMA does not point to yet: no walk can come here (mm/rmap.c) */
	if (owner != OWNER_SELF && entering && !READ(anon_vma, anon_vma, rb_node) &&
	    READ(vm_area_struct, vma, anon_vma) != anon_vma)
		step = STEP_TREE_NEW + TREE_ANON * 2 + 1;
	struct insider *t = insider();
	struct frame *f = t ? alive(t, ON_STACK(ctx)) : 0;
	if (!f) {
		outside(ctx, t, step, vma);
		return 0;
	}
	if (!f->anon)
		f->anon = rwsem;
	put(f, step);
	return 0;
}

/* The locks of a VMA at the moment it is stored. */
static __always_inline void commit(struct frame *f, u64 vma)
{
	u64 anon = root_lock_of(READ(vm_area_struct, vma, anon_vma)), i_mmap = file_lock_of(vma);
	if (vma == f->stored_last && f->n == f->stored_at)
		return; /* the tracepoint fires more than once for one store */
	if (vma != f->vma)
		f->stored = vma;
	put(f, STEP_COMMIT + COMMIT_MMAP * 4 + owner_of(f->mm + OFFSET(mm_struct, mmap_lock)));
#ifdef HAVE_vm_area_struct_vm_lock_seq
	put(f,
	    STEP_COMMIT + COMMIT_VMA * 4 +
		    (READ(vm_area_struct, vma, vm_lock_seq) == READ(mm_struct, f->mm, mm_lock_seq) ?
			     OWNER_SELF :
			     OWNER_FREE));
#endif
	if (i_mmap)
		put(f, STEP_COMMIT + COMMIT_I_MMAP * 4 + owner_of(i_mmap));
	if (anon)
		put(f, STEP_COMMIT + COMMIT_ANON * 4 + owner_of(anon));
	f->stored_last = vma;
	f->stored_at = f->n;
}

/* The stores into the maple tree are notrace; their tracepoint is not. mas_is_span_wr() fires it too, when a store is only prepared. */
HOOK(commit)
{
	u64 mas = ARG(commit, mas), vma = ARG(commit, value);
	struct frame *f = here(ctx);
	u64 name[2] = {};
	if (!f || !vma || vma & 3 || !f->mm)
		return 0; /* bits 0 and 1: not a pointer that a user of the tree stored */
	if (READ(ma_state, mas, tree) != f->mm + OFFSET(mm_struct, mm_mt) ||
	    READ(vm_area_struct, vma, vm_mm) != f->mm)
		return 0;
	bpf_probe_read_kernel(name, 15, (void *)ARG(commit, function));
	if (name[0] == 0x735f73695f73616dULL && name[1] == 0x72775f6e6170ULL)
		return 0;
	commit(f, vma);
	return 0;
}

HOOK(task_exit)
{
	struct insider *t = insider();
	if (!t || !t->depth)
		return 0;
	count(WINDOWS_UNCLOSED);
	t->depth = 0;
	return 0;
}
