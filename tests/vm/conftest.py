"""The fault module, built once for the tests that load it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.modules import built


@pytest.fixture(scope="session")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("6.1", "rmapd_faults", tmp_path_factory.mktemp("faults"))
