/*
 * Read one VMA and one folio by address, on demand, for the evidence of a finding. Either may have
 * been freed meanwhile: then the numbers are wrong, but no read can fault.
 */
#include "common.h"

BPF_ARRAY(object_info, struct object_info, 1);

/* args[0]: a VMA, or 0; args[1]: a folio, or 0. */
HOOK(look)
{
	u32 zero = 0;
	struct object_info *o = object_info.lookup(&zero);
	if (!o)
		return 0;
	__builtin_memset(o, 0, sizeof(*o));
	vma_t vma = VMA(ctx->args[0]);
	folio_t folio = FOLIO(ctx->args[1]);
	if (vma.addr) {
		anon_vma_t anon_vma = ANON_VMA(READ_VMA(vma, anon_vma));
		u64 file = READ_VMA(vma, vm_file);
		u64 root = 0;
		o->vm_mm = READ_VMA(vma, vm_mm);
		o->vm_start = READ_VMA(vma, vm_start);
		o->vm_end = READ_VMA(vma, vm_end);
		o->vm_flags = READ_VMA(vma, vm_flags);
		if (anon_vma.addr)
			root = READ_ANON_VMA(anon_vma, root);
		if (root)
			o->anon = root + OFFSET(anon_vma, rwsem);
		if (file) {
			u64 mapping = READ(file, file, f_mapping);
			if (mapping)
				o->i_mmap = mapping + OFFSET(address_space, i_mmap_rwsem);
#if defined(HAVE_file_dentry) && defined(HAVE_dentry_name)
			bpf_probe_read_kernel_str(&o->file, sizeof(o->file),
						  (void *)READ(dentry, READ(file, file, dentry),
							       name));
#endif
		}
	}
	if (folio.addr) {
		o->folio_flags = READ_FOLIO(folio, flags);
		o->folio_mapping = READ_FOLIO(folio, mapping);
#ifdef HAVE_folio_order
		if (o->folio_flags >> PG_HEAD & 1)
			o->folio_order = READ_FOLIO(folio, order) & 0xff;
#endif
	}
	return 0;
}
