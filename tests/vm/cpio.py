"""Pack files as an initramfs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def pack(root: Path, names: Sequence[Path], archive: Path) -> None:
    """Pack files of a folder, which are named from it on, folders before what is in them."""
    with archive.open("wb") as file:
        subprocess.run(
            ["cpio", "--quiet", "-0", "-o", "-H", "newc"],
            input="\0".join(map(str, names)).encode() + b"\0",
            stdout=file,
            cwd=root,
            check=True,
        )
