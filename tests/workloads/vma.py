"""A workload: exactly N of each change of a VMA (vma.c, which is compiled when it runs).

usage: vma.py [--wait] [N] [OPERATION...]

N is 1 to 1000, by default 23. It prints one JSON line: pid, VMAs after the set-up, and how often
each operation was done. This process becomes the compiled one and keeps its pid. With --wait it
stops itself after its set-up and before it exits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
OPERATIONS = ("split_merge", "file_split_merge", "expand", "brk", "fork", "move", "stack")


FLAGS = "-std=gnu11 -O1 -Wall -Wextra -Werror -static".split()


def compile_program(out: Path, compiler: str = "gcc") -> None:
    subprocess.run([compiler, *FLAGS, "-o", str(out), str(SOURCE)], check=True)


def compiled() -> int:
    """Compile vma.c; return a file descriptor of the program, whose file is deleted.

    RMAPD_VMA: the program, where it was compiled on another machine.
    """
    if made := os.environ.get("RMAPD_VMA"):
        return os.open(made, os.O_RDONLY | os.O_CLOEXEC)
    with tempfile.TemporaryDirectory() as folder:
        compile_program(Path(folder) / "vma")
        return os.open(f"{folder}/vma", os.O_RDONLY | os.O_CLOEXEC)


def main(arguments: list[str]) -> None:
    waits = "--wait" in arguments
    count, *wanted = [word for word in arguments if word != "--wait"] or ["23"]
    if not count.isdecimal() or not 1 <= int(count) <= 1000 or not set(wanted) <= {*OPERATIONS}:
        sys.exit(
            f"usage: vma.py [--wait] [N] [OPERATION...], N 1 to 1000, of {', '.join(OPERATIONS)}"
        )
    os.execve(compiled(), ["vma", count, str(int(waits)), *wanted], dict(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
