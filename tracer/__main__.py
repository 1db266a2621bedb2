"""The entry point. Until a command runs, Ctrl-C ends rmapd silently: the imports take 0.1 s."""

from __future__ import annotations

import os
import signal
import sys


def _open_stderr() -> None:
    """Open /dev/null as standard error where the caller closed it.

    Otherwise descriptor 2 would be the next file that is opened, and get what commands print.
    """
    if sys.stderr is None:
        file = os.open(os.devnull, os.O_WRONLY)
        if file != 2:
            os.dup2(file, 2)
            os.close(file)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def main() -> None:
    """Run the command line."""
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if not ignored:  # a shell ignores it for a background job
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_stderr()
    from tracer import cli, outcome

    outcome.install_stdout()
    cli.main()


if __name__ == "__main__":
    main()
