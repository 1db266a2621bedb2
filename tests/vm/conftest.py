"""The fault module, built once for the tests that load it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.guest import faults, headers


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not headers().exists() and os.environ.get("RMAPD_REQUIRE_KERNEL") != "1":
        pytest.skip(f"no {headers()}: make vm-setup")
    return faults(tmp_path_factory.mktemp("faults"))
