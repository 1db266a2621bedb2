"""The git commit that this rmapd was made from, as far as it can be known."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
from pathlib import Path

_FOLDER = Path(__file__).parent
_HASH_LENGTH = 12
_GIT_SECONDS = 5.0
UNKNOWN = "unknown"


def source_commit(folder: Path = _FOLDER) -> str:
    """Return the commit, shortened; `unknown` where neither git nor the installation has it.

    folder: of this package. A checkout is asked first, then pip's record of an installation from a
    repository (direct_url.json), then commit.txt, which `git archive` fills in (.gitattributes).
    """
    if (folder.parent / ".git").exists():
        return _of_checkout(folder.parent) or UNKNOWN
    return _of_installation(folder) or _of_archive(folder) or UNKNOWN


def _of_checkout(root: Path) -> str:
    """Return git's commit, with `-dirty` where tracked files are changed.

    The owner of the checkout may be another user: it is their code that runs here anyway.
    """
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "describe"]
    command += ["--always", "--dirty", f"--abbrev={_HASH_LENGTH}", "--exclude=*"]
    without = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS, env=without
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if not done.returncode else ""


def _of_installation(folder: Path) -> str:
    """Return the commit that pip recorded (PEP 610): `pip install git+https://…` has one."""
    try:
        found = importlib.metadata.distribution("rmapd")
        if Path(str(found.locate_file("tracer"))).resolve() != folder.resolve():
            return ""  # metadata of another copy
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        return _short(origin["vcs_info"]["commit_id"])
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return ""


def _of_archive(folder: Path) -> str:
    try:
        return _short((folder / "commit.txt").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _short(text: str) -> str:
    """Return a commit's first digits; empty where the text is none."""
    commit = text.strip()
    return commit[:_HASH_LENGTH] if re.fullmatch(r"[0-9a-f]{40,64}", commit) else ""
