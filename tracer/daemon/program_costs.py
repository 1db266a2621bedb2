"""What the attached programs cost by level, and what they would cost if no window were sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.attach.attached import AttachedProbes
from tracer.bpf.programs import RunStatistics
from tracer.daemon.levels import WINDOW_PROBE_OBJECTS, lowest_level
from tracer.daemon.program_statistics import ProgramStatistics
from tracer.tables.allowances import Allowances
from tracer.tables.window_times import WindowTimes

_UNSAMPLED_COST = 1 / 7
"""The cost of a window that is not recorded, as a share of one that is (tests.bench.programs)."""

_Totals = tuple[float, float, float, float]
"""Windows recorded and not recorded, seconds in programs of windows and in all programs."""


class ProgramCosts:
    """Turns the kernel's run statistics into the numbers that the governor needs."""

    def __init__(
        self,
        loaded: AttachedProbes,
        statistics: ProgramStatistics,
        window_times: WindowTimes,
        allowances: Allowances,
    ) -> None:
        self.statistics = statistics
        self._loaded, self._window_times, self._allowances = loaded, window_times, allowances
        self._before: _Totals = (0.0, 0.0, 0.0, 0.0)

    def by_level(
        self, levels: Sequence[str], statistics: Mapping[str, RunStatistics]
    ) -> dict[str, float]:
        """Return the seconds in programs by the lowest of these levels that they run at."""
        spent = dict.fromkeys(levels, 0.0)
        for hook in self._loaded.hooks:
            if hook.hook.name in statistics:
                level = lowest_level(hook.probe_object, levels)
                spent[level] += statistics[hook.hook.name].seconds
        return spent

    def sampling_factor(self, statistics: Mapping[str, RunStatistics]) -> float:
        """Return what all windows would cost, divided by what the sampled ones cost.

        It is measured since the last call or restart().
        """
        now = self._totals(statistics)
        recorded, unsampled, in_windows, total = (
            after - before for after, before in zip(now, self._before, strict=True)
        )
        self._before = now
        if recorded + unsampled <= 0 or total <= 0:
            return 1.0
        times = (recorded + unsampled) / (recorded + _UNSAMPLED_COST * unsampled)
        return 1.0 + (times - 1.0) * in_windows / total

    def restart(self) -> None:
        """Begin a new measurement, after a change of level."""
        self.statistics.restart()
        self._before = self._totals(self.statistics.read())

    def _totals(self, statistics: Mapping[str, RunStatistics]) -> _Totals:
        names = {
            hook.hook.name
            for hook in self._loaded.hooks
            if hook.probe_object in WINDOW_PROBE_OBJECTS
        }
        return (
            sum(times.count for times in self._window_times.windows().values()),
            sum(self._allowances.unsampled().values()),
            sum(one.seconds for name, one in statistics.items() if name in names),
            sum(one.seconds for one in statistics.values()),
        )
