"""One training run as the cost model sees it: model, batch, layout, precision, machine. No measured speed is in it."""

from dataclasses import dataclass
from typing import Literal

from analysis.cost.architecture import Architecture
from analysis.cost.devices import Device

Precision = Literal["fp32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]
Recompute = Literal["none", "selective", "full"]
#: none: every data rank has everything; zero1 divides optimizer state, zero2 gradients too, zero3 weights too (FSDP).
Sharding = Literal["none", "zero1", "zero2", "zero3"]
#: zb1p and zb2p fill the bubble with weights' gradients put off, in as much memory as 1F1B takes and in twice that.
Schedule = Literal["gpipe", "1f1b", "interleaved1f1b", "zb1p", "zb2p", "zbv", "dualpipev"]
#: How torch has the cross-entropy: all logits at once and their copies in float32, compiled into one kernel that makes
#: no copies, or some tokens at a time (or fused with the output layer), so that not all logits are there at once.
Loss = Literal["whole", "compiled", "chunked"]
#: What the constants of the cost model are kept by; see stacks.yaml for what each means.
Stack = Literal["megatron", "megatron_2021", "fsdp_compiled", "fsdp_eager", "untuned"]


@dataclass(frozen=True)
class Setup:
    """Everything that decides the time and the memory of a training step.

    num_gpus = tensor x pipeline x context x data parallel size. The layers of experts divide the same GPUs in their own
    way (Liu et al. 2025, arXiv:2504.14960): expert x expert tensor parallel size divides tensor x context x data, and
    what remains holds copies. Batch sizes are in sequences.
    """

    model: Architecture
    device: Device
    num_gpus: int
    seq_length: int
    global_batch_size: int
    micro_batch_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    #: Stages of one rank under an interleaved schedule.
    virtual_pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    expert_parallel_size: int = 1
    #: Ranks that share the matrices of one expert. Megatron's own default is tensor_parallel_size, its recipes' 1.
    expert_tensor_parallel_size: int = 1
    sequence_parallel: bool = True
    pipeline_schedule: Schedule = "1f1b"
    sharding: Sharding = "zero1"
    #: Ranks that share one copy of what is sharded; None: all data and context ranks (less under HSDP).
    sharding_size: int | None = None
    recompute_granularity: Recompute = "none"
    #: Share of the layers that full recomputation is applied to.
    recompute_share: float = 1.0
    precision: Precision = "bf16"
    #: Whether attention never writes its scores to memory (flash attention, cuDNN's).
    flash_attention: bool = True
    #: Of FSDP's stacks; Megatron's are their own.
    loss: Loss = "whole"
    #: Whether weights and Adam's moments are in float32 beside products in 16 bits; else all is in 16 ("bf16-true").
    mixed_precision: bool = True
    #: Whether the software is of 2026-06 or later, whose experts are fused where `fuses_experts` says so.
    fused_experts: bool = True
    stack: Stack = "megatron"

    @property
    def data_parallel_size(self) -> int:
        """Ranks that train different sequences with the same weights."""
        return self.num_gpus // (self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size)

    @property
    def shortens_ends(self) -> bool:
        """Whether the first and the last stage have a layer less than the others.

        They do when stages are even only if embedding and output layer count as a layer each: then whoever chose the
        numbers left the ends that much shorter (as Llama 3 did: Grattafiori et al. 2024, section 3.3.2).
        """
        stages = self.pipeline_parallel_size * self.virtual_pipeline_parallel_size
        layers = self.model.num_layers
        return stages > 1 and layers % stages != 0 and (layers + 2) % stages == 0

    @property
    def expert_ranks(self) -> int:
        """Ranks that share the experts of one layer; those beyond hold copies."""
        return self.expert_parallel_size * self.expert_tensor_parallel_size

    @property
    def fuses_experts(self) -> bool:
        """Whether products of experts are one kernel with their activation and casts, in one graph of the whole step.

        Megatron-Core's are since 2026-06 for MXFP8 and NVFP4 on Blackwell.
        """
        blocks = self.precision in ("mxfp8", "nvfp4") and self.device.name.startswith(("B", "GB"))
        return self.fused_experts and blocks and self.stack == "megatron"

    @property
    def is_fsdp(self) -> bool:
        """Whether torch's FSDP trains it, compiled or not."""
        return self.stack in ("fsdp_compiled", "fsdp_eager")

    @property
    def fetches_weights(self) -> bool:
        """Whether weights are gathered and gradients scattered with every micro-batch, not once a step."""
        return self.sharding == "zero3" or self.sharding == "zero2" and self.is_fsdp

    @property
    def sharding_ranks(self) -> int:
        """Ranks that share one copy of what is sharded."""
        return self.sharding_size or self.data_parallel_size * self.context_parallel_size

    @property
    def expert_sharding_ranks(self) -> float:
        """Ranks that share one copy of what is sharded of the same experts."""
        return max(1.0, self.sharding_ranks * self.tensor_parallel_size / self.expert_ranks)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that one rank goes through in a step."""
        return max(1, self.global_batch_size // (self.data_parallel_size * self.micro_batch_size))

    @property
    def micro_batch_tokens(self) -> float:
        """Tokens of one micro-batch on one context rank."""
        return self.micro_batch_size * self.seq_length / self.context_parallel_size

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch_size * self.seq_length
