/* What the kernel passes to the program of a BPF iterator over tasks. */
#ifndef RMAPD_ITERATORS_H
#define RMAPD_ITERATORS_H

#include "common.h"

struct bpf_iter_meta {
	u64 seq;
};
struct bpf_iter__task {
	u64 meta;
	u64 task;
};

#endif
