/* The freeze of the flight recorder: complaints.bpf.c begins it, flight.h keeps it. */
#ifndef RMAPD_FREEZE_H
#define RMAPD_FREEZE_H

#include "common.h"

BPF_ARRAY(flight_freeze, struct flight_freeze, 1);

static __always_inline u32 is_frozen(u64 now)
{
	u32 zero = 0;
	struct flight_freeze *freeze = flight_freeze.lookup(&zero);
	return freeze && now < freeze->until_ns && now >= freeze->since_ns;
}

/* Begin a freeze, unless one began within the last ten times its length. */
static __always_inline void freeze_flights(u64 now)
{
	u32 zero = 0;
	struct flight_freeze *freeze = flight_freeze.lookup(&zero);
	if (!freeze || now < freeze->since_ns + 10 * FREEZE_NS)
		return;
	freeze->since_ns = now;
	freeze->until_ns = now + FREEZE_NS;
}

#endif
