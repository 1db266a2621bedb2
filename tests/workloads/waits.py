"""A workload for a guest with rmapd_waits loaded: tasks that wait for themselves or each other.

usage: waits.py NAME [SECONDS]     (root; NAME: a key of ACTS)

Each thread of one process writes one word to the module's file. After this time the process is
killed, which ends the waits. Prints one JSON line: name, when it began (CLOCK_MONOTONIC and seconds
since the epoch), pid.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

FILE = Path("/proc/rmapd_waits")
ACTS = {
    "own_write": ("own_write",),
    "own_read": ("own_read",),
    "ring": ("ring_one", "ring_two"),
    "ring_through_a_reader": ("read_one", "read_two"),
    "long": ("hold", "want"),
}
"""Name -> what its threads write."""


def act(words: tuple[str, ...]) -> None:
    """Let a thread write each word, half a second after the one before.

    All exist before the first one waits: to start a thread takes the mmap_lock. Each has the file
    open for itself: writers of one open file wait for each other.
    """
    files = [os.open(FILE, os.O_WRONLY) for _ in words]

    def write(number: int) -> None:
        time.sleep(0.5 * (number + 1))
        os.write(files[number], words[number].encode())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(name: str, seconds: float) -> None:
    began, wall = time.monotonic(), time.time()
    child = os.fork()
    if not child:
        act(ACTS[name])
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    report = {"name": name, "began": began, "first": wall, "pid": child}
    print("fault " + json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 15.0)
