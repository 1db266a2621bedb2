"""Each header and probe object of probes/ compiles alone.

clangd and readers can follow its `#include` lines.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.btf_blob import kernel_types
from tests.support.native import PROBES, write_kernel_header
from tracer.attach.plan import ProbeObjectPlan
from tracer.attach.translation_unit import GENERATED, source
from tracer.errors import RmapdError

FILES = [*sorted((PROBES / "include").glob("*.h")), *sorted(PROBES.glob("*.bpf.c"))]
NAMES = {path.name for path in FILES}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of kernel.h, as `make clangd` writes it, for a kernel with every lock."""
    return write_kernel_header(tmp_path_factory.mktemp("kernel"), kernel_types(True)).parent


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_compiles_alone(path: Path, generated: Path) -> None:
    flags = (PROBES / "compile_flags.txt").read_text().replace("../build/clangd", str(generated))
    strict = ["-Werror=implicit-function-declaration", "-fsyntax-only"]
    done = subprocess.run(
        ["gcc", *flags.replace("\n-w\n", "\n").split(), *strict, str(path)],
        cwd=PROBES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_lines_have_at_most_100_columns(path: Path) -> None:
    wide = [line for line in path.read_text().expandtabs(8).splitlines() if len(line) > 100]
    assert not wide


@pytest.mark.parametrize("path", FILES[: -len(list(PROBES.glob("*.bpf.c")))], ids=lambda p: p.name)
def test_header_has_an_include_guard(path: Path) -> None:
    guard = f"RMAPD_{path.name.upper().replace('.', '_')}"
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S).split()
    assert code[:4] == ["#ifndef", guard, "#define", guard]
    assert code[-1] == "#endif"


def test_source_has_each_header_once() -> None:
    objects = [ProbeObjectPlan(path.name, path) for path in sorted(PROBES.glob("*.bpf.c"))]
    text = source("/* generated */\n", objects, PROBES / "include")
    assert text.count("/* generated */") == 1
    assert "#include" not in text
    for name in NAMES:
        assert text.count(f'#line 1 "{name}"') == 1, name


def test_missing_header_is_an_error_of_the_object(tmp_path: Path) -> None:
    path = tmp_path / "outer.bpf.c"
    path.write_text('#include "absent.h"\n')
    with pytest.raises(RmapdError, match=r"cannot read absent.h, which outer.bpf.c includes"):
        source("", [ProbeObjectPlan("outer", path)], tmp_path)


def test_source_keeps_the_line_numbers_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("int inner;\n")
    path = tmp_path / "outer.bpf.c"
    path.write_text('int first;\n#include "inner.h"\n#include "inner.h"\n#error here\n')
    text = source("", [ProbeObjectPlan("outer", path)], tmp_path)
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-xc", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "outer.bpf.c:4:" in done.stderr


def compiled(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile text with the flags of clangd, without generating code."""
    flags = (PROBES / "compile_flags.txt").read_text().replace("../build/clangd", str(folder))
    return subprocess.run(
        ["gcc", *flags.split(), "-fsyntax-only", "-"],
        input=text,
        cwd=PROBES,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )


HANDLES = {
    "mm_t": "mmap_lock_of",
    "vma_t": "anon_lock_of",
    "rwsem_t": "owner_of",
    "anon_vma_t": "root_lock_of",
    "mapping_t": "i_mmap_lock_of",
    "folio_t": "is_locked",
}


@pytest.mark.parametrize("passed", HANDLES)
@pytest.mark.parametrize("wanted", HANDLES)
def test_object_of_another_kind_does_not_compile(wanted: str, passed: str, generated: Path) -> None:
    call = f"void f({passed} object) {{ {HANDLES[wanted]}(object); }}\n"
    done = compiled(f'#include "ledger.h"\n#include "rwsem.h"\n{call}', generated)
    assert (done.returncode == 0) == (wanted == passed), done.stderr
    assert wanted == passed or "incompatible type for argument 1" in done.stderr


@pytest.mark.parametrize(
    ("member", "value", "range_"),
    [
        ("STEP_TREE", 100, "STEP_LOCK runs into STEP_TREE"),
        ("STEP_COMMIT", 132, "STEP_TREE runs into STEP_COMMIT"),
        ("STEP_VISIT", 152, "STEP_COMMIT runs into STEP_VISIT"),
        ("STEP_CALL", 159, "STEP_VISIT runs into STEP_CALL"),
        ("STEP_CALL", 240, "STEP_CALL runs into 256"),
        ("STEP_TREE_NEW", 10, "STEP_REPEAT runs into STEP_TREE_NEW"),
    ],
)
def test_overlapping_step_ranges_do_not_compile(
    member: str, value: int, range_: str, generated: Path, tmp_path: Path
) -> None:
    text = (PROBES / "include/shared.h").read_text()
    altered, found = re.subn(rf"\b{member} = \d+", f"{member} = {value}", text)
    assert found == 1
    (tmp_path / "shared.h").write_text(altered)
    done = compiled(f'#include "{tmp_path}/shared.h"\n#include "steps.h"\n', generated)
    assert range_ in done.stderr


def test_shared_h_includes_the_generated_header() -> None:
    assert f'#include "{GENERATED}"' in (PROBES / "include/shared.h").read_text()
