"""A seccomp filter over all threads, against system calls that only attaching needs.

libseccomp installs it, where python3-seccomp is there. A refused call fails with EPERM; nothing is
killed. The filter is a deny list: the allow list is systemd's (SystemCallFilter in the unit), which
follows what interpreters and C libraries need.
"""

from __future__ import annotations

import contextlib
import errno

_BPF_COMMANDS = 64  # more than any kernel has
BPF_ALLOWED = frozenset({1, 2, 3, 4, 10, 15, 21, 24, 25, 26, 27, 33})
"""Commands of bpf(2) that checking needs: map elements (single, look up and delete, batches),
BPF_PROG_TEST_RUN, BPF_OBJ_GET_INFO_BY_FD and BPF_ITER_CREATE (tracer/bpf)."""

REFUSED = (
    # other programs and other processes
    "execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp "
    "move_pages migrate_pages "
    # probes
    "perf_event_open userfaultfd "
    # the machine
    "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct "
    "quotactl iopl ioperm modify_ldt "
    "settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog vhangup "
    "personality "
    # file systems and namespaces
    "mount umount2 move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr pivot_root "
    "chroot setns unshare mknod mknodat open_by_handle_at fanotify_init "
    # other identities, and keys
    "setuid setgid setreuid setregid setresuid setresgid setgroups setfsuid setfsgid keyctl "
    "add_key request_key "
    # requests through io_uring bypass the filter
    "io_uring_setup io_uring_enter io_uring_register"
).split()


def install_filter() -> str:
    """Install the filter in every thread. Return an empty text, or why there is no filter."""
    try:
        import seccomp
    except ImportError:
        return "no seccomp filter (python3-seccomp is not installed)"
    refused = seccomp.ERRNO(errno.EPERM)
    try:
        wanted = seccomp.SyscallFilter(seccomp.ALLOW)
        wanted.set_attr(seccomp.Attr.CTL_TSYNC, 1)
        for name in REFUSED:
            with contextlib.suppress(ValueError):  # a name that this libseccomp does not know
                wanted.add_rule(refused, name)
        for command in range(_BPF_COMMANDS):
            if command not in BPF_ALLOWED:
                wanted.add_rule(
                    refused, "bpf", seccomp.Arg(0, seccomp.MASKED_EQ, 0xFFFFFFFF, command)
                )
        wanted.load()
    except (OSError, RuntimeError) as error:
        return f"no seccomp filter ({error})"
    return ""
