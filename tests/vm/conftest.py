"""The fault module, built once for the tests that load it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.vm.modules import built

FAULTY = os.environ.get("RMAPD_VM_FAULTS") or "6.1"
"""The kernel of the guests that break rules on purpose."""


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(FAULTY, "rmapd_faults", tmp_path_factory.mktemp("faults"))
