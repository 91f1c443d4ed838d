"""What a row of measured runs leaves open, chosen as the run's authors would have: the fastest that fits.

Layout and batch are the row's. What a user leaves open is searched among all layouts instead (layout_choice.py).
"""

from collections.abc import Collection
from dataclasses import replace
from itertools import product

from analysis.cost.feasibility import is_possible
from analysis.cost.memory import memory
from analysis.cost.setup import Setup
from analysis.cost.step import step_time

#: Part of the device's memory that a run may take; the rest is the allocator's and the driver's.
_USABLE = 0.92
_MICRO_BATCHES = (1, 2, 4, 8, 16)


def complete(setup: Setup, open_fields: Collection[str]) -> tuple[Setup, tuple[str, ...]]:
    """`setup` with its open fields chosen, and in words what was.

    open_fields: of micro_batch_size, virtual_pipeline_parallel_size and recompute_granularity. Micro-batch and
    interleaving are those with the shortest predicted step that fit; recomputation is of as few layers as fit. A setup
    that states no recomputation and cannot fit without is taken to recompute everything, and says so. A setup that is
    impossible whatever is chosen comes back as it is.
    """
    best: tuple[float, Setup] | None = None
    trials = [
        replace(
            setup,
            micro_batch_size=micro_batch,
            virtual_pipeline_parallel_size=chunks,
            pipeline_schedule="interleaved1f1b" if chunks > 1 else setup.pipeline_schedule,
        )
        for micro_batch, chunks in product(_micro_batches(setup, open_fields), _chunks(setup, open_fields))
    ]
    for trial in filter(is_possible, trials):
        trial = least_recompute(trial) if "recompute_granularity" in open_fields else _as_it_must_have_been(trial)
        if best is not None and "micro_batch_size" in open_fields and _share(trial) > 1.0:
            continue
        seconds = step_time(trial).total
        if best is None or seconds < best[0]:
            best = (seconds, trial)
    if best is None:  # whatever is chosen: left for the caller's check to say why
        return setup, ()
    return best[1], _words(setup, best[1], open_fields)


def least_recompute(setup: Setup) -> Setup:
    """`setup` with full recomputation of as few of its layers as make it fit; none where none is needed."""
    free = replace(setup, recompute_granularity="none")
    full = replace(setup, recompute_granularity="full", recompute_share=1.0)
    usable = _USABLE * setup.device.memory_bytes
    most, least = _lean_bytes(free), _lean_bytes(full)
    if most <= usable or most <= least:
        return free
    return replace(full, recompute_share=min(1.0, max(0.0, (most - usable) / (most - least))))


def _lean_bytes(setup: Setup) -> float:
    """Bytes of tensors as a run needs them that is short of memory.

    Who chooses a layout of Megatron for speed also reduces gradients in 16 bits and keeps no second copy of weights in
    low precision before computing anything twice, so neither counts. FSDP has no such choices.
    """
    estimate = memory(setup)
    if setup.is_fsdp:
        return estimate.allocated
    return estimate.allocated - estimate.tensors.get("workspace", 0.0) - estimate.tensors["gradients"] / 2


def _as_it_must_have_been(setup: Setup) -> Setup:
    """A stated "no recomputation" that cannot fit, however leanly it is kept, is not what was run."""
    least = _lean_bytes(setup) * memory(setup).spread[0]
    if setup.recompute_granularity == "none" and least > setup.device.memory_bytes:
        return replace(setup, recompute_granularity="full")
    return setup


def _share(setup: Setup) -> float:
    return memory(setup).reserved / (_USABLE * setup.device.memory_bytes)


def _micro_batches(setup: Setup, open_fields: Collection[str]) -> list[int]:
    if "micro_batch_size" not in open_fields:
        return [setup.micro_batch_size]
    sequences = max(1, setup.global_batch_size // setup.data_parallel_size)
    return [size for size in _MICRO_BATCHES if sequences % size == 0]


def _chunks(setup: Setup, open_fields: Collection[str]) -> list[int]:
    if "virtual_pipeline_parallel_size" not in open_fields:
        return [setup.virtual_pipeline_parallel_size]
    ranks, layers = setup.pipeline_parallel_size, setup.model.num_layers
    even = next((total for total in (layers, layers + 2) if total % ranks == 0), ranks)  # else one stage a rank
    each = even // ranks
    return [size for size in range(1, min(each, 12) + 1) if each % size == 0]


def _words(asked: Setup, chosen: Setup, open_fields: Collection[str]) -> tuple[str, ...]:
    said = []
    for name in ("micro_batch_size", "virtual_pipeline_parallel_size"):
        if name in open_fields:
            said.append(f"{name} = {getattr(chosen, name)}, the fastest that fits")
    if "recompute_granularity" in open_fields:
        share = "" if chosen.recompute_granularity != "full" else f" of {chosen.recompute_share:.0%} of the layers"
        said.append(f"recompute_granularity = {chosen.recompute_granularity}{share}, the least that fits")
    elif chosen.recompute_granularity != asked.recompute_granularity:
        said.append("recompute_granularity = none is stated and cannot fit: taken as full")
    return tuple(said)
