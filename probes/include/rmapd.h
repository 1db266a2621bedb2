/* What all stems share: the gate, the counters, the histograms, the ring. */
BPF_ARRAY(params, struct params, 1);
BPF_PERCPU_ARRAY(counters, u64, COUNTERS);
BPF_PERCPU_ARRAY(histograms, struct histogram, HISTS);
BPF_ARRAY(entry_types, u64, 32);                        /* how often each swap type was inserted as a migration entry */
BPF_ARRAY(fork_windows, struct fork_window, FORK_WINDOWS);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_TABLE("stacktrace", int, struct bpf_stacktrace, stacks, STACK_ROWS);

#define HOOK(name) int rmapd_##name(struct bpf_raw_tracepoint_args *ctx)
#define ARG(hook, arg) (ctx->args[ARG_##hook##_##arg])
#define READ(type, at, member) ({ __typeof__(((struct type *)0)->member) v_ = 0; \
    bpf_probe_read_kernel(&v_, sizeof(v_), (void *)((u64)(at) + __builtin_offsetof(struct type, member))); v_; })

/* A bound that the verifier sees: the compiler knows it already and would leave it out (6.1 forgets it, 6.18 does not). */
#ifdef __bpf__
#define BOUND(value, mask) asm volatile("%0 &= " #mask : "+r"(value))
#else
#define BOUND(value, mask) ((value) &= (mask))
#endif

static inline struct params *open_gate(void) {
  u32 zero = 0;
  struct params *p = params.lookup(&zero);
  return p && p->gate ? p : 0;
}

static inline void count(u32 which) {
  u64 *sum = counters.lookup(&which);
  if (sum) *sum += 1;
}

static inline void observe(u32 which, u64 ns) {
  struct histogram *h = histograms.lookup(&which);
  if (!h) return;
  u32 slot = 0;
  u64 rest = ns;
  if (rest >> 32) { slot += 32; rest >>= 32; }
  if (rest >> 16) { slot += 16; rest >>= 16; }
  if (rest >> 8) { slot += 8; rest >>= 8; }
  if (rest >> 4) { slot += 4; rest >>= 4; }
  if (rest >> 2) { slot += 2; rest >>= 2; }
  if (rest >> 1) { slot += 1; rest >>= 1; }
  slot += rest;                                         /* the number of bits in ns */
  BOUND(slot, 63);
  h->slot[slot] += 1;
  h->sum_ns += ns;
}

/* Fill what every event has; the caller adds the rest and submits. A full ring is counted, never waited for. */
static inline struct event *new_event(u32 kind) {
  struct event *e = events.ringbuf_reserve(sizeof(struct event));
  if (!e) { count(EVIDENCE_LOST); return 0; }
  u64 task = bpf_get_current_pid_tgid();
  __builtin_memset(e, 0, sizeof(*e));
  e->kind = kind;
  e->time_ns = bpf_ktime_get_ns();
  e->tid = task;
  e->tgid = task >> 32;
  bpf_get_current_comm(&e->comm, sizeof(e->comm));
  return e;
}
