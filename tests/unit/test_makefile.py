"""`make` alone prints help, `make run` installs no tools of tests, and other hosts get names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.native import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
PHONY = next(re.finditer(r"^\.PHONY: (.*)$", MAKEFILE, re.M)).group(1).split()


def make(folder: Path, *arguments: str) -> str:
    """Run make in a checkout that has nothing but what the rules name."""
    for name in ("Makefile", "pyproject.toml", "packaging"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        if not (folder / name).exists():
            copy(ROOT / name, folder / name)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_make_alone_prints_every_target(tmp_path: Path) -> None:
    shown = {
        found[1]: found[2]
        for found in re.finditer(r"^  make ([\w-]+) +(\S.*)$", make(tmp_path), re.M)
    }
    assert sorted(shown) == sorted(PHONY)


@pytest.mark.parametrize(
    ("target", "tools"), [("run", False), ("setup", False), ("check", True), ("live", True)]
)
def test_tools_of_tests_are_installed_for_tests_only(
    tmp_path: Path, target: str, tools: bool
) -> None:
    said = make(tmp_path, "-n", target)
    assert "pip install" in said
    assert ("[dev]" in said) == tools
    assert ("libc6-dev" in said) == tools


def test_setup_asks_for_no_package_where_it_is_told_to(tmp_path: Path) -> None:
    assert "missing.sh" in make(tmp_path, "-n", "setup")
    assert "missing.sh" not in make(tmp_path, "-n", "setup", "HAVE_ALL=1")


@pytest.mark.parametrize(
    ("os_release", "tool", "says"),
    [
        ("ID=fedora", "rpm", "dnf install python3-bcc glibc-devel"),
        ('ID="rhel"\nID_LIKE="fedora"', "rpm", "dnf install python3-bcc glibc-devel"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "rpm", "dnf install python3-bcc glibc-devel"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "rpm", "zypper install python3-bcc "),
        ("ID=arch", "pacman", "pacman -S python-bcc glibc"),
        ("ID=void", "xbps", "install them (these are Debian's names)"),
    ],
)
def test_host_without_apt_is_told_its_names(
    tmp_path: Path, os_release: str, tool: str, says: str
) -> None:
    """Its package manager has `there` and nothing else: what is installed is not named."""
    (tmp_path / "os-release").write_text(os_release)
    for name in ("sh", "awk", "dirname", "cat"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    query = tmp_path / tool
    query.write_text('#!/bin/sh\nfor name; do :; done\n[ "$name" = there ]\n')
    query.chmod(0o755)
    packages = ["python3-bpfcc", "libc6-dev", *(["there"] if tool != "xbps" else [])]
    done = subprocess.run(
        [ROOT / "packaging/missing.sh", *packages],
        env={"PATH": str(tmp_path), "OS_RELEASE": str(tmp_path / "os-release")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"try: {says}" in done.stderr
    assert " there\n" not in done.stderr


def test_every_package_that_running_needs_has_names_elsewhere() -> None:
    table = [line.split("\t") for line in (ROOT / "packaging/names.tsv").read_text().splitlines()]
    assert {len(row) for row in table} == {5}
    assert all(cell.strip() for row in table for cell in row)
    needed = re.search(r"^APT := (.*)$", MAKEFILE, re.M)
    tests = re.search(r"^DEV_APT := (.*)$", MAKEFILE, re.M)
    assert needed
    assert tests
    assert {row[0] for row in table[1:]} == {*needed[1].split(), *tests[1].split()}
