"""The compiler, in a process of its own: bcc and clang need some 150 MB and may crash; neither is the daemon's affair.

The only module that imports bcc. The parent hands a request (JSON: text, flags, programs) to standard input. The answer comes through
a Unix socket: eight bytes of length, JSON (maps by name with their sizes, instructions by program), then the maps' file descriptors.
The instructions name maps by the child's descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.attach.compile_cache import Cache, CacheEntry, MapShape, compiler_identity
from tracer.attach.relocations import WIDE, instructions
from tracer.bpf.maps import Map, create_map, load_types, shape_of, types_of
from tracer.errors import RmapdError, Temporary
from tracer.process.fd_passing import died, exactly, receive_descriptors, send_descriptors

log = logging.getLogger("rmapd")

_DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"
_PSEUDO_MAP_FD = 1


@dataclass
class Compiled:
    """What a compilation leaves: maps that exist in the kernel, and instructions that name them by our file descriptors."""

    maps: dict[str, Map]
    code: dict[str, bytes]


def compile_text(
    text: str,
    flags: Sequence[str],
    programs: Iterable[str],
    headers: str,
    cpus: int,
    cache: Cache | None = None,
) -> Compiled:
    """One translation unit, compiled or (with a cache) taken from what was compiled before. `headers` is the stub header tree.
    RmapdError with clang's first error."""
    wanted, compiler = sorted(set(programs)), compiler_identity()
    if cache is None or not compiler:
        return _compile(text, flags, wanted, headers, cpus)
    kernel = os.uname()
    name = cache.name(
        {
            "text": text,
            "flags": list(flags),
            "programs": wanted,
            "compiler": compiler,
            "kernel": [*kernel[2:4]],
        }
    )
    entry = cache.read(name)
    if entry:
        try:
            return _restored(entry, cpus)
        except OSError as error:
            log.info("what was compiled before does not load (%s): compiled anew", error)
    compiled = _compile(text, flags, wanted, headers, cpus)
    with contextlib.suppress(OSError):
        cache.write(name, _entry(compiled))
    return compiled


def _entry(compiled: Compiled) -> CacheEntry:
    """For the cache: maps as they were created, and numbers instead of our file descriptors."""
    shapes, numbers, types = {}, {}, set[int]()
    for number, (name, table) in enumerate(compiled.maps.items()):
        kind, key_size, value_size, rows, flags, btf_id, key_type, value_type = shape_of(table.fd)
        shapes[name] = MapShape(kind, key_size, value_size, rows, flags, key_type, value_type)
        numbers[table.fd] = number
        types |= {btf_id} - {0}
    blob = types_of(types.pop()) if types else b""
    return CacheEntry(
        shapes, {name: _with_our_maps(code, numbers) for name, code in compiled.code.items()}, blob
    )


def _restored(entry: CacheEntry, cpus: int) -> Compiled:
    """New maps of the same shapes, and the instructions with their file descriptors."""
    maps, fds = dict[str, Map](), dict[int, int]()
    btf = load_types(entry.types) if entry.types else 0
    try:
        for number, (name, shape) in enumerate(entry.maps.items()):
            sizes, typed = (
                (shape.key_size, shape.value_size, shape.max_entries),
                bool(shape.value_type),
            )
            types = (btf, shape.key_type, shape.value_type) if typed else (0, 0, 0)
            fds[number] = create_map(name, shape.kind, sizes, shape.flags, types)
            maps[name] = Map(fds[number], shape.kind, *sizes, cpus)
    except OSError:
        for table in maps.values():
            table.close()
        raise
    finally:
        if btf:
            os.close(btf)
    return Compiled(maps, {name: _with_our_maps(code, fds) for name, code in entry.code.items()})


def _compile(
    text: str, flags: Sequence[str], programs: Sequence[str], headers: str, cpus: int
) -> Compiled:
    """In a child."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as request:
        request.write(
            json.dumps({"text": text, "flags": list(flags), "programs": programs}).encode()
        )
        request.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "tracer.attach.compiler", str(theirs.fileno())],
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=said,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "BCC_KERNEL_SOURCE": headers,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        theirs.close()
        answer = _answer(ours)
        fds = receive_descriptors(ours, len(answer["maps"])) if answer and "maps" in answer else []
        code = child.wait()
        said.seek(0)
        complaint = said.read().decode(errors="replace")
    if answer is None:
        if complaint:
            log.error("the compiler's last words: %s", complaint[-4000:])
        raise died(
            "the compiler gave no answer",
            code,
            "the same again later; it needs 150 MB",
            _last_line(complaint),
        )
    if "error" in answer:
        kind = (
            Temporary if os.strerror(errno.ENOMEM) in complaint else RmapdError
        )  # bcc prints what the kernel says of a map
        raise kind(
            answer["error"], why=_first_error(complaint) or answer["why"], hint=answer["hint"]
        )
    maps, ours_by_theirs = {}, {}
    for fd, (name, (their_fd, kind, key_size, value_size, rows)) in zip(
        fds, answer["maps"].items(), strict=True
    ):
        maps[name] = Map(fd, kind, key_size, value_size, rows, cpus)
        ours_by_theirs[their_fd] = fd
    return Compiled(
        maps,
        {
            name: _with_our_maps(bytes.fromhex(found), ours_by_theirs)
            for name, found in answer["code"].items()
        },
    )


def _answer(ours: socket.socket) -> Any:
    """None where the child died before it answered."""
    head = exactly(ours, 8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    text = exactly(ours, size)
    return json.loads(text) if size and len(text) == size else None


def _with_our_maps(code: bytes, ours: Mapping[int, int]) -> bytes:
    out = bytearray(code)
    for at, (opcode, registers, _, immediate) in instructions(code):
        if opcode == WIDE and registers >> 4 == _PSEUDO_MAP_FD:
            struct.pack_into("<i", out, at + 4, ours[immediate])
    return bytes(out)


def _first_error(complaint: str) -> str:
    return next((line.strip() for line in complaint.splitlines() if "error:" in line), "")


def _last_line(complaint: str) -> str:
    return next((line.strip() for line in reversed(complaint.splitlines()) if line.strip()), "")


def main(descriptor: int) -> None:
    """The child's side."""
    theirs = socket.socket(fileno=descriptor)
    request = json.load(sys.stdin)
    answer, fds, keep = _compiled(request)
    data = json.dumps(answer).encode()
    theirs.sendall(struct.pack("<Q", len(data)) + data)
    send_descriptors(theirs, fds)
    theirs.close()
    del keep


def _compiled(request: dict[str, Any]) -> tuple[dict[str, Any], list[int], Any]:
    """(answer, file descriptors, what must live until they are sent)."""
    if _DEBIAN_PACKAGES not in sys.path:
        sys.path.append(_DEBIAN_PACKAGES)
    try:
        import bcc
    except (ImportError, OSError) as error:
        hint = "apt-get install python3-bpfcc, and a virtual environment made with --system-site-packages over /usr/bin/python3"
        return {"error": "cannot import bcc", "why": str(error), "hint": hint}, [], None
    try:
        unit = bcc.BPF(text=request["text"].encode(), cflags=request["flags"])
    except Exception as error:  # bcc raises bare Exception
        return (
            {
                "error": "cannot compile the probes",
                "why": str(error),
                "hint": "rmapd doctor, or reinstall rmapd",
            },
            [],
            None,
        )
    library, module = bcc.lib, unit.module
    library.bpf_table_name.restype = ctypes.c_char_p
    tables = range(library.bpf_num_tables(module))
    sizes = (
        library.bpf_table_type_id,
        library.bpf_table_key_size_id,
        library.bpf_table_leaf_size_id,
        library.bpf_table_max_entries_id,
    )
    fds = [library.bpf_table_fd_id(module, n) for n in tables]
    maps = {
        library.bpf_table_name(module, n).decode(): [fds[n], *(size(module, n) for size in sizes)]
        for n in tables
    }
    code = {}
    for name in request["programs"]:
        start = library.bpf_function_start(module, name.encode())
        if start:
            code[name] = ctypes.string_at(
                start, library.bpf_function_size(module, name.encode())
            ).hex()
    return {"maps": maps, "code": code}, fds, unit


if __name__ == "__main__":
    main(int(sys.argv[1]))
