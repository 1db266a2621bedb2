"""The rooms and the direction of the imports; the layouts; the invariants' own completeness."""

from __future__ import annotations

import ast
import re

from tests.support import import_graph
from tests.support.native import ROOT
from tracer.invariants.base import Coverage
from tracer.invariants.catalogue import discover


def test_each_package_imports_only_from_packages_before_it() -> None:
    for package, arrows in import_graph.between_packages().items():
        later = import_graph.PACKAGES[import_graph.PACKAGES.index(package) :]
        wrong = [arrow for other in later for arrow in arrows.get(other, [])]
        assert not wrong, f"{package}: {wrong}"


def test_no_module_imports_itself_through_others() -> None:
    assert set(import_graph.in_order()) == set(import_graph.modules())


def test_every_folder_is_a_package_of_the_order_and_says_what_belongs_there() -> None:
    folders = {path.parent for path in (ROOT / "tracer").rglob("*.py")} - {ROOT / "tracer"}
    assert {folder.relative_to(ROOT / "tracer").parts[0] for folder in folders} == set(
        import_graph.PACKAGES
    ) - {"(root)", "cli"}
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        assert docstring.count(".") >= 2, f"{folder.name}: what belongs there, and what does not"


def test_import_graph_is_printed_in_one_line_a_package() -> None:
    lines = import_graph.as_text().splitlines()
    assert [line.split()[0] for line in lines] == import_graph.PACKAGES
    assert lines[0].endswith("<- -")


def test_bcc_is_imported_by_one_module() -> None:
    users = {
        path.name for path in (ROOT / "tracer").rglob("*.py") if "bcc" in import_graph.imports(path)
    }
    assert users == {"compiler.py"}


def test_modules_are_not_searched_for_in_the_current_folder() -> None:
    """`python -m` puts it first: whoever writes to a folder in which root starts rmapd is root."""
    starts = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "tracer").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r'sys\.executable, .*"-m"', line) and '"-P", "-m"' not in line
    ]
    assert not starts


def test_invariants_know_no_machinery() -> None:
    """An invariant judges protocols and page-table entries: no bcc, no map, no metric."""
    for module, imported in import_graph.graph().items():
        if module.startswith("invariants."):
            known = {name for name in imported if not name.startswith(("invariants.", "protocol."))}
            assert known <= {"memory.entries"}, module


def test_files_stay_small() -> None:
    for path in (ROOT / "tracer").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_every_invariant_of_the_catalogue_is_declared() -> None:
    known = discover()
    names = "M1 M2 M3 M4 M5 L1 L2 L3 L4 L5 L6 V1 V2 V3 V4 V5 R1 R2".split()
    assert [name for name in known if name in names] == names, "none is missing; others may come"
    for invariant in known.values():
        assert all(
            (
                invariant.title,
                invariant.claim,
                invariant.stated,
                invariant.not_violations,
                invariant.confirmed,
            )
        )
        assert invariant.needs


def test_coverage_says_what_is_lacking() -> None:
    m1 = discover()["M1"]
    every = {name for names in (*m1.needs, *m1.lacking) for name in names.split("|")}
    assert m1.coverage(every) == (Coverage.FULL, "")
    assert m1.coverage(every - {"set_migration_pte"}) == (Coverage.NONE, "needs set_migration_pte")
    level, reason = m1.coverage(every - {"oracle"})
    assert level is Coverage.PARTIAL
    assert "suspect" in reason


def test_coverage_knows_alternatives() -> None:
    l5 = discover()["L5"]
    new = {
        "commit",
        "commit_merge",
        "vma_expand",
        "vma_shrink",
        "__split_vma",
        "do_brk_flags",
        "expand_downwards",
    }
    assert l5.coverage(new) == (Coverage.FULL, "")
    assert l5.coverage(
        {"commit", "__vma_adjust", "vma_expand", "do_brk_flags", "expand_downwards"}
    ) == (Coverage.FULL, "")
    assert l5.coverage({"commit"}) == (Coverage.NONE, "needs __vma_adjust or commit_merge")
    assert l5.coverage(new - {"vma_shrink"}) == (Coverage.PARTIAL, "shrinking is not seen")
    l2 = discover()["L2"]
    assert l2.coverage(l2.needs) == (
        Coverage.PARTIAL,
        "only mmap_lock against mmap_lock: the rwsems of anon_vma and i_mmap have no tracepoint",
    )


def test_coverage_by_another_way_is_partial() -> None:
    l3 = discover()["L3"]
    assert l3.otherwise
    assert l3.coverage(l3.hooks) == (Coverage.FULL, "")
    level, reason = l3.coverage(l3.otherwise.hooks)
    assert (level, reason) == (Coverage.PARTIAL, l3.otherwise.cost)
    level, reason = l3.coverage(l3.hooks - {"owners", "down_read"})
    assert level is Coverage.NONE
    assert reason == "needs down_read, or else audit, owners, owner_enters"
    assert l3.coverage({*l3.needs, *l3.lacking}) == (Coverage.FULL, "")
