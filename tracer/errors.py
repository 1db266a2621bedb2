"""What can go wrong before there is a verdict: every message says what, where, why and what to try."""

from __future__ import annotations


class RmapdError(Exception):
    """A set-up or usage error the user can act on; the command line prints it and exits with 2."""

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f": {self.why}"
        if self.hint:
            text += f"\n  try: {self.hint}"
        return text


class NotCheckable(RmapdError):
    """A required invariant cannot be checked here: exit code 4."""
