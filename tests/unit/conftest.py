"""Unit tests run in parallel workers, in random order."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example takes long: that is no fault of the code.
settings.register_profile("rmapd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rmapd")


def _encodable(data: Any) -> Any:
    """Escape lone surrogates in every string of a report."""
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {_encodable(key): _encodable(value) for key, value in data.items()}
    return type(data)(map(_encodable, data)) if isinstance(data, (list, tuple)) else data


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Make a worker's report UTF-8: xdist cannot send the lone surrogates that tests log."""
    return _encodable((yield))
