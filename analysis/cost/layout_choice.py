"""The layout of a run of which the user leaves it open: the fastest that fits."""

from collections.abc import Collection
from dataclasses import replace
from math import log2

from analysis.cost.layout_space import LAYOUT_FIELDS
from analysis.cost.layouts import search
from analysis.cost.setup import Setup

LAYOUT_RULE = (
    "by its predicted step the fastest that fits of all layouts with the sharding and schedules (1F1B, interleaved) "
    "usual for the stack: see `scaling cost layouts`"
)
NONE_FITS = "no layout fits: the one that needs least memory"
_MOST_DOUBLINGS = 16


def choose_layout(setup: Setup, open_fields: Collection[str]) -> Setup:
    """`setup` with the open ones of LAYOUT_FIELDS chosen, see LAYOUT_RULE.

    With global_batch_size open, the setup's is a wish: it is rounded to what halves of the data ranks divide, and
    doubled until some layout can divide it. Where nothing fits, the layout that needs the least memory is returned;
    where nothing is possible, `setup` itself.
    """
    wanted = {name for name in LAYOUT_FIELDS if name in open_fields}
    if setup.device.is_cpu_core:  # cores share their work by batch alone
        wanted &= {"micro_batch_size", "recompute_granularity"}
    trials = _batches(setup, wanted) if "global_batch_size" in open_fields else [setup]
    for trial in trials:
        found = search(trial, wanted, 1)
        best = found.candidates[0] if found.candidates else found.nearest
        if best is not None:
            return best.setup
    return setup


def _batches(setup: Setup, open_fields: Collection[str]) -> list[Setup]:
    """`setup` with the power of two nearest to its batch, times the odd part of the ranks, and with doubles of that."""
    ranks = setup.num_gpus
    for axis in ("tensor", "pipeline", "context"):
        name = f"{axis}_parallel_size"
        ranks //= 1 if name in open_fields else getattr(setup, name)
    odd = ranks
    while odd > 1 and odd % 2 == 0:
        odd //= 2
    unit = max(1, odd) * setup.micro_batch_size
    doublings = max(0, round(log2(setup.global_batch_size / unit)))
    return [replace(setup, global_batch_size=unit << doublings + more) for more in range(_MOST_DOUBLINGS)]
