"""The version of the kernel in the stub headers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tracer.attach import bcc_headers
from tracer.machine import x86_64


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-57-amd64", "6,1,0"),
        ("6.12.95+deb12-amd64", "6,12,95"),
        ("7.2", "7,2,0"),
        ("6.12.3_test", "6,12,3"),
        ("6.12.10_1", "6,12,10"),
        ("6.1~rc3", "6,1,3"),
        ("10vm.btf", "10,0,0"),
        ("vmlinux", "0,0,0"),
    ],
)
def test_every_release_and_file_name_has_a_version(
    tmp_path: Path, release: str, version: str
) -> None:
    kernel = SimpleNamespace(release=release, page_shift=12, machine=x86_64.MACHINE)
    bcc_headers.write(tmp_path, cast(Any, kernel))
    text = (tmp_path / "include/linux/version.h").read_text()
    assert f"LINUX_VERSION_CODE KERNEL_VERSION({version})" in text
