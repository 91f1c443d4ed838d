"""The fastest layouts of a run that fit, found among all of them by branch and bound.

A division of the GPUs (layout_space.py) takes no less than its step with the largest micro-batch, nothing recomputed
and a pipeline that is never idle, since time per token does not grow with the micro-batch. Divisions are worked out in
the order of that bound until it exceeds what the list has, so nothing faster is missed; one that does not fit at its
least is left at once. Memory counts with the headroom of its stack (memory.py), or with 6 % where nothing fits so.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from analysis.cost.calibration import Calibration, constants_for
from analysis.cost.feasibility import MOST_GPUS
from analysis.cost.layout_shortlist import num_different, short_list
from analysis.cost.layout_space import LAYOUT_FIELDS, Space, divisions, micro_batches, shardings, variants
from analysis.cost.memory import MemoryEstimate, fits, memory
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants
from analysis.cost.step import StepTime, step_time

#: Parts of a step in which a pipeline waits, and parts that do not grow with jitter (analysis.cost.step).
_IDLE = ("pipeline_bubble", "pipeline_communication", "stage_imbalance")
_ONCE = ("data_communication", "optimizer", "host", "jitter")
#: Of the estimated memory, where nothing fits with more headroom: the driver's part and fragments.
_MARGIN = 0.06
#: Doublings of the GPUs that are tried when nothing fits.
_MOST_DOUBLINGS = 12


@dataclass(frozen=True)
class Candidate:
    """A layout, the step predicted for it, and its memory."""

    setup: Setup
    time: StepTime
    memory: MemoryEstimate

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.time.total


@dataclass(frozen=True)
class LayoutSearch:
    """The short list, fastest first, and what was looked at.

    candidates is empty when nothing fits; then `nearest` is the layout that needs least memory, None when no division
    of the GPUs is possible either. margin: above the estimate of each candidate's memory, relative to it, that fits as
    well; wanted_margin: that was tried first.
    """

    candidates: tuple[Candidate, ...]
    margin: float
    wanted_margin: float
    nearest: Candidate | None
    space: Space
    #: Possible divisions that do not fit whatever is recomputed, and those that cannot be faster than the list.
    too_large: int
    too_slow: int
    #: Layouts of the other divisions that fit, the fastest of each micro-batch.
    num_priced: int


def search(
    template: Setup,
    open_fields: Collection[str] = LAYOUT_FIELDS,
    count: int = 5,
    calibration: Calibration | None = None,
) -> LayoutSearch:
    """The `count` layouts to try of the template's run; fields of the template that are not open stay as they are.

    A calibration applies to templates of its stack.
    """
    constants = constants_for(template, calibration)
    space = divisions(_emptied(template, open_fields), open_fields)
    wanted = memory(template).headroom
    found = _search(space, open_fields, count, constants, wanted)
    if not found.candidates and wanted > _MARGIN:
        found = replace(_search(space, open_fields, count, constants, _MARGIN), wanted_margin=wanted)
    return found


def _search(
    space: Space, open_fields: Collection[str], count: int, constants: Constants, margin: float
) -> LayoutSearch:
    """Branch and bound, see the module. margin: of memory, relative to its estimate."""
    bounds = [_least_seconds(division, open_fields, constants) for division in space.divisions]
    order = sorted(range(len(bounds)), key=bounds.__getitem__)
    found: list[Candidate] = []
    fastest: list[float] = []  # of each division, ascending, as many as the list has different ones
    too_large = too_slow = 0
    for done, index in enumerate(order):
        if len(fastest) == num_different(count) and bounds[index] > fastest[-1]:
            too_slow += len(order) - done
            break
        division = space.divisions[index]
        if not fits(memory(_least_memory(division, open_fields)), division.device, margin):
            too_large += 1
            continue
        limit = fastest[0] if count == 1 and fastest else math.inf
        priced = list(_priced(division, open_fields, constants, margin, limit))
        found += priced
        too_slow += not priced
        if priced:
            fastest = sorted([*fastest, min(each.seconds for each in priced)])[: num_different(count)]
    listed = short_list([(each.setup, each.seconds) for each in found], count, constants.within)
    nearest = None if found else _nearest(space.divisions, open_fields, constants)
    best = tuple(found[place] for place in listed)
    return LayoutSearch(best, margin, margin, nearest, space, too_large, too_slow, len(found))


def on_more_gpus(
    template: Setup, open_fields: Collection[str] = LAYOUT_FIELDS, calibration: Calibration | None = None
) -> Candidate | None:
    """The fastest layout on the fewest GPUs on which one fits, of powers of two and doublings; None where none does."""
    now = template.num_gpus
    counts = {now << more for more in range(1, _MOST_DOUBLINGS + 1)}
    counts |= {1 << now.bit_length() + more for more in range(_MOST_DOUBLINGS)}
    for num_gpus in sorted(size for size in counts if size <= MOST_GPUS):
        found = search(replace(template, num_gpus=num_gpus), open_fields, 1, calibration).candidates
        if found:
            return found[0]
    return None


def _emptied(template: Setup, open_fields: Collection[str]) -> Setup:
    """The template without what an earlier choice has left in its open fields."""
    empty = {"virtual_pipeline_parallel_size": 1, "pipeline_schedule": "1f1b", "recompute_granularity": "none"}
    template = replace(template, **{name: value for name, value in empty.items() if name in open_fields})
    if template.virtual_pipeline_parallel_size > 1:
        template = replace(template, pipeline_schedule="interleaved1f1b")
    return replace(template, recompute_share=1.0) if "recompute_granularity" in open_fields else template


def _least_seconds(division: Setup, open_fields: Collection[str], constants: Constants) -> float:
    """What no variant of the division goes below."""
    largest = replace(division, micro_batch_size=micro_batches(division, open_fields)[-1])
    times = [step_time(replace(largest, sharding=each), constants) for each in shardings(division, open_fields)]
    piped = division.pipeline_parallel_size > 1  # then virtual stages may hide what data ranks exchange
    return min(time.total - _waiting_seconds(time) - piped * time.data_communication for time in times)


def _waiting_seconds(time: StepTime) -> float:
    """Seconds in which the pipeline is idle, with their part of the jitter."""
    idle = sum(getattr(time, name) for name in _IDLE)
    return idle * (1 + time.jitter / (time.total - sum(getattr(time, name) for name in _ONCE)))


def _priced(
    division: Setup, open_fields: Collection[str], constants: Constants, margin: float, limit: float
) -> Iterator[Candidate]:
    """The fastest variant of each micro-batch of a division that fits and takes less than `limit` seconds.

    Recomputation only adds to a step, so that variants are tried in the order of their time without.
    """
    for micro_batch in micro_batches(division, open_fields):
        sized = replace(division, micro_batch_size=micro_batch)
        least = _least_memory(sized, open_fields)
        if not fits(memory(least), division.device, margin):
            return  # nor does a larger one
        timed = [(step_time(variant, constants).total, variant) for variant in variants(sized, open_fields)]
        best: Candidate | None = None
        for seconds, variant in sorted(timed, key=lambda each: each[0]):
            if seconds >= (limit if best is None else best.seconds):
                break
            for trial, held in (
                _recomputed(variant, margin) if "recompute_granularity" in open_fields else [(variant, memory(variant))]
            ):
                if fits(held, division.device, margin):
                    found = Candidate(trial, step_time(trial, constants), held)
                    best = found if best is None or found.seconds < best.seconds else best
        if best is not None:
            yield best


def _least_memory(division: Setup, open_fields: Collection[str]) -> Setup:
    """The variant that needs least: sharded most, one stage a rank, everything recomputed.

    Where scores are written, a layer that is computed again writes its own again: attention alone may need less.
    """
    least = replace(division, sharding=shardings(division, open_fields)[-1])
    if "recompute_granularity" not in open_fields:
        return least
    whole = _all_recomputed(least)
    if division.flash_attention:
        return whole
    return min((whole, _attention_recomputed(least)), key=lambda setup: memory(setup).device)


def _recomputed(variant: Setup, margin: float) -> list[tuple[Setup, MemoryEstimate]]:
    """The variant with nothing recomputed where that fits; else with its attention, or the fewest whole layers."""
    free, whole = memory(variant), _all_recomputed(variant)
    if fits(free, variant.device, margin):
        return [(variant, free)]
    room = variant.device.memory_bytes / (1 + margin)
    trials = [whole]
    most, least = memory(replace(whole, recompute_share=0.0)).device, memory(whole).device
    if least < room < most:
        # memory is convex in the share, a maximum over ranks: the line between both ends does not underestimate it
        layers = max(1, variant.model.num_layers // variant.pipeline_parallel_size)
        trials = [replace(whole, recompute_share=math.ceil(layers * (most - room) / (most - least)) / layers)]
    if not variant.flash_attention or variant.is_fsdp:  # elsewhere it is what flash attention does
        trials.append(_attention_recomputed(variant))
    return [(trial, memory(trial)) for trial in trials]


def _attention_recomputed(setup: Setup) -> Setup:
    return replace(setup, recompute_granularity="selective", recompute_share=1.0)


def _all_recomputed(setup: Setup) -> Setup:
    return replace(setup, recompute_granularity="full", recompute_share=1.0)


def _nearest(found: Collection[Setup], open_fields: Collection[str], constants: Constants) -> Candidate | None:
    """Of divisions that do not fit, the one that needs least."""
    trials = [(setup, memory(setup)) for setup in (_least_memory(division, open_fields) for division in found)]
    if not trials:
        return None
    setup, held = min(trials, key=lambda trial: trial[1].device)
    return Candidate(setup, step_time(setup, constants), held)
