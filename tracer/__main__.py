"""The entry point. Until a command runs, Ctrl-C ends rmapd silently: the imports take 0.1 s."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line."""
    ignored = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if not ignored:  # a shell ignores it for a background job
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tracer import cli, outcome

    outcome.install_stdout()
    cli.main()


if __name__ == "__main__":
    main()
