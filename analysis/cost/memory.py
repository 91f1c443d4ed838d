"""Memory of one GPU, tensor by tensor, from the setup alone; no measured figure of the run is an input.

Of any model under any software; what our own trainer keeps is known more closely (scaling/memory.py).

Three sizes of the same thing are published, so all are given: bytes that tensors take (torch's `max_memory_allocated`),
that torch's allocator has taken from the device (`max_memory_reserved`), and that the device shows as used
(nvidia-smi), which has CUDA's context and the collectives' buffers besides.

Of N parameters on a rank, R ranks share what is sharded (Rajbhandari et al. 2020, arXiv:1910.02054, section 5):

    weights, gradients, main weights, optimizer   bytes by stack (analysis/cost/memory_stacks.py); zero1 divides the
                                                  last two by R, zero2 gradients too, zero3 weights too; torch's FSDP
                                                  divides weights under zero2 as well, and keeps them gathered
    activations    scaling/activations.py, by layer and micro-batch in flight; layers' inputs under full recomputation
    transient      the larger of: the logits and the loss; one layer's backward pass, recomputed where it has to be
    communication  zero3: units gathered, one ahead, and a gradient being reduced; all units of a stage under FSDP's
                   zero2 and in a pipeline, whose micro-batches would otherwise gather them again and again
    workspace      cuBLAS, and what a stack caches
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.cost.counts import block_parameters, embedding_parameters
from analysis.cost.devices import Device
from analysis.cost.interval import Interval
from analysis.cost.memory_stacks import StackMemory, stack_memory
from analysis.cost.setup import Setup
from scaling.activations import LayerSizes, layer_tensors, micro_batches_in_flight

Metric = Literal["allocated", "reserved", "device"]

_MIB = 2**20
#: cuBLAS's workspace, as NVIDIA recommends it for Hopper (cuBLAS documentation, cublasSetWorkspace; 4 MiB before).
_CUBLAS = 32 * _MIB
#: Reserved / allocated: median of 43 runs of Megatron-LM on B200 (1.03 to 1.09; MooreThreads/SimuMax, docs/b200, 2026).
_RESERVED = 1.05
#: CUDA's context with its kernels, and before CUDA loaded these one by one (1573 MiB on an A100: bigscience, tr11
#: chronicles-prequel); NCCL's buffers of one communicator: NCCL_BUFFSIZE of 4 MiB, 16 channels, 2 ways.
_CONTEXT, _CONTEXT_2021, _COMMUNICATOR = 600 * _MIB, 1573 * _MIB, 128 * _MIB
#: Quantiles 5 % and 95 % of measured / estimated peaks, over 18 sources of Megatron-Core, 11 before it, 29 of compiled
#: and 18 of eager FSDP, of which many runs count as their square root. What other people's runs keep is not known
#: better: gradients or moments in 16 bits, weights in 8, buffers, and what a table calls memory are rarely said. Where
#: all is said, Megatron-Core is within 2 % (43 runs of MooreThreads/SimuMax). untuned: a judgement.
_SPREAD = {
    "megatron": (0.90, 1.27),
    "megatron_2021": (0.85, 1.30),
    "fsdp_compiled": (0.78, 1.42),
    "fsdp_eager": (0.76, 1.40),
    "untuned": (0.80, 1.60),
}
#: The same of Megatron-Core with experts or products in 8 bits or less: there it matters most what a run keeps in which
#: precision, and how evenly tokens go to the experts.
_SPREAD_LOOSE = (0.62, 1.45)
#: What a layout is chosen with above its estimate: who runs it knows the settings that tables leave out, and sees at
#: the first step whether it fits. The driver's part and fragments, and how far a stack's releases differ.
_HEADROOM = {
    "megatron": 0.06,
    "megatron_2021": 0.15,
    "fsdp_compiled": 0.25,
    "fsdp_eager": 0.25,
    "untuned": 0.60,
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the pipeline rank that needs most.

    Attributes:
        pipeline_rank: which that is.
        tensors: name -> bytes; they add up to `allocated`.
        allocated, reserved, device: see the module.
        spread: low and high end of the 90 % interval of each of the three, as ratios to it.
        headroom: above the estimate, relative to it, that a layout is chosen with where one fits with it.
    """

    pipeline_rank: int
    tensors: Mapping[str, float]
    allocated: float
    reserved: float
    device: float
    spread: tuple[float, float]
    headroom: float

    def interval(self, metric: Metric = "device") -> Interval:
        """Bytes of one of the three sizes, with the bounds between which 90 % of measured peaks are expected."""
        value, (low, high) = getattr(self, metric), self.spread
        return Interval(value, low * value, high * value)


def memory(setup: Setup) -> MemoryEstimate:
    """Memory of the GPU that needs most; tensor ranks are alike, pipeline ranks are not."""
    stack = stack_memory(setup)
    ranks = {rank: _rank_tensors(setup, stack, held) for rank, held in _heaviest(setup, stack)}
    totals = {rank: sum(tensors.values()) for rank, tensors in ranks.items()}
    worst = max(totals, key=totals.__getitem__)
    axes = ("tensor", "pipeline", "context", "data", "expert")
    communicators = sum(getattr(setup, f"{axis}_parallel_size") > 1 for axis in axes)
    reserved = _RESERVED * totals[worst]
    context = _CONTEXT_2021 if setup.stack == "megatron_2021" else _CONTEXT
    return MemoryEstimate(
        pipeline_rank=worst,
        tensors=ranks[worst],
        allocated=totals[worst],
        reserved=reserved,
        device=reserved + context + communicators * _COMMUNICATOR,
        spread=_spread(setup),
        headroom=_HEADROOM[setup.stack],
    )


def _spread(setup: Setup) -> tuple[float, float]:
    loose = setup.model.is_moe or setup.precision not in ("fp32", "fp16", "bf16")
    return _SPREAD_LOOSE if loose and setup.stack == "megatron" else _SPREAD[setup.stack]


def fits(estimate: MemoryEstimate, device: Device, margin: float = 0.06) -> bool:
    """Whether the estimate and `margin` of it are within the device's memory, of which a driver keeps a part."""
    return (1 + margin) * estimate.device <= device.memory_bytes


@dataclass(frozen=True)
class _Block:
    """One layer on one rank: parameters by what divides them, and bytes kept of one micro-batch."""

    plain: float
    experts: float
    #: Of `plain`, matrices; and the distinct matrices, of which experts are one.
    matrices: float
    shapes: float
    #: Of the whole layer on one tensor rank, all experts of the rank included: what zero3 gathers as one.
    unit: float
    inner: float
    kept: float


@dataclass(frozen=True)
class _Held:
    """What one pipeline rank holds: layers and their number, the ends of the model, micro-batches in flight."""

    blocks: tuple[tuple[_Block, int], ...]
    first: bool
    last: bool
    in_flight: float


def _block(setup: Setup, stack: StackMemory, moe: bool) -> _Block:
    arch, tensor = setup.model, setup.tensor_parallel_size
    block = block_parameters(arch, moe)
    matrices = (block.attention + block.mlp) / tensor
    experts = block.routed_experts / setup.expert_ranks
    plain = matrices + block.norms + block.router
    inner = arch.moe_shared_expert_intermediate_size if moe else arch.ffn_hidden_size
    kept = sum(layer_tensors(_sizes(setup, stack, moe), stack.kept, arch.gated).values())
    return _Block(
        plain=plain,
        experts=experts,
        matrices=matrices + experts,
        shapes=matrices + block.routed_experts / max(1, arch.num_experts) / setup.expert_tensor_parallel_size,
        unit=plain + experts,
        inner=(inner + (arch.moe_router_topk * arch.moe_ffn_hidden_size if moe else 0)) / tensor,
        kept=setup.micro_batch_tokens * kept,
    )


def _sizes(setup: Setup, stack: StackMemory, moe: bool) -> LayerSizes:
    """Elements of each token of one layer on one tensor rank. Routed tokens are taken to be spread evenly."""
    arch, tensor, split = setup.model, setup.tensor_parallel_size, setup.expert_tensor_parallel_size
    divided = arch.hidden_size / (tensor if setup.sequence_parallel else 1)
    groups = max(1.0, arch.num_query_groups / tensor)
    heads = arch.num_attention_heads / tensor
    inner = arch.moe_shared_expert_intermediate_size if moe else arch.ffn_hidden_size
    # torch's selective policy keeps no grouped product; what is exchanged, there and back, cannot be computed again
    routed, selective = 1.0, setup.is_fsdp and setup.recompute_granularity == "selective"
    if setup.is_fsdp and setup.expert_parallel_size > 1:
        routed = 2 * stack.kept.norm_input / (stack.kept.norm_output + stack.kept.expert_output)
    elif selective:
        routed = 0.0
    return LayerSizes(
        hidden=divided,
        entering=arch.hidden_size if stack.keeps_gathered else divided,
        query=heads * arch.qk_channels,
        key=groups * arch.qk_channels,
        value=groups * arch.v_channels,
        output=heads * arch.v_channels,
        heads=heads,
        inner=inner / tensor,
        keys=setup.seq_length,
        latent=arch.q_lora_rank + arch.kv_lora_rank if arch.is_latent else 0,
        # tensor ranks have routed their parts of the tokens, which the ranks that share an expert gather
        routed=arch.moe_router_topk * split / tensor if moe else 0,
        routed_hidden=routed * arch.hidden_size,
        routed_inner=0 if selective else arch.moe_ffn_hidden_size / split,
    )


def stages_per_rank(setup: Setup) -> int:
    """Pipeline stages of one rank under the setup's schedule."""
    if setup.pipeline_parallel_size == 1 or setup.pipeline_schedule in ("gpipe", "1f1b", "zb1p", "zb2p"):
        return 1
    return setup.virtual_pipeline_parallel_size if setup.pipeline_schedule == "interleaved1f1b" else 2


def _stages(setup: Setup, rank: int) -> Sequence[int]:
    """Stages of a pipeline rank, ascending; a V comes back to the first rank."""
    size, each = setup.pipeline_parallel_size, stages_per_rank(setup)
    if each > 1 and setup.pipeline_schedule in ("zbv", "dualpipev"):
        return rank, 2 * size - 1 - rank
    return range(rank, each * size, size)


def _heaviest(setup: Setup, stack: StackMemory) -> Iterator[tuple[int, _Held]]:
    """Pipeline ranks of which one needs most: of those that hold alike, the one with most micro-batches in flight.

    Layers are spread evenly over the stages, or the ends have one less; those of multi-token prediction are at the end.
    """
    arch, size, each = setup.model, setup.pipeline_parallel_size, stages_per_rank(setup)
    count, num_dense = size * each, arch.num_layers - arch.num_moe_layers
    missing = 1 if setup.shortens_ends else 0
    slots = arch.num_layers + 2 * missing

    def first_layer(stage: int) -> int:
        return min(arch.num_layers, max(0, slots * stage // count - missing))

    most: dict[tuple[int, int, bool, bool], tuple[float, int]] = {}
    for rank in range(size):
        mine = _stages(setup, rank)
        ends = [(first_layer(stage), first_layer(stage + 1)) for stage in mine]
        dense = sum(max(0, min(end, num_dense) - start) for start, end in ends)
        moe = sum(end - start for start, end in ends) - dense
        first, last = mine[0] == 0, mine[-1] == count - 1
        if last and arch.is_moe:
            moe += arch.mtp_num_layers
        elif last:
            dense += arch.mtp_num_layers
        in_flight = micro_batches_in_flight(setup.pipeline_schedule, size, rank, each, setup.num_micro_batches)
        alike = dense, moe, first, last
        if alike not in most or in_flight > most[alike][0]:
            most[alike] = in_flight, rank
    blocks = [_block(setup, stack, moe) for moe in (False, True)]
    for (dense, moe, first, last), (in_flight, rank) in most.items():
        layers = tuple((block, n) for block, n in zip(blocks, (dense, moe), strict=True) if n)
        layers = layers or ((blocks[0], 0),)  # the ends of the model may have a stage of their own
        yield rank, _Held(layers, first, last, in_flight)


def _rank_tensors(setup: Setup, stack: StackMemory, held: _Held) -> dict[str, float]:
    """Bytes of every kind of tensor on one pipeline rank; the numbers add up to its peak."""
    plain, experts = _parameters(setup, held)
    ranks = setup.sharding_ranks
    level = ("none", "zero1", "zero2", "zero3").index(setup.sharding)

    def state(size: float, sharded_from: int) -> float:
        divided = level >= sharded_from
        return size * (plain / (ranks if divided else 1) + experts / (setup.expert_sharding_ranks if divided else 1))

    at_loss, in_backward = _at_loss(setup, stack, held), _in_backward(setup, stack, held)
    transient = max(at_loss, in_backward, key=lambda part: sum(part.values()))
    return {
        "weights": state(stack.weights, 2 if setup.is_fsdp else 3),
        "gradients": state(stack.gradients, 2),
        "main_weights": state(stack.main_weights, 1),
        "optimizer": state(stack.optimizer, 1),
        "activations": _activations(setup, stack, held),
        "logits": transient.get("logits", 0.0),
        "backward": transient.get("backward", 0.0),
        "communication": transient["communication"] + _kept_whole(setup, stack, plain + experts),
        "workspace": _CUBLAS + stack.buckets + _cached(setup, stack, held),
    }


def _parameters(setup: Setup, held: _Held) -> tuple[float, float]:
    """(all but routed experts, routed experts) on one rank. Tensor ranks divide matrices, not norms and routers."""
    arch = setup.model
    plain = sum(count * block.plain for block, count in held.blocks)
    experts = sum(count * block.experts for block, count in held.blocks)
    table = arch.vocab_size * arch.hidden_size
    if held.first:
        plain += table / setup.tensor_parallel_size + embedding_parameters(arch) - table + arch.other_parameters
    if held.last:
        shared = arch.tie_word_embeddings and held.first
        plain += arch.hidden_size + (0 if shared else table) / setup.tensor_parallel_size
        plain += arch.mtp_num_layers * 2 * arch.hidden_size**2 / setup.tensor_parallel_size
    return plain, experts


def _activations(setup: Setup, stack: StackMemory, held: _Held) -> float:
    """All micro-batches in flight, and at the end of the model the last norm's input and that of the output layer."""
    sent = stack.keeps_sent and setup.pipeline_parallel_size > 1
    hidden = setup.micro_batch_tokens * stack.kept.norm_input * setup.model.hidden_size
    residual = hidden / (setup.tensor_parallel_size if setup.sequence_parallel else 1)
    last = residual + (hidden if stack.keeps_gathered else residual)
    share = setup.recompute_share if setup.recompute_granularity == "full" else 0.0
    kept = sum(count * (share * residual + (1 - share) * block.kept) for block, count in held.blocks)
    return held.in_flight * (kept + sent * residual) + (last if held.last else 0.0)


def _at_loss(setup: Setup, stack: StackMemory, held: _Held) -> dict[str, float]:
    """While the loss is computed: the logits, and under zero3 the output layer and a layer gathered."""
    if not held.last:
        return {"communication": 0.0}
    arch, tensor = setup.model, setup.tensor_parallel_size
    logits = (1 + arch.mtp_num_layers) * setup.micro_batch_tokens * arch.vocab_size / tensor
    gathered = 0.0
    if setup.sharding == "zero3":
        gathered = stack.gathered * (arch.vocab_size * arch.hidden_size / tensor + held.blocks[-1][0].unit)
    entering = setup.micro_batch_tokens * arch.hidden_size
    return {"logits": stack.logits * logits + stack.into_logits * entering, "communication": gathered}


def _in_backward(setup: Setup, stack: StackMemory, held: _Held) -> dict[str, float]:
    """In the backward pass of a layer: gradients of its MLP's tensors, and of its gathered input.

    Under full recomputation that layer's whole list is there as well; under zero3 its weights, those of the one before,
    its gradient, and that gradient on its way to the other ranks.
    """
    arch = setup.model
    inner = max(block.inner for block, _ in held.blocks)
    backward = setup.micro_batch_tokens * stack.gathered * ((3 if arch.gated else 2) * inner + 2 * arch.hidden_size)
    if setup.recompute_granularity == "full":
        backward += max(block.kept for block, _ in held.blocks)
    unit = max(block.unit for block, _ in held.blocks) if setup.sharding == "zero3" else 0.0
    return {"backward": backward, "communication": (3 * stack.gathered + stack.reduced) * unit}


def _kept_whole(setup: Setup, stack: StackMemory, parameters: float) -> float:
    """What FSDP does not give back: weights until their backward pass under zero2, weights and gradients in a pipeline.

    There they stay, gathered and unsharded, from one micro-batch to the next.
    """
    if setup.fetches_weights and setup.pipeline_parallel_size > 1:
        return (stack.gathered + stack.reduced) * parameters
    return stack.gathered * parameters if setup.fetches_weights and setup.sharding == "zero2" else 0.0


def _cached(setup: Setup, stack: StackMemory, held: _Held) -> float:
    """What a stack keeps from step to step: empty gradients by shape, low-precision copies of the layers' matrices."""
    shapes = max(block.shapes for block, _ in held.blocks)
    if held.last:
        shapes += setup.model.vocab_size * setup.model.hidden_size / setup.tensor_parallel_size
    matrices = sum(count * block.matrices for block, count in held.blocks)
    return stack.dummy_gradients * shapes + stack.weight_copies * matrices
