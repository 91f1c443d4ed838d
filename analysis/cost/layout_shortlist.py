"""Which of many predicted layouts to try: few, and different where the prediction is least sure.

A prediction errs twice: between layouts of different tensor, pipeline, context and expert sizes, where the error is
shared by all micro-batches of one, and between these (median 4.5 % and 2.3 % over vTrain's and BLOOM's measured
layouts). So a list has different sizes first, as far as they could be the fastest within the error, and then further
micro-batches of them.
"""

import math
from collections.abc import Sequence

from analysis.cost.interval import QUANTILE
from analysis.cost.setup import Setup


def short_list(predicted: Sequence[tuple[Setup, float]], count: int, within: float) -> list[int]:
    """Places in `predicted` (setup, seconds of a step of one batch) of the `count` layouts to try, fastest first.

    Half of them, rounded up, have different sizes, as long as these are within the error of the fastest: the logarithm
    of the ratio of two predictions has a standard deviation of sqrt(2) x `within`, that of ln(step time) between runs
    of one source. Then come the next micro-batches of each in turn, then whatever is fastest.
    """
    order = sorted(range(len(predicted)), key=lambda place: predicted[place][1])
    by_sizes: dict[tuple[int, ...], dict[int, int]] = {}
    for place in order:
        setup = predicted[place][0]
        by_sizes.setdefault(sizes_of(setup), {}).setdefault(setup.micro_batch_size, place)
    families = [list(family.values()) for family in by_sizes.values()]
    longest = predicted[order[0]][1] * math.exp(QUANTILE * math.sqrt(2) * within) if order else 0.0
    likely = [family for family in families if predicted[family[0]][1] <= longest][: num_different(count)]
    in_turn = [family[turn] for turn in range(count) for family in likely if turn < len(family)]
    others = {place for family in families for place in family}.difference(in_turn)
    chosen = in_turn[:count] + [place for place in order if place in others]
    return [place for place in order if place in chosen[:count]]


def num_different(count: int) -> int:
    """How many of a list of `count` have different sizes."""
    return (count + 1) // 2


def sizes_of(setup: Setup) -> tuple[int, ...]:
    """Tensor, pipeline, context and expert ranks."""
    axes = ("tensor", "pipeline", "context", "expert")
    return tuple(getattr(setup, f"{axis}_parallel_size") for axis in axes)
