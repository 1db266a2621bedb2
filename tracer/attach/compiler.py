"""Compile in a process of its own: bcc and clang take some 150 MB, and may crash.

This is the only module that imports bcc. The parent writes a request (JSON: text, flags, programs)
to the child's standard input. The reply comes through a Unix socket: eight bytes of length, JSON
(maps by name with their sizes, instructions by program), then the maps' file descriptors. The
instructions name maps by the child's descriptors.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracer.attach.compile_cache import CacheEntry, CompileCache, MapShape, compiler_identity
from tracer.attach.relocations import WIDE, instructions
from tracer.bpf.maps import Map, btf_of, create_map, load_btf, map_info
from tracer.errors import RmapdError, Temporary
from tracer.process.fd_passing import (
    death_error,
    receive_descriptors,
    receive_exactly,
    send_descriptors,
)

log = logging.getLogger("rmapd")

DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"
_PSEUDO_MAP_FD = 1  # BPF_PSEUDO_MAP_FD: the immediate is a map's descriptor
_MEMORY = "the same again later; it needs 150 MB"


@dataclass
class Compiled:
    """The result of a compilation: maps that the kernel has, and instructions by program.

    The instructions name maps by this process's file descriptors. origin: where it is from.
    """

    maps: dict[str, Map]
    code: dict[str, bytes]
    origin: str = "compiled at this start"


class NoCompiler(RmapdError):
    """BCC is not installed, or cannot be imported."""


def compile_text(
    text: str,
    flags: Sequence[str],
    programs: Iterable[str],
    headers: str,
    cpus: int,
    cache: CompileCache | None = None,
) -> Compiled:
    """Compile one translation unit, or take it from the cache.

    flags: for clang. programs: names of the C functions that are wanted. headers: the folder that
    bcc_headers.write() filled. cpus: possible_cpus(). Raises RmapdError with clang's first error,
    Temporary where memory is short, Defect where the compiler crashed.
    """
    wanted, compiler = sorted(set(programs)), compiler_identity()
    if cache is None or not compiler:
        return compile_in_child(text, flags, wanted, headers, cpus)
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
            return restored(entry, cpus, f"compiled at an earlier start ({cache.folder})")
        except OSError as error:
            log.info("the cached programs do not load (%s): compiled anew", error)
    compiled = compile_in_child(text, flags, wanted, headers, cpus)
    with contextlib.suppress(OSError):
        cache.write(name, entry_of(compiled))
    return compiled


def entry_of(compiled: Compiled) -> CacheEntry:
    """Return what the cache keeps: maps as they were created, and their numbers in the code."""
    shapes, numbers, types = {}, {}, set[int]()
    for number, (name, table) in enumerate(compiled.maps.items()):
        info = map_info(table.fd)
        sizes = info.key_size, info.value_size, info.max_entries
        shapes[name] = MapShape(info.kind, *sizes, info.flags, info.key_type, info.value_type)
        numbers[table.fd] = number
        types |= {info.btf_id} - {0}
    blob = btf_of(types.pop()) if types else b""
    return CacheEntry(
        shapes, {name: _with_our_maps(code, numbers) for name, code in compiled.code.items()}, blob
    )


def _any(_name: str) -> bool:
    return True


def restored(
    entry: CacheEntry, cpus: int, origin: str, needed: Callable[[str], bool] = _any
) -> Compiled:
    """Create the maps of an entry anew, and write their descriptors into its code.

    needed: whether a map is to be created; programs that name another one are left out.
    """
    maps, fds = dict[str, Map](), dict[int, int]()
    btf = load_btf(entry.types) if entry.types else 0
    try:
        for number, (name, shape) in enumerate(entry.maps.items()):
            if not needed(name):
                continue
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
    code = {
        name: _with_our_maps(code, fds)
        for name, code in entry.code.items()
        if _maps_named(code) <= fds.keys()
    }
    return Compiled(maps, code, origin)


def compile_in_child(
    text: str, flags: Sequence[str], programs: Sequence[str], headers: str, cpus: int
) -> Compiled:
    """Run a compiler process; arguments and errors are those of compile_text()."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as request:
        request.write(
            json.dumps({"text": text, "flags": list(flags), "programs": programs}).encode()
        )
        request.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tracer.attach.compiler", str(theirs.fileno())],
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[theirs.fileno()],
            env={
                **os.environ,
                "BCC_KERNEL_SOURCE": headers,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )
        theirs.close()
        reply = _reply(ours)
        fds = receive_descriptors(ours, len(reply["maps"])) if reply and "maps" in reply else []
        code = child.wait()
        stderr.seek(0)
        messages = stderr.read().decode(errors="replace")
    if reply is None:
        if messages:
            log.error("the compiler's last messages: %s", messages[-4000:])
        raise death_error("the compiler gave no answer", code, _MEMORY, _last_line(messages))
    if "error" in reply:
        # bcc prints the kernel's error where a map cannot be created
        memory = os.strerror(errno.ENOMEM) in messages
        kind = NoCompiler if reply.get("missing") else Temporary if memory else RmapdError
        reason = _first_error(messages) or reply["why"]
        raise kind(reply["error"], why=reason, hint=reply["hint"])
    maps, ours_by_theirs = {}, {}
    for fd, (name, shape) in zip(fds, reply["maps"].items(), strict=True):
        their_fd, kind_of_map, key_size, value_size, rows = shape
        maps[name] = Map(fd, kind_of_map, key_size, value_size, rows, cpus)
        ours_by_theirs[their_fd] = fd
    found = {name: bytes.fromhex(text) for name, text in reply["code"].items()}
    return Compiled(
        maps, {name: _with_our_maps(code, ours_by_theirs) for name, code in found.items()}
    )


def _reply(ours: socket.socket) -> Any:
    """Return the child's reply; None where it died before it gave one."""
    head = receive_exactly(ours, 8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    text = receive_exactly(ours, size)
    return json.loads(text) if size and len(text) == size else None


def _maps_named(code: bytes) -> set[int]:
    """Return the numbers of the maps that the instructions name."""
    return {
        immediate
        for _, (opcode, registers, _, immediate) in instructions(code)
        if opcode == WIDE and registers >> 4 == _PSEUDO_MAP_FD
    }


def _with_our_maps(code: bytes, ours: Mapping[int, int]) -> bytes:
    """Return the instructions with other numbers of maps. ours: number in the code -> number."""
    out = bytearray(code)
    for at, (opcode, registers, _, immediate) in instructions(code):
        if opcode == WIDE and registers >> 4 == _PSEUDO_MAP_FD:
            struct.pack_into("<i", out, at + 4, ours[immediate])
    return bytes(out)


def _first_error(messages: str) -> str:
    return next((line.strip() for line in messages.splitlines() if "error:" in line), "")


def _last_line(messages: str) -> str:
    return next((line.strip() for line in reversed(messages.splitlines()) if line.strip()), "")


def main(descriptor: int) -> None:
    """Run the child. descriptor: of its socket."""
    parent = socket.socket(fileno=descriptor)
    request = json.load(sys.stdin)
    reply, fds, unit = _compiled(request)
    data = json.dumps(reply).encode()
    parent.sendall(struct.pack("<Q", len(data)) + data)
    send_descriptors(parent, fds)
    parent.close()
    del unit  # which closes the maps


def _compiled(request: dict[str, Any]) -> tuple[dict[str, Any], list[int], Any]:
    """Return (the reply, descriptors of the maps, the object that keeps these open)."""
    if DEBIAN_PACKAGES not in sys.path:
        sys.path.append(DEBIAN_PACKAGES)
    try:
        import bcc
    except (ImportError, OSError) as error:
        hint = (
            "apt-get install python3-bpfcc, and a virtual environment made with "
            "--system-site-packages over /usr/bin/python3"
        )
        reply = {"error": "cannot import bcc", "why": str(error), "hint": hint, "missing": True}
        return reply, [], None
    try:
        unit = bcc.BPF(text=request["text"].encode(), cflags=request["flags"])
    except Exception as error:  # bcc raises Exception itself
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
