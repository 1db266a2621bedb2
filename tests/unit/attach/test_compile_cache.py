"""Cached programs are trusted only if no other user can have written or changed them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tracer.attach.compile_cache import CacheEntry, CompileCache, MapShape, compiler_identity

ENTRY = CacheEntry(
    {"ledger": MapShape(1, 32, 96, 1024, 0), "states": MapShape(29, 4, 8, 0, 1, 2, 3)},
    {"rmapd_walk": b"\x95" + bytes(7)},
    b"\x9f\xeb",
)


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "cache")


def written(cache: CompileCache, **made_of: object) -> tuple[str, Path]:
    name = cache.name(made_of or {"text": "int x;"})
    cache.write(name, ENTRY)
    return name, cache.folder / name


def test_written_entry_is_read_back(cache: CompileCache) -> None:
    name, path = written(cache)
    assert cache.read(name) == ENTRY
    assert (cache.folder.stat().st_mode & 0o777, path.stat().st_mode & 0o077) == (0o700, 0)
    assert cache.read(cache.name({"text": "int y;"})) is None


def test_name_depends_on_all_that_an_entry_is_made_of(cache: CompileCache) -> None:
    assert cache.name({"a": 1, "b": [2]}) == cache.name({"b": [2], "a": 1})
    assert (
        len(
            {
                cache.name(made)
                for made in (
                    {"a": 1, "b": [2]},
                    {"a": 1, "b": [3]},
                    {"a": 2, "b": [2]},
                    {"a": "1", "b": [2]},
                )
            }
        )
        == 4
    )


def test_damaged_entry_counts_as_absent(cache: CompileCache) -> None:
    name, path = written(cache)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b"", whole[:20]):
        path.write_bytes(damaged)
        assert cache.read(name) is None
    path.write_bytes(whole)
    assert cache.read(name) == ENTRY


def test_renamed_entry_counts_as_absent(cache: CompileCache) -> None:
    """Renamed, it would be believed to be something else."""
    name, path = written(cache)
    other = cache.name({"text": "other"})
    path.rename(path.with_name(other))
    assert cache.read(other) is None
    assert cache.read(name) is None


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_entry_that_others_may_write_is_not_trusted(cache: CompileCache, mode: int) -> None:
    name, path = written(cache)
    path.chmod(mode)
    assert cache.read(name) is None
    path.chmod(0o600)
    assert cache.read(name) == ENTRY
    cache.folder.chmod(mode)
    assert cache.read(name) is None
    path.unlink()
    cache.write(name, ENTRY)
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_entry_of_another_user_is_not_trusted(cache: CompileCache) -> None:
    name, path = written(cache)
    os.chown(path, 12345, -1)
    assert cache.read(name) is None


def test_symbolic_link_is_not_followed(cache: CompileCache, tmp_path: Path) -> None:
    name, path = written(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.read(name) is None
    linked = CompileCache(tmp_path / "link")
    linked.folder.symlink_to(cache.folder)
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    assert linked.read(name) is None


def test_impossible_folder_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = CompileCache(tmp_path / "file/cache")
    cache.write("x", ENTRY)
    assert cache.read("x") is None


def test_oldest_entries_are_removed(cache: CompileCache) -> None:
    names = []
    for n in range(12):
        name, path = written(cache, number=n)
        os.utime(path, (n, n))
        names.append(name)
    assert [cache.read(name) is not None for name in names] == [False] * 4 + [True] * 8


def test_changed_compiler_changes_its_identity(tmp_path: Path) -> None:
    library = tmp_path / "libbcc.so.0"
    assert compiler_identity([str(library)]) == []
    library.write_text("one")
    before = compiler_identity([str(library)])
    library.write_text("other")
    assert before != compiler_identity([str(library)])


def test_files_of_others_in_the_folder_stay(cache: CompileCache) -> None:
    """`cache` may name any folder of root's."""
    cache.folder.mkdir(mode=0o700)
    others = [cache.folder / name for name in ("notes.txt", "vmlinux.objects", "a" * 63)]
    for number, path in enumerate(others):
        path.write_text("mine")
        os.utime(path, (number, number))
    for number in range(12):
        written(cache, text=number)
    assert all(path.read_text() == "mine" for path in others)
    assert len([*cache.folder.iterdir()]) == len(others) + 8


def test_entry_that_cannot_be_written_leaves_no_file(
    cache: CompileCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    written(cache)
    assert not [*cache.folder.iterdir()]
