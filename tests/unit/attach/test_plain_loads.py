"""Where programs load kernel memory, and where they read it by a helper."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.btf_blob import Blob
from tests.support.native import PROBES, synthetic_kernel
from tracer.attach import plain_loads, resolver
from tracer.attach.relocations import FIRST_KFUNC
from tracer.bpf import programs
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel


def types(*, cast: bool = True, number: bool = True, young: bool = True) -> tuple[Btf, int, int]:
    """Return BTF with these, and their ids."""
    blob = Blob()
    s64 = blob.integer("long long", 8, signed=True)
    counter = blob.record("", 8, [("counter", s64, 0)])
    if number:
        blob.typedef("atomic64_t", blob.typedef("inner_t", counter))
    kfunc = (
        blob.function("bpf_rdonly_cast", {"obj__ign": s64, "btf_id__k": s64}, s64) if cast else 0
    )
    if young:
        blob.function("bpf_preempt_disable", {}, 0)
    return Btf(blob.bytes()), kfunc, counter


def kernel(made: Btf, refused: str) -> Kernel:
    return Kernel("test", made, Path("/nonexistent"), plain_load_probe=lambda _types: refused)


def test_header_names_the_kfunc_and_the_struct_behind_the_typedef() -> None:
    made, kfunc, counter = types()
    assert plain_loads.header(kernel(made, "")) == (
        f"#define RDONLY_CAST {FIRST_KFUNC + kfunc}\n#define RDONLY_TYPE {counter}\n"
    )


def test_kernel_that_refuses_plain_loads_has_no_header() -> None:
    made, _, _ = types()
    assert not plain_loads.header(kernel(made, "plain loads are refused"))


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        ({"cast": False}, "bpf_rdonly_cast"),
        ({"number": False}, "atomic64_t"),
        ({"young": False}, "bpf_preempt_disable"),
    ],
)
def test_kernel_without_one_of_them_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], lacks: str
) -> None:
    monkeypatch.delattr(programs, "plain_load_refused")
    assert plain_loads.refused(types(**has)[0]).endswith(f"no {lacks} in this kernel's BTF")


def test_kernel_with_all_is_asked_with_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kfunc, counter = types()
    monkeypatch.setattr(programs, "plain_load_refused", lambda *ids: str(ids))
    assert plain_loads.refused(made) == str((kfunc, counter))


def test_plan_has_the_header_only_where_plain_loads_are_taken() -> None:
    """The harness's kernel is not asked: its programs read by the helper."""
    made = synthetic_kernel()
    assert "RDONLY_CAST" not in resolver.make_plan(made, [PROBES]).header
    made.__dict__["plain_loads_refused"] = ""
    assert "#define RDONLY_CAST" in resolver.make_plan(made, [PROBES]).header
