"""Constants of the step-time model, by the class of software that trains."""

from dataclasses import dataclass
from functools import cache
from typing import get_args

from analysis.cost.devices import Device
from analysis.cost.setup import Stack
from analysis.cost.tables import read_table

#: Words of a framework's name, and the stack that it is; the first that fits counts.
_FRAMEWORKS: tuple[tuple[str, Stack], ...] = (
    ("nanotron", "untuned"),
    ("picotron", "untuned"),
    ("no compile", "fsdp_eager"),
    ("uncompiled", "fsdp_eager"),
    ("without compile", "fsdp_eager"),
    ("no torch.compile", "fsdp_eager"),
    ("eager", "fsdp_eager"),
    ("megatron-lm 2020", "megatron_2021"),
    ("megatron-lm 2021", "megatron_2021"),
    ("megatron-lm 2022", "megatron_2021"),
    ("megatron-lm 2023", "megatron_2021"),
    ("megatron-lm ptd", "megatron_2021"),
    ("megatron-deepspeed", "megatron_2021"),
    ("accelerate", "fsdp_eager"),
    ("hf trainer", "fsdp_eager"),
    ("hf + deepspeed", "fsdp_eager"),
    ("transformers", "fsdp_eager"),
    ("deepspeed", "megatron_2021"),
    ("megatron", "megatron"),
    ("nemo", "megatron"),
    ("pax", "fsdp_compiled"),
    ("maxtext", "megatron"),
    ("internevo", "megatron"),
    ("transformer engine", "megatron"),
    ("torchtitan", "fsdp_compiled"),
    ("compile", "fsdp_compiled"),
    ("fms", "fsdp_compiled"),
    ("nanogpt", "fsdp_compiled"),
    ("nanochat", "fsdp_compiled"),
    ("olmo", "fsdp_compiled"),
    ("fsdp", "fsdp_eager"),
    ("foundry", "fsdp_eager"),
    ("llm.c", "fsdp_compiled"),
    ("hugging", "fsdp_eager"),
)


@dataclass(frozen=True)
class Constants:
    """What the step-time model knows of a stack; every field is explained in stacks.yaml."""

    matmul_efficiency: float
    late_device_share: float
    low_precision: float
    wave_loss: float
    half_depth: float
    attention_efficiency: float
    attention_backward: float
    bandwidth_efficiency: float
    link_efficiency: float
    network_efficiency: float
    link_latency: float
    network_latency: float
    kernel_seconds: float
    residual_values: float
    routed_values: float
    elementwise: float
    score_bytes: float
    logit_bytes: float
    host_layer_seconds: float
    host_collective_seconds: float
    step_seconds: float
    tensor_overlap: float
    data_overlap: float
    context_overlap: float
    expert_overlap: float
    weight_overlap: float
    fetch_slowdown: float
    pipeline_overlap: float
    bubble: float
    stage_imbalance: float
    jitter: float
    half_expert: float
    expert_seconds: float
    fused_share: float
    between: float
    within: float
    expert_between: float


@dataclass(frozen=True)
class Sustained:
    """What a device sustains: FLOP/s of 16-bit, 8-bit and 4-bit products, and the multiprocessors they spread over."""

    bf16: float
    fp8: float
    fp4: float
    multiprocessors: int


@cache
def constants_of(stack: Stack) -> Constants:
    """The shipped constants of a stack."""
    entries = read_table("stacks.yaml")
    return Constants(**(entries["common"] | entries[stack]))


@cache
def _sustained_entries() -> list[dict]:
    return read_table("sustained.yaml")


def sustained(device: Device) -> Sustained:
    """What `device` sustains; a precision that it lacks runs at the rate of the next wider one."""
    entry = next(entry for entry in _sustained_entries() if device.name.startswith(entry["words"]))
    bf16 = entry["bf16"] * device.bf16_flops
    fp8 = entry.get("fp8", 0.0) * device.peak_flops.get("fp8", 0.0)
    fp4 = entry.get("fp4", 0.0) * device.peak_flops.get("fp4", 0.0)
    return Sustained(bf16, fp8 or bf16, fp4 or fp8 or bf16, entry["multiprocessors"])


def stack_of(framework: str) -> Stack | None:
    """The stack of a framework by its name; None when the name says nothing."""
    text = framework.strip().lower()
    if text in stack_names():
        return text  # type: ignore[return-value]
    return next((stack for word, stack in _FRAMEWORKS if word in text), None)


def stack_names() -> tuple[str, ...]:
    """Every stack."""
    return get_args(Stack)
