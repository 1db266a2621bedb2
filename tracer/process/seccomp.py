"""A seccomp filter over all threads: what a daemon that has attached never does again. By libseccomp, where it is installed.

It refuses with EPERM and does not kill, and it names what is refused: a list of what is allowed is systemd's part (the unit's
SystemCallFilter), which is kept up to date with what interpreters and C libraries come to need.
"""

from __future__ import annotations

import contextlib
import errno

_BPF_COMMANDS = 64  # more than any kernel has
_BPF_ALLOWED = frozenset({1, 2, 3, 4, 10, 15, 21, 24, 25, 26, 27, 33})
"""Maps' elements (one by one, taken out, in batches), BPF_PROG_TEST_RUN, BPF_OBJ_GET_INFO_BY_FD, BPF_ITER_CREATE: bpf.py and program.py."""

FORBIDDEN = (
    # other programs and other processes
    "execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp move_pages migrate_pages "
    # probes
    "perf_event_open userfaultfd "
    # the machine
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct quotactl iopl ioperm modify_ldt "
    "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog vhangup personality "
    # file systems and namespaces
    "mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root chroot setns unshare "
    "mknod mknodat open_by_handle_at fanotify_init "
    # other identities, keys, and what goes round filters
    "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid keyctl add_key request_key "
    "io_uring_setup io_uring_enter io_uring_register"
).split()


def forbid() -> str:
    """Put the filter on every thread; why there is none, where there is none."""
    try:
        import seccomp
    except ImportError:
        return "no seccomp filter (python3-seccomp is not installed)"
    refused = seccomp.ERRNO(errno.EPERM)
    try:
        wanted = seccomp.SyscallFilter(seccomp.ALLOW)
        wanted.set_attr(seccomp.Attr.CTL_TSYNC, 1)
        for name in FORBIDDEN:
            with contextlib.suppress(ValueError):  # a name that this libseccomp does not know
                wanted.add_rule(refused, name)
        for command in range(_BPF_COMMANDS):
            if command not in _BPF_ALLOWED:
                wanted.add_rule(
                    refused, "bpf", seccomp.Arg(0, seccomp.MASKED_EQ, 0xFFFFFFFF, command)
                )
        wanted.load()
    except (OSError, RuntimeError) as error:
        return f"no seccomp filter ({error})"
    return ""
