/*
 * The page-table walker ("oracle"): programs that are run on demand and answer from the page tables
 * themselves. They take no lock and cannot fault.
 */
#include "iterators.h"
#include "mm_ids.h"
#include "walk.h"

BPF_ARRAY(queries, struct query, QUERIES);
/* The queues of a sweep: tables of tables, and last-level tables. */
BPF_ARRAY(uppers, struct table, UPPERS);
BPF_ARRAY(leaves, struct table, LEAVES);
BPF_ARRAY(hits, struct query, HITS);
BPF_ARRAY(sweep_state, struct sweep_state, 1);
BPF_ARRAY(calibration, struct calibration, 1);
/*
 * A table is read in parts of PART_ENTRIES: the verifier follows the same loops whatever the size
 * of a page is, and larger ones would be too much for it.
 */
enum {
	PARTS = PTRS_PER_PTE / PART_ENTRIES
};
struct table_page {
	u64 entry[PART_ENTRIES];
};
BPF_PERCPU_ARRAY(table_page, struct table_page, 1);

/*
 * Whether the mm still is the one that the query is about. When the mm is freed its pgd may become
 * any other page, whose contents look like page tables with migration entries in them. A freed
 * mm_struct keeps its members, with mm_count 0, until it is another mm, which has another id.
 */
static __always_inline u32 mm_exists(struct query *q)
{
	mm_t mm = MM(q->mm);

	return READ_MM(mm, mm_count) > 0 && mm_id(mm) == q->id && READ_MM(mm, pgd) == q->pgd;
}

/*
 * Answer queries. args[0], args[1]: the first one and the one to stop before, at most WALKS_A_RUN
 * apart.
 */
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
		u64 entry = 0;
		u64 again = 0;
		u32 level = 0;
		u32 level_again = 0;
		q->entry = 0;
		q->pfn = 0;
		q->page_flags = 0;
		q->level = 0;
		q->stable = 0;
		q->lock = LOCK_UNKNOWN;
		if (!mm_exists(q)) {
			q->found = FOUND_MM_GONE;
			continue;
		}
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
		if (is_present(p, entry, level)) {
			q->found = FOUND_PRESENT;
			continue;
		}
		q->found = is_migration(p, entry, level) ? FOUND_MIGRATION :
			   is_possible(p, entry, level)  ? FOUND_POSSIBLE :
							   FOUND_OTHER;
		if (q->found == FOUND_OTHER)
			continue;
		q->pfn = entry_pfn(p, entry);
		u64 flags = 0;
		u64 flags_at = head_page(p, q->pfn) + OFFSET(page, flags);
		if (p->vmemmap && !bpf_probe_read_kernel(&flags, 8, (void *)flags_at))
			q->lock = (flags >> PG_LOCKED) & 1 ? LOCK_HELD : LOCK_FREE;
		q->page_flags = flags;
		/* The flags are those of the entry's page where the entry is still the same. */
		READ_BARRIER();
		q->stable = !walk(p, q->pgd, q->addr, &again, &level_again) && again == entry &&
			    level_again == level;
		READ_BARRIER();
		if (!mm_exists(q))
			q->found = FOUND_MM_GONE;
	}
	return 0;
}

/* Append an entry to the hits, where its swap type is wanted. */
static __always_inline void append_hit(struct params *p, struct sweep_state *s, struct table *t,
				       u64 addr, u64 entry)
{
	u32 slot = s->hits;
	struct query hit = {};
	if (!(s->wanted >> entry_type(p, entry) & 1))
		return;
	hit.pgd = t->mm; /* an index: Python replaces it when it asks again */
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

/*
 * Copy a part of a table; 0 and a count where it cannot be read, or does not lie in RAM. A sweep
 * counts in a map and not in registers: the verifier then sees the same state in each turn of a
 * loop.
 *
 * A small top-level table is no page: other objects lie behind it.
 */
static __always_inline int read_table(struct params *p, struct sweep_state *s, struct table *t,
				      u32 part, struct table_page *page)
{
	u32 top = t->level == p->format.levels;
	u64 at = top ? t->at : p->page_offset + t->at;
	u64 bytes = sizeof(*page);
	if (top && p->format.top_entries < PART_ENTRIES)
		bytes = p->format.top_entries * 8;
	if (bytes > sizeof(*page))
		return 0;
	if ((top || t->at < end_of_ram(p)) &&
	    !bpf_probe_read_kernel(page, bytes, (void *)(at + part * sizeof(*page))))
		return 1;
	s->unreadable += 1;
	return 0;
}

/*
 * Open one table of tables: the tables below it join the queues. args[0]: its index in `uppers`;
 * args[1]: the entry to start at, UPPER_ENTRIES_A_RUN at a time.
 */
HOOK(sweep_upper)
{
	u32 zero = 0;
	u32 index = ctx->args[0];
	struct params *p = params.lookup(&zero);
	struct sweep_state *s = sweep_state.lookup(&zero);
	struct table_page *page = table_page.lookup(&zero);
	struct table *t = uppers.lookup(&index);
	if (!p || !s || !page || !t || !read_table(p, s, t, ctx->args[1] / PART_ENTRIES, page))
		return 0;
	u32 top = t->level == p->format.levels;
	u32 level = t->level;
	u32 last = level == 2;
	u32 mm = t->mm;
	u64 base = t->base;
	u32 end = top ? p->format.top_entries : PTRS_PER_PTE;
	struct page_format f = p->format;
	u64 present = f.present | f.present_above;
	for (u32 i = 0; i < UPPER_ENTRIES_A_RUN; i++) {
		u32 n = (ctx->args[1] + i) & (PTRS_PER_PTE - 1);
		u64 entry = page->entry[n & (PART_ENTRIES - 1)];
		if (!entry)
			continue;
		if (n >= end)
			break; /* the kernel's part of the address space */
		u64 addr = base + ((u64)n << SHIFT(ENTRY_SHIFT(level)));
		if (!(entry & present)) {
			append_hit(p, s, t, addr, entry);
			continue;
		}
		if (is_leaf(&f, entry))
			continue;
		struct table child = {};
		child.at = frame_address(&f, entry);
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

/* Search last-level tables, each in PARTS parts. args[0]: the first of LEAVES_A_RUN parts. */
HOOK(sweep_leaf)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct sweep_state *s = sweep_state.lookup(&zero);
	struct table_page *page = table_page.lookup(&zero);
	if (!p || !s || !page)
		return 0;
	for (u32 i = 0; i < LEAVES_A_RUN; i++) {
		u32 index = (ctx->args[0] + i) / PARTS;
		u32 part = (ctx->args[0] + i) % PARTS;
		struct table *t = leaves.lookup(&index);
		if (!t || index >= s->leaves)
			return 0;
		if (!read_table(p, s, t, part, page))
			continue;
		u64 present = p->format.present;
		for (u32 n = 0; n < PART_ENTRIES; n++) {
			u64 entry = page->entry[n];
			if (entry & present)
				continue;
			if (entry)
				append_hit(p, s, t,
					   t->base + ((u64)(part * PART_ENTRIES + n) << PAGE_SHIFT),
					   entry);
		}
	}
	return 0;
}

/* The folio at index 0 of an open file's page cache: with one page it is in i_pages.xa_head. */
static __always_inline folio_t folio_of(u64 task, u64 fd)
{
	u64 files = READ(task_struct, task, files);
	u64 array = READ(fdtable, READ(files_struct, files, fdt), fd);
	u64 file = 0;
	bpf_probe_read_kernel(&file, 8, (void *)(array + 8 * fd));
	return FOLIO(READ_MAPPING(MAPPING(READ(file, file, f_mapping)), xa_head));
}

/*
 * Read what Python needs to find vmemmap_base and page_offset_base (on arm64: of the linear map).
 *
 * args[0], args[1]: two of the daemon's files, of one page each. pagemap gives their pfns, and
 *	struct page = vmemmap + pfn.
 * args[2]: an address to read, or 0.
 * args[3]: a guess at page_offset_base, or 0. The kernel stores the mm of a pgd in the pgd's struct
 *	page (pgd_set_mm(), arch/x86/mm/pgtable.c): the guess is right where that struct page names
 *	our mm. Only struct pages are read for a guess, never memory under a wrong base.
 */
HOOK(calibrate)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct calibration *c = calibration.lookup(&zero);
	if (!p || !c)
		return 0;
	u64 task = bpf_get_current_task();
	c->mm = READ(task_struct, task, mm);
	c->id = mm_id(MM(c->mm));
	c->pgd = READ_MM(MM(c->mm), pgd);
	c->task_size = READ_MM(MM(c->mm), task_size);
	c->first_folio = folio_of(task, ctx->args[0]).addr;
	c->second_folio = folio_of(task, ctx->args[1]).addr;
	c->value = 0;
	if (ctx->args[2])
		bpf_probe_read_kernel(&c->value, 8, (void *)ctx->args[2]);
	c->owner = 0;
#ifdef HAVE_pgd_page_mm
	/* One guess a run: 6.1 refuses the loop that clang makes of several. */
	if (ctx->args[3] && p->vmemmap)
		c->owner = READ(pgd_page, page_of(p, (c->pgd - ctx->args[3]) >> PAGE_SHIFT), mm);
#endif
	return 0;
}

/*
 * The iterator over tasks. It writes each mm once, at its thread-group leader. Where the leader has
 * dropped the mm, each other thread writes it.
 */
int bpf_iter__tasks(struct bpf_iter__task *ctx)
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
	mm_t mm = MM(record.mm);
	record.pgd = READ_MM(mm, pgd);
	record.id = mm_id(mm);
#ifdef HAVE_mm_struct_mm_lock_seq
	record.changed = (u32)READ_MM(mm, mm_lock_seq);
#else
	record.changed = READ_MM(mm, map_count);
#endif
	record.tgid = READ(task_struct, task, tgid);
	record.tid = READ(task_struct, task, pid);
	bpf_probe_read_kernel(&record.comm, sizeof(record.comm),
			      (void *)(task + OFFSET(task_struct, comm)));
	bpf_seq_write((struct seq_file *)meta->seq, &record, sizeof(record));
	return 0;
}
