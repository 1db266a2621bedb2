"""Plain loads from kernel memory, where the kernel has the kfunc bpf_rdonly_cast() (from 6.2 on).

A read by bpf_probe_read_kernel() is a call of three functions. bpf_rdonly_cast() makes a pointer to
a struct of any address, and the verifier replaces the call by a move. What is loaded from such a
pointer is 0 where the address is bad, by the kernel's table of faulting instructions.

All reads take the memory for one struct that begins with a number of eight bytes: the verifier
allows loads of 1, 2, 4 and 8 bytes from it and knows nothing of the number. So neither the struct
that is there, nor its layout on this kernel, matters.
"""

from __future__ import annotations

from tracer.attach.relocations import FIRST_KFUNC
from tracer.bpf import programs
from tracer.kernel.btf import FUNC, TYPEDEF, Btf
from tracer.kernel.running import Kernel

_KFUNC, _TYPE = "bpf_rdonly_cast", "atomic64_t"


def _ids(types: Btf) -> tuple[int, int]:
    """Return the BTF ids of the kfunc and of the struct; 0: the kernel has none."""
    named = types.find(_TYPE, TYPEDEF)
    return types.find(_KFUNC, FUNC) or 0, types.strip(named) if named else 0


def refused(types: Btf) -> str:
    """Return why this kernel refuses plain loads; empty where it takes them.

    Loads a program with one, and attaches nothing.
    """
    kfunc, number = _ids(types)
    if not kfunc or not number:
        return f"no {_TYPE if kfunc else _KFUNC} in this kernel's BTF"
    return programs.plain_load_refused(kfunc, number)


def header(kernel: Kernel) -> str:
    """Return the C definitions that LOAD() in probes/include/common.h uses, where it can."""
    if kernel.plain_loads_refused:
        return ""
    kfunc, number = _ids(kernel.types)
    return f"#define RDONLY_CAST {FIRST_KFUNC + kfunc}\n#define RDONLY_TYPE {number}\n"
