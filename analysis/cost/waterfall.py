"""Why a step takes as long as it does: its parts, and what would shrink the largest of them, found by trying."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from analysis.cost.device_step import device_step_time
from analysis.cost.feasibility import is_possible, precisions_of
from analysis.cost.memory import MemoryEstimate, fits, memory
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants
from analysis.cost.step import StepTime

#: What a part of the time is, for people. Names are StepTime's.
PART_TEXTS = {
    "linear": "matrix products of the layers",
    "attention": "attention scores and values",
    "elementwise": "norms, activations and residuals, by the bytes they move",
    "output_layer": "embedding, logits and loss",
    "recompute": "activations computed again",
    "tensor_communication": "tensor ranks: activations gathered and scattered",
    "context_communication": "context ranks: keys and values",
    "expert_communication": "expert ranks: tokens to their experts and back",
    "weight_communication": "FSDP: weights gathered, gradients scattered",
    "launch": "waiting for the host to launch kernels",
    "pipeline_bubble": "pipeline ranks waiting for the first and last micro-batches",
    "pipeline_communication": "messages between pipeline ranks",
    "stage_imbalance": "the last pipeline stage's logits, which others wait for",
    "data_communication": "data ranks: gradients and weights, once a step",
    "optimizer": "optimizer step",
    "jitter": "the slowest of many nodes",
    "host": "host's work once a step",
}
_LARGEST = 3
#: A change is worth saying when it shortens the step by so much.
_WORTH = 0.005


#: A change in words, the setup after it and its step.
_Tried = tuple[str, Setup, StepTime]


@dataclass(frozen=True)
class Trial:
    """The setup with one thing changed. Seconds are for as many tokens as a step had: all, and the part's."""

    change: str
    seconds: float
    part_seconds: float
    peak_gib: float
    fits: bool
    #: Whether other numbers come out: another batch or precision.
    alters_training: bool

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self).copy()


@dataclass(frozen=True)
class Reason:
    """One of the largest parts, and the change that shortens the step and leaves least of it; None where none does.

    The change fits where any such change does, and where the setup fits; else `Trial.fits` says that it does not.
    """

    part: str
    seconds: float
    share: float
    remedy: Trial | None


@dataclass(frozen=True)
class Waterfall:
    """The parts of a step and of a GPU's memory, the reasons, and the layout a single change away that is fastest."""

    time: StepTime
    memory: MemoryEstimate
    reasons: tuple[Reason, ...]
    best: Trial | None

    def time_parts(self) -> list[tuple[str, float]]:
        """(name, seconds) of the parts that are there, largest first; they add up to the step."""
        parts = [(field.name, getattr(self.time, field.name)) for field in fields(self.time)]
        return sorted((part for part in parts if part[1] > 0), key=lambda part: -part[1])

    def memory_parts(self) -> list[tuple[str, float]]:
        """(name, GiB) of the tensors that are there and of what comes on top of them, largest first, that last."""
        held = self.memory
        tensors = sorted(((n, b / 2**30) for n, b in held.tensors.items() if b > 0), key=lambda part: -part[1])
        above = [("allocator", held.reserved - held.allocated), ("context", held.device - held.reserved)]
        return tensors + [(name, size / 2**30) for name, size in above if size > 0]


def waterfall(setup: Setup, constants: Constants | None = None) -> Waterfall:
    """The parts of `setup`'s step and memory, and why. constants: a calibration's, else those of the stack."""
    time = device_step_time(setup, constants)
    possible = [(change, after) for change, after in _changes(setup) if is_possible(after)]
    tried = [(change, after, device_step_time(after, constants)) for change, after in possible]
    largest = sorted((field.name for field in fields(time)), key=lambda name: -getattr(time, name))[:_LARGEST]
    reasons = tuple(_reason(part, time, tried, setup) for part in largest)
    layouts = [one for one in tried if not _alters_training(setup, one[1])]
    return Waterfall(time, memory(setup), reasons, _best(layouts, time.total, "total", setup))


def _alters_training(before: Setup, after: Setup) -> bool:
    return (after.precision, after.global_batch_size) != (before.precision, before.global_batch_size)


def _reason(part: str, time: StepTime, tried: list[_Tried], setup: Setup) -> Reason:
    seconds = getattr(time, part)
    smaller = [one for one in tried if _seconds(one, part, setup) < seconds * (1 - _WORTH)]
    return Reason(part, seconds, seconds / time.total, _best(smaller, time.total, part, setup))


def _best(tried: list[_Tried], total: float, part: str, setup: Setup) -> Trial | None:
    """Of the changes that shorten the step, the one that leaves least of the part.

    Those that leave the training as it is come first, and those that fit before all others; where the setup itself
    fits, only those.
    """
    shorter = [one for one in tried if _seconds(one, "total", setup) < total * (1 - _WORTH)]
    best: Trial | None = None
    for one in sorted(shorter, key=lambda one: (_alters_training(setup, one[1]), _seconds(one, part, setup))):
        held = memory(one[1])
        trial = Trial(
            change=one[0],
            seconds=_seconds(one, "total", setup),
            part_seconds=_seconds(one, part, setup),
            peak_gib=held.device / 2**30,
            fits=fits(held, setup.device),
            alters_training=_alters_training(setup, one[1]),
        )
        if trial.fits:
            return trial
        best = best or trial
    return None if fits(memory(setup), setup.device) else best


def _seconds(one: _Tried, part: str, setup: Setup) -> float:
    """Seconds of a part (or the total) for as many tokens as one step of `setup` has."""
    return getattr(one[2], part) * setup.tokens_per_step / one[1].tokens_per_step


def _changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Single changes of the layout, in both directions, then of schedule, recomputation, precision and batch."""
    for name in ("micro_batch", "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
        field = f"{name}_size"
        size = getattr(setup, field)
        for changed in [2 * size] + [size // 2] * (size % 2 == 0):
            leaves_links = name == "tensor_parallel" and changed > max(size, setup.device.scale_up_size)
            if not leaves_links:
                yield f"{field} {size} -> {changed}", replace(setup, **{field: changed})
    if setup.pipeline_parallel_size > 1 and setup.pipeline_schedule in ("1f1b", "interleaved1f1b"):
        chunks = setup.virtual_pipeline_parallel_size
        interleaved = replace(setup, virtual_pipeline_parallel_size=2 * chunks, pipeline_schedule="interleaved1f1b")
        yield f"virtual_pipeline_parallel_size {chunks} -> {2 * chunks}", interleaved
    now = setup.recompute_granularity
    for mode in {"full": ("none", "selective"), "selective": ("none",), "none": ()}[now]:
        yield f"recompute_granularity {now} -> {mode}", replace(setup, recompute_granularity=mode)
    if not setup.flash_attention:
        yield "flash attention", replace(setup, flash_attention=True)
    for sharding in ("zero1", "zero3"):
        if sharding != setup.sharding:
            yield f"sharding {setup.sharding} -> {sharding}", replace(setup, sharding=sharding)
    if setup.precision in ("bf16", "fp16") and "fp8" in precisions_of(setup.device):
        yield f"precision {setup.precision} -> fp8", replace(setup, precision="fp8")
    batch = setup.global_batch_size
    yield f"global_batch_size {batch} -> {2 * batch}", replace(setup, global_batch_size=2 * batch)
