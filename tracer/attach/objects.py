"""Objects of `rmapd compile`: programs that another machine compiled for a kernel's types.

A start that finds fitting ones in the cache needs neither BCC nor clang. They have the programs of
every probe object all of whose types the kernel has, since the other machine knows the kernel's
types, and not what it lets be hooked. An entry has the name of all that it was made of, so it fits
or is not found; what it was made for is in it for the message alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tracer import __version__
from tracer.attach import bcc_headers, plain_loads, resolver, translation_unit
from tracer.attach.clang_version import bcc_version, clang_version
from tracer.attach.compile_cache import SUFFIX, CacheEntry, CompileCache, MadeFor
from tracer.attach.compiler import Compiled, compile_in_child, entry_of, restored
from tracer.attach.plan import Plan, ProbeObjectPlan
from tracer.bpf.maps import possible_cpus
from tracer.errors import RmapdError, of_os
from tracer.kernel.btf import Btf
from tracer.kernel.running import Kernel

_FORMAT = 1
_NOWHERE = Path("/nonexistent")


@dataclass
class Objects:
    """What objects for a kernel are made of.

    kernel: its types, and whether it has plain loads. folders: of the probe objects. sizes: macro
    -> rows of a map.
    """

    kernel: Kernel
    folders: Sequence[Path]
    sizes: Mapping[str, int]

    @cached_property
    def plan(self) -> Plan:
        """The probe objects that the kernel's types allow."""
        return resolver.make_whole_plan(self.kernel, self.folders)

    @cached_property
    def text(self) -> str:
        """Their translation unit."""
        return self._source(self.plan.probe_objects)

    def _source(self, probe_objects: Sequence[ProbeObjectPlan]) -> str:
        include = self.folders[0] / "include"
        return translation_unit.source(self.plan.header, probe_objects, include)

    def name(self, cache: CompileCache) -> str:
        """Return the name of their entry."""
        flags = translation_unit.flags(self.sizes)
        return cache.name({"objects": _FORMAT, "text": self.text, "flags": flags}) + SUFFIX

    def made_for(self, compiler: str = "") -> MadeFor:
        """Return what their entry says of itself."""
        return MadeFor(
            __version__,
            _digest(self.folders),
            self.kernel.release,
            self.kernel.types.digest,
            dict(self.sizes),
            not self.kernel.plain_loads_refused,
            compiler,
        )

    def find(self, cache: CompileCache, usable: Sequence[ProbeObjectPlan]) -> Compiled | None:
        """Restore the programs, and the maps of the probe objects that are usable here.

        None where the cache has no objects that fit. Raises OSError where a map is refused.
        """
        if not cache.made_elsewhere():
            return None
        name = self.name(cache)
        entry = cache.read(name)
        if entry is None or entry.made_for is None:
            return None
        declared = translation_unit.declarations_of_maps(self._source(usable))
        origin = f"from {cache.folder / name[:12]}…{SUFFIX}: {described(entry.made_for)}"
        return restored(entry, possible_cpus(), origin, declared.__contains__)

    def misfits(self, cache: CompileCache) -> Iterator[str]:
        """Yield each of the cache's objects with the reason why it does not fit."""
        here = self.made_for()
        for name in cache.made_elsewhere():
            entry = cache.read(name)
            if entry is None:
                reason = "damaged, or another user may write to it or to its folder"
            elif entry.made_for is None:
                reason = "not made by rmapd compile"
            else:
                reason = misfit(entry.made_for, here)
            yield f"{cache.folder / name[:12]}…{SUFFIX}: {reason}"


def _digest(folders: Iterable[Path]) -> str:
    """Return a hash of the probe objects and their headers."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.glob("*.toml"), *folder.rglob("*.[ch]")]):
            found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def described(made: MadeFor) -> str:
    """Return what objects are made for, in a line."""
    loads = "with" if made.plain_loads else "without"
    return f"rmapd compile {made.rmapd} for {made.kernel}, {loads} plain loads ({made.compiler})"


def misfit(made: MadeFor, here: MadeFor) -> str:
    """Return why objects do not fit here; the first reason that makes them useless."""
    if made.rmapd != here.rmapd:
        return f"made by rmapd {made.rmapd}, this is {here.rmapd}"
    if made.sources != here.sources:
        return "made from other probes than this rmapd has"
    if made.types != here.types:
        return f"made for {made.kernel}, whose types (BTF) are not those of {here.kernel}"
    different = [
        f"{name.lower()} {made.sizes.get(name)} -> {size}"
        for name, size in here.sizes.items()
        if made.sizes.get(name) != size
    ]
    if different:
        return f"made with other [maps] in the configuration: {', '.join(different)}"
    if made.plain_loads != here.plain_loads:
        return f"made {'with' if made.plain_loads else 'without'} plain loads"
    return "made by another build of this version"


def for_types(
    types: Btf, name: str, folders: Sequence[Path], sizes: Mapping[str, int]
) -> list[Objects]:
    """Return what a kernel with these types may need: objects without and with plain loads.

    name: of the kernel or of the file with its types. A kernel may refuse plain loads that its
    types promise, so both are made.
    """
    lacking = plain_loads.lacking(types)
    refusals = [lacking] if lacking else ["", "left out"]

    def kernel(refused: str) -> Kernel:
        return Kernel(name, types, _NOWHERE, _NOWHERE, plain_load_probe=lambda _types: refused)

    return [Objects(kernel(refused), folders, sizes) for refused in refusals]


def make(objects: Objects, out: Path, headers: Path) -> Path:
    """Compile objects into a folder, and return the file. headers: an empty folder.

    The compiler makes their maps in the kernel of this machine for a moment, and loads no program.
    Raises RmapdError.
    """
    cache, text = CompileCache(out), objects.text
    bcc_headers.write(headers, objects.kernel)
    compiled = compile_in_child(
        text,
        translation_unit.flags(objects.sizes),
        translation_unit.functions(text),
        str(headers),
        possible_cpus(),
    )
    entry = entry_of(compiled)
    for table in compiled.maps.values():
        table.close()
    made = objects.made_for(f"BCC {bcc_version()}, {clang_version()}")
    name = objects.name(cache)
    try:
        cache.write_for_elsewhere(name, CacheEntry(entry.maps, entry.code, entry.types, made))
    except OSError as error:
        hint = "--out, with a folder that may be written to"
        raise of_os(error, f"cannot write the objects to {out}", hint) from error
    if cache.read(name) is None:
        raise RmapdError(
            f"the objects in {out} would not be used",
            why="the folder belongs to another user, or others may write to it",
            hint="--out, with a folder of root's that only root may write to",
        )
    return out / name
