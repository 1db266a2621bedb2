/* Windows: what one call of a VMA-changing or rmap-walking function does with locks and trees, as a string of steps, counted.
   All members are read with bpf_probe_read_kernel: a stale pointer gives a wrong byte at worst, never a fault. */

struct frame {                                          /* one open window */
  u8 before[8];                                         /* zeros: the eight bytes before any step can be read */
  struct protocol_key key;
  u64 mark;                                             /* STACK_MARK() at entry */
  u64 start_ns, vma, mm, folio, was_start, was_end, was_pgoff, asked_start, asked_end;
  u64 mmap, mmap2, i_mmap, anon;                        /* rwsems by class */
  u64 source;                                           /* root of the anon_vma whose pages are taken over */
  u64 stored, stored_last;                              /* VMAs stored into the tree: one that is not `vma`, and the last one */
  u32 visits, epoch;                                    /* params.window_epoch when it was opened */
  u16 stored_at;
  u8 n, flags, asked, returns, pad[2];
};

/* A task that was in a window once. */
struct insider {
  u64 trying;             /* the rwsem of a killable or try form, where its return does not show it */
  u64 contended;          /* the rwsem that is waited for */
  u64 contended_ns;       /* when the wait began; how long it was, with `waited` */
  u32 depth;              /* of windows open now */
  u32 waited;             /* the wait is over, and the lock not booked yet (killable forms are at their return) */
  s32 stack;              /* of the outermost window's entry: what runs in it runs below */
  u32 window;             /* which that was, */
  u64 mark;               /* where on the stack, */
  u64 came_by[2];         /* and by which system call: struct pt_regs' orig_ax and ip */
  u64 unsampled;          /* sampling: where on the stack the window is that is not booked, 0: none; */
  u64 unsampled_jiffy;    /* since when, */
  u32 unsampled_window;   /* of which function, */
  u32 unsampled_epoch;    /* and params.window_epoch then */
  struct frame frames[DEEPEST_WINDOW];
};
BPF_TASK_STORAGE(insiders, struct insider);
BPF_HASH(protocols, struct protocol_key, struct protocol_row, PROTOCOL_ROWS);
/* The rwsems that a task took in windows: the last eight by task, those before in an LRU map (mm_take_all_locks() takes thousands), where what
   is released outside of any window ages out. */
enum { HELD_RWSEMS = 8 };
struct held_rwsems {
  u64 rwsem[HELD_RWSEMS];
  struct hold hold[HELD_RWSEMS];
  u64 epoch;              /* of the frames that took them */
  u32 oldest;
  u32 spilled;            /* how many went to the LRU map and were not seen to be given back */
};
BPF_TASK_STORAGE(held_rwsems, struct held_rwsems);
BPF_TABLE("lru_hash", struct hold_key, struct hold, holds, HOLD_ROWS);
BPF_PERCPU_ARRAY(window_times, struct histogram, WINDOWS);
BPF_PERCPU_ARRAY(allowances, struct allowance, WINDOWS);
BPF_PERCPU_ARRAY(lock_waits, struct histogram, LOCK_CLASSES);
BPF_PERCPU_ARRAY(lock_holds, struct histogram, LOCK_CLASSES);
BPF_PERCPU_ARRAY(flights, struct flight, FLIGHT_ROWS + FLIGHT_ROWS);
BPF_PERCPU_ARRAY(next_flight, u32, 2);
/* Not among the events' stacks: a stack that finds its bucket taken is lost, and every window would take one. */
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, flight_stacks, STACK_ROWS);

/* rwsem.owner without RWSEM_NONSPINNABLE. RWSEM_READER_OWNED stays in: a reader's name stands there until the next owner writes its own, and
   a writer has the lock before it has written (kernel/locking/rwsem.c): for that moment the last reader would pass for the writer. */
#define OWNER_TASK (~2ULL)

/* Who holds an rwsem. For a lock that this task holds the answer cannot be wrong: nobody else changes it meanwhile. */
static __always_inline u32 owner_of(u64 rwsem) {
  if (!rwsem) return OWNER_FREE;
  u64 count = READ(rw_semaphore, rwsem, count);
  if (count & 1) return (READ(rw_semaphore, rwsem, owner) & OWNER_TASK) == bpf_get_current_task() ? OWNER_SELF : OWNER_OTHER;
  return (s64)count > 0 && count >> 8 ? OWNER_READ : OWNER_FREE;
}

static __always_inline u64 i_mmap_of(u64 mapping) { return mapping ? mapping + OFFSET(address_space, i_mmap_rwsem) : 0; }
static __always_inline u64 root_lock_of(u64 anon_vma) {
  u64 root = anon_vma ? READ(anon_vma, anon_vma, root) : 0;
  return root ? root + OFFSET(anon_vma, rwsem) : 0;
}
static __always_inline u64 lock_of_file(u64 file) { return file ? i_mmap_of(READ(file, file, f_mapping)) : 0; }
static __always_inline u64 file_lock_of(u64 vma) { return lock_of_file(READ(vm_area_struct, vma, vm_file)); }

/* The eight steps before position `end`. */
static __always_inline u64 steps_before(struct frame *f, u64 end) {
  BOUND(end, 63);
  return *(u64 *)((u8 *)f + OFFSET(frame, key) - 8 + end);
}

/* Append a step; fold what came twice in a row: `a b a b` becomes `a b REPEAT+1`, and a further `a b` is dropped. */
static __always_inline void put(struct frame *f, u32 step) {
  u64 n = f->n;
  if (n >= MOST_STEPS) {
    if (n == MOST_STEPS) {
      f->key.steps[MOST_STEPS] = STEP_OVERLONG;
      f->n = MOST_STEPS + 1;
      count(WINDOWS_OVERLONG);
    }
    return;
  }
  BOUND(n, 63);
  f->key.steps[n] = step;
  n += 1;
  u64 last = steps_before(f, n);
  u32 reach = 0;                                        /* how far back the repeats among the last k steps stand for */
#pragma unroll
  for (u32 k = 1; k <= 8; k++) {
    u32 drop = 0, first = last >> (64 - 8 * k) & 0xff;
    if (n < 2 * k) break;
    if (first >= STEP_REPEAT && first < STEP_REPEAT + 8 && k + first - STEP_REPEAT > reach) reach = k + first - STEP_REPEAT;
    if (reach >= k) continue;                           /* no group cuts through another */
    u64 with_mark = steps_before(f, n - k), without = steps_before(f, n - k - 1);
    if (n > 2 * k && with_mark >> 56 == STEP_REPEAT + k - 1 && !((last ^ without) >> (64 - 8 * k))) drop = 1;
    else if (!((last ^ with_mark) >> (64 - 8 * k))) drop = 2;
    if (!drop) continue;
    n -= k;
    BOUND(n, 63);
    *(u64 *)((u8 *)f + OFFSET(frame, key) + n) = 0;
    if (drop == 2) {
      f->key.steps[n] = STEP_REPEAT + k - 1;
      n += 1;
    }
    break;
  }
  f->n = n;
}

static __always_inline struct insider *insider(void) { return insiders.task_storage_get(CURRENT, 0, 0); }

static __always_inline struct frame *frame_at(struct insider *t, u32 depth) {
  BOUND(depth, 7);
  return &t->frames[depth];
}

static __always_inline struct frame *innermost(struct insider *t) { return t->depth ? frame_at(t, t->depth - 1) : 0; }

/* The innermost window's return was missed. */
static __always_inline void leave_behind(struct insider *t) {
  count(WINDOWS_UNCLOSED);
  t->depth -= 1;
}

/* The innermost window, or the one around it: a window whose return was missed is left behind by its task, what runs now runs no deeper
   on the stack. */
static __always_inline struct frame *alive(struct insider *t, u64 mark) {
  struct frame *f = innermost(t);
  if (!f || mark < f->mark) return f;
  leave_behind(t);
  f = innermost(t);
  if (!f || mark < f->mark) return f;
  leave_behind(t);
  return 0;
}

/* The window that the current task is in, or none: one look-up for a task that is in none. */
static __always_inline struct frame *here(void *ctx) {
  struct insider *t = insider();
  return t ? alive(t, ON_STACK(ctx)) : 0;
}

#define PT_REGS_ORIG_AX 120                             /* arch/x86/include/asm/ptrace.h; ip follows */

/* The stack of an outermost window. It takes longer than all the rest of a window, and one system call may open thousands by the same way, as
   exit does: the same function, as deep on the stack, in a call of the same number from the same place has the stack that was taken then. */
static __always_inline void take_stack(void *ctx, struct insider *t, u64 mark, u32 window) {
  u64 came_by[2] = {};
  bpf_probe_read_kernel(came_by, sizeof(came_by), (void *)(bpf_task_pt_regs(CURRENT) + PT_REGS_ORIG_AX));
  if (t->mark == mark && t->window == window && t->came_by[0] == came_by[0] && t->came_by[1] == came_by[1]) return;
  t->mark = mark;
  t->window = window;
  t->came_by[0] = came_by[0];
  t->came_by[1] = came_by[1];
  t->stack = flight_stacks.get_stackid(ctx, 0);
}

/* Sampling. Once a jiffy what was earned meanwhile is added to what is left; a second's worth is saved up at most. Another task may come in
   between on this CPU: `left` may fall below 0. */
static __always_inline void refill(struct allowance *a, u64 each) {
  u64 jiffy = bpf_jiffies64();
  if (jiffy == a->jiffy) return;
  u64 now = bpf_ktime_get_ns(), earned = (now - a->since_ns) / each, most = 1000000000 / each + 1;
  u64 left = (s64)a->left > 0 ? a->left + earned : earned;
  a->jiffy = jiffy;
  a->looked_ns = now;
  a->since_ns = earned < most ? a->since_ns + earned * each : now;
  a->left = left < most ? left : most;
}

static __always_inline void note_unsampled(struct allowance *a) {
  a->unsampled += 1;
  a->unsampled_ns = a->looked_ns;
}

/* Whether the allowance of this function on this CPU has room for one more window. What mm_take_all_locks() takes mm_drop_all_locks() gives back. */
static __always_inline u32 may_book(struct params *p, u32 window) {
  u64 each = p->window_ns;
  if (window == WINDOW_mm_take_all_locks || window == WINDOW_mm_drop_all_locks) return 1;
  struct allowance *a = each ? allowances.lookup(&window) : 0;
  if (!a) return 1;
  refill(a, each);
  if ((s64)a->left <= 0) { note_unsampled(a); return 0; }
  a->left -= 1;
  return 1;
}

/* Whether this runs in a window that is not booked. Who left it unseen runs no deeper on the stack. */
static __always_inline u32 unsampled(struct insider *t, u64 mark) { return t && t->unsampled && mark < t->unsampled; }

enum { OVER_AFTER_JIFFIES = 1000 };                     /* one to ten seconds: an unbooked window's return was missed, or it is a slow one */

/* The same of a window that is about to be opened, which is then not booked either (idle: it would not be anyway). */
static __always_inline u32 opens_unsampled(struct insider *t, u64 mark, u32 window, u32 flags, u32 idle, struct params *p) {
  if (!t->unsampled) return 0;
  u64 each = p->window_ns;
  if (unsampled(t, mark)) {
    if (flags & WINDOW_REBUILT) return 1;               /* the function that is rebuilt is not called by a window */
    if (each && t->unsampled_epoch == (u32)p->window_epoch && t->unsampled_window != window &&      /* none of these functions recurses */
        bpf_jiffies64() - t->unsampled_jiffy < OVER_AFTER_JIFFIES) {
      struct allowance *a = idle ? 0 : allowances.lookup(&window);
      if (a) { refill(a, each); note_unsampled(a); }
      return 1;
    }
  }
  if (t->unsampled_epoch == (u32)p->window_epoch) count(WINDOWS_UNCLOSED);
  t->unsampled = 0;
  return 0;
}

static __always_inline void shift_in(u32 *context, u32 value, u32 shift) { *context |= value << shift; }

/* Whether the lock is held by another writer or by nobody is chance: it would make many protocols of one. */
static __always_inline u32 held_by_us(u64 rwsem) {
  u32 owner = owner_of(rwsem);
  return owner == OWNER_OTHER ? OWNER_FREE : owner;
}

static __always_inline void note_entry(struct frame *f) {
  shift_in(&f->key.context, held_by_us(f->mmap), CONTEXT_ENTRY_MMAP_SHIFT);
  shift_in(&f->key.context, held_by_us(f->i_mmap), CONTEXT_ENTRY_I_MMAP_SHIFT);
  shift_in(&f->key.context, held_by_us(f->anon), CONTEXT_ENTRY_ANON_SHIFT);
}

#define FOLIO_ANON 1ULL
#define FOLIO_FLAGS 3ULL                                /* PAGE_MAPPING_FLAGS: anon, movable; both: KSM */
#define VM_HUGETLB 0x00400000ULL
#define VM_STACK_SETUP 0x00018000ULL                    /* VM_SEQ_READ | VM_RAND_READ: execve() has not placed this stack yet */

/* Open a window, which fill() then fills in: what it is about is read only if it is booked. outer: the window around it. idle: open none, but
   see what the call tells of those before it: the missed return of one of the same function would be taken for seen when this one returns. */
static __always_inline struct frame *open_window(void *ctx, u64 mark, u32 window, u32 flags, u32 idle, struct frame **outer_) {
  struct params *p = open_gate();
  if (!p) return 0;
  u64 epoch = p->window_epoch;
  if (epoch & 1) return 0;
  struct insider *t = insiders.task_storage_get(CURRENT, 0, idle ? 0 : CREATED);
  if (!t) { if (!idle) count(WINDOWS_LOST); return 0; }
  struct frame *outer = alive(t, mark);
  if (outer) {
    if (flags & WINDOW_REBUILT) return 0;               /* the function that is rebuilt is not called by a window */
    if (outer->key.window == window) {                  /* none of these functions recurses: its return was missed */
      leave_behind(t);
    } else if (!idle) {
      put(outer, STEP_CALL + window);
      *outer_ = outer;
    }
  }
  u32 depth = t->depth;
  u64 own_mark = flags & WINDOW_REBUILT ? mark + 512 : mark;    /* it began in a call that the function made, beside those to come */
  if (!depth && opens_unsampled(t, mark, window, flags, idle, p)) return 0;
  if (idle) return 0;
  if (depth >= DEEPEST_WINDOW) { count(WINDOWS_LOST); return 0; }
  if (!depth) {
    if (!may_book(p, window)) {
      t->unsampled = own_mark;
      t->unsampled_jiffy = bpf_jiffies64();
      t->unsampled_window = window;
      t->unsampled_epoch = epoch;
      return 0;
    }
    t->trying = t->contended = t->waited = 0;
    if (!(flags & WINDOW_WALKS)) take_stack(ctx, t, mark, window);
  }
  struct frame *f = frame_at(t, depth);
  t->depth = depth + 1;
  __builtin_memset(f, 0, sizeof(*f));
  f->epoch = epoch;
  f->mark = own_mark;
  f->key.window = window;
  f->flags = flags;
  return f;
}

/* `vma` may be 0; mm is then the task's own. */
static __always_inline void fill(struct frame *f, struct frame *outer, u32 window, u32 flags, u32 asked, u32 returns, u64 vma, u64 mm, u64 mm2, u64 folio, u64 mapping, u64 start, u64 end, u64 locked) {
  f->asked = asked;
  f->returns = returns;
  f->asked_start = start;
  f->asked_end = end;
  f->folio = folio;
  f->vma = vma;
  f->start_ns = bpf_ktime_get_ns();
  u32 context = flags & WINDOW_REBUILT ? CONTEXT_REBUILT : 0;
  if (locked & 0xff) context |= CONTEXT_LOCKED;
  if (vma) {
    struct vm_area_struct was = {};
    bpf_probe_read_kernel(&was, sizeof(was), (void *)vma);
    mm = (u64)was.vm_mm;
    f->was_start = was.vm_start;
    f->was_end = was.vm_end;
    f->was_pgoff = was.vm_pgoff;
    f->i_mmap = lock_of_file((u64)was.vm_file);
    f->anon = root_lock_of((u64)was.anon_vma);
    if (was.vm_flags & VM_HUGETLB) context |= CONTEXT_HUGETLB;
    if (f->i_mmap) context |= CONTEXT_FILE;
    if (f->anon) context |= CONTEXT_ANON;
    if (flags & WINDOW_COPIES) f->source = f->anon;
    if (window == WINDOW_unlink_anon_vmas && f->anon && outer && outer->flags & WINDOW_MERGES) outer->source = f->anon;
  }
  if (folio) {
    u64 of = READ(folio, folio, mapping);
    if (READ(folio, folio, flags) >> PG_LOCKED & 1) context |= CONTEXT_FOLIO_LOCKED;
    if (flags & WINDOW_WALKS) {
      if ((of & FOLIO_FLAGS) == FOLIO_ANON) { f->anon = root_lock_of(of & ~FOLIO_FLAGS); context |= CONTEXT_ANON; }
      if (of && !(of & FOLIO_FLAGS) && !mapping) mapping = of;
    }
  }
  if (mapping) { f->i_mmap = i_mmap_of(mapping); context |= CONTEXT_FILE; }
  if (!mm && !folio) mm = READ(task_struct, bpf_get_current_task(), mm);
  f->mm = mm;
  f->mmap = mm ? mm + OFFSET(mm_struct, mmap_lock) : 0;
  f->mmap2 = mm2 ? mm2 + OFFSET(mm_struct, mmap_lock) : 0;
  f->key.context = context;
  note_entry(f);
}

/* Does the VMA look as it must when the window has ended (V1)? */
static __always_inline u32 geometry_of(struct frame *f, struct vm_area_struct *is) {
  u64 start = is->vm_start, end = is->vm_end, d = (s64)(start - f->was_start) >> 12, placing = is->vm_flags & VM_STACK_SETUP;
  if (start >= end) return GEOMETRY_EMPTY;
  if ((start | end) & 0xfff) return GEOMETRY_UNALIGNED;
  /* execve() moves its stack with the pages in it: shift_arg_pages(), relocate_vma_down() */
  if (placing != VM_STACK_SETUP && is->vm_pgoff - f->was_pgoff != d) return GEOMETRY_PGOFF;
  if (f->asked == ASKED_RANGE && ((f->asked_start && start != f->asked_start) || end != f->asked_end)) return GEOMETRY_NOT_AS_ASKED;
  if (f->asked == ASKED_SPLIT && ((u32)f->asked_end ? start : end) != f->asked_start) return GEOMETRY_NOT_AS_ASKED;
  if (f->asked == ASKED_BELOW && start > f->asked_start) return GEOMETRY_NOT_AS_ASKED;
  if (f->asked == ASKED_SPLIT && f->stored) {
    u64 other_start = READ(vm_area_struct, f->stored, vm_start), other_end = READ(vm_area_struct, f->stored, vm_end);
    if (other_start < end && start < other_end) return GEOMETRY_OVERLAP;
  }
  return GEOMETRY_HOLDS;
}

static __always_inline u32 error_of(u32 returns, u64 value) {
  if (returns == RETURNS_ERRNO) return (s32)value < 0 && (s32)value >= -4095 ? -(s32)value : 0;
  if (returns == RETURNS_POINTER) return !value ? 0xffff : (s64)value < 0 && (s64)value >= -4095 ? -(s64)value : 0;
  return 0;
}

struct sighting_event {
  struct event event;
  struct sighting seen;
  struct protocol_key key;
};

/* Count one more of a protocol: when it was first seen, 0 where the table is full. */
static __always_inline u64 first_seen(struct protocol_key *key, u64 now, u32 *is_new) {
  struct protocol_row *row = protocols.lookup(key);
  if (!row) {
    struct protocol_row fresh = {};
    fresh.count = 1;
    fresh.first_ns = now;
    if (!protocols.insert(key, &fresh)) { *is_new = 1; return now; }
    row = protocols.lookup(key);                        /* another CPU was first, or the table is full */
    if (!row) { count(PROTOCOLS_LOST); return 0; }
  }
  __sync_fetch_and_add(&row->count, 1);
  return row->first_ns;
}

/* Tell Python of a protocol never seen before: to be filled in and submitted. */
static __always_inline struct sighting_event *new_sighting(void *ctx, struct protocol_key *key, u64 vma) {
  struct sighting_event *s = events.ringbuf_reserve(sizeof(struct sighting_event));
  if (!s) { count(EVIDENCE_LOST); return 0; }
  fill_event(&s->event, PROTOCOL_NEW);
  s->event.stack = stack_of(ctx);
  s->event.a = vma;
  __builtin_memset(&s->seen, 0, sizeof(s->seen));
  if (vma) s->seen.vm_flags = READ(vm_area_struct, vma, vm_flags);
  __builtin_memcpy(&s->key, key, sizeof(s->key));
  return s;
}

/* Count the window (or a piece of it) under its protocol, and keep it in the flight recorder. */
static __always_inline void count_protocol(void *ctx, struct insider *t, struct frame *f, u64 now, u64 vm_start, u64 vm_end) {
  u32 is_new = 0, zero = 0;
  struct params *p = params.lookup(&zero);
  if (!p || f->epoch != (u32)p->window_epoch) return;   /* hooks have changed since: a part of it may be missing */
  u64 first_ns = first_seen(&f->key, now, &is_new);
  if (!first_ns) return;
  struct sighting_event *s = is_new ? new_sighting(ctx, &f->key, f->vma) : 0;
  if (s) {
    s->event.start_ns = f->start_ns;
    s->event.b = f->mm;
    s->seen.was_start = f->was_start;
    s->seen.was_end = f->was_end;
    s->seen.vm_start = vm_start;
    s->seen.vm_end = vm_end;
    s->seen.folio = f->folio;
    s->seen.anon = f->anon;
    s->seen.i_mmap = f->i_mmap;
    events.ringbuf_submit(s, 0);
  }
  u32 walks = f->flags & WINDOW_WALKS ? 1 : 0;
  u32 *next = next_flight.lookup(&walks);
  if (!next) return;
  u32 at = (*next & (FLIGHT_ROWS - 1)) + walks * FLIGHT_ROWS;
  *next += 1;
  struct flight *flight = flights.lookup(&at);
  if (!flight) return;
  u64 task = bpf_get_current_pid_tgid();
  flight->start_ns = f->start_ns;
  flight->end_ns = now;
  flight->protocol = first_ns;
  flight->mm = f->mm;
  flight->vma = f->vma;
  flight->was_start = f->was_start;
  flight->was_end = f->was_end;
  flight->vm_start = vm_start;
  flight->vm_end = vm_end;
  flight->anon = f->anon;
  flight->i_mmap = f->i_mmap;
  flight->folio = f->folio;
  flight->tid = task;
  flight->tgid = task >> 32;
  flight->window = f->key.window;
  flight->stack = walks ? -1 : t->stack;
}

static __always_inline void note_exit(struct frame *f) {
  shift_in(&f->key.context, held_by_us(f->mmap), CONTEXT_EXIT_MMAP_SHIFT);
  shift_in(&f->key.context, held_by_us(f->i_mmap), CONTEXT_EXIT_I_MMAP_SHIFT);
  shift_in(&f->key.context, held_by_us(f->anon), CONTEXT_EXIT_ANON_SHIFT);
}

/* The window's return: what it left, against what it found. */
static __always_inline void finish(void *ctx, struct insider *t, struct frame *f, u64 value) {
  u64 now = bpf_ktime_get_ns(), vm_start = 0, vm_end = 0;
  u32 context = 0, window = f->key.window;
  f->key.error = error_of(f->returns, value);
  u64 heir = f->flags & WINDOW_COPIES ? value : f->vma;
  if (f->flags & WINDOW_SHAPES && f->vma) {
    struct vm_area_struct is = {};
    bpf_probe_read_kernel(&is, sizeof(is), (void *)f->vma);
    vm_start = is.vm_start;
    vm_end = is.vm_end;
    if (vm_start != f->was_start || vm_end != f->was_end) context |= CONTEXT_MOVED;
    u64 anon = root_lock_of((u64)is.anon_vma);
    if (anon && !(f->key.context & CONTEXT_ANON)) { context |= CONTEXT_IMPORTED; f->anon = anon; }
    if (!f->key.error) shift_in(&context, geometry_of(f, &is), CONTEXT_GEOMETRY_SHIFT);
  }
  if (f->source && !f->key.error && heir && f->flags & (WINDOW_COPIES | WINDOW_MERGES)) {
    u64 root = root_lock_of(READ(vm_area_struct, heir, anon_vma));
    shift_in(&context, root == f->source ? FOLLOWS_HOLDS : root ? FOLLOWS_OTHER : FOLLOWS_MISSING, CONTEXT_FOLLOWS_SHIFT);
  }
  f->key.context |= context;
  note_exit(f);
  count_protocol(ctx, t, f, now, vm_start, vm_end);
  struct histogram *h = window_times.lookup(&window);
  if (h) add_to(h, now - f->start_ns);
  if (f->flags & WINDOW_WALKS) observe(window == WINDOW_rmap_walk_anon ? HIST_WALK_ANON : window == WINDOW_rmap_walk_file ? HIST_WALK_FILE : HIST_WALK_KSM, f->visits);
}

/* Close the window that this call opened (mark 0: the innermost of this function); windows inside it whose return was missed go with it. */
static __always_inline void leave(void *ctx, u64 mark, u32 window, u64 value) {
  struct insider *t = insider();
  if (!t) return;
  struct frame *f = 0;
  u32 depth = t->depth, at = depth;
  if (!depth) {
    if (t->unsampled_window == window && (!mark || mark == t->unsampled)) t->unsampled = 0;
    return;
  }
#pragma unroll
  for (u32 i = 0; i < DEEPEST_WINDOW; i++) {
    if (f || !at) continue;
    at -= 1;
    f = frame_at(t, at);
    if (f->key.window != window || (mark && f->mark != mark)) f = 0;
  }
  if (!f) return;                                       /* it began before the gate opened, or was lost */
  finish(ctx, t, f, value);
  if (at + 1 != depth) count(WINDOWS_UNCLOSED);
  t->depth = at;
}
