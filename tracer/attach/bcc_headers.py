"""A stub header tree, in place of the kernel headers that BCC's own virtual headers include.

Ten small files, and no kernel source: hosts need no linux-headers package.
"""

from __future__ import annotations

import re
from pathlib import Path

from tracer.kernel.running import Kernel

_TYPES = """#pragma once
typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __le16;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef int pid_t;
enum { false, true };
#define NULL ((void *)0)
#define __bitwise
"""

_EMPTY = (
    "linux/log2.h",
    "linux/bpf.h",
    "linux/bpf_common.h",
    "asm/page.h",
    "uapi/linux/ptrace.h",
    "uapi/linux/if_packet.h",
    "uapi/linux/bpf.h",
)


def write(root: Path, kernel: Kernel) -> None:
    """Write the tree for a kernel. root: an empty folder."""
    # CONFIG_LOCALVERSION may follow without a sign, and `rmapd compile` gives the name of a file.
    numbers = map(int, re.findall(r"[0-9]{1,4}", kernel.release))
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    files = dict.fromkeys(_EMPTY, "")
    page_size = f"#define PAGE_SIZE {1 << kernel.page_shift}UL\n"
    files["linux/types.h"] = _TYPES + page_size + kernel.machine.registers.pt_regs
    files["linux/kconfig.h"] = "#define CONFIG_BPF_SYSCALL 1\n"
    files["linux/version.h"] = (
        "#define KERNEL_VERSION(a,b,c) (((a)<<16)+((b)<<8)+((c)>255?255:(c)))\n"
        f"#define LINUX_VERSION_CODE KERNEL_VERSION({major},{minor},{patch})\n"
    )
    for name, text in files.items():
        path = root / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
