/* Who takes an mmap_lock for write: attached only while the state audit looks at a suspect. */
#include "audit.h"

HOOK(audit_writer)
{
	u32 slot = AUDIT_WRITER(ARG(audit_writer, mm));
	u64 *writes = audit_writes.lookup(&slot);

	if (writes && ARG(audit_writer, write) & 1)
		__sync_fetch_and_add(writes, 1);
	return 0;
}
