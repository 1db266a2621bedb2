"""Boot a kernel of which there are no modules: its root file system is in memory.

Without modules a guest has no disk and no 9p, so that virtme-ng cannot share this machine's files.
The initramfs has a small Debian with what rmapd needs, and this checkout. What the command writes
comes back as an archive over the second serial line.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from tests.vm import bootstrap
from tests.vm.cpio import pack
from tests.vm.machine import Machine

_INIT = """#!/bin/sh
{mounts}exec </dev/null >/dev/ttyS0 2>&1
mkdir -p {out} {cache}
sh {out}/command.sh
stty -F /dev/ttyS1 raw -echo
tar -C {out} -cf /dev/ttyS1 .
sync; sleep 1; echo o > /proc/sysrq-trigger; sleep 60
"""


def command(
    image: Path,
    folder: Path,
    cache: Path,
    base: Path,
    checkout: Path,
    machine: Machine,
    readable: Sequence[Path] = (),
) -> list[str]:
    """Return the command that boots a kernel and runs `folder`/command.sh in the checkout.

    cache: where the guest keeps compiled probes; it is lost with the guest. base: what make()
    made. readable: more folders that the guest has. When it has ended, receive() unpacks what comes
    back.
    """
    init = folder / "init"
    init.write_text(_INIT.format(mounts=bootstrap.MOUNTS, out=folder, cache=cache))
    init.chmod(0o755)
    own, whole = folder / "own.cpio", folder / "initramfs"
    more = [file for place in readable for file in sorted(place.rglob("*"))]
    _pack_own(checkout, [init, folder / "command.sh", *more], own)
    with whole.open("wb") as file:
        for part in (base, own):
            with part.open("rb") as content:
                shutil.copyfileobj(content, file)
    own.unlink()
    return [
        *("qemu-system-x86_64", "-cpu", "max", "-nodefaults", "-no-reboot", "-display", "none"),
        *("-serial", "stdio", "-serial", f"file:{_archive(folder)}"),
        *("-m", machine.memory, "-smp", str(machine.cpus), *machine.options),
        *("-kernel", str(image), "-initrd", str(whole)),
        *("-append", f"rdinit={init} console=ttyS0 panic=-1 {machine.append}".rstrip()),
    ]


def receive(folder: Path) -> None:
    """Unpack what the guest sent, as far as it came, into the folder."""
    (folder / "initramfs").unlink(missing_ok=True)
    archive = _archive(folder)
    subprocess.run(["tar", "-xf", archive, "-C", folder], capture_output=True, check=False)
    archive.unlink(missing_ok=True)


def _archive(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tar")


def make(base: Path) -> None:
    """Make the Debian as a cpio archive, which takes a minute, where it is missing."""
    if base.exists():
        return
    new = base.with_suffix(".new")
    root = bootstrap.unpacked(bootstrap.PACKAGES, new, bootstrap.NOT_NEEDED)
    pack(root, [Path("."), *_below(root)], new / "root.cpio")
    (new / "root.cpio").rename(base)
    shutil.rmtree(new)


def _below(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*"))


def _pack_own(checkout: Path, more: Sequence[Path], archive: Path) -> None:
    """Pack this checkout, the Python packages that rmapd runs with, and more files."""
    listed = subprocess.run(
        [
            "git",
            "-C",
            str(checkout),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    environment = Path(sys.prefix).resolve()
    files = [checkout / name for name in listed.split("\0") if name]
    files += [environment / "pyvenv.cfg", *sorted((environment / "bin").glob("python*"))]
    files += [*_distributed("rmapd", set()), checkout / ".venv", *more]
    kept = [path for path in files if path.is_symlink() or path.is_file()]
    parents = {parent for path in kept for parent in path.parents} - {Path("/")}
    pack(Path("/"), [path.relative_to("/") for path in sorted(parents) + kept], archive)


def _distributed(name: str, seen: set[str]) -> Iterator[Path]:
    """Yield the files of a Python package and of those that it requires."""
    if name.lower() in seen:
        return
    seen.add(name.lower())
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # Debian's own, which the other archive has
        return
    for file in found.files or ():
        yield Path(str(found.locate_file(file))).resolve()
    for required in found.requires or ():
        if "extra ==" not in required:
            (needed,) = re.findall(r"^[\w.-]+", required)
            yield from _distributed(needed, seen)
