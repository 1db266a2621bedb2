"""Boot an arm64 kernel in an emulated machine, with a small Debian of its own as root file system.

virtme-ng's guests have this machine's programs, which do not run there. The disk is made once of
arm64 packages and of the wheels that rmapd needs; each guest writes to a snapshot that is
discarded. The checkout, the folder of the result and the kernel's modules are this machine's, by
9p.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.vm import bootstrap
from tests.vm.cpio import pack
from tests.vm.machine import Machine

_DISK_BYTES = 2 << 30
_WHEELS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64")
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "9pnet_virtio", "9p")
"""What the kernel needs to reach its root file system and this machine's files."""
_PROGRAM = """#!/usr/bin/python3
from {module} import {function}
{function}()
"""
_INITRAMFS = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module; done
until [ -e /dev/vda ]; do sleep 0.1; done
mount -t ext4 -o noatime /dev/vda /root
mount -t tmpfs tmp /root/tmp
{shares}
umount /dev
exec switch_root /root {start}
"""
_SHARE = (
    "mkdir -p /root{at};"
    " mount -t 9p -o {how},trans=virtio,version=9p2000.L,msize=512000 {tag} /root{at}"
)
_START = """#!/bin/sh
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
{mounts}exec </dev/null >/dev/ttyAMA0 2>&1
sh {folder}/command.sh
sync; echo o > /proc/sysrq-trigger; sleep 60
"""


def command(
    image: Path,
    folder: Path,
    disk: Path,
    machine: Machine,
    *,
    readable: Sequence[Path],
    writable: Sequence[Path],
) -> list[str]:
    """Return the command that boots a kernel and runs `folder`/command.sh.

    image: boot/vmlinuz-RELEASE, with lib/modules beside boot. disk: what disk() returned. readable,
    writable: folders of this machine, at the same place in the guest.
    """
    release = image.name.removeprefix("vmlinuz-")
    home = image.parent.parent
    modules = (home / "lib/modules" / release).resolve()
    shares = [(path, path, "rw") for path in writable]
    shares += [(path, path, "ro,cache=loose") for path in readable]
    shares += [(modules, Path("/lib/modules", release), "ro,cache=loose")]
    start = folder / "start"
    start.write_text(_START.format(mounts=bootstrap.MOUNTS, folder=folder))
    start.chmod(0o755)
    _pack_initramfs(
        home,
        release,
        "\n".join(
            _SHARE.format(at=at, how=how, tag=f"share{n}") for n, (_, at, how) in enumerate(shares)
        ),
        folder,
        disk.with_suffix(".busybox"),
    )
    board = f"virt,gic-version=3,mte={'on' if machine.memory_tags else 'off'}"
    qemu = ["qemu-system-aarch64", "-M", board, "-cpu", "max,pauth-impdef=on"]
    qemu += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
    qemu += ["-smp", str(machine.cpus), "-m", machine.memory, *machine.options, *numa(machine)]
    qemu += ["-drive", f"file={disk},format=raw,if=none,id=root,snapshot=on"]
    qemu += ["-device", "virtio-blk-pci,drive=root"]
    for n, (path, _, how) in enumerate(shares):
        local = f"local,id=share{n},path={path},security_model=none,multidevs=remap"
        qemu += ["-fsdev", f"{local}{',readonly=on' if how != 'rw' else ''}"]
        qemu += ["-device", f"virtio-9p-pci,fsdev=share{n},mount_tag=share{n}"]
    qemu += ["-kernel", str(image), "-initrd", str(folder / "initramfs")]
    return [*qemu, "-append", f"console=ttyAMA0 panic=-1 {machine.append}".rstrip()]


def numa(machine: Machine) -> list[str]:
    """Return the options that spread memory and CPUs over the nodes; none for one node."""
    options = []
    for node in range(machine.nodes if machine.nodes > 1 else 0):
        options += ["-object", f"memory-backend-ram,id=memory{node},size={machine.node_mb()}M"]
        options += ["-numa", f"node,nodeid={node},memdev=memory{node}"]
        cpus = range(node, machine.cpus, machine.nodes)
        options += [part for cpu in cpus for part in ("-numa", f"cpu,node-id={node},core-id={cpu}")]
    return options


def _pack_initramfs(home: Path, release: str, shares: str, folder: Path, busybox: Path) -> None:
    """Pack what mounts the disk and the shares: a shell and modules of the kernel."""
    root = folder / "initramfs.root"
    for name in ("bin", "dev", "modules", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    names = [_unpacked(module, root / "modules") for module in _modules(home, release)]
    init = root / "init"
    init.write_text(
        _INITRAMFS.format(modules=" ".join(names), shares=shares, start=folder / "start")
    )
    init.chmod(0o755)
    pack(root, [path.relative_to(root) for path in sorted(root.rglob("*"))], folder / "initramfs")
    shutil.rmtree(root)


def _modules(home: Path, release: str) -> list[Path]:
    """Return the modules of _MODULES and what they depend on, in the order of their insertion."""
    needed = [
        line.split()[1]
        for module in _MODULES
        for line in subprocess.run(
            ["modprobe", "-d", home, "-S", release, "--show-depends", module],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        if line.startswith("insmod ")
    ]
    return [Path(name) for name in dict.fromkeys(needed)]


def _unpacked(module: Path, folder: Path) -> str:
    content = module.read_bytes()
    name = module.name.removesuffix(".xz")
    (folder / name).write_bytes(lzma.decompress(content) if module.suffix == ".xz" else content)
    return name


def disk(cache: Path, checkout: Path) -> Path:
    """Return the disk in the cache for what this checkout depends on; make it where it is missing.

    That takes a minute.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    parts = [
        bootstrap.SUITE,
        *bootstrap.PACKAGES,
        *project["dependencies"],
        str(project["scripts"]),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    made = cache / f"arm64-root-{digest}.ext4"
    if not made.exists():
        _make(made, project["dependencies"], project["scripts"])
    return made


def _make(disk: Path, dependencies: Sequence[str], scripts: dict[str, str]) -> None:
    new = disk.with_suffix(".new")
    root = bootstrap.unpacked(bootstrap.PACKAGES, new, bootstrap.NOT_NEEDED, "arm64")
    _install(dependencies, root / f"usr/local/lib/python{bootstrap.PYTHON}/dist-packages")
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        program = root / "usr/local/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(_PROGRAM.format(module=module, function=function))
        program.chmod(0o755)
    # Of use where this Python is of the guest's version.
    libraries = ("usr/lib/python3", f"usr/lib/python{bootstrap.PYTHON}", "usr/local")
    compiled = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", str(root), "-p", "/"]
    subprocess.run(
        [*compiled, *(str(root / name) for name in libraries)], check=False, capture_output=True
    )
    with (new / "root.ext4").open("wb") as file:
        file.truncate(_DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-d", root, new / "root.ext4"], check=True)
    shutil.copy(root / "bin/busybox", disk.with_suffix(".busybox"))
    (new / "root.ext4").rename(disk)
    shutil.rmtree(new)


def _install(dependencies: Sequence[str], folder: Path) -> None:
    """Install Python packages for arm64 in a folder."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"),
            *("--target", folder, "--only-binary=:all:", "--implementation", "cp"),
            *("--python-version", bootstrap.PYTHON),
            *(f"--platform={wheel}" for wheel in _WHEELS),
            *dependencies,
        ],
        check=True,
    )
