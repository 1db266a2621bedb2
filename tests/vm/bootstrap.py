"""A small Debian in a folder, from this machine's apt sources: the root of some guests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SUITE = "bookworm"


def unpacked(packages: Sequence[str], new: Path, leave_out: Sequence[str] = ()) -> Path:
    """Make a root file system with these packages, which takes minutes, and return its folder.

    new: a folder that is emptied first; the root is in it. leave_out: what is not unpacked, from
    the root on.
    """
    shutil.rmtree(new, ignore_errors=True)
    root, archive = new / "root", new / "root.tar"
    root.mkdir(parents=True)
    sources = [str(path) for path in Path("/etc/apt/sources.list.d").glob("debian*.sources")]
    made = ["mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}", SUITE]
    subprocess.run([*made, str(archive), *sources], check=True, capture_output=True)
    excluded = [f"--exclude=./{part}" for part in leave_out]
    subprocess.run(["tar", "-xf", archive, "-C", root, *excluded], check=True)
    archive.unlink()
    return root
