"""The panels: what of a picture each shows, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from tracer.client.answers import Finding, Function, Lock
from tracer.client.history import Speed, hold_key, wait_key
from tracer.client.status_text import VERDICTS
from tracer.client.top.observer import Picture
from tracer.client.top.tables import Row, Rows
from tracer.client.top.text import rate, time_per_second
from tracer.screen import COVERAGE_STYLES
from tracer.time_text import precise

_OPENS = [Binding("enter", "select_cursor", "open", key_display="Enter")]


class Panel(Rows):
    """A table of a picture. TITLE: of its border and of its tab. SORTS: columns to sort by."""

    TITLE: ClassVar[str] = ""
    COLUMNS: ClassVar[Sequence[str]] = ()
    SORTS: ClassVar[Sequence[str]] = ()
    HEADER: ClassVar[bool] = True

    def __init__(self, id: str) -> None:
        super().__init__(self.COLUMNS, id=id, classes="panel", show_header=self.HEADER)
        self.border_title = self.TITLE
        self._sort = 0
        self._picture: Picture | None = None
        self.mark(self.sorted_by)

    def sort_next(self) -> None:
        """Sort by the next column that can sort."""
        if self.SORTS:
            self._sort = (self._sort + 1) % len(self.SORTS)
            self.mark(self.sorted_by)
            if self._picture:
                self.show(self.rows_of(self._picture))

    @property
    def sorted_by(self) -> str:
        """The name of the column that sorts."""
        return self.SORTS[self._sort] if self.SORTS else ""

    def look_at(self, picture: Picture) -> None:
        """Show a picture."""
        self._picture = picture
        self.show(self.rows_of(picture))

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        raise NotImplementedError


class Findings(Panel):
    """Violations and suspects, the worst first."""

    BINDINGS: ClassVar[list[BindingType]] = [*_OPENS]
    TITLE = "1 Findings"
    COLUMNS = ("verdict", "rule", ">times", ">last", "where", "what")
    HEADER = False

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        status = picture.seen.status
        return [(one.id, self._row(one, picture)) for one in status.worst_first]

    @staticmethod
    def _row(one: Finding, picture: Picture) -> list[str | Text]:
        ago = (picture.seen.status.taken - one.last_seen).total_seconds()
        return [
            Text(one.verdict.upper(), VERDICTS[one.verdict]),
            one.invariant,
            f"×{one.count:,}",
            precise(max(0.0, ago)),
            f"{one.function}()",
            one.summary,
        ]


class Invariants(Panel):
    """Coverage and verdicts of each rule, those with findings first."""

    BINDINGS: ClassVar[list[BindingType]] = [*_OPENS]
    TITLE = "2 Invariants"
    COLUMNS = (
        *("rule", "coverage", ">holds", ">violated", ">suspect", ">unverif."),
        *(">/s", "what must hold"),
    )

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        rows = []
        for name, one in picture.seen.status.invariants.items():
            checks = one.checks
            cells: list[str | Text] = [
                Text(name, "bold"),
                Text(one.coverage, COVERAGE_STYLES[one.coverage]),
                f"{checks.holds:,}",
                _count(checks.violated, VERDICTS["violated"]),
                _count(checks.suspect, VERDICTS["suspect"]),
                _count(checks.unverifiable, "yellow"),
                rate(picture.history.now(lambda p, name=name: p.checks.get(name, 0))),  # type: ignore[misc]
                one.title,
            ]
            rank = (not checks.violated, not checks.suspect, one.coverage == "none")
            rows.append((rank, (name, cells)))
        return [row for _, row in sorted(rows, key=lambda ranked: ranked[0])]


def _count(count: int, style: str) -> Text:
    return Text(f"{count:,}", style if count else "dim")


class Functions(Panel):
    """Functions that change VMAs or walk rmap: how often, and how long."""

    TITLE = "3 Functions"
    COLUMNS = ("function", ">/s", ">time", ">p99", ">longest", ">windows", ">not sampled")
    SORTS = (">time", ">/s", ">p99", ">longest", ">windows")

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        by_name = picture.speeds.by_name
        keys: Mapping[str, Callable[[Function], tuple[float, float]]] = {
            ">time": lambda one: (_seconds(by_name.get(one.function)), one.seconds),
            ">/s": lambda one: (_times(by_name.get(one.function)), one.count),
            ">p99": lambda one: (one.p99_seconds, one.seconds),
            ">longest": lambda one: (one.longest_seconds, one.seconds),
            ">windows": lambda one: (one.count, one.seconds),
        }
        return [
            (one.function, self._row(one, by_name.get(one.function)))
            for one in sorted(picture.functions, key=keys[self.sorted_by], reverse=True)
        ]

    @staticmethod
    def _row(one: Function, speed: Speed | None) -> list[str | Text]:
        return [
            one.function,
            rate(speed.count if speed else None),
            time_per_second(speed.seconds if speed else None),
            *_bounds(one.p99_seconds, one.longest_seconds),
            f"{one.count:,}",
            _count(one.unsampled, ""),
        ]


class Locks(Panel):
    """Lock classes by how long tasks wait for them and hold them."""

    TITLE = "4 Locks"
    COLUMNS = (
        *("lock", ">waits/s", ">waiting", ">wait p99"),
        *(">holds/s", ">holding", ">hold p99", "counted"),
    )
    SORTS = (">waiting", ">holding", ">wait p99", ">hold p99")

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        by_name = picture.speeds.by_name
        keys: Mapping[str, Callable[[Lock], tuple[float, float]]] = {
            ">waiting": lambda one: (_seconds(by_name.get(wait_key(one))), one.wait.seconds),
            ">holding": lambda one: (_seconds(by_name.get(hold_key(one))), one.hold.seconds),
            ">wait p99": lambda one: (one.wait.p99_seconds, one.wait.seconds),
            ">hold p99": lambda one: (one.hold.p99_seconds, one.hold.seconds),
        }
        return [
            (one.name, self._row(one, by_name))
            for one in sorted(picture.locks, key=keys[self.sorted_by], reverse=True)
        ]

    @staticmethod
    def _row(one: Lock, by_name: Mapping[str, Speed]) -> list[str | Text]:
        cells: list[str | Text] = [one.name]
        for times, speed in (
            (one.wait, by_name.get(wait_key(one))),
            (one.hold, by_name.get(hold_key(one))),
        ):
            cells += [
                rate(speed.count if speed else None),
                time_per_second(speed.seconds if speed else None),
                *_bounds(times.p99_seconds),
            ]
        return [*cells, "in all tasks" if one.where == "everywhere" else "in windows"]


class Entries(Panel):
    """The oldest migration entries that are outstanding."""

    TITLE = "5 Entries"
    COLUMNS = (">age", ">migrating for", ">tgid", ">tid", "address", "level", ">entries")

    def rows_of(self, picture: Picture) -> list[Row]:
        """Return the rows of a picture."""
        limit = picture.seen.status.migration.age_limit_seconds
        return [
            (
                f"{n} {one.addr} {one.tid}",
                [
                    Text(precise(one.age_seconds), "bold red" if one.age_seconds > limit else ""),
                    precise(one.migration_seconds),
                    str(one.tgid),
                    str(one.tid),
                    one.addr,
                    one.level,
                    str(one.count),
                ],
            )
            for n, one in enumerate(picture.entries)
        ]


def _seconds(speed: Speed | None) -> float:
    return speed.seconds if speed else 0.0


def _times(speed: Speed | None) -> float:
    return speed.count if speed else 0.0


def _bounds(*seconds: float) -> list[str]:
    """Return bounds of times; a time that was never met is a dash."""
    return [f"<{precise(one)}" if one else "–" for one in seconds]
