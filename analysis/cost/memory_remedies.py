"""What to change when a run does not fit: each change computed, those that suffice first."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from analysis.cost.feasibility import is_possible
from analysis.cost.memory import MemoryEstimate, fits, memory
from analysis.cost.setup import Setup

_GIB = 2**30
#: A change that saves less of the whole is not worth naming.
_LEAST = 0.01
_SHARDING = ("none", "zero1", "zero2", "zero3")
_RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Remedy:
    """One change of a setup: in words with its numbers, the setup after it, bytes saved, and whether that suffices."""

    change: str
    setup: Setup
    saved: float
    fits: bool

    def __str__(self) -> str:
        return f"{self.change} saves {self.saved / _GIB:.3g} GiB" + (" and fits" if self.fits else "")


def remedies(setup: Setup) -> list[Remedy]:
    """Changes that need less memory on as many GPUs, best first.

    Those after which the run fits come first, in the order of what they cost in time, cheapest first; then the others,
    by what they save. Where no single change suffices, pairs with full recomputation are tried as well. Twice the GPUs
    is the last resort, and tried only then.
    """
    before = memory(setup)
    found = _computed(before, list(_changes(setup)))
    if not any(remedy.fits for remedy in found):
        found += _computed(before, [*_with_full_recomputation(setup, _changes), *_more_gpus(setup)])
        found += _computed(before, _with_full_recomputation(setup, _more_gpus))
    suffice = [remedy for remedy in found if remedy.fits]
    rest = sorted((remedy for remedy in found if not remedy.fits), key=lambda remedy: -remedy.saved)
    return suffice + rest


def _with_full_recomputation(
    setup: Setup, changes: Callable[[Setup], Iterable[tuple[str, Setup]]]
) -> list[tuple[str, Setup]]:
    """The changes of a setup that recomputes everything, where it does not yet."""
    if setup.recompute_granularity == "full":
        return []
    whole = replace(setup, recompute_granularity="full")
    return [(f"recompute_granularity = full, {change}", after) for change, after in changes(whole)]


def _computed(before: MemoryEstimate, changes: list[tuple[str, Setup]]) -> list[Remedy]:
    made = [(change, after, memory(after)) for change, after in changes]
    return [
        Remedy(change, after, before.device - estimate.device, fits(estimate, after.device))
        for change, after, estimate in made
        if estimate.device < (1 - _LEAST) * before.device
    ]


def _changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Changes that the layout allows, from the cheapest in time to the dearest."""
    if not setup.flash_attention:
        yield "flash_attention = true", replace(setup, flash_attention=True)
    if setup.tensor_parallel_size > 1 and not setup.sequence_parallel:
        yield "sequence_parallel = true", replace(setup, sequence_parallel=True)
    if setup.sharding_ranks > 1:
        for sharding in _SHARDING[_SHARDING.index(setup.sharding) + 1 :]:
            yield f"sharding = {sharding}", replace(setup, sharding=sharding)
    micro = setup.micro_batch_size
    while micro % 2 == 0:
        micro //= 2
        yield f"micro_batch_size {setup.micro_batch_size} -> {micro}", replace(setup, micro_batch_size=micro)
    for mode in _RECOMPUTE[_RECOMPUTE.index(setup.recompute_granularity) + 1 :]:
        yield f"recompute_granularity = {mode}", replace(setup, recompute_granularity=mode)
    axes = () if setup.device.is_cpu_core else ("tensor", "expert", "pipeline", "context")  # cores share one memory
    for axis in axes:
        name = f"{axis}_parallel_size"
        size = getattr(setup, name)
        after = replace(setup, **{name: 2 * size})
        if _possible(after):
            yield f"{name} {size} -> {2 * size}", after
    if setup.seq_length % 2 == 0:  # last, since it is another training
        yield f"seq_length {setup.seq_length} -> {setup.seq_length // 2}", _half_as_long(setup)


def _half_as_long(setup: Setup) -> Setup:
    """The same tokens a step in sequences of half the length."""
    return replace(setup, seq_length=setup.seq_length // 2, global_batch_size=2 * setup.global_batch_size)


def _more_gpus(setup: Setup) -> list[tuple[str, Setup]]:
    if setup.device.is_cpu_core:
        return []
    after = replace(setup, num_gpus=2 * setup.num_gpus)
    return [(f"num_gpus {setup.num_gpus} -> {after.num_gpus}", after)] if _possible(after) else []


def _possible(setup: Setup) -> bool:
    """Whether it can be run, with tensor ranks among GPUs that fast links join."""
    joined = max(setup.device.gpus_per_node, setup.device.scale_up_size)
    return setup.tensor_parallel_size <= joined and is_possible(setup)
