"""What the commands print about themselves: help, examples, the list of invariants, completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from tests.support.words import retired
from tracer.cli import main
from tracer.invariants.catalogue import discover

COMMANDS = sorted(main.commands)
COLUMNS = 80


def rmapd(*args: str, width: int = COLUMNS) -> Result:
    return CliRunner().invoke(main, args, terminal_width=width)


def examples(text: str) -> list[str]:
    """The command lines below `Examples:`, as a reader would copy them."""
    _, _, after = text.partition("\nExamples:\n")
    return [line.strip() for line in after.splitlines() if line.strip() and "#" not in line]


def arguments(line: str) -> list[str]:
    """The arguments of rmapd in a line of a shell: up to a pipe, a redirection or `||`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [*lexer]
    assert words[:2] == ["sudo", "rmapd"] or words[0] == "rmapd", line
    words = words[words.index("rmapd") + 1 :]
    end = next((n for n, word in enumerate(words) if re.fullmatch(r"[|&;<>]+", word)), len(words))
    return words[:end]


def parse(args: list[str]) -> click.Context:
    """Parse a command line as rmapd does, without running the command."""
    top = main.make_context("rmapd", list(args))
    name, command, rest = main.resolve_command(top, [*top._protected_args, *top.args])  # noqa: SLF001
    assert command is not None
    return command.make_context(name, rest, parent=top)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_prints_what_the_option_prints(command: str) -> None:
    by_option = rmapd(command, "--help")
    assert by_option.exit_code == 0
    assert rmapd("help", command).output == by_option.output
    assert rmapd(command, "-h").output == by_option.output


def test_help_without_a_command_is_that_of_rmapd() -> None:
    assert rmapd("help").output == rmapd("--help").output
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\S", rmapd("help").output, re.M), name
    wrong = rmapd("help", "exce")
    assert (wrong.exit_code, "No such command 'exce'" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_the_terminal_in_plain_words(command: str) -> None:
    text = rmapd(*filter(None, [command]), "--help").output
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []
    assert list(retired(text)) == []
    assert not re.search(r"^(?!Usage:).*\.\.\.$", text, re.M), "a description is cut"
    assert " TEXT" not in text, "a value without a name"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_example_is_parsed_by_its_command(command: str) -> None:
    shown = examples(rmapd(command, "--help").output)
    assert shown, "every command has an example"
    for line in shown:
        context = parse(arguments(line))
        assert context.info_name == command, line


@pytest.mark.parametrize(
    "line",
    [
        "rmapd run --durations 3",
        "rmapd exec --format xml -- true",
        "sudo rmapd audit --pid none",
        "rmapd explains M1",
        "rmapd diff a.json > b.json",
    ],
)
def test_example_that_is_wrong_would_be_found(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse(arguments(line))


@pytest.mark.parametrize("value", ["-1", "nan", "soon", ""])
def test_time_that_is_none_is_refused(value: str) -> None:
    done = rmapd("run", "--duration", value)
    assert done.exit_code == 2
    assert f"'--duration': {value} is no time in seconds: a number from 0 on." in done.stderr


def test_list_has_every_invariant_in_a_line() -> None:
    done = rmapd("explain", "--list")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert [line.split(None, 1) for line in lines] == [
        [name, one.title] for name, one in discover().items()
    ]
    as_json = json.loads(rmapd("explain", "--list", "--format", "json").output)
    assert [(row["id"], row["title"], row["claim"]) for row in as_json] == [
        (one.id, one.title, one.claim) for one in discover().values()
    ]


@pytest.mark.parametrize(
    ("args", "why"), [((), "an ID is missing"), (("--list", "M1"), "--list takes no ID")]
)
def test_explain_takes_an_id_or_the_list(args: tuple[str, ...], why: str) -> None:
    done = rmapd("explain", *args)
    assert (done.exit_code, why in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("rmapd ex", {"exec", "explain"}),
        ("rmapd explain m", {"M1", "M2", "M3", "M4", "M5"}),
        ("rmapd run --require M1,r", {"M1,R1", "M1,R2", "M1,R3", "M1,R4"}),
        ("rmapd run --fidelity s", {"sampled"}),
        ("rmapd soak --load vma,t", {"vma,thp"}),
    ],
)
def test_shell_completes_commands_ids_and_values(words: str, offered: set[str]) -> None:
    environment = {"_RMAPD_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split()) - 1)
    code = "import sys; sys.argv[0] = 'rmapd'; from tracer.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered, done.stderr
