"""Compile, load, attach, detach. The only module that imports bcc; what leaves it are maps and programs by file descriptor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer import stubs
from tracer.bpf import Iterated, Link, Map, Program, Ring, RunStatistics, enable_statistics
from tracer.errors import RmapdError
from tracer.plan import Plan, Planned, State, StemPlan

_RAW_TRACEPOINT, _TRACING = 17, 26
_DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"


@dataclass
class Loaded:
    """What runs in the kernel. Close it (or die) and nothing of it remains."""

    hooks: list[Planned] = field(default_factory=list)
    maps: dict[str, Map] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    _links: list[Link] = field(default_factory=list)
    _statistics: int = -1

    def iterator(self, name: str) -> Iterated | None:
        hook = next((h for h in self.hooks if h.hook.name == name), None)
        if hook is None or hook.state not in (State.ATTACHED, State.SUBSTITUTED):
            return None
        return next((link for link in self._links if isinstance(link, Iterated)), None)

    def attached(self) -> frozenset[str]:
        return frozenset(h.hook.name for h in self.hooks if h.state in (State.ATTACHED, State.SUBSTITUTED))

    def statistics(self) -> dict[str, RunStatistics]:
        """By hook name."""
        return {name: program.statistics() for name, program in self.programs.items()}

    def ring(self, name: str) -> Ring:
        ring = self.maps[name]
        return Ring(ring.fd, ring.max_entries)

    def close(self) -> None:
        """Detach everything, then let go of programs and maps."""
        for link in reversed(self._links):
            link.close()
        for program in self.programs.values():
            program.close()
        for table in self.maps.values():
            table.close()
        if self._statistics >= 0:
            os.close(self._statistics)
        self._links, self.programs, self.maps, self._statistics = [], {}, {}, -1

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load(plan: Plan, include: Path, release: str, sizes: Mapping[str, int], *, statistics: bool) -> Loaded:
    """Compile all stems at once and attach what resolved. A stem that does not compile costs its own hooks only."""
    bcc = _import_bcc()
    loaded = Loaded()
    usable = [stem for stem in plan.stems if any(hook.state is State.READY for hook in stem.hooks)]
    with tempfile.TemporaryDirectory(prefix="rmapd-") as folder:
        stubs.write(Path(folder), release)
        os.environ["BCC_KERNEL_SOURCE"] = folder
        try:
            module = _compile(bcc, plan.header, usable, include, sizes)
        except RmapdError:
            loaded.broken = _broken_stems(bcc, plan.header, usable, include, sizes)
            usable = [stem for stem in usable if stem.name not in loaded.broken]
            if not usable:
                raise
            module = _compile(bcc, plan.header, usable, include, sizes)
        try:
            _take(bcc, module, plan.stems, loaded, statistics=statistics)
        except BaseException:
            loaded.close()
            raise
        finally:
            module.cleanup()
    _give_memory_back()
    return loaded


def _import_bcc() -> Any:
    if _DEBIAN_PACKAGES not in sys.path:
        sys.path.append(_DEBIAN_PACKAGES)
    try:
        import bcc
    except (ImportError, OSError) as error:
        raise RmapdError(
            "cannot import bcc",
            why=str(error),
            hint="apt-get install python3-bpfcc, and a virtual environment made with --system-site-packages over /usr/bin/python3",
        ) from error
    return bcc


def source(header: str, stems: Sequence[StemPlan], include: Path) -> str:
    """The one translation unit: what all share, then each stem."""
    parts = []
    for name in ("books.h", "rmapd.h", "walk.h"):
        parts.append(f'#line 1 "{name}"\n{(include / name).read_text()}')
    parts[2:2] = [f'#line 1 "types sliced from BTF"\n{header}']
    parts += [f'#line 1 "{stem.source.name}"\n{stem.source.read_text()}' for stem in stems]
    return "\n".join(parts)


def _compile(bcc: Any, header: str, stems: Sequence[StemPlan], include: Path, sizes: Mapping[str, int]) -> Any:
    flags = [f"-D{name}={value}" for name, value in sizes.items()] + ["-w"]
    with _captured_stderr() as said:
        try:
            return bcc.BPF(text=source(header, stems, include).encode(), cflags=flags)
        except Exception as error:  # bcc raises bare Exception
            why = _first_error(said()) or str(error)
    names = ", ".join(f"{stem.name}.bpf.c" for stem in stems)
    raise RmapdError(f"cannot compile {names}", why=why, hint="rmapd doctor, or reinstall rmapd")


def _broken_stems(bcc: Any, header: str, stems: Sequence[StemPlan], include: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    broken = {}
    for stem in stems:
        try:
            _compile(bcc, header, [stem], include, sizes).cleanup()
        except RmapdError as error:
            broken[stem.name] = error.why
    return broken


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """clang and the verifier write to file descriptor 2: keep that for the message, off the user's terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return lines[0] if lines else ""


def _verifier_reason(text: str) -> str:
    """The verifier's last words before its statistics."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("processed ")]
    return lines[-1] if lines else ""


def _take(bcc: Any, module: Any, stems: Sequence[StemPlan], loaded: Loaded, *, statistics: bool) -> None:
    library = bcc.lib
    library.bpf_table_name.restype = ctypes.c_char_p
    cpus = _possible_cpus()
    for index in range(library.bpf_num_tables(module.module)):
        name = library.bpf_table_name(module.module, index).decode()
        loaded.maps[name] = Map(
            os.dup(library.bpf_table_fd_id(module.module, index)),
            library.bpf_table_type_id(module.module, index),
            library.bpf_table_key_size_id(module.module, index),
            library.bpf_table_leaf_size_id(module.module, index),
            library.bpf_table_max_entries_id(module.module, index),
            cpus,
        )
    if statistics:
        with contextlib.suppress(OSError):
            loaded._statistics = enable_statistics()
    for stem in stems:
        for hook in stem.hooks:
            if hook.state is State.READY and stem.name in loaded.broken:
                reason = f"{stem.name}.bpf.c does not compile: {loaded.broken[stem.name]}"
                loaded.hooks.append(hook.outcome(State.MISSING, reason))
            elif hook.state is State.READY:
                loaded.hooks.append(_load_hook(module, hook, loaded))
            else:
                loaded.hooks.append(hook)


def _load_hook(module: Any, hook: Planned, loaded: Loaded) -> Planned:
    kind = _TRACING if hook.how == "iter" else _RAW_TRACEPOINT
    if hook.how not in ("raw_tp", "iter", "run"):
        return hook.outcome(State.MISSING, f"this version of rmapd has no {hook.how} attachment yet")
    with _captured_stderr() as said:
        try:
            function = module.load_func(hook.program.encode(), kind)
        except Exception as error:  # bcc raises bare Exception
            return hook.outcome(State.DENIED, f"refused at load: {_verifier_reason(said()) or error}")
    program = Program(os.dup(function.fd))
    loaded.programs[hook.hook.name] = program
    try:
        if hook.how == "raw_tp":
            loaded._links.append(program.attach_raw_tracepoint(hook.symbol))
        elif hook.how == "iter":
            loaded._links.append(program.attach_iterator())
    except OSError as error:
        return hook.outcome(State.DENIED, f"refused at attach: {error.strerror}")
    return hook.outcome(State.ATTACHED)


def _possible_cpus() -> int:
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(re.split("-", last)[-1]) + 1


def _give_memory_back() -> None:
    """The compiler leaves tens of megabytes of freed memory in malloc's arenas."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
