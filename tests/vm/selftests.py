"""Build the kernel's own tests of mm (tools/testing/selftests/mm), to be run in a guest.

The source is Debian's linux-source package.

usage: python -m tests.vm.selftests KERNEL...       (prints the folder of each)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm.guest import CACHE, GuestError, apt, fetching, kernels, ladder, unpack

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
_WANTED = ("Makefile", "scripts", "include", "arch/x86", "tools", "mm/*.h")


def built(name: str) -> Path:
    """Return the folder of the programs for a kernel; build them on first use.

    Raises GuestError if none can be built.
    """
    entry = kernels()[name]
    if not entry.source:
        raise GuestError(f"no source is named for kernel {name} in kernels.toml")
    home = CACHE / "selftests" / entry.source
    with fetching():
        if not home.exists():
            made = home.with_name(f"{home.name}.new")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            _build(_unpacked(entry.source, entry.suite, CACHE / f"{name}.apt", made), made)
            shutil.rmtree(made / "source")
            made.rename(home)
    return home


def _unpacked(package: str, suite: str, state: Path, folder: Path) -> Path:
    """Unpack the part of the source that the tests need."""
    tree = folder / "source"
    (tree / "deb").mkdir(parents=True)
    unpack([package], apt(suite, state), tree / "deb")
    (packed,) = tree.glob("deb/usr/src/*.tar.xz")
    wanted = [f"{package}/{one}" for one in _WANTED]
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


def _build(tree: Path, out: Path) -> None:
    subprocess.run(["make", "-s", "headers"], check=True, capture_output=True, cwd=tree)
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
    if not names or {*names} - {*ladder()}:
        print(__doc__, file=sys.stderr)
        return 2
    for name in names:
        folder = built(name)
        present = " ".join(program for program in PROGRAMS if (folder / program).exists())
        print(f"{name}: {folder}: {present}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
