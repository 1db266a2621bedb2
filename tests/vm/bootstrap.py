"""A small Debian in a folder, from this machine's apt sources: the root of some guests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SUITE, PYTHON = "bookworm", "3.11"
"""The suite, and the version of its Python."""
PACKAGES = (
    "python3 python3-bpfcc python3-seccomp stress-ng kmod procps iproute2 util-linux libcap2-bin"
    " libnuma1"
).split()
"""What rmapd and its tests need."""
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt")
MOUNTS = """mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup; mount -t securityfs s /sys/kernel/security
mount -t debugfs d /sys/kernel/debug; mount -t tracefs t /sys/kernel/tracing
mount -t bpf b /sys/fs/bpf
ip link set lo up; hostname guest
"""
"""What an init does first."""
_SHELL = (
    "base-files base-passwd bash busybox-static coreutils dash debianutils diffutils findutils"
    " grep gzip hostname libc-bin mawk mount sed tar"
).split()
"""What Debian takes for granted, and what an unpacked root has not otherwise."""


def unpacked(
    packages: Sequence[str], new: Path, leave_out: Sequence[str] = (), arch: str = ""
) -> Path:
    """Make a root file system with these packages, which takes minutes, and return its folder.

    new: a folder that is emptied first; the root is in it. leave_out: what is not unpacked, from
    the root on. arch: another than this machine's; as nothing of it runs here, its packages are
    unpacked and not configured.
    """
    shutil.rmtree(new, ignore_errors=True)
    root, archive = new / "root", new / "root.tar"
    root.mkdir(parents=True)
    sources = [str(path) for path in Path("/etc/apt/sources.list.d").glob("debian*.sources")]
    kind = ["--variant=minbase"]
    if arch:
        kind = ["--variant=extract", f"--arch={arch}", "--skip=check/qemu"]
        packages = [*_SHELL, *packages]
    made = ["mmdebstrap", *kind, f"--include={','.join(packages)}", SUITE]
    subprocess.run([*made, str(archive), *sources], check=True, capture_output=True)
    excluded = [f"--exclude=./{part}" for part in leave_out]
    subprocess.run(["tar", "-xf", archive, "-C", root, *excluded], check=True)
    archive.unlink()
    if arch:
        _configure(root)
    return root


def _configure(root: Path) -> None:
    """Do what the packages' own scripts would do, as far as guests need it."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    for name, target in {"awk": "mawk", "python": "python3"}.items():
        (root / "usr/bin" / name).symlink_to(target)
