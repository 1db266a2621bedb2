"""What the guests are started with."""

from __future__ import annotations

import pytest

from tests.vm import arm64
from tests.vm.guest import kernels, known
from tests.vm.machine import Machine


def test_kernels_of_an_architecture_are_not_among_those_of_another() -> None:
    assert {entry.arch for entry in kernels().values()} == {"amd64"}
    assert {*known()} == {*kernels()} | {*kernels("arm64")}


@pytest.mark.parametrize("name", kernels("arm64"))
def test_kernel_for_arm64_says_so_in_its_name_and_names_its_suite(name: str) -> None:
    entry = kernels("arm64")[name]
    assert name.endswith("-arm64")
    assert "arm64" in entry.package
    assert entry.suite


def test_memory_and_cpus_are_spread_over_the_nodes() -> None:
    options = arm64.numa(Machine("4G", 2, 3, [], ""))
    assert options[1::2] == [
        "memory-backend-ram,id=memory0,size=2048M",
        "node,nodeid=0,memdev=memory0",
        "cpu,node-id=0,core-id=0",
        "cpu,node-id=0,core-id=2",
        "memory-backend-ram,id=memory1,size=2048M",
        "node,nodeid=1,memdev=memory1",
        "cpu,node-id=1,core-id=1",
    ]
    assert arm64.numa(Machine("4G", 1, 3, [], "")) == []
