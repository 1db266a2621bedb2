"""The application around the view: it starts it, and has the keys that work everywhere."""

from __future__ import annotations

from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType

from tracer.client.connection import Client
from tracer.client.top.details import HelpScreen
from tracer.client.top.observer import Observer
from tracer.client.top.view import View
from tracer.errors import Defect


class TopApp(App[None]):
    """Shows a view until it is quit. It uses the colours of the terminal, and no mouse."""

    CSS_PATH = "top.tcss"
    TITLE = "rmapd top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "quit", "quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, view: View) -> None:
        super().__init__(ansi_color=True)
        self.view, self.theme = view, "ansi-dark"

    def on_mount(self) -> None:
        """Show the view."""
        self.push_screen(self.view)

    def action_help(self) -> None:
        """Show the keys, once."""
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen())


def run(client: Client, interval: float) -> None:
    """Show a daemon on the terminal until the view is quit. interval: between looks, in seconds.

    Raises RmapdError where the daemon gives no answer at the start.
    """
    observer = Observer(client)
    app = TopApp(View(observer, observer.look(), interval))
    app.run(mouse=False)
    if app.return_code:
        raise Defect("rmapd top failed", why="see above", hint="report it, with this traceback")
