"""Run statistics in samples: when the kernel measures, and what is estimated in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.attach.attached import AttachedProbes
from tracer.bpf.programs import RunStatistics
from tracer.daemon.program_statistics import ProgramStatistics, is_emulated


class Kernel(AttachedProbes):
    """A kernel that runs the program of one hook, and measures it while statistics are on."""

    def __init__(self) -> None:
        super().__init__(statistics_fd=1)
        self.now_ns = 0
        self.runs, self.seconds, self.left_out = 0, 0.0, 0
        self.really, self.on_seconds, self.switched_on = 0, 0.0, 0
        self.refuses, self.asked, self.paused = 0, 0, False

    def run(self, seconds: float, runs_each_second: int) -> None:
        """Let time pass."""
        runs = 0 if self.paused else round(runs_each_second * seconds)
        self.now_ns += round(seconds * 1e9)
        self.really += runs
        if self.statistics_on:
            self.runs += runs
            self.seconds += runs * 1e-6
            self.on_seconds += seconds

    def statistics(self) -> dict[str, RunStatistics]:
        return {"hook": RunStatistics(7, self.runs, self.seconds, self.left_out)}

    def attached(self) -> frozenset[str]:
        return frozenset() if self.paused else frozenset({"hook"})

    def switch_statistics_on(self) -> None:
        self.asked += 1
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.statistics_fd = 1
        self.switched_on += 1

    def switch_statistics_off(self) -> None:
        self.statistics_fd = -1

    def sampled(self, *, throughout: bool = False) -> ProgramStatistics:
        return ProgramStatistics(self, throughout=throughout, clock=lambda: self.now_ns)

    def between_samples(self) -> ProgramStatistics:
        """Run a load of 1,000 runs a second until the first sample has ended."""
        measured = self.sampled()
        while self.statistics_on:
            self.run(0.1, 1000)
            measured.look()
        return measured


def test_kernel_measures_one_second_in_thirty_after_the_first_minute() -> None:
    kernel = Kernel()
    measured = kernel.sampled()
    shares = []
    for _ in range(10):
        before = kernel.on_seconds
        for _ in range(600):
            kernel.run(0.1, 1000)
            measured.look()
        shares.append((kernel.on_seconds - before) / 60)
    assert 0.08 < shares[0] < 0.2
    assert all(0.03 < share < 0.06 for share in shares[2:])


def test_steady_load_is_estimated_as_it_is() -> None:
    kernel = Kernel()
    measured = kernel.sampled()
    for _ in range(3000):
        kernel.run(0.1, 1000)
        measured.look()
        assert abs(measured.read()["hook"].runs - kernel.really) <= 0.01 * kernel.really + 1
    found = measured.read()["hook"]
    assert found.seconds == pytest.approx(found.runs * 1e-6, rel=0.01)
    assert measured.measured_seconds == pytest.approx(kernel.on_seconds)


@given(st.lists(st.tuples(st.floats(0.01, 40), st.integers(0, 10**6), st.booleans()), max_size=60))
def test_counts_never_fall_whatever_the_load_does(steps: list[tuple[float, int, bool]]) -> None:
    kernel = Kernel()
    measured = kernel.sampled()
    before = measured.read()["hook"]
    for seconds, rate, paused in steps:
        kernel.paused = paused
        kernel.run(seconds, rate)
        measured.look()
        after = measured.read()["hook"]
        assert after.runs >= before.runs
        assert after.seconds >= before.seconds
        before = after


def test_kernel_goes_on_to_measure_while_the_governor_decides() -> None:
    kernel = Kernel()
    measured = kernel.sampled()
    for _ in range(200):
        kernel.run(0.1, 1000)
        measured.look(hold=True)
    assert kernel.on_seconds == pytest.approx(20)
    for _ in range(200):
        kernel.run(0.1, 1000)
        measured.look()
    assert not kernel.statistics_on
    measured.look(hold=True)
    assert kernel.statistics_on


def test_change_of_level_begins_a_new_sample() -> None:
    kernel = Kernel()
    measured = kernel.between_samples()
    measured.restart()
    assert kernel.statistics_on
    kernel.run(1.1, 0)
    measured.look()
    was = measured.read()["hook"].runs
    kernel.run(20, 0)
    assert measured.read()["hook"].runs == was, "the rate is that of the new sample"


def test_paused_program_is_not_estimated_to_run() -> None:
    kernel = Kernel()
    measured = kernel.between_samples()
    was = measured.read()["hook"].runs
    kernel.paused = True
    kernel.run(0.5, 0)
    assert measured.read()["hook"].runs == was


def test_missed_runs_are_counted_while_nothing_is_measured() -> None:
    kernel = Kernel()
    measured = kernel.between_samples()
    kernel.left_out = 3
    assert measured.read()["hook"].missed == 3


def test_counting_is_no_sample() -> None:
    """The self-test of hooks needs exact counts, and runs them more often than the load does."""
    kernel = Kernel()
    measured = kernel.between_samples()
    was, real = measured.read()["hook"].runs, kernel.really
    with measured.counting():
        assert kernel.statistics_on
        before = kernel.runs
        kernel.run(0.001, 50_000)
        assert kernel.runs - before == 50
    assert not kernel.statistics_on
    assert measured.read()["hook"].runs - was <= 2 < kernel.really - real


def test_statistics_of_another_program_are_not_added_to_the_estimate() -> None:
    """Whoever switches them on makes the kernel count for all."""
    kernel = Kernel()
    measured = kernel.between_samples()
    was = measured.read()["hook"].runs
    kernel.runs += 500
    kernel.run(0.5, 1000)
    assert measured.read()["hook"].runs - was == pytest.approx(500, abs=2)


def test_kernel_that_refuses_to_measure_again_is_not_estimated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel = Kernel()
    measured = kernel.sampled()
    kernel.refuses = errno.EPERM
    for _ in range(100):
        kernel.run(0.1, 1000)
        measured.look()
    assert (measured.available, len(caplog.messages)) == (False, 1)
    was = measured.read()["hook"].runs
    kernel.run(10, 1000)
    assert measured.read()["hook"].runs == was
    with measured.counting():
        assert not kernel.statistics_on


def test_emulated_cpu_is_measured_all_the_time(tmp_path: Path) -> None:
    kernel = Kernel()
    measured = kernel.sampled(throughout=True)
    for _ in range(100):
        kernel.run(1, 1000)
        measured.look()
        measured.restart()
    assert (kernel.on_seconds, kernel.switched_on, measured.in_samples) == (100, 0, False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: QEMU TCG CPU version 2.5+\n")
    assert is_emulated(cpuinfo)
    cpuinfo.write_text("model name\t: AMD EPYC\n")
    assert not is_emulated(cpuinfo)


def test_nothing_is_measured_where_statistics_were_never_on() -> None:
    kernel = Kernel()
    kernel.switch_statistics_off()
    measured = kernel.sampled()
    for _ in range(100):
        kernel.run(1, 1000)
        measured.look(hold=True)
        measured.restart()
    assert (kernel.switched_on, measured.read()["hook"].runs) == (0, 0)


def test_statistics_that_are_refused_for_a_while_are_asked_for_again() -> None:
    """The process that switches them on may hang: its answer comes late, or never."""
    kernel = Kernel()
    measured = kernel.between_samples()
    kernel.refuses, kernel.asked = errno.ETIMEDOUT, 0
    for _ in range(1200):
        kernel.run(0.1, 1000)
        measured.look()
        with measured.counting():
            assert not kernel.statistics_on
    assert measured.available
    assert kernel.asked <= 3, "once a minute: each question may take ten seconds"
    kernel.refuses = 0
    for _ in range(700):
        kernel.run(0.1, 1000)
        measured.look()
    assert kernel.switched_on
