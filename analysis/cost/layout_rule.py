"""A layout where the user leaves it open: the first that fits in a fixed order of what costs least time."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import product

from analysis.cost.feasibility import is_possible
from analysis.cost.memory import fits, memory
from analysis.cost.setup import Setup
from analysis.cost.step import step_time

#: Fields that the rule chooses where they are open.
LAYOUT_FIELDS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "context_parallel_size",
    "expert_parallel_size",
    "micro_batch_size",
    "recompute",
)
LAYOUT_RULE = (
    "the first that fits: expert ranks, tensor ranks within a node, pipeline ranks, context ranks for long sequences, "
    "then recomputation; the rest is data parallel; micro-batches grow while the step gets shorter"
)
_LARGEST_TENSOR, _LARGEST_PIPELINE, _LARGEST_EXPERT, _LARGEST_CONTEXT = 8, 64, 64, 64
_LARGEST_MICRO_BATCH = 16
#: Sequences from this length on may be divided over context ranks.
_LONG_SEQUENCE = 32768


def choose_layout(setup: Setup, open_fields: Collection[str]) -> Setup:
    """`setup` with the open ones of LAYOUT_FIELDS chosen, see LAYOUT_RULE.

    With global_batch_size open, the setup's is a wish, and the nearest multiple that the layout can divide is taken.
    Where nothing fits, the layout that needs the least memory is returned; where nothing is possible, `setup` itself.
    """
    candidates = [trial for trial in _candidates(setup, open_fields) if is_possible(trial)]
    if not candidates:
        return setup
    # the most divided one tells at once when nothing will fit
    if len(candidates) > 1 and not _fits(candidates[-1]):
        needs = [(memory(trial).device, index) for index, trial in enumerate(candidates)]
        least = candidates[min(needs)[1]]
        if not _fits(least):
            return least
    chosen = next((trial for trial in candidates if _fits(trial)), candidates[-1])
    return _grown(chosen, open_fields) if "micro_batch_size" in open_fields else chosen


def _fits(setup: Setup) -> bool:
    return fits(memory(setup), setup.device)


def _candidates(setup: Setup, open_fields: Collection[str]) -> Iterator[Setup]:
    """Layouts in the order of the rule, some of them impossible."""
    model, device = setup.model, setup.device
    sharded = setup.sharding == "zero3"  # divides weights already: tensor and pipeline ranks are left to the user
    experts = model.num_experts if model.is_moe else 1
    node = min(_LARGEST_TENSOR, device.scale_up_size)
    context = setup.seq_length // _LONG_SEQUENCE

    def sizes(name: str, largest: int) -> list[int]:
        return _powers_of_two(largest) if name in open_fields else [getattr(setup, name)]

    modes = ("none", "full") if "recompute" in open_fields else (setup.recompute,)
    for recompute, context_size, pipeline, tensor, expert in product(
        modes,
        sizes("context_parallel_size", min(_LARGEST_CONTEXT, 2 * context)),
        sizes("pipeline_parallel_size", 1 if sharded else min(_LARGEST_PIPELINE, model.num_layers)),
        sizes("tensor_parallel_size", 1 if sharded else node),
        sizes("expert_parallel_size", min(_LARGEST_EXPERT, experts)),
    ):
        trial = replace(
            setup,
            recompute=recompute,
            context_parallel_size=context_size,
            pipeline_parallel_size=pipeline,
            tensor_parallel_size=tensor,
            expert_parallel_size=expert,
        )
        yield _with_batch(trial, open_fields)


def _powers_of_two(largest: int) -> list[int]:
    return [1 << exponent for exponent in range(max(1, largest).bit_length())]


def _with_batch(setup: Setup, open_fields: Collection[str]) -> Setup:
    """`setup` with an open batch rounded to what its data ranks can divide."""
    if "global_batch_size" not in open_fields:
        return setup
    unit = max(1, setup.data_parallel_size) * setup.micro_batch_size
    return replace(setup, global_batch_size=unit * max(1, round(setup.global_batch_size / unit)))


def _grown(setup: Setup, open_fields: Collection[str]) -> Setup:
    """`setup` with its micro-batch doubled as long as that fits and shortens the step of the same batch."""
    seconds = step_time(setup).total
    while setup.micro_batch_size < _LARGEST_MICRO_BATCH:
        trial = replace(setup, micro_batch_size=2 * setup.micro_batch_size)
        if not is_possible(trial) or not _fits(trial):
            break
        faster = step_time(trial).total
        if faster >= seconds:
            break
        setup, seconds = trial, faster
    return setup
