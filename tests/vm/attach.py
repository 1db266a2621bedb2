"""Attach and detach the whole plan repeatedly under load, and count what is left behind.

Runs in a guest.

usage: attach.py OUT.json TIMES fentry|kprobe|kprobe.multi   (see count.py)

After the first rounds RCU grace periods are expedited: detaching a hundred probes waits for a
hundred of them, which is slow under emulation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.vm.count import prefer
from tracer.attach import loader, resolver
from tracer.bpf.programs import program_ids
from tracer.config_maps import Maps
from tracer.daemon.probes import probes_folder, running_kernel
from tracer.tables.c_structs import Layouts

LOAD = [
    "stress-ng",
    "--quiet",
    "--rmap",
    "1",
    "--fork",
    "1",
    "--timeout",
    "0",
    "--temp-path",
    "/tmp",
]
TRACING, EXPEDITED = Path("/sys/kernel/tracing"), Path("/sys/kernel/rcu_expedited")
ORDINARY_ROUNDS = 3


def hooked() -> int:
    """Return how many functions are hooked now, by the lists of ftrace and of kprobes."""
    probes = Path("/sys/kernel/debug/kprobes/list")
    functions = (TRACING / "enabled_functions").read_text().splitlines()
    return len(functions) + (len(probes.read_text().splitlines()) if probes.exists() else 0)


def main(out: str, times: int, how: str) -> None:
    kernel, include = running_kernel(), probes_folder() / "include"
    prefer(kernel, how)
    before, programs = hooked(), len(list(program_ids()))
    build = loader.BuildEnvironment(
        kernel,
        Layouts.read(include / "shared.h").constants,
        include,
        Maps().sizes(),
    )
    with loader.load(
        resolver.make_plan(kernel, [probes_folder()]), build, statistics=True
    ) as loaded:
        print("the gate is open", flush=True)
        load = subprocess.Popen(LOAD)
        try:
            on = [hook for hook in loaded.hooks if hook.on]
            pairs = [
                pair
                for hook in on
                for pair in zip(
                    loaded.programs[hook.hook.name], hook.methods[hook.chosen].points, strict=True
                )
            ]
            busiest, left, runs, seconds = hooked(), [], [], []
            loaded.detach()
            left.append(hooked() - before)
            for number in range(times):
                EXPEDITED.write_text("1" if number >= ORDINARY_ROUNDS else "0")
                start = time.monotonic()
                links = [
                    link
                    for program, point in pairs
                    if (link := program.attach(point.how, point.symbol))
                ]
                for link in links:
                    link.close()
                seconds.append(time.monotonic() - start)
                left.append(hooked() - before)
                runs.append(sum(one.runs for one in loaded.statistics().values()))
                print(f"{len(seconds)}: {seconds[-1]:.2f} s, {left[-1]} left", flush=True)
        finally:
            load.terminate()
            load.wait()
    time.sleep(2)  # links and programs are freed after a grace period
    found = {
        "kernel": kernel.release,
        "programs": len(pairs),
        "hooked": busiest - before,
        "left": left,
        "runs": runs,
        "left_programs": len(list(program_ids())) - programs,
        "left_hooked": hooked() - before,
        "ordinary_seconds": max(seconds[:ORDINARY_ROUNDS]),
        "slowest_seconds": max(seconds),
        "seconds": sum(seconds),
    }
    Path(out).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
