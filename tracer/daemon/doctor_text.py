"""The report of `rmapd doctor` as text: a verdict, then the details, in columns that fit."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracer import screen
from tracer.daemon.doctor import KernelReport
from tracer.daemon.installation import NOTE, OK, WRONG, Check
from tracer.errors import RmapdError
from tracer.printable import printable
from tracer.results.hook_groups import WARNED_OF, GroupKind
from tracer.results.standing import listed

_GOOD, _SOME, _BAD, _PLAIN, _HEAD = "green", "yellow", "red", "", "bold"
_STYLES = {
    **{OK: _GOOD, NOTE: _SOME, WRONG: _BAD},
    **{"full": _GOOD, "partial": _SOME, "none": _BAD},
    **{"attached": _GOOD, "substituted": _GOOD, "denied": _SOME, "detached": _BAD},
}
_GROUP_STYLES = {
    GroupKind.REFUSED: _SOME,
    GroupKind.DEPENDENT: _SOME,
    GroupKind.UNUSABLE: _SOME,
    GroupKind.LACKING: _SOME,
    **dict.fromkeys(WARNED_OF, _BAD),
}


@dataclass(frozen=True)
class Verdict:
    """The result of all checks in a sentence or two, and its colour."""

    text: str
    style: str


def verdict(checks: Sequence[Check], report: KernelReport) -> Verdict:
    """Return what rmapd can do here: how much of the invariants, and how well it is installed."""
    kernel = report.found["kernel"]
    levels = [one["coverage"] for one in report.found["invariants"].values()]
    full, part, every = levels.count("full"), levels.count("partial"), len(levels)
    if full == every:
        can, style = f"All {every} invariants can be checked in full on {kernel}.", _GOOD
    elif full or part:
        how = [f"{count} {how}" for count, how in ((full, "in full"), (part, "in part")) if count]
        can = f"{full + part} of {every} invariants can be checked on {kernel}: {', '.join(how)}."
        style = _SOME
    else:
        can, style = f"Nothing can be checked on {kernel}.", _BAD
    wrong, sentence = _installed(checks)
    return Verdict(f"{can} {sentence}", _BAD if wrong else style)


def _installed(checks: Iterable[Check]) -> tuple[bool, str]:
    """Return (whether something is wrong, a sentence about the installation)."""
    by_state: dict[str, list[str]] = {}
    for check in checks:
        by_state.setdefault(check.state, []).append(check.name)
    notes = by_state.get(NOTE, [])
    noted = f"{len(notes)} {'note' if len(notes) == 1 else 'notes'}"
    if wrong := by_state.get(WRONG):
        more = f"; {noted}" if notes else ""
        return True, f"The installation has something wrong: {listed(wrong)}{more}."
    return False, f"The installation is complete{f', with {noted}' if notes else ''}."


class Page:
    """Makes the text. width: columns; colour: with escape sequences for colours."""

    def __init__(self, width: int, *, colour: bool = False) -> None:
        self._width, self._colour = width, colour

    def text(self, checks: Sequence[Check], report: KernelReport, *, verbose: bool = False) -> str:
        """Return the whole report. verbose: with every hook."""
        found, said = report.found, verdict(checks, report)
        capabilities = (
            (name, _cell(value, _of_capability(value)))
            for name, value in found["capabilities"].items()
        )
        return self._render(
            Text(printable(said.text), said.style),
            *self._installation(checks),
            *_section(f"kernel {found['kernel']}", _columns(capabilities)),
            *_section(report.hooks.head, *self._hooks(report, every=verbose)),
            *_section("invariants", _columns(_invariants(found["invariants"]))),
        )

    def failed(self, checks: Sequence[Check], error: Exception) -> str:
        """Return the report where this kernel could not be examined."""
        why = error.in_a_line if isinstance(error, RmapdError) else f"{type(error).__name__}"
        text = f"This kernel could not be examined: {why}. {_installed(checks)[1]}"
        return self._render(Text(printable(text), _BAD), *self._installation(checks))

    def _installation(self, checks: Sequence[Check]) -> list[RenderableType]:
        rows = list[Sequence[str | Text]]()
        for check in checks:
            rows.append((check.name, _cell(check.state), check.text))
            if check.hint and check.state != OK:
                rows.append(("", "", f"try: {check.hint}"))
        return _section("installation", _columns(rows))

    def _hooks(self, report: KernelReport, *, every: bool) -> Iterator[RenderableType]:
        """Yield the hooks by reason. every: each of them below its state and exact reason."""
        if not every:
            for group in report.hooks.off:
                yield from self._hanging(group.sentence, _GROUP_STYLES.get(group.kind, _PLAIN))
            yield Text("rmapd doctor -v lists every hook")
            return
        hooks = report.found["hooks"]
        by_reason = Counter((one["state"], one["reason"]) for one in hooks.values())
        name_width = max(map(len, hooks), default=0)
        state_width = max((len(state) for state, _ in by_reason), default=0)
        for (state, reason), count in by_reason.most_common():
            text = f"{count} {state}{f': {reason}' if reason else ''}"
            yield from self._hanging(text, _STYLES.get(state, _PLAIN))
            rows = (
                (state.ljust(state_width), name.ljust(name_width), one["how"])
                for name, one in hooks.items()
                if (one["state"], one["reason"]) == (state, reason)
            )
            yield Padding(_columns(rows), (0, 0, 0, 2))

    def _hanging(self, text: str, style: str) -> Iterator[Text]:
        """Yield the lines of a text that is indented where it goes on."""
        for line in screen.wrapped(printable(text), self._width - 2, "  "):
            yield Text(line, style)

    def _render(self, *parts: RenderableType) -> str:
        console = Console(
            file=io.StringIO(),
            width=self._width,
            force_terminal=self._colour,
            color_system="standard" if self._colour else None,
            markup=False,
            emoji=False,
            highlight=False,
        )
        with console.capture() as captured:
            for part in parts:
                console.print(part)
        return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _section(head: str, *parts: RenderableType) -> list[RenderableType]:
    return [Text(), Text(printable(head), _HEAD), *(Padding(part, (0, 0, 0, 2)) for part in parts)]


def _cell(text: str, style: str | None = None) -> Text:
    style = _STYLES.get(text, _PLAIN) if style is None else style
    return Text().append(printable(text), style)  # as a span, or else it styles what pads the cell


def _of_capability(value: str) -> str:
    return _GOOD if value[:3] in ("yes", "cal") else _PLAIN if value.isdigit() else _SOME


def _columns(rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return cells in columns; only the last one is broken into lines."""
    table, made = Table.grid(padding=(0, 2, 0, 0)), [list(row) for row in rows]
    count = max((len(row) for row in made), default=1)
    for number in range(count):
        overflow: Literal["fold"] = "fold"
        table.add_column(no_wrap=number < count - 1, overflow=overflow)
    for row in made:
        table.add_row(*(_cell(one, _PLAIN) if isinstance(one, str) else one for one in row))
    return table


def _invariants(found: Mapping[str, Mapping[str, str]]) -> Iterator[Sequence[str | Text]]:
    """Yield the rows of the invariants; a reason that comes again refers to the first one."""
    first: dict[str, str] = {}
    for name, one in found.items():
        yield name, _cell(one["coverage"]), one["title"]
        if reason := one["reason"]:
            yield "", "", f"as {first[reason]}" if reason in first else reason
            first.setdefault(reason, name)
