"""The commands that read what was found: diff, report, explain. They need no privileges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tracer import config as configuration
from tracer import ids
from tracer.cli_common import (
    complete_ids,
    config_option,
    file_option,
    format_option,
    load_settings,
)
from tracer.cli_help import Command
from tracer.errors import NOT_CHECKABLE, VIOLATED, RmapdError
from tracer.invariants.catalogue import discover
from tracer.outcome import print_text
from tracer.printable import json_text

_store_option = click.option(
    "--store",
    metavar="FILE",
    help=f"Read this store of rmapd run (default {configuration.STORE}).",
)


@click.command(
    cls=Command,
    short_help="Compare two kernels: their protocols, or two soaks.",
    exits=(
        ("0", "no difference alarms, or it may be chance"),
        ("3", "a difference alarms, such as a missing lock; two soaks differ by more than chance"),
        ("4", "there is nothing to compare"),
        ("2", "usage, or a file is no report"),
    ),
    examples=(
        ("Two kernels, each saved by rmapd protocols", "rmapd diff old.json new.json"),
        ("Two soaks, each saved by --out", "rmapd diff before.json after.json"),
        ("For a program", "rmapd diff --format json old.json new.json"),
    ),
)
@click.argument("a", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("b", type=click.Path(path_type=Path, dir_okay=False))
@format_option("text", "json")
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path, form: str) -> None:
    """Compare two kernels: their protocols, or the times of two soaks.

    A and B are reports, files of rmapd protocols --save or of rmapd exec --report: the most
    alarming difference comes first. Or they are results of rmapd soak --out: then the answer is how
    probable it is that they differ by chance.
    """
    from tracer.report import soak_diff

    if soaks := soak_diff.read_both(a, b):
        shown: Any = soak_diff.as_json(*soaks) if form == "json" else soak_diff.as_text(*soaks)
        print_text(json_text(shown) + "\n" if form == "json" else shown)
        ctx.exit(soak_diff.exit_code(*soaks))
    from tracer.report.diff import compare, nothing_to_compare, read_both
    from tracer.report.diff_output import as_json, as_text

    ours, theirs = read_both(a, b)
    found = compare(ours, theirs)
    print_text(
        json_text(as_json(ours, theirs, found)) + "\n"
        if form == "json"
        else as_text(ours, theirs, found)
    )
    alarming = any(difference.grade.alarms for difference in found)
    ctx.exit(VIOLATED if alarming else NOT_CHECKABLE if nothing_to_compare(ours, theirs) else 0)


@click.command(
    cls=Command,
    short_help="Write what was found as one HTML or Markdown file.",
    examples=(
        ("What rmapd run found, as a page with plots", "rmapd report --output rmapd.html"),
        ("One run of rmapd exec --report run.json", "rmapd report --from run.json --output run.md"),
        ("As Markdown on the terminal", "rmapd report | less"),
    ),
)
@file_option(
    "--from", "source", metavar="REPORT.json", help="Read a report of rmapd exec, not the store."
)
@config_option
@_store_option
@file_option(
    "--output",
    metavar="FILE",
    help="Write FILE.html or FILE.md (default: Markdown to standard output).",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def report(
    source: Path | None,
    config: Path | None,
    store: str | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Write what was found as HTML or as Markdown.

    It reads the store of rmapd run, with its last run in full, or the report of rmapd exec. HTML is
    one self-contained file with plots.
    """
    from tracer.report.load import from_report_file, from_store
    from tracer.report.publish import publish

    if source and store:
        raise RmapdError(
            "cannot read two sources", why="--from and --store are both given", hint="one of them"
        )
    publish(
        lambda: (
            from_report_file(source)
            if source
            else from_store(
                Path(load_settings(config, None, store=store).store or configuration.STORE)
            )
        ),
        output,
        quiet=quiet,
    )


@click.command(
    cls=Command,
    short_help="Explain an invariant or a violation, or list the invariants.",
    examples=(
        ("All invariants, one a line", "rmapd explain --list"),
        ("One invariant: the rule, its blind spots, its hooks", "rmapd explain M1"),
        ("A violation in the store, as a mail; the start of its id", "rmapd explain L1-3f"),
        (
            "A violation in a report, for an issue tracker",
            "rmapd explain L1-3f --report run.json --format md",
        ),
    ),
)
@click.argument("id", required=False, shell_complete=complete_ids)
@click.option("--list", "every", is_flag=True, help="List all invariants, one a line.")
@config_option
@_store_option
@file_option("--report", help="Read a report of rmapd exec, not the store.")
@format_option("text", "json", "md")
@click.pass_context
def explain(
    ctx: click.Context,
    id: str | None,
    every: bool,
    config: Path | None,
    store: str | None,
    report: Path | None,
    form: str,
) -> None:
    """Explain an invariant or a violation, or list the invariants.

    ID is an invariant's (M1) or a violation's (L1-3f…; its beginning is enough), in any case. A
    violation is explained as a mail that can be sent to linux-mm.
    """
    from tracer.outputs.store import reader
    from tracer.report import explain as explanation
    from tracer.report.find_violation import find
    from tracer.report.load import read_report

    if store is not None and report:
        raise RmapdError(
            "cannot read two sources",
            why="--store and --report are both given",
            hint="one of them",
        )
    known = discover()
    if every == (id is not None):
        problem = "--list takes no ID" if every else "an ID is missing; --list lists the invariants"
        raise click.UsageError(problem, ctx)
    if id is None:
        rows = explanation.list_json(known) if form == "json" else explanation.list_text(known)
        click.echo(rows if isinstance(rows, str) else json_text(rows), nl=form == "json")
        return
    invariant = known.get(ids.canonical(id))
    if invariant or "-" not in id:  # check a given file, even where it is not needed
        _ = read_report(report) if report else reader.read(Path(store)) if store else None
    if invariant:
        shown: Any = (
            explanation.invariant_json(invariant)
            if form == "json"
            else explanation.invariant_text(invariant)
        )
    elif "-" not in id:
        raise ids.unknown("", [id], {name: one.title for name, one in known.items()})
    else:
        found = find(
            id, Path(load_settings(config, None, store=store).store or configuration.STORE), report
        )
        if found.violation.invariant not in known:
            why = f"this rmapd has no invariant {found.violation.invariant}"
            raise RmapdError(
                f"cannot explain {found.violation.id}",
                why=why,
                hint=f"rmapd {found.report.rmapd}, which wrote the report",
            )
        render = {
            "json": explanation.as_json,
            "md": explanation.as_markdown,
            "text": explanation.as_text,
        }[form]
        shown = render(found, known[found.violation.invariant])
    click.echo(shown if isinstance(shown, str) else json_text(shown), nl=not isinstance(shown, str))
