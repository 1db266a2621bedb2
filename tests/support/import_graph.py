"""The import graph of tracer/, between packages and between modules.

`python -m tests.support.import_graph` and `make graph` print it.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

TRACER = Path(__file__).parent.parent.parent / "tracer"

PACKAGES = """
    (root) machine kernel process bpf tables attach memory protocol invariants results
    checking outputs report web client supervision daemon soak cli
""".split()
"""A package imports from those before it. (root): modules that every package may import."""

_TOP = (*(path.stem for path in sorted(TRACER.glob("cli*.py"))), "__main__")


def modules() -> dict[str, Path]:
    """Return the modules of tracer/ by dotted name, without `tracer.` and without packages."""
    found = {}
    for path in sorted(TRACER.rglob("*.py")):
        if path.stem != "__init__":
            found[".".join(path.relative_to(TRACER).with_suffix("").parts)] = path
    return found


def package(module: str) -> str:
    """Return the package of a module: the first part of its name."""
    if module in _TOP:
        return "cli"
    return module.partition(".")[0] if "." in module else "(root)"


def imports(path: Path) -> set[str]:
    """Return the dotted names of modules that a file imports, and of names imported from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def graph() -> dict[str, set[str]]:
    """Return the modules that each module imports.

    An import of a whole package counts as the imports of its `__init__`.
    """
    known = modules()
    out: dict[str, set[str]] = {}
    for module, path in known.items():
        names = {
            name.removeprefix("tracer.") for name in imports(path) if name.startswith("tracer.")
        }
        whole = {
            name for name in names if (TRACER / name.replace(".", "/") / "__init__.py").exists()
        }
        for name in whole - {package(module)}:
            inside = imports(TRACER / name.replace(".", "/") / "__init__.py")
            names |= {one.removeprefix("tracer.") for one in inside}
        out[module] = (names & set(known)) - {module}
    return out


def between_packages() -> dict[str, dict[str, list[str]]]:
    """Return package -> imported package -> the imports behind it, as `module -> module`."""
    arrows: dict[str, dict[str, list[str]]] = {name: {} for name in PACKAGES}
    for module, imported in graph().items():
        for other in sorted(imported):
            if package(module) != package(other):
                arrow = arrows[package(module)].setdefault(package(other), [])
                arrow.append(f"{module} -> {other}")
    return arrows


def in_order() -> list[str]:
    """Return the modules, each after those that it imports.

    Raise graphlib.CycleError if the imports form a cycle.
    """
    return list(TopologicalSorter(graph()).static_order())


def as_text() -> str:
    """Return one line a package: what it imports from, in the order of PACKAGES."""
    arrows = between_packages()
    lines = []
    for name in PACKAGES:
        used = [other for other in PACKAGES if other in arrows[name]]
        count = len([module for module in modules() if package(module) == name])
        lines.append(f"{name:12} {count:3}  <- {' '.join(used) or '-'}")
    return "\n".join(lines)


if __name__ == "__main__":
    in_order()
    print(as_text())
