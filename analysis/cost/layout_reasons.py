"""Why one layout is faster than another, in words and seconds: what differs, what that saves and what it costs."""

from dataclasses import dataclass, fields

from analysis.cost.layouts import Candidate
from analysis.cost.setup import Setup
from analysis.cost.step import StepTime

#: Parts of a step as people call them, where StepTime's names with spaces are not it.
_PARTS = {
    "linear": "matrix products",
    "elementwise": "norms and activations",
    "recompute": "recomputation",
    "launch": "kernel launches",
    "optimizer": "optimizer step",
    "jitter": "waiting for the slowest node",
    "host": "host work",
}
#: What differs between layouts, in the order in which it is said.
_SIZES = {
    "tensor_parallel_size": "tensor",
    "pipeline_parallel_size": "pipeline",
    "virtual_pipeline_parallel_size": "virtual stages",
    "context_parallel_size": "context",
    "expert_parallel_size": "expert",
    "expert_tensor_parallel_size": "expert tensor",
    "micro_batch_size": "micro-batch",
    "sharding": "sharding",
}
#: Parts are said until they make up so much of what is saved, or of what it costs.
_SAID = 0.9
#: A part that differs by less of the step is not said.
_LEAST = 0.002


@dataclass(frozen=True)
class Comparison:
    """Of one layout with another: seconds of a step that it saves and costs by StepTime's part, largest first."""

    changes: tuple[str, ...]
    saved: dict[str, float]
    cost: dict[str, float]
    #: Of the whole step, positive where the layout is faster, and as a share of the other's.
    seconds: float
    share: float

    def __str__(self) -> str:
        said = [f"{verb} {_listed(parts)}" for verb, parts in (("saves", self.saved), ("costs", self.cost)) if parts]
        less = "less" if self.seconds >= 0 else "more"
        said.append(f"{_seconds(abs(self.seconds))} ({100 * abs(self.share):.1f} %) {less} a step")
        return f"{', '.join(self.changes) or 'the same sizes'}: {'; '.join(said)}"


def compare(one: Candidate, other: Candidate) -> Comparison:
    """Why `one` is faster than `other`, or slower; both of the same run."""
    least = _LEAST * other.seconds
    names = [field.name for field in fields(StepTime)]
    differences = {name: getattr(other.time, name) - getattr(one.time, name) for name in names}
    return Comparison(
        changes=tuple(_changes(one.setup, other.setup)),
        saved=_largest({name: seconds for name, seconds in differences.items() if seconds > least}),
        cost=_largest({name: -seconds for name, seconds in differences.items() if seconds < -least}),
        seconds=other.seconds - one.seconds,
        share=1 - one.seconds / other.seconds,
    )


def recomputed(setup: Setup) -> str:
    """What a setup recomputes, in words."""
    if setup.recompute_granularity == "full" and setup.recompute_share < 1:
        return f"{100 * setup.recompute_share:.0f} % of the layers recomputed"
    return {"none": "nothing recomputed", "selective": "attention recomputed", "full": "all layers recomputed"}[
        setup.recompute_granularity
    ]


def _changes(one: Setup, other: Setup) -> list[str]:
    said = [
        f"{word} {getattr(one, name)} instead of {getattr(other, name)}"
        for name, word in _SIZES.items()
        if getattr(one, name) != getattr(other, name)
    ]
    if recomputed(one) != recomputed(other):
        said.append(f"{recomputed(one)} instead of {recomputed(other)}")
    return said


def _largest(parts: dict[str, float]) -> dict[str, float]:
    """The largest parts, until they make up most of all."""
    total, kept = sum(parts.values()), {}
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        if sum(kept.values()) >= _SAID * total:
            break
        kept[name] = seconds
    return kept


def _listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{_seconds(part)} of {_PARTS.get(name, name.replace('_', ' '))}" for name, part in parts.items())


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"
