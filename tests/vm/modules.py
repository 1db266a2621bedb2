"""Build the modules of tests/faults for a kernel that the tests boot.

The headers are Debian's packages of the kernel, fetched and unpacked beside the kernel's image,
never installed. Programs of the headers are this machine's, and those that need a newer libc than
it has run with the libc of their suite. For arm64 a cross compiler builds.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path

from tests.vm.guest import (
    CACHE,
    ROOT,
    GuestError,
    apt,
    fetching,
    image,
    known,
    packages,
    unpack,
)

_PARTS = re.compile(r"Depends: (linux-(?:headers|kbuild)-\S+)")
_OVERRIDDEN = (
    "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=",  # an option of gcc 14
    "CONFIG_DEBUG_INFO_BTF_MODULES=",  # needs pahole
)
"""What is not as the kernel was built, so that this machine's gcc builds the module."""
_COMPILERS = {
    "amd64": ("CC=gcc",),
    "arm64": ("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc"),
}
_PROGRAMS = ("scripts/mod/modpost.real-lsb-64", "tools/objtool/objtool.real-x86")
"""Programs of linux-kbuild. Beside each is one without `.real-…`, which only starts it."""


def built(kernel: str, module: str, folder: Path) -> Path:
    """Build a module of tests/faults in a folder and return its file.

    module: its name, rmapd_faults or rmapd_state. Raises GuestError if it does not build.
    """
    shutil.copytree(ROOT / "tests/faults", folder, dirs_exist_ok=True)
    tree = _headers(kernel)
    done = subprocess.run(
        [
            *("make", "-s", "-C", str(tree), f"M={folder}", f"RMAPD_MODULE={module}"),
            *_COMPILERS[known()[kernel].arch],
            *_OVERRIDDEN,
            "modules",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise GuestError(f"{module} was not built for {kernel}:\n{done.stdout}{done.stderr}")
    return folder / f"{module}.ko"


def _headers(kernel: str) -> Path:
    """Return where the headers of a kernel are; fetch and unpack them on first use."""
    release = image(kernel).name.removeprefix("vmlinuz-")
    home = CACHE / f"{kernel}.headers"
    tree = home / "usr/src" / f"linux-headers-{release}"
    with fetching():
        if not home.exists():
            _fetch_headers(kernel, release, home, tree)
    return tree


def _fetch_headers(kernel: str, release: str, home: Path, tree: Path) -> None:
    made = home.with_name(f"{home.name}.new")
    shutil.rmtree(made, ignore_errors=True)
    entry = known()[kernel]
    suite = entry.suite
    flags = apt(suite, CACHE / f"{kernel}.apt", entry.arch)
    made.mkdir(parents=True)
    wanted = packages(f"linux-headers-{release}", flags, _PARTS)
    programs = [name for name in wanted if name.startswith("linux-kbuild-")]
    unpack([name for name in wanted if name not in programs], flags, made)
    unpack(programs, apt(suite, CACHE / f"{suite}.apt"), made)
    # The packages' Makefile and links have the absolute path of an installed package.
    (common,) = made.glob("usr/src/linux-headers-*-common*")  # of PREEMPT_RT it is …-common-rt
    (made / tree.relative_to(home) / "Makefile").write_text(
        f"KBUILD_OUTPUT={tree}\ninclude {tree.with_name(common.name)}/Makefile\n"
    )
    (kbuild,) = made.glob("usr/lib/linux-kbuild-*")
    if (
        "GLIBC_"
        in subprocess.run(
            [kbuild / _PROGRAMS[0]], check=False, capture_output=True, text=True
        ).stderr
    ):
        _with_libc_of(suite.removesuffix("-backports"), home, kbuild.relative_to(made))
    made.rename(home)


def _with_libc_of(suite: str, home: Path, kbuild: Path) -> None:
    """Replace what starts the programs by scripts that start them with a suite's libc."""
    made = home.with_name(f"{home.name}.new")
    (made / "libc").mkdir()
    unpack(["libc6"], apt(suite, CACHE / f"{suite}.apt"), made / "libc")
    libraries = home / "libc/usr/lib/x86_64-linux-gnu"
    for program in _PROGRAMS:
        script = made / kbuild / program.partition(".real-")[0]
        script.write_text(
            f"#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2"
            f" --library-path {libraries}:/usr/lib/x86_64-linux-gnu"
            f' {home / kbuild / program} "$@"\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
