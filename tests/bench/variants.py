"""The tracers that are measured.

They are rmapd at each fidelity, one family of its hooks, empty programs at its hooks, and none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tracer.attach import loader, plan, resolver
from tracer.attach.attached import AttachedProbes, attach_all, detach_all
from tracer.bpf.programs import enable_statistics
from tracer.bpf.syscall import object_info
from tracer.config import Config
from tracer.daemon.probes import probes_folder
from tracer.daemon.session import Session, open_session
from tracer.daemon.snapshots import caught_up
from tracer.kernel.running import Kernel
from tracer.tables.c_structs import Layouts
from tracer.tables.params import Params

FAMILIES: dict[str, frozenset[str]] = {
    "mmap_lock": frozenset({"mmap_lock"}),
    "ledger": frozenset({"migration", "ledger"}),
    "vma": frozenset({"vma"}),
    "locks": frozenset({"vma", "locks"}),
    "rmap": frozenset({"vma", "rmap"}),
}
"""A probe object alone, or with the one that it needs."""
_BRIEF_SECONDS = 0.02
_INFO_BYTES, _TAG = 16, slice(8, 16)  # of struct bpf_prog_info


class Nothing:
    """No tracer: the baseline of all others."""

    name = "none"

    @contextlib.contextmanager
    def on(self) -> Iterator[Nothing]:
        yield self

    def meanwhile(self) -> None:
        time.sleep(_BRIEF_SECONDS)

    def cpu_seconds(self) -> float:
        return 0.0

    def facts(self) -> Mapping[str, object]:
        return {}

    def program_ids(self) -> set[int]:
        """Return the ids of its BPF programs in this kernel."""
        return set()

    def tags(self) -> dict[str, str]:
        """Return what each of its BPF programs is, by its tag in /proc/kallsyms."""
        return {}

    def close(self) -> None:
        pass


class Attachable(Nothing):
    """Loaded programs that are attached only while they are measured."""

    def __init__(self, name: str, loaded: AttachedProbes, *, statistics: bool = False) -> None:
        self.name, self._loaded, self._statistics = name, loaded, statistics
        self._params = Params(loaded.maps, Layouts.read(probes_folder() / "include/shared.h"))
        self._params.set(gate=0)
        self._passed = [
            loaded.points[hook.hook.name]
            for hook in loaded.hooks
            if hook.on and hook.how not in ("run", "iter")
        ]
        for points in self._passed:
            detach_all(points)

    @contextlib.contextmanager
    def on(self) -> Iterator[Nothing]:
        with contextlib.ExitStack() as stack:
            if self._statistics:
                stack.callback(os.close, enable_statistics())
            for points in self._passed:
                attach_all(points)
                stack.callback(detach_all, points)
            self._params.set(gate=1)
            stack.callback(self._params.set, gate=0)
            yield self

    def facts(self) -> Mapping[str, object]:
        runs = {
            name: [s.runs, round(1e9 * s.seconds / s.runs), s.missed]
            for name, s in self._loaded.statistics().items()
            if s.runs
        }
        return {"points": sum(map(len, self._passed))} | ({"programs": runs} if runs else {})

    def program_ids(self) -> set[int]:
        return {
            point.program.statistics().program_id
            for points in self._loaded.points.values()
            for point in points
        }

    def tags(self) -> dict[str, str]:
        return {
            object_info(point.program.fd, _INFO_BYTES)[_TAG].hex(): f"{point.how}:{name}"
            for name, points in self._loaded.points.items()
            for point in points
        }

    def close(self) -> None:
        self._loaded.close()


@dataclass
class Maker:
    """Makes the variants for one kernel. Each is loaded once."""

    kernel: Kernel
    scratch: Path
    _layouts: Layouts = field(init=False)

    def __post_init__(self) -> None:
        self._layouts = Layouts.read(probes_folder() / "include/shared.h")

    def session(
        self, name: str, fidelity: str, *, statistics: bool = False, **settings: int
    ) -> Nothing:
        """Return a session of rmapd, without its HTTP server."""
        config = msgspec.structs.replace(
            Config(fidelity=fidelity, statistics=False, scan_seconds=0), **settings
        )
        return _Running(name, open_session(config, self.kernel), statistics=statistics)

    def family(self, name: str) -> Attachable | None:
        """Return the probe objects of a family; None if this kernel has none of its hooks."""
        loaded = self._loaded(FAMILIES[name], probes_folder())
        return Attachable(name, loaded) if loaded else None

    def floor(self, name: str, probe_objects: frozenset[str] | None) -> Attachable | None:
        """Return empty programs at the hooks of probe objects: the cost of the hooks themselves."""
        loaded = self.replaced(f"floor-{name}", probe_objects, "HOOK({program}) {{ return 0; }}\n")
        return Attachable(name, loaded) if loaded else None

    def replaced(
        self, name: str, probe_objects: frozenset[str] | None, text: str
    ) -> AttachedProbes | None:
        """Load the hooks of probe objects (None: of all) with another program at each.

        text is the program, with {program} and {number} as placeholders. A program that a probe
        object shares with the one it needs is defined in the needed one.
        """
        folder = self.scratch / name
        shutil.copytree(probes_folder(), folder)
        made = set[str]()
        for path in sorted(
            folder.glob("*.toml"), key=lambda path: bool(plan.read_probe_object(path).needs)
        ):
            programs = [
                program
                for program in _programs(plan.read_probe_object(path))
                if program not in made
            ]
            path.with_suffix(".bpf.c").write_text(
                '#include "common.h"\n'
                + "".join(
                    text.format(program=p, number=n) for n, p in enumerate(programs, len(made))
                )
            )
            made |= {*programs}
        return self._loaded(probe_objects, folder)

    def _loaded(self, probe_objects: frozenset[str] | None, folder: Path) -> AttachedProbes | None:
        planned = resolver.make_plan(self.kernel, [folder], probe_objects)
        wanted = {
            probe_object.name for probe_object in planned.probe_objects if probe_object.usable
        }
        if not wanted or (
            probe_objects and len(probe_objects) > 1 and len(wanted) < len(probe_objects)
        ):
            return None
        build = loader.BuildEnvironment(
            self.kernel,
            self._layouts.constants,
            folder / "include",
            Config().maps.sizes(),
        )
        loaded = loader.load(planned, build, statistics=False)
        params = Params(loaded.maps, self._layouts)
        params.set_page_format(self.kernel.page_format())
        params.set(max_entry_age_ns=10**10)
        return loaded


def _programs(probe_object: plan.ProbeObject) -> list[str]:
    """Return the programs of its hooks, without those that only run on demand."""
    hooks = [
        hook
        for hook in probe_object.hook
        if not "".join(hook.candidates).startswith(("run:", "iter:"))
    ]
    names = {
        name for hook in hooks for name in (hook.at_entry, hook.at_return, hook.before) if name
    }
    return sorted(names | ({"window_end"} if any(hook.rebuilt for hook in hooks) else set()))


class _Running(Attachable):
    """A session whose loop runs during the load; its CPU time counts as that of the tracer."""

    def __init__(
        self, name: str, opening: AbstractContextManager[Session], *, statistics: bool
    ) -> None:
        with contextlib.ExitStack() as stack:
            self._session = stack.enter_context(opening)
            super().__init__(name, self._session.probes.loaded, statistics=statistics)
            self._stack = stack.pop_all()
        self._used = 0.0

    def meanwhile(self) -> None:
        before = time.process_time()
        self._session.step(_BRIEF_SECONDS)
        self._used += time.process_time() - before

    def cpu_seconds(self) -> float:
        return self._used

    def facts(self) -> Mapping[str, object]:
        snapshot = caught_up(self._session)
        lost = {
            name: count
            for name, count in snapshot.counters.items()
            if count and name.endswith(("LOST", "UNCLOSED", "OVERLONG"))
        }
        checks = {
            f"{name} {verdict}": count
            for (name, verdict), count in snapshot.checks.items()
            if count
        }
        return {
            **super().facts(),
            "coverage": {n: str(level) for n, (level, _) in snapshot.coverage.items()},
            "checks": checks,
            "windows": [
                sum(one.count for one in snapshot.window_times.values()),
                sum(snapshot.windows_unsampled.values()),
            ],
            "lost": lost,
        }

    def close(self) -> None:
        self._session.stop()
        self._stack.close()
