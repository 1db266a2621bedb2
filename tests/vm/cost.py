"""Run tests.bench in a guest with all hooks attached.

Only ratios within one kernel mean something, because CPU and caches are emulated. The clock of the
guest is its TSC. By default it would be the HPET, whose emulation makes bpf_ktime_get_ns() take
3 us instead of 0.3.

usage: python -m tests.vm.cost KERNEL [--rounds N --scale F --loads A,B --variants A,B]
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.vm.guest import GuestError, ladder, run

_SECONDS = 7200
_DEFAULTS = ["--rounds", "5", "--scale", "0.03"]


def main(name: str, arguments: list[str], memory: str = "4G") -> int:
    if name not in ladder():
        print(
            f"no kernel {name} in tests/vm/kernels.toml; known: {', '.join(ladder())}",
            file=sys.stderr,
        )
        return 2
    command = (
        f"python -u -m tests.bench --out $OUT/cost.json {shlex.join([*_DEFAULTS, *arguments])}"
    )
    try:
        result = run(name, command, label="cost", memory=memory, timeout=_SECONDS)
    except GuestError as error:
        print(error, file=sys.stderr)
        return 1
    print(result.output)
    print(f"exit {result.code}, {Path(result.folder) / 'cost.json'}", file=sys.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
