"""Windows without functions: probes whose window hooks are attached to nothing, and programs that book what a test gives them through the
books' own code. So a kernel that cannot hook windows has protocols, at any rate, with a hundred programs loaded.

`violate` books one window of the protocol that is staged; `many` books n windows of the protocols that are cast. Both are run by
BPF_PROG_TEST_RUN from any process that has the right to.
"""

from __future__ import annotations

import ctypes
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
from tracer.bpf.maps import Map, call
from tracer.bpf.programs import Program
from tracer.daemon.session import probes_folder

CAST_ROWS = 1024
A_RUN = 256
_STUB = "HOOK({}) {{ return 0; }}\n"
_PROGRAMS = f"""
BPF_ARRAY(staged, struct protocol_key, 1);
BPF_ARRAY(actor, struct frame, 1);
BPF_ARRAY(task, struct insider, 1);
BPF_ARRAY(cast, struct protocol_key, {CAST_ROWS});

HOOK(violate) {{
  u32 zero = 0;
  struct protocol_key *key = staged.lookup(&zero);
  struct frame *f = actor.lookup(&zero);
  struct insider *t = task.lookup(&zero);
  struct params *p = open_gate();
  if (!key || !f || !t || !p) return 0;
  t->stack = -1;
  __builtin_memcpy(&f->key, key, sizeof(*key));
  f->epoch = p->window_epoch;
  f->start_ns = bpf_ktime_get_ns();
  f->mm = ctx->args[0];
  f->vma = ctx->args[1];
  count_protocol(ctx, t, f, bpf_ktime_get_ns(), 0, 0);
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
    first_seen(key, now, &is_new);
    window = key->window;
    struct histogram *h = window_times.lookup(&window);
    if (h) add_to(h, i);
  }}
  return 0;
}}
"""


def make(folder: Path) -> Path:
    """The probes with the window stems replaced, in a new folder."""
    shutil.copytree(probes_folder(), folder)
    for probe_object in WINDOW_PROBE_OBJECTS:
        plan = tomllib.loads((folder / f"{probe_object}.toml").read_text())
        names = [hook["name"] for hook in plan["hook"]]
        extra = ["violate", "many"] if probe_object == "vma" else []
        (folder / f"{probe_object}.toml").write_text(_toml(plan, names + extra))
        (folder / f"{probe_object}.bpf.c").write_text(
            "".join(map(_STUB.format, names)) + (_PROGRAMS if extra else "")
        )
    return folder


def _toml(plan: dict[str, Any], hooks: list[str]) -> str:
    """A stem of the same types, with hooks that are attached to nothing."""
    lines = [
        f"{key} = {json.dumps(plan[key])}" for key in ("title", "include", "needs") if key in plan
    ]
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


_MAP_NEXT_ID, _MAP_BY_ID, _INFO = 12, 14, 15


def _maps() -> Iterator[tuple[str, Map]]:
    """Every map of this kernel by name; whoever takes one closes it."""
    last = 0
    while True:
        try:
            _, left = call(_MAP_NEXT_ID, struct.pack("<I", last))
        except FileNotFoundError:
            return
        (last,) = struct.unpack_from("<I", left, 4)
        fd, _ = call(_MAP_BY_ID, struct.pack("<I", last))
        info = ctypes.create_string_buffer(80)
        call(_INFO, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
        kind, _, key, value, rows = struct.unpack_from("<IIIII", info)
        yield info.raw[24:40].split(b"\0")[0].decode(), Map(fd, kind, key, value, rows)


@dataclass
class Stage:
    """The maps and programs of the rehearsing rmapd, from another process."""

    staged: Map
    cast: Map
    violate: Program
    many: Program

    @classmethod
    def find(cls) -> Stage:
        """Of the one rmapd that rehearses on this machine."""
        maps: dict[str, Map] = {}
        for name, found in _maps():
            if name in ("staged", "cast") and name not in maps:
                maps[name] = found
            else:
                found.close()
        programs = {}
        for number, name in program.program_ids():
            if name in ("rmapd_violate", "rmapd_many"):
                programs[name] = Program(call(13, struct.pack("<I", number))[0])
        return cls(maps["staged"], maps["cast"], programs["rmapd_violate"], programs["rmapd_many"])

    def book(self, key: bytes, mm: int = 0x1000, vma: int = 0x2000) -> None:
        """One window of this protocol, here and now."""
        assert len(key) == LAYOUTS.structs["protocol_key"].size
        self.staged.update(bytes(4), key)
        self.violate.run(mm, vma)

    def close(self) -> None:
        for one in (self.staged, self.cast, self.violate, self.many):
            one.close()
