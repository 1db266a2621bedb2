"""Man pages and completions that packages bring, made from the help."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.native import ROOT
from tracer.cli import main

RMAPD = Path(sys.executable).with_name("rmapd")


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("share")
    subprocess.run([sys.executable, ROOT / "packaging/pages.py", RMAPD, folder], check=True)
    return folder


def test_each_command_has_a_page_under_its_own_name(share: Path) -> None:
    pages = {path.name: path.read_text() for path in (share / "man/man1").iterdir()}
    assert set(pages) == {"rmapd.1", *(f"rmapd-{name}.1" for name in main.commands)}
    for name, text in pages.items():
        title = name.removesuffix(".1")
        assert f'.TH {title.upper()} "1"' in text
        assert f".SH NAME\n{title} \\- " in text
        assert "help2man: " not in text


def test_page_has_exit_codes_and_examples_line_by_line(share: Path) -> None:
    text = (share / "man/man1/rmapd-compile.1").read_text()
    assert '.SS "Exit codes:"' in text
    assert "\n.nf\n# For a host whose /sys/kernel/btf/vmlinux was copied here\nsudo rmapd " in text
    assert text.count(".nf\n") == text.count(".fi\n") == 1


def test_completion_of_bash_completes_commands_and_ids(share: Path) -> None:
    def completed(*words: str) -> list[str]:
        script = (
            f"complete() {{ :; }}; source {share}/bash-completion/completions/rmapd;"
            f" COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1};"
            ' _rmapd_completion rmapd; echo "${COMPREPLY[@]}"'
        )
        path = f"{RMAPD.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PATH": path},
        ).stdout.split()

    assert completed("rmapd", "comp") == ["compile"]
    assert "M1" in completed("rmapd", "explain", "M")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("zsh/*-completions/_rmapd", "_RMAPD_COMPLETE=zsh_complete"),
        ("fish/vendor_completions.d/rmapd.fish", "_RMAPD_COMPLETE=fish_complete"),
    ],
)
def test_other_shells_have_their_completion(share: Path, place: str, says: str) -> None:
    (found,) = share.glob(place)
    assert says in found.read_text()


def test_lock_pins_every_wheel_of_the_package_by_a_hash() -> None:
    for path in (ROOT / "packaging").glob("requirements*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        names = [line for line in lines if not line.startswith(" ")]
        assert all("==" in line for line in names)
        assert len(names) >= 13
        assert all(
            "--hash=sha256:" in after
            for line, after in itertools.pairwise(lines)
            if not line.startswith(" ")
        )
