/* The scene of a suspect: its VMA and its folio, by address, on demand. What is freed meanwhile gives wrong numbers, never a fault. */
#include "common.h"

BPF_ARRAY(scene, struct scene, 1);

/* args[0]: a VMA, or 0; args[1]: a folio, or 0. */
HOOK(look)
{
	u32 zero = 0;
	struct scene *s = scene.lookup(&zero);
	if (!s)
		return 0;
	__builtin_memset(s, 0, sizeof(*s));
	u64 vma = ctx->args[0], folio = ctx->args[1];
	if (vma) {
		u64 anon_vma = READ(vm_area_struct, vma, anon_vma),
		    file = READ(vm_area_struct, vma, vm_file), root = 0;
		s->vm_mm = READ(vm_area_struct, vma, vm_mm);
		s->vm_start = READ(vm_area_struct, vma, vm_start);
		s->vm_end = READ(vm_area_struct, vma, vm_end);
		s->vm_flags = READ(vm_area_struct, vma, vm_flags);
		if (anon_vma)
			root = READ(anon_vma, anon_vma, root);
		if (root)
			s->anon = root + __builtin_offsetof(struct anon_vma, rwsem);
		if (file) {
			u64 mapping = READ(file, file, f_mapping);
			if (mapping)
				s->i_mmap = mapping +
					    __builtin_offsetof(struct address_space, i_mmap_rwsem);
#if defined(HAVE_file_dentry) && defined(HAVE_dentry_name)
			bpf_probe_read_kernel_str(&s->file, sizeof(s->file),
						  (void *)READ(dentry, READ(file, file, dentry),
							       name));
#endif
		}
	}
	if (folio) {
		s->folio_flags = READ(folio, folio, flags);
		s->folio_mapping = READ(folio, folio, mapping);
#ifdef HAVE_folio_order
		if (s->folio_flags >> PG_HEAD & 1)
			s->folio_order = READ(folio, folio, order) & 0xff;
#endif
	}
	return 0;
}
