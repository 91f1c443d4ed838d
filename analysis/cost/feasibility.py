"""Whether a setup can be run at all: sizes that divide what they must, precisions that the device has.

Of any software; scaling/layouts.py has the rules of our own trainer, which takes pieces of unequal size too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.cost.architecture import Architecture
from analysis.cost.devices import Device
from analysis.cost.setup import Precision, Setup
from scaling.errors import UserError

#: The peak of a device that says whether it can train in a precision; mxfp8 and nvfp4 came with Blackwell's fp4 units.
_NEEDS: dict[Precision, str] = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "mxfp8": "fp4", "nvfp4": "fp4"}
_SIZES = (
    "num_gpus",
    "seq_length",
    "global_batch_size",
    "micro_batch_size",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "virtual_pipeline_parallel_size",
    "context_parallel_size",
    "expert_parallel_size",
    "expert_tensor_parallel_size",
)
#: More GPUs, and larger sizes of anything else, are of no run; searches go through the divisors of the GPUs.
MOST_GPUS, _LARGEST = 10**6, 10**9


def check_setup(setup: Setup) -> None:
    """Raises UserError with the first thing that makes the setup impossible, and the nearest choice that is not."""
    problem = next(_problems(setup), None)
    if problem is not None:
        raise UserError(problem)


def is_possible(setup: Setup) -> bool:
    """Whether nothing makes the setup impossible; memory is not looked at."""
    return next(_problems(setup), None) is None


def check_sizes(given: Mapping[str, Any]) -> None:
    """Raises UserError for a size among the fields of a setup that is below 1, or of no run."""
    problem = next(_size_problems(given), None)
    if problem is not None:
        raise UserError(problem)


def precisions_of(device: Device) -> list[Precision]:
    """Precisions that a device can train in; every one has fp32."""
    return [
        precision
        for precision in ("bf16", "fp16", "fp8", "mxfp8", "nvfp4", "fp32")
        if _NEEDS.get(precision, "") in device.peak_flops or precision == "fp32"
    ]


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` around `value`, in words: "8 or 16"."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"


def nearest_divisors(value: int, total: int) -> str:
    """The divisors of `total` around `value`, in words."""
    return _around(value, [size for size in range(1, total + 1) if total % size == 0])


def divides_heads(model: Architecture, tensor_ranks: int) -> bool:
    """Whether ranks have whole query heads each, and whole key/value heads or a copy of one."""
    groups = model.num_query_groups
    shared = model.is_latent or groups % tensor_ranks == 0 or tensor_ranks % groups == 0
    return model.num_attention_heads % tensor_ranks == 0 and shared


def _around(value: int, sizes: Sequence[int]) -> str:
    """Of ascending sizes the last below `value` and the first above it, in words."""
    below = [size for size in sizes if size < value][-1:]
    above = [size for size in sizes if size > value][:1]
    return " or ".join(map(str, below + above))


def _problems(setup: Setup) -> Iterator[str]:
    sizes = list(_size_problems(vars(setup)))
    if sizes:
        yield from sizes  # the checks below divide by them
        return
    yield from _precision_problems(setup)
    yield from _model_problems(setup)
    yield from _pipeline_problems(setup)
    yield from _rank_problems(setup)


def _size_problems(fields: Mapping[str, Any]) -> Iterator[str]:
    for name in _SIZES:
        most = MOST_GPUS if name == "num_gpus" else _LARGEST
        if fields.get(name, 1) < 1:
            yield f"{name} = {fields[name]}: must be 1 or more"
        elif fields.get(name, 1) > most:
            yield f"{name} = {fields[name]}: must be at most {most:,}"


def _precision_problems(setup: Setup) -> Iterator[str]:
    allowed = precisions_of(setup.device)
    if setup.precision not in allowed:
        yield f"precision = {setup.precision}: {setup.device.name} has no such products: choose {', '.join(allowed)}"


def _model_problems(setup: Setup) -> Iterator[str]:
    """What the geometry of the model does not let one divide."""
    model, tensor, context = setup.model, setup.tensor_parallel_size, setup.context_parallel_size
    if not divides_heads(model, tensor):
        heads, groups = model.num_attention_heads, model.num_query_groups
        why = f"does not divide the {heads} attention heads of {model.name}"
        if heads % tensor == 0:
            why = f"neither divides the {groups} query groups of {model.name} nor is a multiple of them"
        possible = [size for size in range(1, heads + 1) if divides_heads(model, size)]
        yield f"tensor_parallel_size = {tensor}: {why}: choose {_around(tensor, possible)}"
    # causal context ranks take a piece from each end of the sequence, so that all have as much to do
    if context > 1 and setup.seq_length % (2 * context):
        yield (
            f"seq_length = {setup.seq_length}: must be a multiple of 2 x context_parallel_size = {2 * context}: "
            f"choose {nearest_multiples(setup.seq_length, 2 * context)}"
        )
    if model.learned_positions and setup.seq_length > model.learned_positions:
        yield (
            f"seq_length = {setup.seq_length}: {model.name} has {model.learned_positions} learned positions: "
            f"choose at most {model.learned_positions}"
        )
    expert = setup.expert_parallel_size
    for name in ("expert_parallel_size", "expert_tensor_parallel_size"):
        if getattr(setup, name) > 1 and not model.is_moe:
            yield f"{name} = {getattr(setup, name)}: {model.name} has no experts: choose 1"
    if expert > 1 and model.num_experts % expert:
        yield (
            f"expert_parallel_size = {expert}: does not divide the {model.num_experts} experts of {model.name}: "
            f"choose {nearest_divisors(expert, model.num_experts)}"
        )


def _pipeline_problems(setup: Setup) -> Iterator[str]:
    model, ranks, chunks = setup.model, setup.pipeline_parallel_size, setup.virtual_pipeline_parallel_size
    schedule = setup.pipeline_schedule
    most = model.num_layers + model.mtp_num_layers + 2  # embedding and output layer may have stages of their own
    if ranks > model.num_layers:
        yield (
            f"pipeline_parallel_size = {ranks}: more stages than the {model.num_layers} layers of {model.name}: "
            f"choose {max(size for size in range(1, model.num_layers + 1) if setup.num_gpus % size == 0)}"
        )
    elif chunks > 1 and ranks == 1:
        yield f"virtual_pipeline_parallel_size = {chunks}: needs pipeline_parallel_size of 2 or more: choose 1"
    elif ranks * chunks > most:
        yield (
            f"virtual_pipeline_parallel_size = {chunks}: {ranks} x {chunks} stages are more than the "
            f"{model.num_layers} layers of {model.name}: choose {max(1, model.num_layers // ranks)}"
        )
    elif chunks > 1 and schedule != "interleaved1f1b":
        yield (
            f"virtual_pipeline_parallel_size = {chunks}: pipeline_schedule = {schedule} has none: "
            "choose 1 or interleaved1f1b"
        )
    elif chunks == 1 and ranks > 1 and schedule == "interleaved1f1b":
        yield (
            "virtual_pipeline_parallel_size = 1: pipeline_schedule = interleaved1f1b needs several stages a rank: "
            "choose 2 or more, or 1f1b"
        )
    elif ranks > 1 and schedule in ("zbv", "dualpipev") and 2 * ranks > most:
        yield (
            f"pipeline_parallel_size = {ranks}: each rank has two stages under {schedule}, more than the "
            f"{model.num_layers} layers of {model.name}: choose {model.num_layers // 2} or fewer"
        )


def _rank_problems(setup: Setup) -> Iterator[str]:
    """Sizes that must divide the number of GPUs, and the batch between data ranks."""
    if setup.device.is_cpu_core and setup.num_gpus > setup.device.gpus_per_node:
        cores = setup.device.gpus_per_node
        yield f"num_gpus = {setup.num_gpus}: this machine has {cores} cores: choose at most {cores}"
    axes = (setup.tensor_parallel_size, setup.pipeline_parallel_size, setup.context_parallel_size)
    replica = axes[0] * axes[1] * axes[2]
    if setup.num_gpus % replica:
        yield (
            f"num_gpus = {setup.num_gpus}: must be a multiple of tensor x pipeline x context = "
            f"{axes[0]} x {axes[1]} x {axes[2]} = {replica}: choose {nearest_multiples(setup.num_gpus, replica)}"
        )
        return
    data = setup.data_parallel_size
    yield from _expert_rank_problems(setup)
    unit = data * setup.micro_batch_size
    if setup.global_batch_size % unit:
        yield (
            f"global_batch_size = {setup.global_batch_size}: must be a multiple of data x micro-batch = {data} x "
            f"{setup.micro_batch_size} = {unit} sequences: choose {nearest_multiples(setup.global_batch_size, unit)}"
        )
        return
    # interleaved stages take micro-batches by groups of as many as there are pipeline ranks
    ranks = setup.pipeline_parallel_size
    if setup.virtual_pipeline_parallel_size > 1 and setup.num_micro_batches % ranks:
        batches = nearest_multiples(setup.global_batch_size, unit * ranks)
        yield (
            f"global_batch_size = {setup.global_batch_size}: {setup.num_micro_batches} micro-batches of each data rank "
            f"are no multiple of the {ranks} pipeline ranks, as interleaved1f1b needs: choose {batches}"
        )


def _expert_rank_problems(setup: Setup) -> Iterator[str]:
    """Expert ranks are tensor, context and data ranks in another order."""
    tensor, context, data = setup.tensor_parallel_size, setup.context_parallel_size, setup.data_parallel_size
    expert, split, ranks = setup.expert_parallel_size, setup.expert_tensor_parallel_size, tensor * context * data
    product = f"tensor x context x data = {tensor} x {context} x {data} = {ranks}"
    if split > 1 and tensor % split:
        yield (
            f"expert_tensor_parallel_size = {split}: must divide tensor_parallel_size = {tensor}: "
            f"choose {nearest_divisors(split, tensor)}"
        )
    elif ranks % (expert * split):
        times = f", {split} times over (expert_tensor_parallel_size)" if split > 1 else ""
        yield (
            f"expert_parallel_size = {expert}: must divide {product}{times}: "
            f"choose {nearest_divisors(expert, ranks // split)}"
        )
