"""How intervals go through products: errors are of logarithms, independent of each other, and may be lopsided."""

import math

from analysis.cost.interval import Interval


def product(left: Interval, right: Interval) -> Interval:
    """The product of two independent estimates: distances to each bound add up in quadrature."""
    value = left.value * right.value
    if value == 0:
        return Interval(0.0, 0.0, 0.0)
    down = math.hypot(math.log(left.value / left.low), math.log(right.value / right.low))
    up = math.hypot(math.log(left.high / left.value), math.log(right.high / right.value))
    return Interval(value, value * math.exp(-down), value * math.exp(up))


def quotient(numerator: float, denominator: Interval) -> Interval:
    """A known number over an estimate."""
    return Interval(numerator / denominator.value, numerator / denominator.high, numerator / denominator.low)


def known(value: float) -> Interval:
    """A number without error."""
    return Interval(value, value, value)
