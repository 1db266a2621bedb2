"""Boot a complete Debian in a guest: its own disk, kernel and user space, with systemd as init.

virtme-ng's guests have none of these. mmdebstrap makes the disk once from the machine's apt
sources; a run writes to a snapshot that is discarded.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm import bootstrap
from tests.vm.guest import CACHE, RESULTS, GuestError, Result

HOME = CACHE / f"debian-{bootstrap.SUITE}"
_PACKAGES = (
    "systemd systemd-sysv udev dbus kmod procps iproute2 curl bpftool libcap2-bin "
    "linux-image-amd64 initramfs-tools python3 python3-bpfcc python3-seccomp"
).split()
_DISK_BYTES = 4 << 30
_RUNNER = """[Unit]
Description=The command of the test
After=basic.target
[Service]
Environment=OUT=/mnt
ExecStartPre=/sbin/modprobe 9pnet_virtio
ExecStartPre=/bin/mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 shared /mnt
ExecStart=/bin/sh -c 'sh /mnt/command.sh >/mnt/output 2>&1; echo $? >/mnt/code'
ExecStopPost=/bin/sh -c 'dmesg >/mnt/dmesg; journalctl -b --no-pager >/mnt/journal; umount /mnt; \
systemctl poweroff --force'
[Install]
WantedBy=multi-user.target
"""


def disk() -> Path:
    """Return the disk; make it on first use, which takes minutes.

    The kernel and the initrd are beside it.
    """
    if (HOME / "root.ext4").exists():
        return HOME / "root.ext4"
    new = HOME.with_suffix(".new")
    root = bootstrap.unpacked(_PACKAGES, new)
    units = root / "etc/systemd/system"
    (units / "rmapd-test.service").write_text(_RUNNER)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/rmapd-test.service").symlink_to("../rmapd-test.service")
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
    for kind in ("vmlinuz", "initrd.img"):
        (found,) = root.glob(f"boot/{kind}-*")
        shutil.copy(found, new / kind)
    with (new / "root.ext4").open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-d", str(root), str(new / "root.ext4")], check=True)
    shutil.rmtree(root)
    new.rename(HOME)
    return HOME / "root.ext4"


def run(command: str, files: Sequence[Path], *, label: str, timeout: float = 5400) -> Result:
    """Boot to multi-user.target and run a shell command with these files in $OUT.

    Raises GuestError if the guest does not end within timeout seconds or ends before the command.
    """
    base, folder = disk(), RESULTS / f"debian-{label}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    (folder / "command.sh").write_text(f"cd $OUT\n{command}\n")
    qemu = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "3G",
        "-nodefaults",
        "-no-reboot",
    ]
    qemu += [
        "-display",
        "none",
        "-serial",
        f"file:{folder / 'console'}",
        "-kernel",
        str(HOME / "vmlinuz"),
        "-initrd",
        str(HOME / "initrd.img"),
    ]
    qemu += [
        "-append",
        "root=/dev/vda rw console=ttyS0",
        "-drive",
        f"file={base},if=virtio,format=raw,snapshot=on",
    ]
    qemu += [
        "-fsdev",
        f"local,id=shared,path={folder},security_model=none",
        "-device",
        "virtio-9p-pci,fsdev=shared,mount_tag=shared",
    ]
    qemu += [
        "-object",
        "rng-random,id=rng,filename=/dev/urandom",
        "-device",
        "virtio-rng-pci,rng=rng",
    ]
    try:
        subprocess.run(qemu, stdin=subprocess.DEVNULL, check=True, timeout=timeout)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        raise GuestError(f"{error}\n{_tail(folder)}") from error
    if not (folder / "code").exists():
        raise GuestError(f"the guest ended before its command did\n{_tail(folder)}")
    return Result(
        int((folder / "code").read_text()), (folder / "output").read_text(errors="replace"), folder
    )


def _tail(folder: Path) -> str:
    files = [folder / name for name in ("console", "output") if (folder / name).exists()]
    return "\n".join(
        [
            *(
                f"--- {file}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-40:])
                for file in files
            ),
            f"logs: {folder}",
        ]
    )
