"""The list of retired words finds them, and leaves ordinary English and Debian's releases alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.words import retired

ROOT = Path(__file__).parent.parent.parent
CODE = (
    "tracer",
    "probes",
    "tests",
    "dashboards",
    "systemd",
    "debian",
    "Makefile",
    "pyproject.toml",
)
EXEMPT = ("tests/support/words.py", "tests/unit/test_words.py")
"""The list of the words and its test."""


@pytest.mark.parametrize(
    "line",
    [
        "1 while events are booked.",
        "entries_booked",
        "probes/include/books.h",
        "an unbooked window",
        "needs the stem vma",
        "keeps the desk busy",
        "from tracer.checking.docket import Docket",
        "none outlives its welcome",
        "welcome_seconds = 10",
        "the patrol is a sweep",
        "state `resting`",
        "a bare finding",
        "the heir of the VMA",
        "the keeper attaches again",
        "who comes by",
        "the judge dies",
        "held by somebody",
        "who waits passes contention_begin",
        "a lock, who holds it, and why",
        "the task who holds it",
        "the log says which",
        "rmapd tells it for your kernel",
        "class Way:",
    ],
)
def test_retired_word_is_found(line: str) -> None:
    assert list(retired(line))


@pytest.mark.parametrize(
    "line",
    [
        "bookworm-backports",
        "docs/runbooks/M1.md",
        "path.stem",
        "the system and its ecosystem",
        "a desktop, a courtesy, an obscene word",
        "their VMAs",
        "the rest of the window",
        "bare metal and bare-metal hosts",
        "the user `nobody`",
        "come back by default",
        "judged once",
        "in the same way",
        "what the log shows",
        "a bookmark",
        "Whom it concerns.",
        "the developer who reads a report",
        "patches are welcome",
    ],
)
def test_ordinary_word_is_left_alone(line: str) -> None:
    assert not list(retired(line))


def test_place_and_replacement_are_given() -> None:
    assert list(retired("one\nthe stem\n")) == [(2, "stem", "probe object")]


def files_of_code() -> list[Path]:
    """Return the text files of the code, except for those of the list itself."""
    paths = [path for top in CODE for path in (ROOT / top, *(ROOT / top).rglob("*"))]
    return [
        path
        for path in sorted(paths)
        if path.is_file()
        and "__pycache__" not in path.parts
        and str(path.relative_to(ROOT)) not in EXEMPT
        and b"\0" not in path.read_bytes()
    ]


def test_no_file_of_code_uses_a_retired_word() -> None:
    files = files_of_code()
    assert len(files) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word!r} (write: {instead})"
        for path in files
        for line, word, instead in retired(path.read_text())
    ]
    assert not found, "\n".join(found)
