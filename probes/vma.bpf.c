/* Windows of functions that change VMAs, the trees that VMAs leave and enter, and the stores. */
#include "windows.h"

/*
 * Whether a function that the kernel calls for every VMA returns at once for this one: it takes no
 * lock and changes no tree (unlink_anon_vmas(), anon_vma_fork(), unlink_file_vma()).
 */
static __always_inline u32 returns_at_once(vma_t vma, u32 flags)
{
	if (flags & WINDOW_OF_FILE)
		return !READ_VMA(vma, vm_file);
	if (READ_VMA(vma, anon_vma))
		return 0;
	/* list_empty(&vma->anon_vma_chain) */
	return READ_VMA(vma, anon_vma_chain) == vma.addr + OFFSET(vm_area_struct, anon_vma_chain);
}

HOOK(window_enter)
{
	u32 window = CONSTANT(window);
	u32 flags = CONSTANT(flags);
	u32 idle = 0;
	if (flags & (WINDOW_OF_ANON | WINDOW_OF_FILE))
		idle = returns_at_once(VMA(ARGUMENT(vma)), flags);
	struct open_window *outer = 0;
	struct open_window *w = begin_window(ctx, STACK_MARK(), window, flags, idle, &outer);
	if (!w)
		return 0;
	u64 vma = ARGUMENT(vma);
	u64 inheriting = ARGUMENT(inheriting);
	struct window_args args = {
		.asked = CONSTANT(asked),
		.returns = CONSTANT(returns),
		.vma = VMA(inheriting ? inheriting : vma),
		.mm = MM(ARGUMENT(mm)),
		.mm2 = MM(ARGUMENT(mm2)),
		.mapping = MAPPING(ARGUMENT(mapping)),
		.start = ARGUMENT(start),
		.end = ARGUMENT(end),
	};
	struct vm_area_struct was;
	describe_window(w, outer, window, flags, &args, &was);
	return 0;
}

HOOK(window_leave)
{
	end_window(ctx, STACK_MARK(), CONSTANT(window), PLACE(returned), 0);
	return 0;
}

/* A window that must keep things (V6); its function is no outer one of itself. */
HOOK(keeping_enter)
{
	u32 window = CONSTANT(window);
	u32 flags = CONSTANT(flags);
	struct open_window *outer = 0;
	struct open_window *w = begin_window(ctx, STACK_MARK(), window, flags, 0, &outer);
	struct task_windows *t = w ? current_task_windows() : 0;
	if (!w || !t)
		return 0;
	struct keeping *k = keeping_of(t, window);
	/* The split of a merge that did not take place: its merge compares what is beside. */
	u32 inside = window == WINDOW___split_vma && outer && outer->mark == k->mark;
	struct request *asked = inside ? &t->unkept : &k->asked;
	asked->start = ARGUMENT(start);
	asked->end = asked->start + ARGUMENT(length);
	if (asked->end == asked->start)
		asked->end = ARGUMENT(end);
	asked->flags = ARGUMENT(flags);
	asked->uffd = ARGUMENT(uffd);
	asked->policy = ARGUMENT(policy);
	asked->file = ARGUMENT(file);
	asked->pgoff = ARGUMENT(pgoff);
	asked->name = ARGUMENT(name);
	asked->middle = ARGUMENT(middle);
	asked->source = ARGUMENT(source);
	asked->source_length = ARGUMENT(source_length);
	struct window_args args = {
		.asked = CONSTANT(asked),
		.returns = CONSTANT(returns),
		.vma = VMA(ARGUMENT(vma)),
		.mm = MM(ARGUMENT(mm)),
		.start = asked->start,
		.end = asked->end,
	};
	describe_window(w, outer, window, flags, &args, &t->scratch.vma);
	if (!inside)
		record_kept(t, w, window);
	return 0;
}

HOOK(keeping_leave)
{
	end_window(ctx, STACK_MARK(), CONSTANT(window), PLACE(returned), 1);
	return 0;
}

/* The end of a rebuilt window: the entry of another function. */
HOOK(window_end)
{
	end_window(ctx, 0, CONSTANT(window), 0, 0);
	return 0;
}

/*
 * dup_mmap() copies one VMA after the other. Each copy ends a piece of its window: as one string
 * of steps no two processes would have the same protocol.
 */
HOOK(vm_area_dup)
{
	struct task_windows *t = current_task_windows();
	struct open_window *w = t ? drop_missed_returns(t, ON_STACK(ctx)) : 0;
	if (!w || w->key.window != WINDOW_dup_mmap)
		return 0;
	w->key.context |= CONTEXT_PIECE;
	set_exit_locks(w);
	record_window(ctx, t, w, bpf_ktime_get_ns(), 0, 0);
	__builtin_memset(w->key.steps, 0, sizeof(w->key.steps));
	w->key.context = (w->key.context & CONTEXT_REBUILT) | CONTEXT_PIECE;
	w->n = 0;
	w->i_mmap = w->anon = RWSEM(0);
	set_entry_locks(w);
	return 0;
}

/*
 * A tree step outside of windows is a protocol of its own. So is one inside an unsampled window,
 * unless it holds by itself: the task holds the lock, or the tree is new and needs none.
 */
static __always_inline void record_step_outside(void *ctx, struct task_windows *t, u32 step,
						vma_t vma)
{
	struct protocol_key key = {};
	if (in_unsampled(t, ON_STACK(ctx)) &&
	    (is_new_tree_step(step) || owner_in_tree_step(step) == OWNER_SELF))
		return;
	u32 is_new = 0;
	key.steps[0] = step;
	count_protocol(&key, bpf_ktime_get_ns(), &is_new);
	struct sighting_event *s = is_new ? new_sighting(ctx, &key, vma) : 0;
	if (s)
		events.ringbuf_submit(s, 0);
}

HOOK(file_tree_step)
{
	if (!open_gate())
		return 0;
	u64 mapping = ARGUMENT(mapping);
	if (!mapping)
		mapping = ARGUMENT(root) - OFFSET(address_space, i_mmap);
	rwsem_t rwsem = i_mmap_lock_of(MAPPING(mapping));
	u32 step = tree_step(TREE_FILE, CONSTANT(entering), owner_of(rwsem));
	struct task_windows *t = current_task_windows();
	struct open_window *w = t ? drop_missed_returns(t, ON_STACK(ctx)) : 0;
	if (!w) {
		record_step_outside(ctx, t, step, VMA(ARGUMENT(node)));
		return 0;
	}
	if (!w->i_mmap.addr)
		w->i_mmap = rwsem;
	append_step(w, step);
	return 0;
}

HOOK(anon_tree_step)
{
	if (!open_gate())
		return 0;
	anon_vma_t anon_vma = ANON_VMA(ARGUMENT(anon_vma));
	u64 entering = CONSTANT(entering);
	if (!anon_vma.addr)
		anon_vma = ANON_VMA(ARGUMENT(root) - OFFSET(anon_vma, rb_root));
	rwsem_t rwsem = root_lock_of(anon_vma);
	vma_t vma = VMA(READ(anon_vma_chain, ARGUMENT(node), vma));
	u32 owner = owner_of(rwsem);
	u32 step = tree_step(TREE_ANON, entering, owner);
	/*
	 * The tree is empty, and the VMA does not point to this anon_vma yet: no walk can find it
	 * (mm/rmap.c).
	 */
	if (owner != OWNER_SELF && entering && !READ_ANON_VMA(anon_vma, rb_node) &&
	    READ_VMA(vma, anon_vma) != anon_vma.addr)
		step = new_tree_step(TREE_ANON, 1);
	struct task_windows *t = current_task_windows();
	struct open_window *w = t ? drop_missed_returns(t, ON_STACK(ctx)) : 0;
	if (!w) {
		record_step_outside(ctx, t, step, vma);
		return 0;
	}
	if (!w->anon.addr)
		w->anon = rwsem;
	append_step(w, step);
	return 0;
}

/* Append the owner states of a VMA's locks at the moment it is stored. */
static __always_inline void append_commit(struct open_window *w, vma_t vma)
{
	rwsem_t anon = anon_lock_of(vma);
	rwsem_t i_mmap = file_lock_of(vma);
	if (vma.addr == w->stored_last.addr && w->n == w->stored_at)
		return; /* the tracepoint fires more than once for one store */
	if (vma.addr != w->vma.addr)
		w->stored = vma;
	rwsem_t mmap = RWSEM(w->mm.addr + OFFSET(mm_struct, mmap_lock));
	append_step(w, commit_step(COMMIT_MMAP, owner_of(mmap)));
#ifdef HAVE_vm_area_struct_vm_lock_seq
	/* vma_start_write() has been called: include/linux/mm.h, later mmap_lock.h. */
	u32 locked = READ_VMA(vma, vm_lock_seq) == READ_MM(w->mm, mm_lock_seq);
	append_step(w, commit_step(COMMIT_VMA, locked ? OWNER_SELF : OWNER_FREE));
#endif
	if (i_mmap.addr)
		append_step(w, commit_step(COMMIT_I_MMAP, owner_of(i_mmap)));
	if (anon.addr)
		append_step(w, commit_step(COMMIT_ANON, owner_of(anon)));
	w->stored_last = vma;
	w->stored_at = w->n;
}

/* A name of up to 15 characters, padded with zeros: comparable as two words. */
union short_name {
	char text[16];
	u64 word[2];
};

static __always_inline u32 same_name(union short_name *a, union short_name b)
{
	return a->word[0] == b.word[0] && a->word[1] == b.word[1];
}
#define SHORT_NAME(of) ((union short_name){.text = of})

/*
 * A store into the maple tree. lib/maple_tree.c is notrace, so the tracepoint of its stores is the
 * only hook. mas_is_span_wr() fires it, too, where a store is only being prepared.
 */
HOOK(commit)
{
	u64 mas = ARG(commit, mas);
	vma_t vma = VMA(ARG(commit, value));
	struct open_window *w = current_window(ctx);
	union short_name function = {};
	/* Bits 0 and 1 mark the tree's own values (include/linux/xarray.h). */
	if (!w || !vma.addr || vma.addr & 3 || !w->mm.addr)
		return 0;
	if (READ(ma_state, mas, tree) != w->mm.addr + OFFSET(mm_struct, mm_mt) ||
	    READ_VMA(vma, vm_mm) != w->mm.addr)
		return 0;
	bpf_probe_read_kernel(&function, sizeof(function) - 1, (void *)ARG(commit, function));
	if (same_name(&function, SHORT_NAME("mas_is_span_wr")))
		return 0;
	append_commit(w, vma);
	return 0;
}

HOOK(task_exit)
{
	struct task_windows *t = current_task_windows();
	if (!t || !t->depth)
		return 0;
	count(WINDOWS_UNCLOSED);
	t->depth = 0;
	return 0;
}
