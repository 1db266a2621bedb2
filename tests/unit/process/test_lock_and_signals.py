"""The lock file: one holder at a time, closed to other users, and never a link to another file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer.errors import RmapdError
from tracer.process.lock_and_signals import hold_lock_file


def test_held_lock_excludes_a_second_rmapd_and_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rmapd.lock"
    with hold_lock_file(path):
        assert path.read_text() == str(os.getpid())
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with pytest.raises(
            RmapdError, match=f"another rmapd is tracing this kernel \\(pid {os.getpid()}\\)"
        ):
            hold_lock_file(path)
    with hold_lock_file(path):
        pass


def test_lock_file_with_a_wider_mode_gets_mode_600(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.lock"
    path.touch(0o644)
    with hold_lock_file(path):
        assert path.stat().st_mode & 0o777 == 0o600


def linked(path: Path, to: Path) -> None:
    path.symlink_to(to)


def hard_linked(path: Path, to: Path) -> None:
    path.hardlink_to(to)


@pytest.mark.parametrize("put", [linked, hard_linked])
def test_link_to_another_file_is_refused_and_left_unchanged(tmp_path: Path, put: object) -> None:
    """The daemon's user owns the folder, and root's `rmapd exec` writes its pid to the file."""
    assert callable(put)
    other = tmp_path / "crontab"
    other.write_text("root's")
    put(tmp_path / "rmapd.lock", other)
    with pytest.raises(RmapdError, match="lock file"):
        hold_lock_file(tmp_path / "rmapd.lock")
    assert other.read_text() == "root's"


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rmapd.lock")
    with pytest.raises(RmapdError, match="is not a lock file"):
        hold_lock_file(tmp_path / "rmapd.lock")
