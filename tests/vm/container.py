"""Run the Debian disk of debian.py on this machine's kernel, without emulation.

systemd is the first process of its own namespaces. They share the kernel and /dev with the machine,
and udev does not run. Writes to the disk go to memory and are discarded.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.vm.debian import disk
from tests.vm.guest import RESULTS, GuestError, Result

_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs none "$1"
mkdir "$1/lower" "$1/upper" "$1/work" "$1/root"
mount -o loop,ro "$2" "$1/lower"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" none "$1/root"
root="$1/root"
mount -t proc none "$root/proc"
mount -t sysfs none "$root/sys"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mount -t tmpfs none "$root/run"
mount -t tmpfs none "$root/tmp"
mount --rbind /dev "$root/dev"
mount --bind "$3" "$root/mnt"
units="$root/etc/systemd/system"
for unit in systemd-udevd systemd-udev-trigger systemd-udev-settle systemd-sysctl \
systemd-modules-load getty@tty1 console-getty; do
  ln -sfn /dev/null "$units/$unit.service"
done
mkdir -p "$units/rmapd-test.service.d"
printf '[Service]\\nExecStartPre=\\n' > "$units/rmapd-test.service.d/here.conf"
hostname rmapd-here
exec chroot "$root" env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
/lib/systemd/systemd --show-status=0
"""


def run(command: str, files: Sequence[Path], *, label: str, timeout: float = 900) -> Result:
    """Run a command as debian.run() does, on this machine's kernel."""
    base, folder = disk(), RESULTS / f"here-{label}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    (folder / "command.sh").write_text(f"cd $OUT\n{command}\n")
    with tempfile.TemporaryDirectory() as place, (folder / "console").open("wb") as console:
        unshare = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--ipc",
            "--uts",
            "--cgroup",
            "bash",
            "-c",
            _BOOT,
            "boot",
        ]
        try:
            subprocess.run(
                [*unshare, place, str(base), str(folder)],
                stdout=console,
                stderr=console,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise GuestError(
                f"systemd did not end within {timeout:.0f} s, logs: {folder}"
            ) from error
    if not (folder / "code").exists():
        raise GuestError(
            "systemd ended before the command did: "
            f"{(folder / 'console').read_text(errors='replace')[-2000:]}\nlogs: {folder}"
        )
    return Result(
        int((folder / "code").read_text()), (folder / "output").read_text(errors="replace"), folder
    )
