"""Probes that record the windows which a test asks for, on a kernel that can hook none.

The hooks of the window probe objects are attached to nothing here. Two programs run on demand, by
BPF_PROG_TEST_RUN from any process that has the right to, and record windows through the probes' own
code: `violate` one window of the protocol in the map `staged`, `many` a number of windows of the
protocols in the map `cast`. So such a kernel has protocols, with a hundred programs loaded.
"""

from __future__ import annotations

import json
import shutil
import struct
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.native import LAYOUTS, WINDOW_PROBE_OBJECTS
from tracer.bpf import programs as program
from tracer.bpf.maps import Map, map_info
from tracer.bpf.programs import Program, open_program
from tracer.bpf.syscall import Command, call, object_info
from tracer.daemon.session import probes_folder

CAST_ROWS = 1024
A_RUN = 256
_STUB = "HOOK({}) {{ return 0; }}\n"
_PROGRAMS = f"""
BPF_ARRAY(staged, struct protocol_key, 1);
BPF_ARRAY(actor, struct open_window, 1);
BPF_ARRAY(task, struct task_windows, 1);
BPF_ARRAY(cast, struct protocol_key, {CAST_ROWS});

HOOK(violate) {{
  u32 zero = 0;
  struct protocol_key *key = staged.lookup(&zero);
  struct open_window *w = actor.lookup(&zero);
  struct task_windows *t = task.lookup(&zero);
  struct params *p = open_gate();
  if (!key || !w || !t || !p) return 0;
  t->stack = -1;
  __builtin_memcpy(&w->key, key, sizeof(*key));
  w->epoch = p->window_epoch;
  w->start_ns = bpf_ktime_get_ns();
  w->mm.addr = ctx->args[0];
  w->vma.addr = ctx->args[1];
  record_window(ctx, t, w, bpf_ktime_get_ns(), 0, 0);
  return 0;
}}

HOOK(many) {{
  u64 first = ctx->args[0], rows = ctx->args[1], now = bpf_ktime_get_ns();
  if (!open_gate() || !rows) return 0;
#pragma nounroll
  for (u32 i = 0; i < {A_RUN}; i++) {{
    u32 row = (first + i) % rows, is_new = 0, window = 0;
    struct protocol_key *key = cast.lookup(&row);
    if (!key) return 0;
    count_protocol(key, now, &is_new);
    window = key->window;
    struct histogram *h = window_times.lookup(&window);
    if (h) add_to(h, i);
  }}
  return 0;
}}
"""


def make(folder: Path) -> Path:
    """Copy the probes into a new folder, with the window probe objects replaced."""
    shutil.copytree(probes_folder(), folder)
    for probe_object in WINDOW_PROBE_OBJECTS:
        plan = tomllib.loads((folder / f"{probe_object}.toml").read_text())
        names = [hook["name"] for hook in plan["hook"]]
        extra = ["violate", "many"] if probe_object == "vma" else []
        (folder / f"{probe_object}.toml").write_text(_toml(plan, names + extra))
        (folder / f"{probe_object}.bpf.c").write_text(
            '#include "windows.h"\n'
            + "".join(map(_STUB.format, names))
            + (_PROGRAMS if extra else "")
        )
    return folder


def _toml(plan: dict[str, Any], hooks: list[str]) -> str:
    """Return a probe object of the same types, with hooks that are attached to nothing."""
    lines = [f"{key} = {json.dumps(plan[key])}" for key in ("title", "needs") if key in plan]
    for table in ("types", "enums"):
        if table in plan:
            lines += [
                f"[{table}]",
                *(
                    f"{json.dumps(name)} = {json.dumps(value)}"
                    for name, value in plan[table].items()
                ),
            ]
    lines += [f'[[hook]]\nname = "{name}"\ncandidates = ["run:"]\nnote = ""' for name in hooks]
    return "\n".join(lines) + "\n"


def _maps() -> Iterator[tuple[str, Map]]:
    """Yield each map of this kernel with its name; the caller closes it."""
    last = 0
    while True:
        try:
            _, left = call(Command.MAP_GET_NEXT_ID, struct.pack("<I", last))
        except FileNotFoundError:
            return
        (last,) = struct.unpack_from("<I", left, 4)
        fd, _ = call(Command.MAP_GET_FD_BY_ID, struct.pack("<I", last))
        kind, key, value, rows, *_ = map_info(fd)
        name = object_info(fd, 80)[24:40].split(b"\0")[0].decode()
        yield name, Map(fd, kind, key, value, rows)


@dataclass
class WindowRecorder:
    """The maps and programs of the rmapd that has these probes, opened by another process."""

    staged: Map
    cast: Map
    violate: Program
    many: Program

    @classmethod
    def find(cls) -> WindowRecorder:
        """Find them; one such rmapd runs on this machine."""
        maps: dict[str, Map] = {}
        for name, found in _maps():
            if name in ("staged", "cast") and name not in maps:
                maps[name] = found
            else:
                found.close()
        programs = {}
        for number, name in program.program_ids():
            if name in ("rmapd_violate", "rmapd_many"):
                programs[name] = open_program(number)
        return cls(maps["staged"], maps["cast"], programs["rmapd_violate"], programs["rmapd_many"])

    def record(self, key: bytes, mm: int = 0x1000, vma: int = 0x2000) -> None:
        """Have one window of this protocol recorded, on this CPU."""
        assert len(key) == LAYOUTS.structs["protocol_key"].size
        self.staged.update(bytes(4), key)
        self.violate.run(mm, vma)

    def close(self) -> None:
        """Close the descriptors."""
        for one in (self.staged, self.cast, self.violate, self.many):
            one.close()
