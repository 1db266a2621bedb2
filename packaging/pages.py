"""Write man pages and completions of an installed rmapd, from its own help: pages.py RMAPD SHARE.

RMAPD: the program; run this file with the Python that it is installed for. SHARE: a folder such as
/usr/share. help2man writes the pages, click the completions; nothing is written by hand.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from click.shell_completion import get_completion_class

from tracer import __version__
from tracer.cli import main

COMPLETIONS = {
    "bash": "bash-completion/completions/rmapd",
    "zsh": "zsh/{}-completions/_rmapd",
    "fish": "fish/vendor_completions.d/rmapd.fish",
}
"""Shell -> the file in SHARE where it looks. Debian's zsh looks in vendor-, others in site-."""


def page(rmapd: str, name: str, summary: str) -> str:
    """Return the man page of a command; of rmapd itself where the name is empty."""
    title = f"rmapd-{name}" if name else "rmapd"
    made = subprocess.run(
        [
            shutil.which("help2man") or "help2man",
            "--no-info",
            f"--version-string={__version__}",
            f"--source=rmapd {__version__}",
            f"--name={summary.rstrip('.')}",
            *([] if name else [f"--include={Path(__file__).with_name('see-also.h2m')}"]),
            f"{rmapd} {name}".strip(),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    made = re.sub(r'^\.TH .*? "1"', f'.TH {title.upper()} "1"', made, count=1, flags=re.M)
    made = re.sub(r"^(\.SH NAME\n).* \\- ", rf"\1{title} \\- ", made, count=1, flags=re.M)
    # lines of a shell are not to be filled
    return re.sub(
        r"(\.SH EXAMPLES\n)\.IP\n(.*?)(?=^\.S|\Z)", r"\1.nf\n\2.fi\n", made, flags=re.M | re.S
    )


def write(rmapd: str, share: Path) -> None:
    """Write all pages and completions into a folder."""
    pages = share / "man/man1"
    pages.mkdir(parents=True, exist_ok=True)
    summaries = {"": "check on a live kernel that it keeps the rules of its reverse map"}
    summaries |= {name: one.get_short_help_str(200) for name, one in main.commands.items()}
    for name, summary in summaries.items():
        path = pages / f"{'-'.join(filter(None, ['rmapd', name]))}.1"
        path.write_text(page(rmapd, name, summary), encoding="utf-8")
    vendor = "vendor" if Path("/etc/debian_version").exists() else "site"
    for shell, place in COMPLETIONS.items():
        completion = get_completion_class(shell)
        if completion is None:
            raise SystemExit(f"click has no completion for {shell}")
        target = share / place.format(vendor)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            completion(main, {}, "rmapd", "_RMAPD_COMPLETE").source(), encoding="utf-8"
        )


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
