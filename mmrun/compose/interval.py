"""Numbers between two bounds, as a command line spans them: ``tag(log,interval(0.01,10))``, ``int(interval(1,8))``, ``range(1,9,2)``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, RangeSweep

from mmrun.errors import UserError

LOG = "log"  # the tag of an interval of which every decade counts alike
DIGITS, SHARE = (
    4,
    1e-3,
)  # significant digits of a value at least; of the interval at most, by rounding


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included.

    Args:
        low: the smallest.
        high: the largest.
        log: whether every decade counts alike.
        whole: whether they are whole numbers.
        step: between them, from ``low`` on; None where any will do.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: float | None = None

    def rounded(self, value: float) -> float:
        """The value as it is trained and recorded: short, inside the bounds, within a thousandth of the interval."""
        value = min(max(value, self.low), self.high)
        if self.step is not None:
            value = self.low + round((value - self.low) / self.step) * self.step
        if self.whole:
            return round(value)
        if self.step is not None:
            return float(f"{value:.12g}")
        width = abs(value) * math.log(self.high / self.low) if self.log else self.high - self.low
        for digits in range(DIGITS, 18):
            short = min(max(float(f"{value:.{digits}g}"), self.low), self.high)
            if abs(short - value) <= SHARE * width:
                return short
        return value

    def text(self, value: float) -> str:
        """A value as one would type it."""
        return str(round(value)) if self.whole else f"{float(value):.15g}"

    @property
    def typed(self) -> str:
        """As one would type it."""
        if self.step is not None:
            ends = (self.low, self.high + self.step, self.step)
            return f"range({','.join(map(self.text, ends))})"
        inside = f"interval({self.text(self.low)},{self.text(self.high)})"
        return f"tag({LOG},{inside})" if self.log else f"int({inside})" if self.whole else inside

    @property
    def middle(self) -> float:
        """A value to try the rest of a config with."""
        between = math.sqrt(self.low) * math.sqrt(self.high)
        return self.rounded(between if self.log else self.low + (self.high - self.low) / 2)


def interval_of(spanned: IntervalSweep | RangeSweep, given: str) -> Interval:
    """What an ``interval()`` or a ``range()`` spans. given: as typed, for messages.

    Raises:
        UserError: bounds that are none, or a tag that says nothing.
    """
    of_range = isinstance(spanned, RangeSweep)
    unknown = sorted(spanned.tags if of_range else spanned.tags - {LOG})
    if unknown:
        raise UserError(
            f"{'a range' if of_range else 'an interval'} has no tag {unknown[0]}",
            given=given,
            remedy="Write tag(log,interval(LOW,HIGH)).",
        )
    if of_range:
        return _of_range(spanned)
    low, high = spanned.start, spanned.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("an interval has two finite bounds", given=given)
    if low >= high:
        raise UserError("an interval goes from less to more", given=given)
    log = LOG in spanned.tags
    if log and low <= 0:
        raise UserError(
            "an interval on a log scale lies above 0", given=given, remedy="Say, from 1e-4."
        )
    return Interval(low=low, high=high, log=log, whole=isinstance(low, int))


def _of_range(spanned: RangeSweep) -> Interval:
    values = sorted(spanned.range())
    step = abs(float(spanned.step))
    whole = all(isinstance(value, int) for value in values)
    low, high = (float(f"{end:.12g}") for end in (values[0], values[-1]))
    return Interval(low=low, high=high, whole=whole, step=step)
