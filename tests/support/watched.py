"""Run rmapd so that it can be asked how many items its session holds.

usage: python -m tests.support.watched FOLDER ARGUMENT…

The probes are in FOLDER/probes. Where the file FOLDER/out/ask is, a JSON object is written to
FOLDER/out/held. Nothing is imported that rmapd would not: its memory is measured.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType

from tracer import cli
from tracer.daemon import probes as probes_module

_LEAST_ITEMS = 30


def held(root: object, least: int = _LEAST_ITEMS) -> dict[str, int]:
    """Return how many items each container has that is reachable from here, by a path to it.

    Breadth first, so that a path is short. Those with less than `least` items are left out.
    """
    found, seen, queue = dict[str, int](), set[int](), deque([("", root)])
    while queue:
        path, one = queue.popleft()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, type)):
            continue
        if isinstance(one, (ModuleType, FunctionType)):
            continue
        seen.add(id(one))
        with contextlib.suppress(TypeError, AttributeError):
            if len(one) >= least:  # type: ignore[arg-type]
                found[path] = len(one)  # type: ignore[arg-type]
        if isinstance(one, Mapping):
            queue += [(f"{path}[]", part) for pair in list(one.items()) for part in pair]
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            queue += [(f"{path}[]", part) for part in list(one)]
        else:
            queue += [(f"{path}.{name}", part) for name, part in _members(one)]
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _members(one: object) -> Iterator[tuple[str, object]]:
    yield from getattr(one, "__dict__", {}).items()
    for name in getattr(type(one), "__slots__", ()) or ():
        with contextlib.suppress(AttributeError):
            yield name, getattr(one, name)
    if (of := getattr(one, "__self__", None)) is not None:
        yield "()", of


def main(folder: str, *arguments: str) -> None:
    """Run rmapd with these arguments."""
    from tracer.daemon.session import Session

    step, ask = Session.step, Path(folder, "out/ask")
    probes_module.probes_folder = lambda: Path(folder, "probes")

    def stepped(self: Session, timeout: float = 1.0) -> bool:
        if ask.exists():
            ask.unlink()
            ask.with_name("held").write_text(json.dumps(held(self)))
        return step(self, timeout)

    Session.step = stepped  # type: ignore[method-assign]
    cli.main(arguments, prog_name="rmapd")


if __name__ == "__main__":
    main(*sys.argv[1:])
