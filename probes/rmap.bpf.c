/* Windows of rmap walks: the lock they run under, the folio's lock, and every VMA they visit. */
#include "windows.h"

HOOK(walk_enter)
{
	u32 window = CONSTANT(window), flags = CONSTANT(flags);
	struct frame *outer = 0, *f = open_window(ctx, STACK_MARK(), window, flags, 0, &outer);
	if (f)
		fill(f, outer, window, flags, ASKED_NOTHING, RETURNS_NOTHING, 0, 0, 0,
		     ARGUMENT(folio), ARGUMENT(mapping), 0, 0, ARGUMENT(locked));
	return 0;
}

HOOK(visit)
{
	struct frame *f = here(ctx);
	if (!f || !(f->flags & WINDOW_WALKS))
		return 0;
	u64 vma = ARGUMENT(vma),
	    rwsem = f->key.window == WINDOW_rmap_walk_file ? f->i_mmap : f->anon;
	if (f->key.window == WINDOW_rmap_walk_ksm)
		rwsem = root_lock_of(READ(vm_area_struct, vma, anon_vma));
	u32 walker = CONSTANT(walker);
	if (!(f->key.context >> CONTEXT_WALKER_SHIFT & 7)) {
		shift_in(&f->key.context, walker, CONTEXT_WALKER_SHIFT);
		if (READ(vm_area_struct, vma, vm_flags) & VM_HUGETLB)
			f->key.context |= CONTEXT_HUGETLB;
	}
	f->visits += 1;
	put(f, STEP_VISIT + owner_of(rwsem));
	return 0;
}
