"""`rmapd --version`: the commit, and what compiles the probes; without bcc and without root."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import tracer
from tests.support.native import ROOT
from tracer import source_commit
from tracer.attach import clang_version
from tracer.cli import main

GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]


def git(folder: Path, *args: str) -> str:
    done = subprocess.run([*GIT, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit that has this project's rule for `git archive`."""
    root = tmp_path / "checkout"
    (root / "tracer").mkdir(parents=True)
    (root / "tracer/commit.txt").write_text((ROOT / "tracer/commit.txt").read_text())
    (root / ".gitattributes").write_text((ROOT / ".gitattributes").read_text())
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return root


def test_version_has_each_part_in_a_line() -> None:
    done = CliRunner().invoke(main, ["--version"])
    assert done.exit_code == 0
    shown = dict(line.split(None, 1) for line in done.output.splitlines())
    assert list(shown) == ["rmapd", "commit", "kernel", "Python", "BCC", "clang"]
    assert shown["rmapd"] == tracer.__version__
    assert shown["kernel"] == f"{os.uname().release} {os.uname().machine}"
    assert shown["Python"] == platform.python_version()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*|not installed", shown["BCC"])
    assert re.fullmatch(r".*clang version \d+\.\d+\.\d+.*|unknown", shown["clang"])
    if (ROOT / ".git").exists():
        assert shown["commit"] == source_commit.source_commit()


def test_versions_of_bcc_and_clang_are_those_of_the_library() -> None:
    """make setup installs bcc. The major version is in the name of the library that is loaded."""
    assert re.match(r"\d+\.\d+", clang_version.bcc_version())
    code = "import ctypes; ctypes.CDLL('libbcc.so.0'); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (major,) = set(re.findall(r"libclang-cpp\.so\.(\d+)", maps.stdout))
    assert f"clang version {major}." in clang_version.clang_version()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_version_needs_no_root() -> None:
    code = (
        "import os, sys; from tracer.cli import main; os.setgid(65534); os.setuid(65534);"
        " main(['--version'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nclang " in done.stdout


def test_version_without_bcc_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clang_version, "DEBIAN_PACKAGES", "/nonexistent")
    monkeypatch.setattr(sys, "path", [one for one in sys.path if "dist-packages" not in one])
    monkeypatch.setattr(clang_version, "_MODULE", "no_such_module")
    done = CliRunner().invoke(main, ["--version"])
    assert done.exit_code == 0
    assert done.output.splitlines()[-2:] == ["BCC     not installed", "clang   unknown"]


def test_missing_library_and_missing_function_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clang_version, "_LIBBCC", "libno-such.so.0")
    with pytest.raises(OSError, match="libno-such"):
        clang_version.ask_the_library()
    monkeypatch.setattr(clang_version, "_LIBBCC", None)  # this process: it has no clang
    with pytest.raises(AttributeError, match="getClangFullVersion"):
        clang_version.ask_the_library()


def test_commit_of_a_checkout_is_that_of_git(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    git(checkout, "tag", "v1")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert source_commit.source_commit(checkout / "tracer") == commit
    (checkout / "tracer/commit.txt").write_text("changed")
    assert source_commit.source_commit(checkout / "tracer") == f"{commit}-dirty"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")
def test_commit_of_another_users_checkout_is_read(checkout: Path) -> None:
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 65534, 65534)
    assert re.fullmatch(r"[0-9a-f]{12}", source_commit.source_commit(checkout / "tracer"))


def test_commit_is_unknown_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert source_commit.source_commit(checkout / "tracer") == "unknown"


def test_archive_of_git_knows_its_commit(checkout: Path, tmp_path: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")[:12]
    git(checkout, "archive", "-o", str(tmp_path / "a.tar"), "HEAD")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "a.tar"], cwd=tmp_path / "unpacked", check=True)
    assert source_commit.source_commit(tmp_path / "unpacked/tracer") == commit


def test_copy_without_git_and_archive_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "tracer").mkdir()
    assert source_commit.source_commit(tmp_path / "tracer") == "unknown"
    (tmp_path / "tracer/commit.txt").write_text((ROOT / "tracer/commit.txt").read_text())
    assert source_commit.source_commit(tmp_path / "tracer") == "unknown"


@pytest.mark.parametrize(
    ("origin", "commit"),
    [
        ('{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "' + "ab" * 20 + '"}}', 6),
        ('{"url": "file:///x", "dir_info": {}}', 0),
        ('{"vcs_info": 3}', 0),
        ("no json", 0),
        (None, 0),
    ],
)
def test_commit_of_an_installation_is_that_of_pips_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None, commit: int
) -> None:
    """pip install git+https://… records the commit (PEP 610)."""
    (tmp_path / "tracer").mkdir()
    info = tmp_path / "rmapd-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rmapd\nVersion: 0.1.0\n")
    if origin is not None:
        (info / "direct_url.json").write_text(origin)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert source_commit.source_commit(tmp_path / "tracer") == ("ab" * commit or "unknown")
    (tmp_path / "other/tracer").mkdir(parents=True)
    assert source_commit.source_commit(tmp_path / "other/tracer") == "unknown", "another copy"
