"""Run a command on a Debian kernel in a guest. `make vm` uses it.

usage: python -m tests.vm KERNEL 'CMD' [NODES]
"""

from __future__ import annotations

import sys

from tests.vm.guest import GuestError, known, run


def main(name: str, command: str, nodes: str = "1") -> int:
    if name not in known():
        print(f"no kernel {name} in tests/vm/*.toml; known: {', '.join(known())}", file=sys.stderr)
        return 2
    try:
        result = run(name, command, nodes=int(nodes), label="shell")
    except GuestError as error:
        print(error, file=sys.stderr)
        return 1
    print(result.output, end="")
    print(f"exit {result.code}, logs in {result.folder}", file=sys.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
