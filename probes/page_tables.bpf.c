/* The page-table oracle: run on demand, answers from the page tables themselves. Takes no lock and cannot fault. */
#include "walk.h"

BPF_ARRAY(queries, struct query, QUERIES);
BPF_ARRAY(uppers, struct table,
	  UPPERS); /* the sweep's queues: tables of tables, and tables of pages */
BPF_ARRAY(leaves, struct table, LEAVES);
BPF_ARRAY(hits, struct query, HITS);
BPF_ARRAY(sweep_state, struct sweep_state, 1);
BPF_ARRAY(calibration, struct calibration, 1);
struct table_page {
	u64 entry[512];
};
BPF_PERCPU_ARRAY(table_page, struct table_page, 1);

static __always_inline u64 head_page(struct params *p, u64 pfn)
{
	u64 page = p->vmemmap + pfn * sizeof(struct page);
	u64 head = READ(page, page, compound_head);
	if (!(head & 1))
		return page;
	return head >> 32 == 0xffffffff ?
		       page & head :
		       head - 1; /* from 7.1 on a mask, where sizeof(struct page) is a power of two */
}

/* args[0], args[1]: the first of `queries` to answer and the one to stop before, WALKS_A_RUN apart at most. */
HOOK(walk)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	if (!p)
		return 0;
	for (u32 i = 0; i < WALKS_A_RUN; i++) {
		u32 slot = ctx->args[0] + i;
		if (slot >= ctx->args[1])
			break;
		struct query *q = queries.lookup(&slot);
		if (!q)
			break;
		u64 entry = 0, again = 0;
		u32 level = 0, level_again = 0;
		q->entry = 0;
		q->pfn = 0;
		q->page_flags = 0;
		q->level = 0;
		q->stable = 0;
		q->lock = LOCK_UNKNOWN;
		if (walk(p, q->pgd, q->addr, &entry, &level)) {
			q->found = FOUND_UNREADABLE;
			continue;
		}
		q->entry = entry;
		q->level = level;
		if (!entry) {
			q->found = FOUND_NOTHING;
			continue;
		}
		if (is_present(entry, level)) {
			q->found = FOUND_PRESENT;
			continue;
		}
		q->found = is_migration(entry, level)   ? FOUND_MIGRATION :
			   is_possible(p, entry, level) ? FOUND_POSSIBLE :
							  FOUND_OTHER;
		if (q->found == FOUND_OTHER)
			continue;
		q->pfn = entry_pfn(p, entry);
		u64 flags = 0;
		u64 flags_at = head_page(p, q->pfn) + __builtin_offsetof(struct page, flags);
		if (p->vmemmap && !bpf_probe_read_kernel(&flags, 8, (void *)flags_at))
			q->lock = (flags >> PG_LOCKED) & 1 ? LOCK_HELD : LOCK_FREE;
		q->page_flags = flags;
		q->stable = !walk(p, q->pgd, q->addr, &again, &level_again) && again == entry &&
			    level_again == level;
	}
	return 0;
}

static __always_inline void put_hit(struct params *p, struct sweep_state *s, struct table *t,
				    u64 addr, u64 entry)
{
	u32 slot = s->hits;
	struct query hit = {};
	if (!(s->wanted >> entry_type(entry) & 1))
		return;
	hit.pgd = t->mm; /* an index: Python puts the pgd in when it asks again */
	hit.addr = addr;
	hit.entry = entry;
	hit.pfn = entry_pfn(p, entry);
	hit.level = t->level;
	hit.found = FOUND_MIGRATION;
	if (hits.update(&slot, &hit))
		s->lost += 1;
	else
		s->hits += 1;
}

/* What the sweep counts lives in a map, not in registers: the verifier then sees the same state in each turn of the loop. */
static __always_inline int read_table(struct params *p, struct sweep_state *s, struct table *t,
				      struct table_page *page)
{
	u64 at = t->level == p->levels ? t->at : p->page_offset + t->at;
	if (!bpf_probe_read_kernel(page, sizeof(*page), (void *)at))
		return 1;
	s->unreadable += 1;
	return 0;
}

/* args[0]: which of `uppers` to open; args[1]: at which entry to start, UPPER_ENTRIES_A_RUN at a time. What is below joins the queues. */
HOOK(sweep_upper)
{
	u32 zero = 0, index = ctx->args[0];
	struct params *p = params.lookup(&zero);
	struct sweep_state *s = sweep_state.lookup(&zero);
	struct table_page *page = table_page.lookup(&zero);
	struct table *t = uppers.lookup(&index);
	if (!p || !s || !page || !t || !read_table(p, s, t, page))
		return 0;
	u32 top = t->level == p->levels, level = t->level, last = level == 2, mm = t->mm;
	u64 base = t->base, mask = table_mask(p);
	for (u32 i = 0; i < UPPER_ENTRIES_A_RUN; i++) {
		u32 n = (ctx->args[1] + i) & 511;
		u64 entry = page->entry[n];
		if (!entry)
			continue;
		if (n > 255 && top)
			break; /* the upper half of the top level is the kernel's */
		u64 addr = base + ((u64)n << (3 + 9 * level));
		if (!is_present(entry, level)) {
			put_hit(p, s, t, addr, entry);
			continue;
		}
		if (entry & PTE_LEAF)
			continue;
		struct table child = {};
		child.at = entry & mask;
		child.base = addr;
		child.level = level - 1;
		child.mm = mm;
		u32 slot = last ? s->leaves : s->uppers;
		if (last) {
			if (leaves.update(&slot, &child))
				s->lost += 1;
			else
				s->leaves += 1;
		} else {
			if (uppers.update(&slot, &child))
				s->lost += 1;
			else
				s->uppers += 1;
		}
	}
	return 0;
}

/* args[0]: the first of LEAVES_A_RUN of `leaves` to search. */
HOOK(sweep_leaf)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct sweep_state *s = sweep_state.lookup(&zero);
	struct table_page *page = table_page.lookup(&zero);
	if (!p || !s || !page)
		return 0;
	for (u32 i = 0; i < LEAVES_A_RUN; i++) {
		u32 index = ctx->args[0] + i;
		struct table *t = leaves.lookup(&index);
		if (!t || index >= s->leaves)
			return 0;
		if (!read_table(p, s, t, page))
			continue;
		for (u32 n = 0; n < 512; n++) {
			u64 entry = page->entry[n];
			if (entry & (PTE_PRESENT | PTE_PROTNONE))
				continue;
			if (entry)
				put_hit(p, s, t, t->base + ((u64)n << 12), entry);
		}
	}
	return 0;
}

/* args[0], args[1]: two of the daemon's files; args[2]: an address to read, or 0; args[3]: a guess at the direct map's base, or 0.
   A file of one page at index 0 has its folio in i_pages.xa_head, and pagemap gives that page's pfn: struct page = vmemmap + pfn.
   The kernel notes the owner of a pgd in its struct page (pgd_set_mm(), arch/x86/mm/pgtable.c): a base of the direct map is right
   when the struct page of the pgd under it names our mm. Only struct pages are read for a guess, never memory under a wrong base. */
static __always_inline u64 folio_of(u64 task, u64 fd)
{
	u64 files = READ(task_struct, task, files);
	u64 array = READ(fdtable, READ(files_struct, files, fdt), fd), file = 0;
	bpf_probe_read_kernel(&file, 8, (void *)(array + 8 * fd));
	return READ(address_space, READ(file, file, f_mapping), xa_head);
}

HOOK(calibrate)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct calibration *c = calibration.lookup(&zero);
	if (!p || !c)
		return 0;
	u64 task = bpf_get_current_task();
	c->mm = READ(task_struct, task, mm);
	c->pgd = READ(mm_struct, c->mm, pgd);
	c->first_folio = folio_of(task, ctx->args[0]);
	c->second_folio = folio_of(task, ctx->args[1]);
	c->value = 0;
	if (ctx->args[2])
		bpf_probe_read_kernel(&c->value, 8, (void *)ctx->args[2]);
	c->owner = 0;
#ifdef HAVE_pgd_page_mm
	if (ctx->args[3] &&
	    p->vmemmap) /* no loop over guesses here: 6.1 refuses the one that clang makes */
		c->owner = READ(pgd_page,
				p->vmemmap + ((c->pgd - ctx->args[3]) >> 12) * sizeof(struct page),
				mm);
#endif
	return 0;
}

/* One record per mm: by its thread-group leader, or by any thread whose leader has let go of it. */
struct bpf_iter_meta {
	u64 seq;
};
struct bpf_iter__task {
	u64 meta;
	u64 task;
};
int bpf_iter__task(struct bpf_iter__task *ctx)
{
	struct bpf_iter_meta *meta = (struct bpf_iter_meta *)ctx->meta;
	u64 task = ctx->task;
	if (!task)
		return 0;
	struct task_mm record = {};
	record.mm = READ(task_struct, task, mm);
	if (!record.mm)
		return 0;
	u64 leader = READ(task_struct, task, group_leader);
	if (leader != task && READ(task_struct, leader, mm) == record.mm)
		return 0;
	record.pgd = READ(mm_struct, record.mm, pgd);
	record.id = READ(mm_struct, record.mm, id);
	record.tgid = READ(task_struct, task, tgid);
	record.tid = READ(task_struct, task, pid);
	bpf_probe_read_kernel(&record.comm, sizeof(record.comm),
			      (void *)(task + __builtin_offsetof(struct task_struct, comm)));
	bpf_seq_write((struct seq_file *)meta->seq, &record, sizeof(record));
	return 0;
}
