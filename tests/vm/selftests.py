"""Build the kernel's own tests of mm (tools/testing/selftests/mm), to be run in a guest.

The source is Debian's linux-source package. For arm64 a cross compiler builds.

usage: python -m tests.vm.selftests KERNEL...       (prints the folder of each)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm import bootstrap
from tests.vm.guest import CACHE, Entry, GuestError, apt, fetching, known, unpack

PROGRAMS = (
    "rmap",
    "merge",
    "mremap_test",
    "mremap_dontunmap",
    "migration",
    "split_huge_page_test",
    "folio_split_race_test",
    "khugepaged",
    "ksm_tests",
    "ksm_functional_tests",
)
"""The tests that walk rmap, migrate, move, merge or split; older sources have fewer."""
_WANTED = ("Makefile", "scripts", "include", "tools", "mm/*.h")
_OF_ARCH = {"amd64": "arch/x86", "arm64": "arch/arm64"}
_LIBRARIES = ("libcap-dev", "libcap2", "libnuma-dev", "libnuma1")
"""What the tests are linked with; this machine's are of its own architecture."""


def built(name: str) -> Path:
    """Return the folder of the programs for a kernel; build them on first use.

    Raises GuestError if none can be built.
    """
    entry = known()[name]
    if not entry.source:
        raise GuestError(f"no source is named for kernel {name} in kernels.toml")
    home = CACHE / "selftests" / entry.source
    if entry.arch != "amd64":
        home = home.with_name(f"{entry.source}-{entry.arch}")
    with fetching():
        if not home.exists():
            made = home.with_name(f"{home.name}.new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            tree = _unpacked(entry, made)
            _build(tree, made, _cross(entry.arch, tree / "libraries"))
            shutil.rmtree(tree)
            made.rename(home)
    return home


def _unpacked(entry: Entry, folder: Path) -> Path:
    """Unpack the part of the source that the tests need."""
    tree = folder / "source"
    (tree / "deb").mkdir(parents=True)
    unpack([entry.source], apt(entry.suite, CACHE / f"{entry.name}.apt", entry.arch), tree / "deb")
    (packed,) = tree.glob("deb/usr/src/*.tar.xz")
    wanted = [f"{entry.source}/{one}" for one in (*_WANTED, _OF_ARCH[entry.arch])]
    extract = [
        "tar",
        "-xf",
        str(packed),
        "--strip-components=1",
        "--wildcards",
        "--no-wildcards-match-slash",
        *wanted,
    ]
    subprocess.run(extract, check=True, cwd=tree)
    shutil.rmtree(tree / "deb")
    return tree


def _cross(arch: str, libraries: Path) -> list[str]:
    """Return what make is told to build for another machine; put libraries for it in a folder."""
    if arch == "amd64":
        return []
    libraries.mkdir()
    unpack([*_LIBRARIES], apt(bootstrap.SUITE, CACHE / f"{arch}.apt", arch), libraries)
    triplet = "aarch64-linux-gnu"
    # Debian has some of them in /lib, some in /usr/lib.
    found = [f"-L{libraries}/{at}/{triplet}" for at in ("usr/lib", "lib")]
    compiler = f"{triplet}-gcc -isystem {libraries}/usr/include {' '.join(found)}"
    return [f"ARCH={arch}", f"CROSS_COMPILE={triplet}-", f"CC={compiler}"]


def _build(tree: Path, out: Path, cross: list[str]) -> None:
    headers = ["make", "-s", *cross[:2], "headers"]
    subprocess.run(headers, check=True, capture_output=True, cwd=tree)
    tests = next(
        folder
        for name in ("mm", "vm")
        if (folder := tree / "tools/testing/selftests" / name).exists()
    )
    there = [str(out / name) for name in PROGRAMS if (tests / f"{name}.c").exists()]
    command = [
        "make",
        "-s",
        "-k",
        "-C",
        str(tests),
        f"OUTPUT={out}",
        f"KHDR_INCLUDES=-isystem {tree}/usr/include",
        *cross,
        *there,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    (out / "build.log").write_text(done.stdout + done.stderr)
    if not any((out / name).exists() for name in PROGRAMS):
        raise GuestError(
            f"none of the kernel's tests could be built in {out}:\n"
            f"{(done.stdout + done.stderr)[-2000:]}"
        )


def main(names: list[str]) -> int:
    if not names or {*names} - {*known()}:
        print(__doc__, file=sys.stderr)
        return 2
    for name in names:
        folder = built(name)
        present = " ".join(program for program in PROGRAMS if (folder / program).exists())
        print(f"{name}: {folder}: {present}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
