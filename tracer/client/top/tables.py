"""Tables whose rows are replaced at each look; the cursor stays on its row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable

Row = tuple[str, Sequence[str | Text]]
"""The key of a row and its cells."""


class Rows(DataTable[Text]):
    """A table with one cursor row.

    columns: names; those that begin with `>` are numbers. keys: of the rows, from the top.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
        Binding("home,g", "scroll_top", show=False),
        Binding("end,G", "scroll_bottom", show=False),
    ]

    def __init__(self, columns: Sequence[str], **named: Any) -> None:
        # The colour of a cell, such as that of a violation, stays under the cursor.
        super().__init__(cursor_type="row", cursor_foreground_priority="renderable", **named)
        self._columns, self.keys = columns, list[str]()
        self._right = [name.startswith(">") for name in columns]
        self._marked, self._redraw = "", False

    def on_mount(self) -> None:
        """Add the columns."""
        for name in self._columns:
            self.add_column(self._label(name), key=name)

    def _label(self, name: str) -> Text:
        """Return a column's name; that of the sorting column is reversed, which needs no room."""
        style = "reverse" if name == self._marked else ""
        return Text(name.lstrip(">"), style, justify="right" if name[:1] == ">" else "left")

    def mark(self, column: str) -> None:
        """Mark the column by which the rows are sorted. Call show() to draw it."""
        self._marked, self._redraw = column, True
        for known in self.ordered_columns:
            known.label = self._label(str(known.key.value))

    @property
    def selected(self) -> str:
        """The key of the row under the cursor, or an empty text."""
        return self.keys[self.cursor_row] if 0 <= self.cursor_row < len(self.keys) else ""

    def show(self, rows: Sequence[Row]) -> None:
        """Replace the rows."""
        keys = [key for key, _ in rows]
        cells = [[self._cell(cell, n) for n, cell in enumerate(row)] for _, row in rows]
        if keys == self.keys and not self._redraw:
            for n, row in enumerate(cells):
                for column, cell in enumerate(row):
                    at = Coordinate(n, column)
                    if self.get_cell_at(at) != cell:
                        self.update_cell_at(at, cell, update_width=True)
            return
        selected, x, y = self.selected, self.scroll_x, self.scroll_y
        self.clear()
        self.keys, self._redraw = keys, False
        for key, row in zip(keys, cells, strict=True):
            self.add_row(*row, key=key)
        if selected in keys:
            self.move_cursor(row=keys.index(selected), scroll=False)
            self.scroll_to(x, y, animate=False)

    def _cell(self, cell: str | Text, column: int) -> Text:
        """Return a cell; a text is no markup, for names in it may be anything."""
        made = Text(cell) if isinstance(cell, str) else cell
        made.justify = "right" if self._right[column] else "left"
        made.no_wrap = True
        return made
