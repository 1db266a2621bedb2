/*
 * L3 where functions cannot be hooked: is a lock that the audit found owned for write kept?
 *
 * A task that enters a system call comes from user mode, so it owns no lock of the mm: the calls
 * that take these locks give them back before they return. owner_enters looks at that. Hooking
 * sys_enter makes each system call take its slow path, so it is attached only while an owner is
 * watched. owner_look reads a lock and its owner on demand, by value.
 *
 * The owner field keeps the name of a task that died. Its task_struct may be freed and be another
 * task's by now; start_time tells them apart.
 */
#include "mm_ids.h"
#include "rwsem.h"

BPF_ARRAY(owner_look, struct owner_look, 1);
BPF_HASH(watched_locks, struct watch_key, struct watched_lock, WATCHED_LOCKS);

/*
 * What the lock is a part of; 0: memory that was freed, or is another object by now. Slabs of
 * anon_vmas stay slabs of anon_vmas (SLAB_TYPESAFE_BY_RCU), those of inodes and mms do not.
 */
static __always_inline u64 identity_of(rwsem_t rwsem, u64 kind)
{
	if (kind == AUDIT_MMAP_LOCK)
		return mm_id(MM(rwsem.addr - OFFSET(mm_struct, mmap_lock)));
	if (kind == AUDIT_I_MMAP_RWSEM) {
		mapping_t mapping = MAPPING(rwsem.addr - OFFSET(address_space, i_mmap_rwsem));
		u64 host = READ_MAPPING(mapping, host);
		return host && host + OFFSET(inode, i_data) == mapping.addr ? host : 0;
	}
	anon_vma_t anon_vma = ANON_VMA(rwsem.addr - OFFSET(anon_vma, rwsem));
	return READ_ANON_VMA(anon_vma, root) == anon_vma.addr ? anon_vma.addr : 0;
}

/* A task_struct by value. Nothing holds it: it may be freed, or be a new task's. */
static __always_inline void read_owner(struct params *p, struct owner_look *o, u64 task,
				       u64 stack_bytes)
{
	u64 pid = READ(task_struct, task, thread_pid);
	if (is_ram(p, pid))
		o->linked = READ(pid, pid, tasks[0]) == task + OFFSET(task_struct, pid_links);
	o->start_ns = READ(task_struct, task, start_time);
	o->exit_state = READ(task_struct, task, exit_state);
	o->state = READ(task_struct, task, state);
	o->flags = READ(task_struct, task, flags);
	o->on_cpu = READ(task_struct, task, on_cpu);
#ifdef HAVE_task_struct_cpu
	o->cpu = READ(task_struct, task, cpu);
#endif
	o->tid = READ(task_struct, task, pid);
	o->tgid = READ(task_struct, task, tgid);
	u64 guest_ns = READ(task_struct, task, gtime); /* before utime, which is raised first */
	o->user_ns = READ(task_struct, task, utime) - guest_ns;
	o->system_ns = READ(task_struct, task, stime);
	o->switches = READ(task_struct, task, nvcsw) + READ(task_struct, task, nivcsw);
	bpf_probe_read_kernel(&o->comm, sizeof(o->comm),
			      (void *)(task + OFFSET(task_struct, comm)));
	u64 stack = READ(task_struct, task, stack);
	if (o->linked && stack)
		o->call = READ(registers, stack + stack_bytes, call);
}

/*
 * args[0]: a rwsem, args[1]: its enum audit_lock, args[2]: the task that is to own it. 0, 0, 0:
 * look at the running task, and at no lock.
 */
HOOK(owner_look)
{
	u32 zero = 0;
	struct params *p = params.lookup(&zero);
	struct owner_look *o = owner_look.lookup(&zero);
	if (!p || !o)
		return 0;
	__builtin_memset(o, 0, sizeof(*o));
	rwsem_t rwsem = RWSEM(ctx->args[0]);
	u64 kind = ctx->args[1];
	u64 self = bpf_get_current_task();
	u64 task = ctx->args[2] ? ctx->args[2] : self;
	if (!is_ram(p, task) || (rwsem.addr && !is_ram(p, rwsem.addr)))
		return 0;
	o->lock = rwsem.addr;
	o->task = task;
	if (rwsem.addr) {
		struct rwsem_state before = {.count = READ_RWSEM(rwsem, count)};
		before.owner = READ_RWSEM(rwsem, owner);
		o->owned_before = has_for_write(before, task);
		o->identity = identity_of(rwsem, kind);
#ifdef HAVE_mm_struct_mm_lock_seq
		if (kind == AUDIT_MMAP_LOCK) {
			o->has_seq = 1;
			o->seq = (u32)READ_MM(MM(rwsem.addr - OFFSET(mm_struct, mmap_lock)),
					      mm_lock_seq);
		}
#endif
	}
	/*
	 * All stacks are of one size, with struct pt_regs at the same place. The verifier forbids
	 * arithmetic with the pointer; what is read back from the map is a number.
	 */
	*(volatile u64 *)&o->call = bpf_task_pt_regs(CURRENT);
	u64 stack_bytes = *(volatile u64 *)&o->call - READ(task_struct, self, stack);
	o->call = 0;
	READ_BARRIER();
	read_owner(p, o, task, stack_bytes);
	if (!rwsem.addr)
		return 0;
	READ_BARRIER();
	struct rwsem_state after = {.owner = READ_RWSEM(rwsem, owner)};
	after.count = READ_RWSEM(rwsem, count);
	o->owned_after = has_for_write(after, task);
	return 0;
}

/* A watched task enters a system call. Nobody else can change whether it owns a lock. */
static __always_inline void look_at_watched(struct watched_lock *w, u64 task, u64 call)
{
	rwsem_t rwsem = RWSEM(w->lock);
	if (READ(task_struct, task, start_time) != w->start_ns)
		return; /* another task at this address */
	if (!has_for_write(state_of(rwsem), task) || identity_of(rwsem, w->kind) != w->identity) {
		w->let_go++;
		return;
	}
	if (!w->kept++) {
		w->kept_ns = bpf_ktime_get_ns();
		w->call = call;
	}
}

HOOK(owner_enters)
{
	struct watch_key key = {};
	key.task = bpf_get_current_task();
#pragma unroll
	for (u32 i = 0; i < WATCHED_LOCKS_A_TASK; i++) {
		key.slot = i;
		struct watched_lock *w = watched_locks.lookup(&key);
		if (!w)
			return 0;
		look_at_watched(w, key.task, ARG(owner_enters, id));
	}
	return 0;
}
