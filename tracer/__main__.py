"""The entry point. Until a command runs, Ctrl-C ends rmapd without a word: the tenth of a second that importing takes is no error."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line."""
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # not where it is ignored, as for a background job
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tracer import cli, outcome

    outcome.watch_stdout()
    cli.main()


if __name__ == "__main__":
    main()
