/* Book 1: who migrates, what is outstanding, and which VMA the task's rmap walk visits now.
   One task inserts, and the same task removes, all entries of a migration: rows are never shared between tasks. */

BPF_HASH(ledger, struct ledger_key, struct ledger_row, LEDGER_ROWS);
BPF_HASH(migrations, u32, struct migration, MIGRATION_ROWS);
BPF_HASH(frozen, struct ledger_key, struct frozen, FROZEN_ROWS);
BPF_TABLE("lru_hash", struct visit_key, struct visit, visits, VISIT_ROWS);
BPF_ARRAY(visit_clock, u64, 1);

#define PMD_BYTES 0x200000ULL

static __always_inline u64 visits_so_far(void) {
  u32 zero = 0;
  u64 *clock = visit_clock.lookup(&zero);
  return clock ? *clock : 0;
}

static __always_inline void tell_of_left(void *ctx, struct migration *m, u32 kind) {
  if (!m->outstanding) return;
  struct event *e = new_event(kind);
  if (!e) return;
  e->start_ns = m->start_ns;
  e->a = m->outstanding;
  e->b = m->visits;
  e->mode = m->mode;
  e->reason = m->reason;
  e->stack = stack_of(ctx);
  events.ringbuf_submit(e, 0);
}

/* What is inside of a migration begins deeper on the stack. What does not, through the same hook, shows that the end was missed: without
   that, a kernel thread would be in its migration for ever, and nothing left in it would be judged. */
static __always_inline void begin_migration(void *ctx, u32 mode, u32 reason) {
  if (!open_gate()) return;
  u32 tid = bpf_get_current_pid_tgid();
  struct migration *m = migrations.lookup(&tid);
  if (m && (ON_STACK(ctx) < m->mark || (m->reason == REASON_THP_SPLIT) != (reason == REASON_THP_SPLIT))) { m->depth++; return; }
  if (m) {
    count(MIGRATIONS_UNENDED);
    tell_of_left(ctx, m, MIGRATION_LEFT);
  }
  struct migration fresh = {};
  fresh.mark = ON_STACK(ctx);
  fresh.start_ns = bpf_ktime_get_ns();
  fresh.visits = visits_so_far();
  fresh.depth = 1;
  fresh.mode = mode;
  fresh.reason = reason;
  if (migrations.update(&tid, &fresh)) count(MIGRATIONS_LOST);
}

/* The outermost end: whatever its rows still hold is a suspect, and Python is woken for it. */
static __always_inline void end_migration(void *ctx, u32 which) {
  if (!open_gate()) return;
  u32 tid = bpf_get_current_pid_tgid();
  struct migration *m = migrations.lookup(&tid);
  if (!m) return;
  if (m->depth > 1) { m->depth--; return; }
  count(which);
  tell_of_left(ctx, m, MIGRATION_LEFT);
  migrations.delete(&tid);
}

/* The migration, where its task is in this walk's callback; never where no callback can be hooked. */
static __always_inline struct migration *visiting_in(struct migration *m, u32 walk) {
#ifdef HAVE_folio_flags
  struct migration *visiting = m && m->walk == walk ? m : 0;
  TESTED(visiting);
  return visiting;
#else
  return 0;
#endif
}

static __always_inline void fill_key(struct ledger_key *key, struct migration *m, u32 tid, u64 mm, u64 addr, u32 level) {
  key->start_ns = m ? m->start_ns : 0;
  key->mm = mm;
  key->addr = addr;
  key->tid = tid;
  key->level = level;
}

static __always_inline void learn_type(u64 entry) {
  u32 type = entry_type(entry);
  u64 *seen = entry_types.lookup(&type);
  if (seen) *seen += 1;                                 /* zero or not is all that counts: a lost increment is harmless */
}

#ifdef HAVE_folio_flags
static __always_inline int is_locked(u64 folio) { return READ(folio, folio, flags) >> PG_LOCKED & 1; }

/* M2, M3: proven by what the folio's flags say here and now. */
static __always_inline void tell_of_unlocked(void *ctx, struct migration *m, u32 kind, u64 vma, u64 mm, u64 addr, u64 folio) {
  struct event *e = new_event(kind);
  if (!e) return;
  if (m) {
    e->start_ns = m->start_ns;
    e->mode = m->mode;
    e->reason = m->reason;
  }
  e->a = mm;
  e->b = vma;
  e->addr = addr;
  e->folio = folio;
  e->stack = stack_of(ctx);
  events.ringbuf_submit(e, 0);
}

static __always_inline void check_insertion(void *ctx, struct migration *m, u64 addr) {
  if (is_locked(m->folio)) { count(M2_HOLDS); return; }
  if (addr != m->at) { count(M2_UNSURE); return; }      /* this visit's entry may have been missed: then that folio is another visit's */
  count(M2_VIOLATED);
  tell_of_unlocked(ctx, m, INSERTED_UNLOCKED, m->vma, m->mm, addr, m->folio);
}
#endif

/* The frozen PMD with an outstanding entry at this address; `key` becomes its own. */
static __always_inline struct frozen *frozen_at(struct ledger_key *key, u64 addr) {
  key->addr = addr & ~(PMD_BYTES - 1);
  key->level = 3;
  struct frozen *f = frozen.lookup(key);
  u64 n = addr >> 12 & 511, word = n >> 6;
  BOUND(word, 7);
  return f && !(f->settled[word] >> (n & 63) & 1) ? f : 0;
}

/* A fork that overlapped the entry's life may have copied it. The second walk must find the copy too, so it is booked: under the child's
   mm where the walk's visits are seen, in the same row where not. It runs after the parent's entry is replaced, under the page-table
   lock or with nothing left to copy: no copy can come later. A child that was frozen itself is taken for a copy: removed() settles both. */
static __always_inline void book_copies(struct params *p, struct migration *m, struct ledger_key *key, u64 folio, u64 at, u64 first_ns, u64 pfn, u32 tgid) {
  u32 which = ENTRIES_COPIED;
  u64 *copied = counters.lookup(&which);
  if (!p->page_offset || !copied) return;
  struct ledger_key copy_key = *key;
  struct ledger_row copy = {};
  copy.first_ns = copy.last_ns = first_ns;
  copy.folio = folio;
  copy.at = at;
  copy.count = 1;
  copy.tgid = tgid;
  for (u32 i = 0; i < FORK_WINDOWS; i++) {              /* all that changes is in maps: the verifier sees equal turns */
    u32 slot = i;
    u64 entry = 0;
    u32 level = 0;
    struct fork_window *w = fork_windows.lookup(&slot);
    if (!w || !w->pgd || (w->end_ns && w->end_ns < first_ns)) continue;
    if (walk(p, w->pgd, key->addr, &entry, &level) || !is_migration(entry, level)) continue;    /* hugetlb: booked as PTE, found as PMD */
    if (key->mm && entry_pfn(p, entry) != pfn) continue;    /* another migration's */
    copy_key.mm = key->mm ? w->mm : 0;
    struct ledger_row *row = ledger.lookup(&copy_key);
    if (row) {
      if (key->mm || (row->copied_to >> i) & 1) continue;    /* booked already: by the first walk, or by another removal */
      row->copied_to |= 1ULL << i;
      row->count += 1;
    } else {
      copy.entry = entry;
      if (ledger.update(&copy_key, &copy)) { count(LEDGER_LOST); if (m) m->lossy = 1; continue; }
    }
    *copied += 1;
    if (m) m->outstanding += 1;
  }
}

/* last_ns: of the youngest entry that it may be. */
static __always_inline void settle(struct params *p, struct migration *m, u64 mm, u64 first_ns, u64 last_ns) {
  u64 now = bpf_ktime_get_ns();
  observe(HIST_MIGRATION_ENTRY, now - last_ns);
  count(ENTRIES_REMOVED);
  count(m && m->lossy ? M1_UNVERIFIABLE : M1_HOLDS);
  u32 untold = now - last_ns <= p->welcome_ns || first_ns <= p->missed_ns;
  count(now - first_ns <= p->welcome_ns ? M4_HOLDS : untold ? M4_UNTOLD : M4_LATE);
  if (mm) count(M5_HOLDS);                              /* what the first walk left here, the second one visits */
  if (m) m->outstanding -= 1;
}

/* An address of an mm has one entry at a time: what was there before the last insertion is gone, though nothing told of it. */
static __always_inline void settle_row(struct params *p, struct migration *m, struct ledger_key *key, struct ledger_row *row) {
  settle(p, m, key->mm, key->mm ? row->last_ns : row->first_ns, row->last_ns);
  row->count -= 1;
  if (!row->count) ledger.delete(key);
}

/* An entry of a frozen PMD is gone. */
static __always_inline void settle_frozen(struct params *p, struct migration *m, struct ledger_key *key, struct frozen *f, u64 n) {
  u64 word = n >> 6;
  BOUND(word, 7);
  f->settled[word] |= 1ULL << (n & 63);
  f->count -= 1;
  settle(p, m, key->mm, f->first_ns, f->first_ns);
  if (!f->count) frozen.delete(key);
}
