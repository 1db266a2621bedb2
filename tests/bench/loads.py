"""The loads: operations that are repeated, their number in a run, and the time they take."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_suffix(".c")
COUNTS = {
    "map": 30_000,
    "merge": 20_000,
    "protect": 20_000,
    "brk": 30_000,
    "move": 20_000,
    "fork": 60,
    "exec": 400,
    "faults": 150_000,
    "compact": 40_000,
    "compile": 30,
}
"""Operations in a run at scale 1, which takes 0.1 to 0.2 s on this kind of machine."""
TITLES = {
    "map": "mmap and munmap of one page",
    "merge": "mmap and munmap beside a VMA in use",
    "protect": "mprotect: split and merge",
    "brk": "brk: grow and shrink",
    "move": "mremap of 16 pages",
    "fork": "fork and exit, 1,000 VMAs",
    "exec": "fork and exec",
    "faults": "page faults",
    "compact": "compaction, per page",
    "compile": "compile, per C file",
}


@dataclass(frozen=True)
class Took:
    """Nanoseconds per operation: wall-clock time and CPU time of the load and its children."""

    operations: int
    wall_ns: float
    cpu_ns: float


def build(folder: Path) -> Path:
    """Compile the loads into this folder; their functions are at the same addresses each time."""
    program = folder / "loads"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-no-pie"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(SOURCE)], check=True)
    return program


class Loads:
    """The compiled loads in a folder; scale multiplies the number of operations."""

    def __init__(self, folder: Path, scale: float = 1.0) -> None:
        self._program, self._scale = build(folder), scale
        self._files = [_c_file(folder / f"unit{n}.c", n) for n in range(self._count("compile"))]

    def _count(self, name: str) -> int:
        return max(1, round(COUNTS[name] * self._scale))

    def run(
        self, name: str, meanwhile: Callable[[], object] | None, operations: int = 0
    ) -> Took | None:
        """Run one load, and call meanwhile until it ends (a session reads its tables there).

        meanwhile: None: sleep until it ends. operations: how many; 0: those of COUNTS at the scale.

        Returns None if nothing could be done, such as compaction of memory without holes.
        """
        if name == "compile":
            return self._compile(meanwhile, operations or len(self._files))
        command = [str(self._program), name, str(operations or self._count(name))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
            _wait(load, meanwhile)
            output = load.stdout.read() if load.stdout else ""
        if load.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {load.returncode}")
        took = json.loads(output)
        if took["operations"] < 1:
            return None
        return Took(
            took["operations"],
            took["wall_ns"] / took["operations"],
            took["cpu_ns"] / took["operations"],
        )

    def _compile(self, meanwhile: Callable[[], object] | None, operations: int) -> Took:
        before, start = _children_seconds(), time.monotonic()
        files = self._files[:operations]
        for file in files:
            with subprocess.Popen(["gcc", "-O1", "-c", "-o", os.devnull, str(file)]) as compiler:
                _wait(compiler, meanwhile)
            if compiler.returncode:
                raise RuntimeError(f"gcc ended with {compiler.returncode}")
        wall, cpu = time.monotonic() - start, _children_seconds() - before
        return Took(len(files), 1e9 * wall / len(files), 1e9 * cpu / len(files))


def _wait(process: subprocess.Popen[Any], meanwhile: Callable[[], object] | None) -> None:
    if not meanwhile:
        process.wait()
        return
    while process.poll() is None:
        meanwhile()


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


_FUNCTION = (
    "static int f{n}(int x) {{ for (int i = 0; i < {turns}; i++) "
    "x = x * {n} + (x >> {shift}); return x; }}"
)
_HEADERS = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n"


def _c_file(path: Path, number: int) -> Path:
    """Write a small translation unit with common headers; each number gives another one."""
    functions = "\n".join(_FUNCTION.format(n=n, turns=n + number, shift=n % 7) for n in range(20))
    calls = " + ".join(f"f{n}(x)" for n in range(20))
    path.write_text(f"{_HEADERS}{functions}\nint unit{number}(int x) {{ return {calls}; }}\n")
    return path
