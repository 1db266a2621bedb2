"""Times to a first violation as statistics: rate with interval, quantiles, comparison of two rates.

A run without a violation is censored: the time to its first violation is longer than the run, and
nobody knows how much. Only the standard library is used: n is small, and bisection is enough.

*Rate.* With exponential times the maximum-likelihood rate is violations / total time, censored time
included. Its interval is the exact one of a Poisson count, which in terms of
chi-square is `[χ²(α/2, 2k), χ²(1-α/2, 2k+2)] / 2T`. Runs end at their first violation or at a time
limit, so T is random as well; the upper limit then covers at least what it claims, and the interval
errs on the side of being too wide. Without a violation the lower limit is 0.

*Quantiles* are Kaplan and Meier's: they need no exponential times, and may not be reached.

*Comparison.* Where every run ended with its violation, T1 / (T1 + T2) is Beta(k1, k2) if the rates
are equal: times are sums of exponential ones. Elsewhere, given k violations in both files together,
those of the first are binomial with T1 / (T1 + T2): exact for Poisson counts, and conservative
where runs end at their violation (tests/unit/report/test_survival.py simulates both). Chance is
twice the smaller tail, so the interval of the ratio, which is of the same distribution, contains 1
just where chance is 5 % or more. Both are chosen over a log-rank test with permutations because
soaks are expensive: with one run each a permutation test cannot be below 1, and the first one
answers "an hour instead of a minute" with 0.03. Their price is the assumption of a constant rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
_STEPS = 100
_SHORTEST_SECONDS = 0.001
"""Of a run that was violated at once: a time of 0 has no rate."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval; high may be infinite."""

    low: float
    high: float


@dataclass(frozen=True)
class Times:
    """The times of runs in seconds: until a violation, or (censored) of a run without one."""

    violated: tuple[float, ...] = ()
    censored: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """The time that was watched, in seconds."""
        return math.fsum((*self.violated, *self.censored))

    @property
    def rate(self) -> float:
        """The violations per second; nan where nothing was watched."""
        return len(self.violated) / self.total if self.total > 0 else math.nan

    def rate_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the interval of the rate, per second."""
        if self.total <= 0:
            return Interval(0.0, math.inf)
        found = poisson_interval(len(self.violated), confidence)
        return Interval(found.low / self.total, found.high / self.total)

    def quantile(self, share: float) -> float | None:
        """Return the time by which this share of runs is violated; None: it is not reached."""
        return next((time for time, left in survival(self) if left <= 1 - share + 1e-12), None)


def survival(times: Times) -> list[tuple[float, float]]:
    """Return Kaplan and Meier's curve: each time of a violation, and the share that lives on.

    A run that is censored at the time of a violation was at risk then.
    """
    left, curve = 1.0, list[tuple[float, float]]()
    for time in sorted(set(times.violated)):
        at_risk = sum(one >= time for one in (*times.violated, *times.censored))
        left *= 1 - times.violated.count(time) / at_risk
        curve.append((time, left))
    return curve


def poisson_interval(count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact interval (Garwood's) of the mean of a Poisson count."""
    tail = (1 - confidence) / 2
    most = 2 * count + 50.0
    low = _bisected(lambda mean: poisson_at_most(count - 1, mean) < 1 - tail, 0.0, most)
    high = _bisected(lambda mean: poisson_at_most(count, mean) < tail, 0.0, most)
    return Interval(low if count else 0.0, high)


def poisson_at_most(count: int, mean: float) -> float:
    """Return the probability that a Poisson count with this mean is at most `count`."""
    if count < 0 or mean <= 0:
        return float(count >= 0)
    logs = (n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(count + 1))
    return min(1.0, math.fsum(map(math.exp, logs)))


@dataclass(frozen=True)
class RateComparison:
    """Two rates compared.

    chance: the probability of a difference this large or larger where the rates are equal. ratio:
    the first rate by the second; nan where neither has a violation.
    """

    chance: float
    ratio: float
    interval: Interval


def compare_rates(a: Times, b: Times, confidence: float = CONFIDENCE) -> RateComparison:
    """Compare two rates by the test that the module describes, on both sides.

    Raises ValueError where one of them watched no time.
    """
    if a.total <= 0 or b.total <= 0:
        raise ValueError("nothing was watched")
    ours, theirs = len(a.violated), len(b.violated)
    both = ours + theirs
    share = a.total / (a.total + b.total)
    # Beta(a, b) is at most s just where a or more of a + b - 1 are binomial with s.
    whole = ours and theirs and not (a.censored or b.censored)
    most, tries = (ours - 1, both - 1) if whole else (ours, both)
    chance = min(1.0, 2 * min(_at_least(ours, tries, share), _at_most(most, tries, share)))
    factor = b.total / a.total
    odds = _share_interval(ours, most, tries, confidence)
    interval = Interval(_odds(odds.low) * factor, _odds(odds.high) * factor)
    ratio = math.nan if not both else ours / theirs * factor if theirs else math.inf
    return RateComparison(chance, ratio, interval)


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf


def _binomial(count: int, tries: int, share: float) -> float:
    """Return the probability of exactly this count. share: between 0 and 1, without both."""
    ways = math.lgamma(tries + 1) - math.lgamma(count + 1) - math.lgamma(tries - count + 1)
    return math.exp(ways + count * math.log(share) + (tries - count) * math.log1p(-share))


def _at_most(most: int, tries: int, share: float) -> float:
    return math.fsum(_binomial(n, tries, share) for n in range(most + 1))


def _at_least(least: int, tries: int, share: float) -> float:
    return math.fsum(_binomial(n, tries, share) for n in range(least, tries + 1))


def _share_interval(least: int, most: int, tries: int, confidence: float) -> Interval:
    """Return the shares at which neither tail is too small: `least` or more, `most` or fewer.

    Of a count it is Clopper and Pearson's interval, with the count as both.
    """
    tail, ends = (1 - confidence) / 2, (1e-15, 1 - 1e-15)
    low = _bisected(lambda share: _at_least(least, tries, share) > tail, *ends)
    high = _bisected(lambda share: _at_most(most, tries, share) < tail, *ends)
    return Interval(low if least else 0.0, high if most < tries else 1.0)


def _bisected(beyond: Callable[[float], bool], low: float, high: float) -> float:
    """Return where beyond() becomes true between low and high."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return (low + high) / 2


def times_of(runs: Sequence[tuple[float, bool]]) -> Times:
    """Return the times of runs, each a time in seconds and whether it ended with a violation."""
    return Times(
        tuple(max(time, _SHORTEST_SECONDS) for time, violated in runs if violated),
        tuple(time for time, violated in runs if not violated),
    )
