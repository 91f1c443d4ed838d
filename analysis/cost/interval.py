"""An estimate with its 90 % interval."""

import math
from dataclasses import dataclass

#: Of the normal distribution: 90 % lie within so many standard deviations.
QUANTILE = 1.645


@dataclass(frozen=True)
class Interval:
    """A value and the bounds between which 90 % of measurements are expected."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        """All three times `factor`."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


def log_normal(value: float, spread: float) -> Interval:
    """Around `value`, where ln of the ratio of measured to estimated has the standard deviation `spread`."""
    factor = math.exp(QUANTILE * spread)
    return Interval(value, value / factor, value * factor)
