"""A workload for a guest with rmapd_faults loaded: a fault that strikes at random, again and again.

usage: striker.py FAULT MEAN SEED     (root; prints a JSON line per strike, with its time)

The times between strikes are exponential with a mean of MEAN seconds, as those of a race are: how
long it takes from any moment to the next strike does not depend on the past.
"""

from __future__ import annotations

import json
import random
import sys
import time

from tests.workloads.faults import OPERATIONS, arm
from tests.workloads.victim import struck


def main(fault: str, mean: float, seed: int) -> None:
    drawn = random.Random(seed)
    while True:
        time.sleep(drawn.expovariate(1 / mean))
        before, _ = struck(fault)
        began = time.time()
        OPERATIONS[fault](fault)
        arm(f"{fault} 0")
        times, _ = struck(fault)
        if times == before:
            raise RuntimeError(f"{fault} did not strike")
        print(json.dumps({"fault": fault, "struck": began}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
