"""Every header and probe object of probes/ compiles alone: clangd and a reader can follow its `#include` lines."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.btf_blob import kernel_types
from tests.support.native import PROBES, write_kernel_header
from tracer.attach.loader import GENERATED, source
from tracer.attach.plan import StemPlan

FILES = [*sorted((PROBES / "include").glob("*.h")), *sorted(PROBES.glob("*.bpf.c"))]
NAMES = {path.name for path in FILES}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of kernel.h, as `make clangd` writes it, here of a kernel that has every lock."""
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


@pytest.mark.parametrize("path", FILES[: -len(list(PROBES.glob("*.bpf.c")))], ids=lambda p: p.name)
def test_header_has_an_include_guard(path: Path) -> None:
    guard = f"RMAPD_{path.name.upper().replace('.', '_')}"
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S).split()
    assert code[:4] == ["#ifndef", guard, "#define", guard]
    assert code[-1] == "#endif"


def test_source_has_each_header_once(tmp_path: Path) -> None:
    objects = [StemPlan(path.name, path) for path in sorted(PROBES.glob("*.bpf.c"))]
    text = source("/* generated */\n", objects, PROBES / "include")
    assert text.count("/* generated */") == 1
    assert "#include" not in text
    for name in NAMES:
        assert text.count(f'#line 1 "{name}"') == 1, name


def test_source_keeps_the_line_numbers_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner.h").write_text("int inner;\n")
    path = tmp_path / "outer.bpf.c"
    path.write_text('int first;\n#include "inner.h"\n#include "inner.h"\n#error here\n')
    text = source("", [StemPlan("outer", path)], tmp_path)
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-xc", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "outer.bpf.c:4:" in done.stderr


def test_common_h_includes_the_generated_header() -> None:
    assert f'#include "{GENERATED}"' in (PROBES / "include/common.h").read_text()
