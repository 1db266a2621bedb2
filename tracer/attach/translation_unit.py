"""The text that is compiled: the probe objects of a plan, and the header for its kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracer.attach.plan import ProbeObjectPlan
from tracer.errors import RmapdError

GENERATED = "kernel.h"
"""The header that is generated for each kernel; probes/include/common.h includes it."""
_INCLUDE = re.compile(r'#include "([^"]+)"')
_MAP = re.compile(r"^BPF_[A-Z_]+\(([^;]*)\);", re.M)
_PROGRAM = re.compile(r"^HOOK\((\w+)\)|^int (bpf_iter__\w+)\(", re.M)


def flags(sizes: Mapping[str, int]) -> list[str]:
    """Return the compiler's flags. sizes: macro -> rows of a map."""
    return [f"-D{name}={value}" for name, value in sizes.items()] + ["-w"]


def c_function(program: str) -> str:
    """Return the name of a program's C function. BCC recognises iterators by their prefix."""
    return program if program.startswith("bpf_iter__") else f"rmapd_{program}"


def functions(text: str) -> list[str]:
    """Return the C functions of the programs that a text may have, in order."""
    return sorted({c_function(found[1] or found[2]) for found in _PROGRAM.finditer(text)})


def declarations_of_maps(text: str) -> set[str]:
    """Return the words in the declarations of a text's maps, which are the maps' names and more."""
    return {word for found in _MAP.finditer(text) for word in re.findall(r"\w+", found[1])}


def source(header: str, probe_objects: Sequence[ProbeObjectPlan], include: Path) -> str:
    """Return one translation unit: the probe objects, with each header in place of its `#include`.

    BCC rewrites map accesses in its main file only, so headers cannot be left to the compiler.

    header: the text of kernel.h, generated from this kernel's BTF (tracer.attach.struct_slices).
    include: the folder of the other headers.
    RmapdError where a header cannot be read.
    """
    known = {GENERATED: header}
    return "\n".join(
        _expanded(
            probe_object.source.name,
            probe_object.source.read_text(encoding="utf-8"),
            include,
            known,
        )
        for probe_object in probe_objects
    )


def _expanded(name: str, text: str, include: Path, known: dict[str, str]) -> str:
    """Return a source file with its `#include "..."` lines expanded, each header once.

    known: headers that are in memory; a header that has been used is empty.
    """
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(text.splitlines(), 1):
        found = _INCLUDE.match(line)
        if not found:
            lines.append(line)
            continue
        wanted = found[1]
        inner = known.get(wanted)
        if inner is None:
            try:
                inner = (include / wanted).read_text(encoding="utf-8")
            except OSError as error:
                raise RmapdError(
                    f"cannot read {wanted}, which {name} includes",
                    why=str(error),
                    hint="reinstall rmapd",
                ) from error
        known[wanted] = ""
        if inner:
            lines += [_expanded(wanted, inner, include, known), f'#line {number + 1} "{name}"']
        else:
            lines.append("")
    return "\n".join(lines)
