"""What the attached programs cost, measured in samples.

While the kernel measures the run time of programs, it reads the clock twice in each run of each
program of the machine, also in those of others. On a loop of mmap and munmap that is more than all
the rest of rmapd (COST.md). So it measures for a second at a time, and in between each program is
taken to go on as it did in the last sample. The first samples follow each other soon, so that a
short run is measured, too.

An emulated CPU may die when code is patched that another one runs (docs/KERNELS.md, *Emulation*),
and each switch patches code. There the kernel measures all the time.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tracer.attach.attached import AttachedProbes
from tracer.bpf.programs import RunStatistics
from tracer.errors import passes

log = logging.getLogger("rmapd")

SAMPLE_SECONDS = 1.0
_FIRST_GAP_SECONDS, _LONGEST_GAP_SECONDS = 1.0, 29.0
_RETRY_SECONDS = 60.0
_EMULATED = "QEMU TCG CPU"  # QEMU's name of the CPU `max` (target/i386/cpu.c)


def is_emulated(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the CPU says that software emulates it. cpuinfo: the kernel's list of CPUs."""
    return _EMULATED in cpuinfo.read_text(encoding="utf-8", errors="replace")


@dataclass
class _Hook:
    """The runs and seconds of a hook's programs: as far as known, when read, and each second."""

    runs: float
    seconds: float
    read: RunStatistics
    runs_each_second: float = 0.0
    seconds_each_second: float = 0.0

    def add_measured(self, now: RunStatistics) -> None:
        """Add what the kernel has measured since it was read."""
        self.runs += max(0, now.runs - self.read.runs)
        self.seconds += max(0.0, now.seconds - self.read.seconds)

    def add_estimated(self, seconds: float) -> None:
        """Add what the programs do in so many seconds, if they go on as in the last sample."""
        self.runs += self.runs_each_second * seconds
        self.seconds += self.seconds_each_second * seconds


class ProgramStatistics:
    """Measures the programs of these probes in samples. Call look() regularly.

    available: the kernel measures for us at all. measured_seconds: for how long it has.
    """

    def __init__(
        self,
        loaded: AttachedProbes,
        *,
        throughout: bool,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Begin the first sample, if statistics are on. throughout: never switch them off."""
        self._loaded, self._throughout, self._clock = loaded, throughout, clock
        self.available = loaded.statistics_on
        self.measured_seconds = 0.0
        self._hooks = {
            name: _Hook(one.runs, one.seconds, one) for name, one in loaded.statistics().items()
        }
        self._folded = self._sample_began = clock() / 1e9
        self._at_begin = self._totals()
        self._next_sample = self._next_try = 0.0
        self._gap = _FIRST_GAP_SECONDS

    @property
    def in_samples(self) -> bool:
        """Whether statistics are switched off and on again."""
        return self.available and not self._throughout

    def look(self, *, hold: bool = False) -> None:
        """End or begin a sample, if it is time. hold: measure until further notice."""
        if not self.in_samples:
            return
        now = self._clock() / 1e9
        if self._loaded.statistics_on:
            if now - self._sample_began >= SAMPLE_SECONDS and not hold:
                self._end_sample()
                self._next_sample = now + self._gap
                self._gap = min(2 * self._gap, _LONGEST_GAP_SECONDS)
        elif hold or now >= self._next_sample:
            self._begin_sample()

    def restart(self) -> None:
        """Measure anew, from now on: other programs are attached than before."""
        self._gap = _FIRST_GAP_SECONDS
        if self.in_samples:
            if self._loaded.statistics_on:
                self._end_sample()
            self._begin_sample()

    def read(self) -> dict[str, RunStatistics]:
        """Return the runs, seconds and missed runs of each hook since its programs were loaded.

        Missed runs are counted, always. The others are measured in samples, and estimated between.
        """
        now = self._fold()
        return {
            name: RunStatistics(
                now[name].program_id, int(hook.runs), hook.seconds, now[name].missed
            )
            for name, hook in self._hooks.items()
            if name in now
        }

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Have the kernel count runs for a moment, which is no sample."""
        if not self.available or self._loaded.statistics_on:
            yield
            return
        self._fold()
        if not self._switch_on():
            yield
            return
        try:
            yield
        finally:
            self._loaded.switch_statistics_off()
            self._fold()

    def _begin_sample(self) -> None:
        self._fold()
        if self._switch_on():
            self._sample_began, self._at_begin = self._folded, self._totals()

    def _end_sample(self) -> None:
        self._fold()
        self._loaded.switch_statistics_off()
        seconds = self._folded - self._sample_began
        if seconds <= 0:
            return
        for name, hook in self._hooks.items():
            runs, spent = self._at_begin[name]
            hook.runs_each_second = (hook.runs - runs) / seconds
            hook.seconds_each_second = (hook.seconds - spent) / seconds

    def _switch_on(self) -> bool:
        """Return whether the kernel measures now.

        If it refuses, it is not asked again; what may pass is tried again after a minute.
        """
        if (now := self._clock() / 1e9) < self._next_try:
            return False
        try:
            self._loaded.switch_statistics_on()
        except OSError as error:
            if passes(error):
                self._next_try = now + _RETRY_SECONDS
                log.warning(
                    "the cost of programs is estimated for the next minute: %s", error.strerror
                )
                return False
            self.available = False
            for hook in self._hooks.values():
                hook.runs_each_second = hook.seconds_each_second = 0.0
            log.error(
                "the cost of programs is measured no longer: %s; the fidelity stays as it is, and"
                " a restart may help",
                error.strerror,
            )
            return False
        return True

    def _fold(self) -> dict[str, RunStatistics]:
        """Add what came since the last call, and return what the kernel has now."""
        now, counts = self._clock() / 1e9, self._loaded.statistics()
        seconds, self._folded = now - self._folded, now
        on = self._loaded.statistics_on
        attached = self._loaded.attached()
        if on:
            self.measured_seconds += seconds
        for name, hook in self._hooks.items():
            if name not in counts:
                continue
            if on:
                hook.add_measured(counts[name])
            elif name in attached:
                hook.add_estimated(seconds)
            hook.read = counts[name]
        return counts

    def _totals(self) -> dict[str, tuple[float, float]]:
        return {name: (hook.runs, hook.seconds) for name, hook in self._hooks.items()}
