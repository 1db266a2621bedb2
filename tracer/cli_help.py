"""How a command describes itself: its options in sections, its exit codes, and examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import click

Pairs = Sequence[tuple[str, str]]


class SectionOption(click.Option):
    """An option that the help lists under a heading of its own."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class Command(click.Command):
    """A command whose help also has its exit codes and examples.

    exits: code and meaning. examples: what it does, and the command line: a test parses each.
    """

    def __init__(self, *args: Any, exits: Pairs = (), examples: Pairs = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exits, self.examples = exits, examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a section first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                name = getattr(parameter, "section", "Options")
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the exit codes and the examples."""
        super().format_epilog(ctx, formatter)
        if self.exits:
            with formatter.section("Exit codes"):
                formatter.write_dl(self.exits)
        if self.examples:
            with formatter.section("Examples"):
                indent = " " * formatter.current_indent
                for what, line in self.examples:
                    formatter.write(f"{indent}# {what}\n{indent}{line}\n")


class CommandList(click.Group):
    """A group that lists its commands under headings. headings: heading -> names of commands."""

    command_class = Command

    def __init__(
        self, *args: Any, headings: dict[str, Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.headings = headings or {}

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with its short help under its heading; others come last."""
        listed = set(itertools.chain.from_iterable(self.headings.values()))
        rest = [name for name in self.list_commands(ctx) if name not in listed]
        width = max(map(len, self.commands))
        for heading, names in {**self.headings, "Other commands": rest}.items():
            rows = [
                (f"{name:{width}}", self.commands[name].get_short_help_str(formatter.width))
                for name in names
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


@click.command(
    "help",
    cls=Command,
    short_help="Show the help of rmapd or of a command.",
    examples=(("The help of rmapd exec, as rmapd exec --help prints it", "rmapd help exec"),),
)
@click.argument("command", required=False)
@click.pass_context
def show_help(ctx: click.Context, command: str | None) -> None:
    """Show the help of rmapd, or of COMMAND, as with --help."""
    top = ctx.parent
    if top is None or not isinstance(top.command, click.Group):
        raise click.UsageError("no commands to help with", ctx)
    shown = top
    if command is not None:
        name, found, _ = top.command.resolve_command(top, [command])
        if found is not None:
            shown = found.make_context(name, [], parent=top, resilient_parsing=True)
    click.echo(shown.get_help())
