"""A load gets a share of what is free, in a cgroup where one can be made, and all is taken back."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import RmapdError
from tracer.soak import limits
from tracer.soak.limits import LEAST_BYTES, MOST_BYTES, Limits, clean, floor, meminfo, memory_limit
from tracer.soak.loads import Load, Part

GIB = 1 << 30
LIMITS = Limits(GIB, 200, GIB // 10)


def memory(total: int, free: int) -> dict[str, int]:
    return {"MemTotal": total, "MemAvailable": free}


def test_meminfo_is_in_bytes() -> None:
    assert meminfo("MemTotal:  24 kB\nHugePages_Total:  3\n")["MemTotal"] == 24 << 10
    assert meminfo()["MemTotal"] > meminfo()["MemAvailable"] > 0


@given(st.integers(GIB, 1 << 45), st.floats(0.2, 1))
def test_default_is_a_quarter_of_what_is_free_and_never_much(total: int, share: float) -> None:
    free = int(total * share)
    limit = memory_limit(None, memory(total, free))
    assert LEAST_BYTES <= limit <= MOST_BYTES
    assert limit <= free - floor(memory(total, free)), "the check of free memory has room"


def test_default_stays_the_same_while_free_memory_varies_a_little() -> None:
    found = {memory_limit(None, memory(16 * GIB, free * GIB // 10)) for free in range(81, 119)}
    assert found == {2 * GIB}
    assert memory_limit(None, memory(16 * GIB, 13 * GIB)) == 3 * GIB


@pytest.mark.parametrize(
    ("asked", "expected"), [("2G", 2 * GIB), ("512M", GIB // 2), ("50%", 4 * GIB), ("1GiB", GIB)]
)
def test_size_is_taken_as_it_is_asked_for(asked: str, expected: int) -> None:
    assert memory_limit(asked, memory(16 * GIB, 8 * GIB)) == expected


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("lots", "no size"),
        ("-1G", "no size"),
        ("1M", "too little"),
        ("8G", "too much"),
        ("99%", "too much"),
    ],
)
def test_size_that_the_machine_cannot_give_is_refused(asked: str, why: str) -> None:
    with pytest.raises(RmapdError, match=why):
        memory_limit(asked, memory(16 * GIB, 8 * GIB))


def test_load_does_not_start_where_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "meminfo", lambda: memory(4 * GIB, 4 * GIB // 20))
    with pytest.raises(RmapdError, match="too little memory is free"):
        limits.planned(None, None, "rmapd-soak-test")


def cgroup(root: Path, controllers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `root` be the cgroup v2 that is mounted."""
    (root / "cgroup.controllers").write_text(controllers)
    (root / "cgroup.subtree_control").write_text("")
    mounts = root / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup2 {root} cgroup2 rw 0 0\n")
    real = Path

    def path(*parts: str) -> Path:
        return mounts if parts == ("/proc/self/mounts",) else real(*parts)

    monkeypatch.setattr(limits, "Path", path)


def test_cgroup_has_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup(tmp_path, "cpu memory pids", monkeypatch)
    made = limits._made("rmapd-soak-1", LIMITS)  # noqa: SLF001
    assert made == tmp_path / "rmapd-soak-1"
    assert (made / "memory.max").read_text() == str(GIB)
    assert int((made / "memory.high").read_text()) < GIB, "reclaim begins before the limit"
    assert (made / "memory.swap.max").read_text() == str(GIB)
    assert (made / "pids.max").read_text() == "200"
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"


@pytest.mark.parametrize(
    ("controllers", "why"), [("cpu", "no controller memory and pids"), ("memory", "pids")]
)
def test_reason_why_there_is_no_cgroup_is_kept(
    controllers: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup(tmp_path, controllers, monkeypatch)
    found = limits.planned(None, None, "rmapd-soak-1")
    assert found.cgroup == ""
    assert why in found.why
    assert found.how == "rlimits and a check of free memory"
    assert not (tmp_path / "rmapd-soak-1").exists()


def test_no_cgroup_remains_that_cannot_be_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroup(tmp_path, "memory pids", monkeypatch)
    (tmp_path / "cgroup.subtree_control").unlink()
    (tmp_path / "cgroup.subtree_control").mkdir()
    assert "Is a directory" in limits.planned(None, None, "rmapd-soak-1").why
    assert not (tmp_path / "rmapd-soak-1").exists()


def test_settings_are_written_back_and_the_cgroup_is_removed(tmp_path: Path) -> None:
    setting, group = tmp_path / "run", tmp_path / "group"
    setting.write_text("0\n")
    group.mkdir()
    before = limits.read_settings({str(setting): "1", str(tmp_path / "absent"): "1"})
    assert before == {str(setting): "0"}
    limits.write_settings({str(setting): "1", str(tmp_path / "absent/x"): "1"})
    assert setting.read_text() == "1"
    clean("", before)
    assert setting.read_text() == "0"
    assert group.exists()
    clean(str(tmp_path / "absent"), {})


def test_settings_of_loads_raise_and_are_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pool, folder = tmp_path / "run", tmp_path / "nr_hugepages", tmp_path / "thp"
    folder.mkdir()
    run.write_text("0\n")
    (folder / "enabled").write_text("always [madvise] never\n")
    (folder / "scans").write_text("7\n")
    (folder / "scans").chmod(0o444)
    part = Part("p", "", python="vma_storm")
    load = Load(
        "",
        "",
        (part,),
        settings={str(run): "1"},
        at_least={str(pool): 16},
        restored=(f"{folder}/*",),
    )
    for there, size, expected in (
        ("3", 2 << 20, "16"),
        ("1024", 2 << 20, "1024"),
        ("3", 1 << 30, ""),
    ):
        pool.write_text(f"{there}\n")
        monkeypatch.setattr(limits, "meminfo", lambda size=size: {"Hugepagesize": size})
        settings, before = limits.settings_of([load], limits.Limits(1 << 30, 100, 1 << 28))
        assert settings == {str(run): "1"} | ({str(pool): expected} if expected else {})
        assert before == {str(run): "0", str(pool): there, str(folder / "enabled"): "madvise"}


def test_limit_is_not_above_that_of_the_cgroups_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    for folder, most, used in ((tmp_path / "a", 3 << 30, 1 << 30), (inner, "max", 5)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    assert limits.room_of("0::/a/b\n", tmp_path) == 2 << 30
    assert limits.room_of("0::/\n", tmp_path) is None
    assert limits.room_of("4:memory:/x\n", tmp_path) is None


def test_cgroup_that_stays_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_REMOVE_SECONDS", 0.1)
    group = tmp_path / "group"
    group.mkdir()
    with pytest.raises(RmapdError, match="cannot remove the cgroup"):
        clean(str(group), {})  # cgroup.kill, a regular file here, keeps the folder
    assert (group / "cgroup.kill").read_text() == "1"
    clean(str(group), {}, remove=False)


def test_worker_without_a_cgroup_has_rlimits() -> None:
    code = (
        "import resource; from tracer.soak.limits import limit_worker;"
        "limit_worker(100 << 20, 99, shared={shared}, root=False);"
        "print(*(resource.getrlimit(one)[0] for one in"
        " (resource.RLIMIT_CORE, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE,"
        " resource.RLIMIT_NPROC)))"
    )

    def found(shared: bool) -> list[int]:
        command = [sys.executable, "-c", code.format(shared=shared)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [*map(int, done.stdout.split())]

    assert found(shared=False) == [0, 456 << 20, 100 << 20, 99]
    assert found(shared=True)[0] == 0
    assert found(shared=True)[1] == resource.getrlimit(resource.RLIMIT_DATA)[0]
