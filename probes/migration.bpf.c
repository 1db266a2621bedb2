/* Book 1, the ledger, from tracepoints alone: they carry an address but no mm, so a row is (migrating task, address).
   One task inserts, and the same task removes, all entries of a migration: rows are never shared between tasks. */

BPF_HASH(ledger, struct ledger_key, struct ledger_row, LEDGER_ROWS);
BPF_HASH(migrations, u32, struct migration, MIGRATION_ROWS);
BPF_HASH(dying_mms, u64, struct dying_mm, MM_ROWS);

HOOK(mm_migrate_pages_start) {
  struct params *p = open_gate();
  if (!p) return 0;
  u32 tid = bpf_get_current_pid_tgid();
  struct migration *m = migrations.lookup(&tid);
  if (m) { m->depth++; return 0; }
  struct migration fresh = {};
  fresh.start_ns = bpf_ktime_get_ns();
  fresh.depth = 1;
  fresh.mode = ARG(mm_migrate_pages_start, mode);
  fresh.reason = ARG(mm_migrate_pages_start, reason);
  if (migrations.update(&tid, &fresh)) count(MIGRATIONS_LOST);
  return 0;
}

/* The end of migrate_pages(): whatever its rows still hold is a suspect, and Python is woken for it. */
HOOK(mm_migrate_pages) {
  struct params *p = open_gate();
  if (!p) return 0;
  u32 tid = bpf_get_current_pid_tgid();
  struct migration *m = migrations.lookup(&tid);
  if (!m) return 0;
  if (m->depth > 1) { m->depth--; return 0; }
  count(MIGRATIONS_ENDED);
  if (m->outstanding) {
    struct event *e = new_event(MIGRATION_LEFT);
    if (e) {
      e->start_ns = m->start_ns;
      e->a = m->outstanding;
      e->mode = m->mode;
      e->reason = m->reason;
      e->stack = stacks.get_stackid(ctx, 0);
      events.ringbuf_submit(e, 0);
    }
  }
  migrations.delete(&tid);
  return 0;
}

static __always_inline void fill_key(struct ledger_key *key, struct migration *m, u32 tid, u64 addr, u32 level) {
  key->start_ns = m ? m->start_ns : 0;
  key->addr = addr;
  key->tid = tid;
  key->level = level;
}

static __always_inline void inserted(u64 addr, u64 entry, u32 level) {
  struct params *p = open_gate();
  if (!p) return;
  u64 task = bpf_get_current_pid_tgid();
  u32 tid = task, type = entry_type(entry);
  u64 *seen = entry_types.lookup(&type);
  if (seen) *seen += 1;                                 /* zero or not is all that counts: a lost increment is harmless */
  struct migration *m = migrations.lookup(&tid);
  struct ledger_key key = {};
  fill_key(&key, m, tid, addr, level);
  struct ledger_row *row = ledger.lookup(&key);
  if (row) {
    row->count++;
    row->entry = entry;
  } else {
    struct ledger_row fresh = {};
    fresh.first_ns = bpf_ktime_get_ns();
    fresh.entry = entry;
    fresh.count = 1;
    fresh.tgid = task >> 32;
    if (ledger.update(&key, &fresh)) {
      count(LEDGER_LOST);
      if (m) m->lossy = 1;
      return;
    }
  }
  count(ENTRIES_BOOKED);
  if (m) m->outstanding++;
}

/* A fork that overlapped the entry's life may have copied it. The second walk must find the copy too, so it is booked:
   the tracepoint runs under the page-table lock after the parent's entry is replaced, hence no copy can come later. */
static __always_inline void book_copies(struct params *p, struct migration *m, struct ledger_key *key, struct ledger_row *row) {
  u32 which = ENTRIES_COPIED;
  u64 *copied = counters.lookup(&which);
  if (!p->page_offset || !copied) return;
  for (u32 i = 0; i < FORK_WINDOWS; i++) {              /* all that changes is in maps: the verifier sees equal turns */
    u32 slot = i;
    struct fork_window *w = fork_windows.lookup(&slot);
    if (!w || !w->pgd || (w->end_ns && w->end_ns < row->first_ns) || (row->copied_to >> i) & 1) continue;
    u64 entry = 0;
    u32 level = 0;
    if (walk(p, w->pgd, key->addr, &entry, &level) || !is_migration(entry, level)) continue;    /* hugetlb: booked as PTE, found as PMD */
    row->copied_to |= 1ULL << i;
    row->count += 1;
    *copied += 1;
    if (m) m->outstanding += 1;
  }
}

static __always_inline void removed(u64 addr, u32 level) {
  struct params *p = open_gate();
  if (!p) return;
  u32 tid = bpf_get_current_pid_tgid();
  struct migration *m = migrations.lookup(&tid);
  struct ledger_key key = {};
  fill_key(&key, m, tid, addr, level);
  struct ledger_row *row = ledger.lookup(&key);
  if (!row) { count(REMOVALS_UNBOOKED); return; }
  book_copies(p, m, &key, row);
  u64 age = bpf_ktime_get_ns() - row->first_ns;
  observe(HIST_MIGRATION_ENTRY, age);
  count(ENTRIES_REMOVED);
  count(m && m->lossy ? M1_UNVERIFIABLE : M1_HOLDS);
  count(age <= p->welcome_ns ? M4_HOLDS : M4_LATE);
  row->count -= 1;
  if (m) m->outstanding -= 1;
  if (!row->count) ledger.delete(&key);
}

HOOK(set_migration_pte) { inserted(ARG(set_migration_pte, addr), ARG(set_migration_pte, entry), 1); return 0; }
HOOK(remove_migration_pte) { removed(ARG(remove_migration_pte, addr), 1); return 0; }
HOOK(set_migration_pmd) { inserted(ARG(set_migration_pmd, addr), ARG(set_migration_pmd, entry), 2); return 0; }
HOOK(remove_migration_pmd) { removed(ARG(remove_migration_pmd, addr), 2); return 0; }

/* A task that dies inside a migration never ends it. From 6.16 on the tracepoint runs before exit_mm(): the mm is still known,
   and stays in dying_mms until exit_mmap() has taken its page tables apart. */
HOOK(sched_process_exit) {
  struct params *p = open_gate();
  if (!p) return 0;
  u64 task = bpf_get_current_pid_tgid();
  u32 tid = task;
  struct migration *m = migrations.lookup(&tid);
  if (m) {
    struct event *e = m->outstanding ? new_event(MIGRATOR_DIED) : 0;
    if (e) {
      e->start_ns = m->start_ns;
      e->a = m->outstanding;
      e->stack = stacks.get_stackid(ctx, 0);
      events.ringbuf_submit(e, 0);
    }
    migrations.delete(&tid);
  }
  u64 mm = READ(task_struct, ARG(sched_process_exit, task), mm);
  if (!mm) return 0;
  struct dying_mm dying = {};
  dying.pgd = READ(mm_struct, mm, pgd);
  dying.id = READ(mm_struct, mm, id);
  dying.since_ns = bpf_ktime_get_ns();
  dying.tgid = task >> 32;
  if (dying_mms.update(&mm, &dying)) count(MMS_LOST);
  return 0;
}

HOOK(exit_mmap) {
  struct params *p = open_gate();
  if (!p) return 0;
  u64 mm = ARG(exit_mmap, mm);
  count(MMS_EXITED);
  dying_mms.delete(&mm);
  for (u32 i = 0; i < FORK_WINDOWS; i++) {
    u32 slot = i;
    struct fork_window *w = fork_windows.lookup(&slot);
    if (w && w->mm == mm) { w->mm = 0; w->pgd = 0; }
  }
  return 0;
}
