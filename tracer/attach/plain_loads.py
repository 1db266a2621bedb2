"""Plain loads from kernel memory, where the kernel has the kfunc bpf_rdonly_cast() (from 6.10 on).

A read by bpf_probe_read_kernel() is a call of three functions. bpf_rdonly_cast() makes a pointer to
a struct of any address, and the verifier replaces the call by a move. What is loaded from such a
pointer is 0 where the address is bad, by the kernel's table of faulting instructions.

All reads take the memory for one struct that begins with a number of eight bytes: the verifier
allows loads of 1, 2, 4 and 8 bytes from it and knows nothing of the number. So neither the struct
that is there, nor its layout on this kernel, matters.

The kfunc exists since 6.2, but a load from the vsyscall page crashed the kernel until b599d7d26d6a
"bpf, x86: Fix PROBE_MEM runtime load check" (in v6.10, and in some stable kernels). BTF does not
show that change, and does show a kfunc that is as young.
"""

from __future__ import annotations

from tracer.attach.relocations import FIRST_KFUNC
from tracer.bpf import programs
from tracer.kernel.btf import FUNC, TYPEDEF, Btf
from tracer.kernel.running import Kernel

_KFUNC, _TYPE = "bpf_rdonly_cast", "atomic64_t"
_AS_YOUNG = "bpf_preempt_disable"  # fc7566ad0a82, in v6.10


def _ids(types: Btf) -> tuple[int, int]:
    """Return the BTF ids of the kfunc and of the struct; 0: the kernel has none."""
    named = types.find(_TYPE, TYPEDEF)
    return types.find(_KFUNC, FUNC) or 0, types.strip(named) if named else 0


def refused(types: Btf) -> str:
    """Return why this kernel refuses plain loads; empty where it takes them.

    Loads a program with one, and attaches nothing.
    """
    return lacking(types) or programs.plain_load_refused(*_ids(types))


def lacking(types: Btf) -> str:
    """Return what a kernel with these types lacks for plain loads; empty: nothing that shows."""
    kfunc, number = _ids(types)
    if not kfunc or not number:
        return f"no {_TYPE if kfunc else _KFUNC} in this kernel's BTF"
    if types.find(_AS_YOUNG, FUNC) is None:
        return f"before 6.10 a load may crash the kernel: no {_AS_YOUNG} in this kernel's BTF"
    return ""


def header(kernel: Kernel) -> str:
    """Return the C definitions that LOAD() in probes/include/common.h uses, where it can."""
    if kernel.plain_loads_refused:
        return ""
    kfunc, number = _ids(kernel.types)
    return f"#define RDONLY_CAST {FIRST_KFUNC + kfunc}\n#define RDONLY_TYPE {number}\n"
