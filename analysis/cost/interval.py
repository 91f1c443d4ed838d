"""An estimate with its 90 % interval, and how intervals go through products.

Errors are of logarithms, independent of each other, and may be lopsided: in a product, distances to each bound add up
in quadrature.
"""

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


def known(value: float) -> Interval:
    """A number without error."""
    return Interval(value, value, value)


def product(left: Interval, right: Interval) -> Interval:
    """The product of two independent estimates, neither of which may be below zero."""
    value = left.value * right.value
    if value == 0:
        return known(0.0)
    down = math.hypot(math.log(left.value / left.low), math.log(right.value / right.low))
    up = math.hypot(math.log(left.high / left.value), math.log(right.high / right.value))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def quotient(numerator: float, denominator: Interval) -> Interval:
    """A known number over an estimate."""
    return Interval(numerator / denominator.value, numerator / denominator.high, numerator / denominator.low)
