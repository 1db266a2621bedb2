"""One rmapd on a machine: the lock is whoever's that may open it, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer.errors import RmapdError
from tracer.process.lock_and_signals import only_one


def test_the_lock_is_closed_to_other_users_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "rmapd.lock"
    with only_one(path):
        assert path.read_text() == str(os.getpid())
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        with pytest.raises(
            RmapdError, match=f"another rmapd is tracing this kernel \\(pid {os.getpid()}\\)"
        ):
            only_one(path)
    with only_one(path):
        pass


def test_a_lock_file_that_others_could_open_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.lock"
    path.touch(0o644)
    with only_one(path):
        assert path.stat().st_mode & 0o777 == 0o600


def linked(path: Path, to: Path) -> None:
    path.symlink_to(to)


def hard_linked(path: Path, to: Path) -> None:
    path.hardlink_to(to)


@pytest.mark.parametrize("put", [linked, hard_linked])
def test_a_link_to_another_file_is_refused_and_the_file_stays_as_it_was(
    tmp_path: Path, put: object
) -> None:
    """The folder is the daemon's user's, and root's `rmapd exec` writes its pid there."""
    assert callable(put)
    other = tmp_path / "crontab"
    other.write_text("root's")
    put(tmp_path / "rmapd.lock", other)
    with pytest.raises(RmapdError, match="lock file"):
        only_one(tmp_path / "rmapd.lock")
    assert other.read_text() == "root's"


def test_a_pipe_is_no_lock_file_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rmapd.lock")
    with pytest.raises(RmapdError, match="is no lock file"):
        only_one(tmp_path / "rmapd.lock")
