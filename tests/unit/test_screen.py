"""Columns, colours and lines of a terminal; a pseudo-terminal stands for one."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import screen

TERM = {"TERM": "xterm-256color"}


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        with os.fdopen(theirs, "w") as stream:
            yield stream
    finally:
        os.close(ours)


@pytest.mark.parametrize(
    ("columns", "expected"), [(80, 80), (97, 97), (200, 100), (20, 40), (0, 80)]
)
def test_width_is_that_of_the_terminal_within_bounds(columns: int, expected: int) -> None:
    with terminal(columns) as stream:
        assert screen.columns(stream) == expected
        assert screen.columns(stream, 1000) == max(columns or 80, 40)


def test_stream_that_is_no_terminal_has_80_columns_and_no_colour() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (io.StringIO(), closed):
        assert screen.columns(stream) == 80
        assert not screen.shows_colour(stream, TERM)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (TERM, True),
        (TERM | {"NO_COLOR": ""}, True),
        (TERM | {"NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_are_for_terminals_that_have_some_unless_no_color_is_set(
    environ: dict[str, str], expected: bool
) -> None:
    with terminal(80) as stream:
        assert screen.shows_colour(stream, environ) is expected


def test_long_line_is_wrapped_with_indent_and_keeps_its_own() -> None:
    assert screen.wrapped("  one two three four", 12, "      ") == [
        "  one two",
        "      three",
        "      four",
    ]
    assert screen.wrapped("short", 12) == ["short"]
    assert screen.wrapped("", 12) == [""]


def test_word_that_is_too_long_is_not_cut() -> None:
    url = f"http://{'x' * 100}/"
    assert screen.wrapped(f"see {url} now", 40) == ["see", f"    {url}", "    now"]


@given(st.lists(st.text("abc-/.", min_size=1, max_size=30), min_size=1), st.integers(40, 120))
def test_wrapped_lines_fit_and_have_every_word(words: list[str], width: int) -> None:
    lines = screen.wrapped(" ".join(words), width)
    assert all(len(line) <= width for line in lines)
    assert [word for line in lines for word in line.split()] == words
