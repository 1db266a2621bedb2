/* The mmap_locks that a task holds, as far as their tracepoints show. */
#ifndef RMAPD_LOCK_STATES_H
#define RMAPD_LOCK_STATES_H

#include "common.h"

BPF_TASK_STORAGE(lock_states, struct lock_state);

#endif
