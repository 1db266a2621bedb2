/* Windows of rmap walks: the lock that they run under, the folio's lock, and each visited VMA. */
#include "windows.h"

HOOK(walk_enter)
{
	u32 window = CONSTANT(window);
	u32 flags = CONSTANT(flags);
	struct open_window *outer = 0;
	struct open_window *w = begin_window(ctx, STACK_MARK(), window, flags, 0, &outer);
	if (!w)
		return 0;
	struct window_args args = {
		.asked = ASKED_NOTHING,
		.returns = RETURNS_NOTHING,
		.folio = FOLIO(ARGUMENT(folio)),
		.mapping = MAPPING(ARGUMENT(mapping)),
		.locked = ARGUMENT(locked),
	};
	struct vm_area_struct none;
	describe_window(w, outer, window, flags, &args, &none);
	return 0;
}

/* A walk calls back for one VMA: rwc->rmap_one. */
HOOK(visit)
{
	struct open_window *w = current_window(ctx);
	if (!w || !(w->flags & WINDOW_WALKS))
		return 0;
	vma_t vma = VMA(ARGUMENT(vma));
	rwsem_t rwsem = w->key.window == WINDOW_rmap_walk_file ? w->i_mmap : w->anon;
	if (w->key.window == WINDOW_rmap_walk_ksm)
		rwsem = anon_lock_of(vma);
	u32 walker = CONSTANT(walker);
	if (!(w->key.context >> CONTEXT_WALKER_SHIFT & 7)) {
		set_field(&w->key.context, walker, CONTEXT_WALKER_SHIFT);
		if (READ_VMA(vma, vm_flags) & VM_HUGETLB)
			w->key.context |= CONTEXT_HUGETLB;
	}
	w->visits += 1;
	append_step(w, visit_step(owner_of(rwsem)));
	return 0;
}
