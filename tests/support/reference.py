"""The reference pages that are made from the code: `make reference` writes them.

docs/reference/ has whole pages; in docs/CONFIGURATION.md only the rows of the tables are made.
tests/unit/test_reference.py fails where a page is not what the code makes of it.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from tests.support.native import ROOT
from tests.support.snapshots import full
from tracer import config
from tracer.cli import main
from tracer.config_maps import Maps
from tracer.invariants.catalogue import discover
from tracer.outputs.otlp import Sender
from tracer.outputs.prometheus import SnapshotCollector
from tracer.report.explain import invariant_json
from tracer.results.snapshot import Snapshot

_MADE = "Made from the code by `make reference`: a test fails where the two differ."
_FEW = 9
"""As many values of a label are listed."""
_SUFFIXES = {"counter": "_total", "info": "_info"}
_PARTS = {
    "claim": "What must hold",
    "stated in": "Where the kernel states it",
    "not violations": "What is legal",
    "how confirmed": "How a violation is proven",
    "blind spots": "What is not seen",
    "hooks": "Needs",
}
_KEYS = re.compile(r"(?<=\| key \| default \| meaning \|\n\|---\|---\|---\|\n)(?:\|.*\n)+")


def _cell(text: object) -> str:
    """Return text for Markdown: in code only `|` is escaped."""
    escaped = re.sub(r"`[^`]*`|[*<]", lambda m: m[0] if m[0][0] == "`" else f"\\{m[0]}", str(text))
    return " ".join(escaped.replace("|", r"\|").split())


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    made = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([made[0], made[1].replace(" ", ""), *made[2:]])


def _paragraph(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def _page(title: str, intro: str, *sections: str) -> str:
    return "\n\n".join([f"# {title}\n{_paragraph(intro)}", _paragraph(_MADE), *sections]) + "\n"


def cli() -> str:
    """Return the page of all commands with their options, exit codes and examples."""
    top = main.make_context("rmapd", [], resilient_parsing=True)  # -h is one of its settings
    intro = (
        "For everyone who runs rmapd: the options of each command, as `rmapd COMMAND --help` prints"
        " them. What the commands are for, and every exit code, is in [COMMANDS](../COMMANDS.md)."
    )
    commands = [main.commands[name] for names in main.headings.values() for name in names]
    return _page("Command line", intro, *(_command(one, top) for one in commands))


def _command(command: click.Command, top: click.Context) -> str:
    context = click.Context(command, info_name=command.name, parent=top)
    parts = [f"## rmapd {command.name}", f"    {context.command_path} " + _usage(context)]
    parts += map(_paragraph, re.split(r"\n\n+", inspect.cleandoc(command.help or "")))
    sections: dict[str, list[tuple[object, ...]]] = {}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            name, meaning = record
            section = getattr(parameter, "section", "Options")
            sections.setdefault(section, []).append((f"`{name}`", _cell(meaning)))
    parts += [_table((name, "meaning"), rows) for name, rows in sections.items()]
    if exits := getattr(command, "exits", ()):
        parts.append(_table(("exit code", "meaning"), [(f"`{a}`", _cell(b)) for a, b in exits]))
    if examples := getattr(command, "examples", ()):
        lines = [f"    # {what}\n    {line}" for what, line in examples]
        parts.append("Examples:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _usage(context: click.Context) -> str:
    return " ".join(context.command.collect_usage_pieces(context))


def _everything() -> Snapshot:
    return replace(full(), otlp=Sender(lambda _: True).counts())


def metrics() -> str:
    """Return the page of all metrics."""
    rows = []
    for family in SnapshotCollector(_everything).collect():
        values: dict[str, list[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                if value not in values.setdefault(label, []):
                    values[label].append(value)
        labels = "; ".join(_label(name, some) for name, some in values.items())
        name = f"`{family.name}{_SUFFIXES.get(family.type, '')}`"
        rows.append((name, family.type, labels, _cell(family.documentation)))
    intro = (
        "For the operator, and for whoever writes queries: every metric of `/metrics`, with its"
        " type and its labels. A label has the values listed, or one for each invariant, hook,"
        " function or probe object. A histogram `NAME` is the series `NAME_bucket`, `NAME_sum` and"
        " `NAME_count`. Python's client adds `process_…`, of the daemon's process. Dashboards and"
        " alerts: [dashboards](../../dashboards/README.md)."
    )
    return _page("Metrics", intro, _table(("metric", "type", "labels", "meaning"), rows))


def _label(name: str, values: list[str]) -> str:
    few = len(values) <= _FEW and name not in ("le", "version", "kernel")
    return f"`{name}`" + (f": {', '.join(f'`{value}`' for value in values)}" if few else "")


def invariants() -> str:
    """Return the page of all invariants."""
    known = discover()
    rows = [(f"[{name}](#{_anchor(name, one.title)})", one.title) for name, one in known.items()]
    sections = [_table(("id", "rule"), rows)]
    for name, one in known.items():
        found = invariant_json(one)
        parts = [f"## {name}: {one.title}"]
        parts += [
            _paragraph(f"**{head}.** {_cell(found[key])}")
            for key, head in _PARTS.items()
            if found[key]
        ]
        if found["without"]:
            lost = (line.split(": ", 1) for line in found["without"].splitlines())
            rows = [(f"`{hook}`", _cell(cost)) for hook, cost in lost]
            parts.append(_table(("without", "coverage is partial, because"), rows))
        parts.append(f"When it is violated: [runbook](../runbooks/{name}.md).")
        sections.append("\n\n".join(parts))
    intro = (
        "For the kernel developer: every rule that rmapd checks, as `rmapd explain ID` prints it:"
        " where the kernel states it, what looks like a violation and is legal, how a violation is"
        " proven, what is not seen, and what each missing hook costs. Hooks are named as `rmapd"
        " doctor -v` lists them; which of them your kernel has, only `rmapd doctor` can report."
    )
    return _page("Invariants", intro, *sections)


def _anchor(name: str, title: str) -> str:
    return re.sub(r"[^\w\- ]", "", f"{name} {title}".lower()).replace(" ", "-")


def api() -> str:
    """Return the page of the HTTP API."""
    known = json.loads((ROOT / "tracer/web/openapi.json").read_text())
    paths = []
    for path, methods in known["paths"].items():
        got = methods["get"]
        asked = [_parameter(one) for one in got.get("parameters", []) if one["in"] == "query"]
        content = got["responses"]["200"].get("content", {}).get("application/json", {})
        kind = _kind(content.get("schema", {}))
        paths.append((f"`/api/v1{path}`", kind, _cell(got["summary"]), "; ".join(asked)))
    parts = [_table(("path", "answer", "what", "parameters"), paths), "## Types"]
    for name, schema in known["components"]["schemas"].items():
        parts.append(f"### {name}")
        if text := schema.get("description"):
            parts.append(_paragraph(text))
        rows = [
            (f"`{key}`", _kind(one), _cell(one.get("description", "")))
            for key, one in schema.get("properties", {}).items()
        ]
        for base in schema.get("allOf", ()):
            parts.append(f"Also has the keys of {_kind(base)}.")
        parts.append(_table(("key", "type", "meaning"), rows))
    intro = (
        "For programs that read a running daemon: every path of the JSON API and the shape of each"
        " answer, from [the description](../API.md#apiv1) that the daemon serves as"
        " `/api/v1/openapi.json`. Pages, `/metrics` and errors are in [API](../API.md)."
    )
    return _page("HTTP API", intro, *parts)


def _parameter(one: dict[str, Any]) -> str:
    return f"`{one['name']}` ({_kind(one['schema'])}): {_cell(one.get('description', ''))}"


def _kind(schema: dict[str, Any]) -> str:
    """Return a JSON schema in a few words."""
    if ref := schema.get("$ref"):
        name = ref.rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if values := schema.get("enum"):
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(map(_kind, choices))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    extra = schema.get("additionalProperties")
    return f"{kind} of {_kind(extra)}" if isinstance(extra, dict) else str(kind)


def configuration() -> str:
    """Return docs/CONFIGURATION.md with the rows of its two tables made anew."""
    rows = map(_keys, (config.Config(), Maps()))
    return _KEYS.sub(lambda _: next(rows), (ROOT / "docs/CONFIGURATION.md").read_text())


def _keys(of: msgspec.Struct) -> str:
    return "".join(
        f"| `{field.name}` | `{json.dumps(getattr(of, field.name))}` | {config.meaning(field)} |\n"
        for field in msgspec.structs.fields(of)
        if get_args(field.type)
    )


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of each page."""
    docs = ROOT / "docs"
    yield docs / "CONFIGURATION.md", configuration()
    for make in (cli, metrics, invariants, api):
        yield docs / f"reference/{make.__name__.upper()}.md", make()


if __name__ == "__main__":
    for _path, _text in pages():
        _path.parent.mkdir(exist_ok=True)
        _path.write_text(_text)
        print(_path.relative_to(ROOT))
