"""Every way to divide a run over its GPUs that model, batch and machine allow; nothing is priced here.

A division is the sizes that ranks are arranged in: tensor x pipeline x context x data, and experts over all but
pipeline ranks. Each has variants: micro-batch, sharding, pipeline stages of a rank; recomputation follows from memory.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, gcd, isqrt

from analysis.cost.architecture import Architecture
from analysis.cost.devices import Device
from analysis.cost.feasibility import divides_heads
from analysis.cost.setup import Setup, Sharding

#: Fields of a Setup that a search chooses where they are open.
LAYOUT_FIELDS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "virtual_pipeline_parallel_size",
    "pipeline_schedule",
    "context_parallel_size",
    "expert_parallel_size",
    "expert_tensor_parallel_size",
    "micro_batch_size",
    "recompute_granularity",
    "sharding",
)
_LARGEST_MICRO_BATCH, _MOST_STAGES = 128, 12
#: Layers of the fullest pipeline stage over the mean, at the most.
_FULLEST_STAGE = 1.05
#: The fewest tokens of a sequence on a context rank in any published run that was read (measured_runs of Megatron-LM,
#: NeMo, Llama 3, SimuMax: 4096 to 32768).
_LEAST_CONTEXT_TOKENS = 4096


@dataclass(frozen=True)
class Space:
    """The possible divisions, each a Setup with its least micro-batch, and why the others are not: reason -> number."""

    divisions: tuple[Setup, ...]
    impossible: dict[str, int]

    @property
    def size(self) -> int:
        """Divisions in all, impossible ones included."""
        return len(self.divisions) + sum(self.impossible.values())


def divisions(template: Setup, open_fields: Collection[str]) -> Space:
    """All arrangements of the template's GPUs with its open sizes chosen; sizes that are not open stay."""
    impossible: Counter[str] = Counter()
    found = []
    for setup in _arrangements(template, open_fields):
        problem = _problem(setup, open_fields)
        if problem is None:
            found.append(setup)
        else:
            impossible[problem] += 1
    return Space(tuple(found), dict(impossible.most_common()))


def variants(division: Setup, open_fields: Collection[str]) -> Iterator[Setup]:
    """A division, its micro-batch given, with every sharding and every number of stages of a pipeline rank."""
    for sharding in shardings(division, open_fields):
        for stages in _stages(division, open_fields):
            setup = replace(division, sharding=sharding)
            if stages > 1:
                setup = replace(setup, virtual_pipeline_parallel_size=stages, pipeline_schedule="interleaved1f1b")
            if stages == 1 or setup.num_micro_batches % setup.pipeline_parallel_size == 0:
                yield setup


def micro_batches(division: Setup, open_fields: Collection[str]) -> list[int]:
    """Micro-batch sizes that divide the sequences of a data rank, ascending.

    One with context ranks that are open too: several sequences at once could as well go to more data ranks.
    """
    if "micro_batch_size" not in open_fields:
        return [division.micro_batch_size]
    if division.context_parallel_size > 1 and "context_parallel_size" in open_fields:
        return [1]
    sequences = division.global_batch_size // division.data_parallel_size
    return [size for size in range(1, min(sequences, _LARGEST_MICRO_BATCH) + 1) if sequences % size == 0]


def _arrangements(template: Setup, open_fields: Collection[str]) -> Iterator[Setup]:
    ranks = template.num_gpus

    def sizes(name: str, total: int) -> tuple[int, ...]:
        return _divisors(total) if name in open_fields else (getattr(template, name),)

    if "micro_batch_size" in open_fields:
        template = replace(template, micro_batch_size=1)
    for tensor in sizes("tensor_parallel_size", ranks):
        for pipeline in sizes("pipeline_parallel_size", ranks // tensor):
            for context in sizes("context_parallel_size", ranks // tensor // pipeline):
                data = ranks // (tensor * pipeline * context)
                for expert, split in _expert_sizes(template.model, tensor, tensor * data * context, sizes):
                    yield replace(
                        template,
                        tensor_parallel_size=tensor,
                        pipeline_parallel_size=pipeline,
                        context_parallel_size=context,
                        expert_parallel_size=expert,
                        expert_tensor_parallel_size=split,
                    )


def _expert_sizes(
    model: Architecture, tensor: int, ranks: int, sizes: Callable[[str, int], tuple[int, ...]]
) -> Iterator[tuple[int, int]]:
    """(expert, expert tensor) parallel sizes of `ranks` ranks, of which `tensor` are neighbours."""
    for split in sizes("expert_tensor_parallel_size", tensor if model.is_moe else 1):
        for expert in sizes("expert_parallel_size", gcd(max(1, model.num_experts), max(1, ranks // split))):
            yield expert, split


def _problem(setup: Setup, open_fields: Collection[str]) -> str | None:
    """Why a division cannot be, or is never worth it, in words that can be counted; None where it can.

    What cannot be is what feasibility.py refuses, with numbers and the nearest choice, for a layout that is given.
    """
    model, device, tensor = setup.model, setup.device, setup.tensor_parallel_size
    pipeline, context, expert = setup.pipeline_parallel_size, setup.context_parallel_size, setup.expert_parallel_size
    if setup.num_gpus % (tensor * pipeline * context):
        return "sizes do not divide the GPUs"
    if "tensor_parallel_size" in open_fields and not _in_nodes(tensor, device):
        return "tensor ranks would leave the GPUs that fast links join"
    if not divides_heads(model, tensor):
        return "tensor ranks do not divide the heads"
    if "pipeline_parallel_size" in open_fields and not stages_alike(setup, pipeline):
        return "pipeline ranks do not divide the layers"
    virtual = setup.virtual_pipeline_parallel_size
    if virtual > 1 and (pipeline == 1 or pipeline * virtual > model.num_layers):
        return "virtual stages need pipeline ranks, and layers"
    if pipeline > 1 and not _interleaves(setup, open_fields):
        return "micro-batches are no multiple of the pipeline ranks, as interleaved stages need"
    if context > 1 and (setup.seq_length % (2 * context) or _too_short(setup, open_fields)):
        return "context ranks leave too little of a sequence"
    data = setup.data_parallel_size
    if setup.global_batch_size % (data * setup.micro_batch_size):
        return "data ranks do not divide the batch"
    if expert > 1 and (not model.is_moe or model.num_experts % expert or tensor * data * context % setup.expert_ranks):
        return "expert ranks do not divide the experts"
    if tensor % setup.expert_tensor_parallel_size:
        return "ranks that share an expert do not divide the tensor ranks"
    return None


def _interleaves(setup: Setup, open_fields: Collection[str]) -> bool:
    """Whether a schedule that is to be interleaved can be, with some micro-batch."""
    if setup.virtual_pipeline_parallel_size == 1 and setup.pipeline_schedule != "interleaved1f1b":
        return True  # nor has it to be: an open schedule comes here as 1F1B
    sequences, ranks = setup.global_batch_size // setup.data_parallel_size, setup.pipeline_parallel_size
    return any(sequences // size % ranks == 0 for size in micro_batches(setup, open_fields))


def _in_nodes(tensor: int, device: Device) -> bool:
    """Whether tensor ranks have a whole part of a node, or whole nodes that fast links join."""
    node = device.gpus_per_node
    return node % tensor == 0 or tensor % node == 0 and tensor <= device.scale_up_size


def _too_short(setup: Setup, open_fields: Collection[str]) -> bool:
    tokens = setup.seq_length // setup.context_parallel_size
    return "context_parallel_size" in open_fields and tokens < _LEAST_CONTEXT_TOKENS


def stages_alike(setup: Setup, stages: int) -> bool:
    """Whether a step may be priced by its mean stage."""
    return _alike(setup, stages) or _nearly_alike(setup, stages)


def _alike(setup: Setup, stages: int) -> bool:
    """Whether stages have as many layers each, or one fewer where embedding, output or an MTP layer stand."""
    layers = setup.model.num_layers
    return stages <= layers and any((layers + ends) % stages == 0 for ends in range(3 + setup.model.mtp_num_layers))


def _nearly_alike(setup: Setup, stages: int) -> bool:
    """Whether the fullest has little more than the mean, which is what a step is priced by."""
    layers = setup.model.num_layers
    return stages <= layers and ceil(layers / stages) * stages <= _FULLEST_STAGE * layers


def _stages(division: Setup, open_fields: Collection[str]) -> list[int]:
    """Virtual stages of a pipeline rank: an open schedule is 1F1B, interleaved where there are several."""
    ranks, schedule = division.pipeline_parallel_size, division.pipeline_schedule
    if "virtual_pipeline_parallel_size" not in open_fields:
        return [division.virtual_pipeline_parallel_size]
    if ranks == 1 or "pipeline_schedule" not in open_fields and schedule != "interleaved1f1b":
        return [1]
    most = min(_MOST_STAGES, division.model.num_layers // ranks)
    several = [size for size in range(2, most + 1) if _alike(division, size * ranks)]
    return several if "pipeline_schedule" not in open_fields else [1, *several]


def shardings(division: Setup, open_fields: Collection[str]) -> tuple[Sharding, ...]:
    """What the stack's users take, from least to most; a pipeline would gather divided weights again and again."""
    if "sharding" not in open_fields or division.data_parallel_size * division.context_parallel_size == 1:
        return (division.sharding,)
    if not division.is_fsdp:
        return ("zero1",)
    return ("zero2",) if division.pipeline_parallel_size > 1 else ("zero2", "zero3")


@cache
def _divisors(total: int) -> tuple[int, ...]:
    """All, ascending."""
    low = [size for size in range(1, isqrt(total) + 1) if total % size == 0]
    return *low, *(total // size for size in reversed(low) if size * size != total)
