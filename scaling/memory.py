"""Bytes that one rank of a run needs: an estimate, tensor by tensor, from the config alone. Imports no torch.

This is our own trainer, to the byte of what it keeps; analysis/cost/memory.py is any model under any software.

For a rank that holds P parameters, with R = data x context parallel ranks that hold the same ones:

    weights          4 P            float32
    compute copy     2 P            bfloat16, when the matrix products are
    gradients        4 P            float32, accumulated over micro-batches
    Adam's moments   8 P / R        ZeRO-1 (Rajbhandari et al. 2020, section 5.1)

FSDP2 divides the first three by R as well (ZeRO-3, section 5.3).

Activations are what the backward pass needs of the forward pass: scaling/activations.py lists the tensors of a layer,
and `_kept` below says what this trainer keeps of each. With e the bytes of an element of the matrix products (4 or 2),
they are for each token of a micro-batch on one rank:

    norms              2 (4 D + 4)          the residual stream or what it is normalised to, float32; / t with sequence
                                            parallelism (Korthikanti et al. 2022, section 4.2)
    their outputs      2 e D                inputs of the projections; / t likewise, gathered again in the backward pass
    q, k, v            e (H + 2 G) K / t    as projected
    q, k again         e (H + G) K / t      rotated, or normed; with qk_norm in float32 besides, for the norm
    o                  e H K / t            of the attention, which is the input of the output projection
    scores             4 H T / t            on a CPU for short sequences, where attention is written by hand, with q, k
                                            and v in float32 instead of the above; and with relative positions
    MLP                4 e F / t            gate, up, silu(gate) and product; 2 F for GELU

with D hidden, H query and G key/value heads of K channels, F inner channels, t tensor ranks. Selective recomputation
keeps what the projections give and take, (2 H + 2 G) K and 3 F (2 F for GELU); full recomputation keeps the layer's
input, 4 D, and has one layer's whole list at a time (ibid. section 5).

A pipeline rank holds the activations of every micro-batch in flight. The last stage has those of the last norm, and of
each logit 12 bytes at once during the loss's backward pass (log-softmax, its gradient, the logits' gradient), 8 in the
fused loss, 4 + e with logits divided over tensor ranks.

What the estimate leaves out: the allocator's unused room, workspaces of libraries, communication buffers.
"""

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from scaling.accounting import parameter_shapes
from scaling.activations import Kept, LayerSizes, layer_tensors, micro_batches_in_flight
from scaling.config import ModelConfig, RunConfig

#: Up to these lengths a CPU's attention keeps [T, T] scores: in the hand-written functions (`scaling.engine.fusing`),
#: and as a kernel of its own (parallel/backends.py).
_LONGEST_FUSED, _LONGEST_SCORES = 512, 256

_COLUMNS = ("query.", "key.", "value.", "gate.", "up.", "relative.")
_ROWS = ("attention.output.", "mlp.down.")
_TABLES = ("embedding.weight", "output.weight")


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they hold."""

    weights: int
    compute_copy: int
    gradients: int
    moments: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory_estimate(config: RunConfig) -> Memory:
    """The need of the rank that needs most, for a layout that `check_layout` accepts.

    With `execution.dtype` = auto the larger of the two is taken: float32 on a CPU, bfloat16 with its copy elsewhere.
    """
    ranks = range(config.parallel.pipeline_parallel_size)
    return max((rank_memory(config, rank) for rank in ranks), key=lambda memory: memory.total)


def rank_memory(config: RunConfig, pipeline_rank: int) -> Memory:
    """Bytes of a rank of one pipeline stage (the first tensor rank, which has the largest pieces)."""
    layout = config.parallel
    dtype, device = config.execution.dtype, config.execution.device
    low = dtype == "bfloat16" or (dtype == "auto" and device != "cpu")
    full = 8 if dtype == "float64" else 4
    layers, first, last = _held(config, pipeline_rank)
    params = _rank_parameters(config, layers, first, last)
    replicas = layout.data_parallel_size * layout.context_parallel_size
    sharded = replicas if layout.data_parallel_method == "fsdp2" else 1
    size = 2 if low else full
    tokens = config.micro_batch_size * math.ceil(config.data.seq_length / layout.context_parallel_size)
    table = math.ceil(config.model.vocab_size / layout.tensor_parallel_size)
    return Memory(
        weights=full * params // sharded,
        compute_copy=(2 * params // sharded) if low else 0,
        gradients=full * params // sharded,
        moments=2 * full * params // replicas,
        activations=math.ceil(tokens * _activations(config, pipeline_rank, layers, last, size, full)),
        logits=_logit_bytes(config, size) * tokens * table if last else 0,
    )


def _held(config: RunConfig, rank: int) -> tuple[int, bool, bool]:
    """(layers, first stage?, last stage?) of a pipeline rank; layers as evenly spread as they can be, unless set."""
    layout = config.parallel
    stages = [stage for stage in range(layout.num_stages) if layout.rank_of_stage(stage) == rank]
    bounds = [config.model.num_layers * stage // layout.num_stages for stage in range(layout.num_stages + 1)]
    split = layout.pipeline_split or [end - start for start, end in pairwise(bounds)]
    return sum(split[stage] for stage in stages), 0 in stages, layout.num_stages - 1 in stages


def _rank_parameters(config: RunConfig, layers: int, first: bool, last: bool) -> int:
    """Parameters that one rank stores: its layers' pieces, and the tables of the ends of the pipeline."""
    model, tensor = config.model, config.parallel.tensor_parallel_size
    total = 0
    for name, shape in parameter_shapes(model).items():
        if name.startswith("layers.0."):
            copies = layers
        elif name.startswith("layers."):
            copies = 0
        elif name == "embedding.weight":
            copies = int(first or (last and model.tie_word_embeddings))
        else:
            copies = int(first if name == "position_embedding.weight" else last)
        total += copies * _piece(model, name, shape, tensor)
    return total


def _piece(model: ModelConfig, name: str, shape: tuple[int, ...], tensor: int) -> int:
    """Elements of a parameter on the tensor rank that has most of it."""
    size = math.prod(shape)
    if name in _TABLES or any(part in name for part in _COLUMNS) and "_norm" not in name:
        if "attention.key." in name or "attention.value." in name:  # ranks beyond the key/value heads share them
            return size // min(tensor, model.num_query_groups)
        return math.ceil(shape[0] / tensor) * (size // shape[0])
    if any(part in name for part in _ROWS) and len(shape) == 2:
        return math.ceil(shape[1] / tensor) * shape[0]
    return size


def _activations(config: RunConfig, rank: int, layers: int, last: bool, size: int, full: int) -> float:
    """Bytes a token of one micro-batch, for all of a rank's layers and all micro-batches in flight."""
    layout, granularity = config.parallel, config.execution.recompute_granularity
    hidden = config.model.hidden_size / _sequence_ranks(config)
    kept = full * hidden if granularity == "full" else _layer_bytes(config, size, full, granularity)
    again = _layer_bytes(config, size, full, "none") if granularity == "full" else 0
    batches = config.global_batch_size // layout.data_parallel_size // config.micro_batch_size
    in_flight = micro_batches_in_flight(
        layout.pipeline_schedule, layout.pipeline_parallel_size, rank, layout.stages_per_rank, batches
    )
    wide = config.model.normalization != "rmsnorm" and _fuses(config)  # LayerNorm hands float32 on to the fused loss
    final_norm = full * hidden + full + (full if wide else size) * hidden
    return layers * kept * in_flight + again + (final_norm if last else 0)


def _layer_bytes(config: RunConfig, size: int, full: int, granularity: str) -> float:
    """Bytes a token that one layer keeps on one tensor rank, for the backward pass."""
    model, tensor = config.model, config.parallel.tensor_parallel_size
    heads, groups = model.num_attention_heads // tensor, max(1, model.num_query_groups // tensor)
    relative = model.position_embedding == "relative"
    groups = heads if relative else groups  # torch's general attention repeats keys and values
    hidden = model.hidden_size / _sequence_ranks(config)
    sizes = LayerSizes(
        hidden=hidden,
        entering=hidden,
        query=heads * model.kv_channels,
        key=groups * model.kv_channels,
        value=groups * model.kv_channels,
        output=heads * model.kv_channels,
        heads=heads,
        inner=math.ceil(model.ffn_hidden_size / tensor),
        keys=config.data.seq_length,
    )
    kept = _kept(config, size, full)
    if granularity == "selective":
        plain = {"query": size, "key": size, "value": size, "attention_output": size, "activated": 0}
        kept = replace(kept, **plain, query_key_norm=0, softmax_statistics=0, scores=0)
        if relative:
            sizes = replace(sizes, key=sizes.key * model.num_query_groups / model.num_attention_heads)
            sizes = replace(sizes, value=sizes.key)
    tables = 0.0
    if relative and granularity != "selective":  # sinusoids, distances and mask, [T, ...] a layer
        tables = (full * model.hidden_size + 9 * config.data.seq_length) / config.micro_batch_size
    return sum(layer_tensors(sizes, kept, model.activation == "swiglu").values()) + tables


def _kept(config: RunConfig, size: int, full: int) -> Kept:
    """What this trainer keeps without recomputation; see the module."""
    model, on_cpu = config.model, config.execution.device == "cpu"
    rms = model.normalization == "rmsnorm"
    # on a CPU each RMSNorm keeps what it normalised to; else two norms of the same input keep it once
    shared = model.parallel_residual and not (rms and on_cpu)
    scores = _keeps_scores(config)
    if model.position_embedding == "relative":
        attention = {"query": 3 * full, "key": full, "value": full, "scores": 2 * full, "attention_output": size}
    elif scores:
        attention = {"query": full, "key": full, "value": full, "scores": full, "attention_output": size}
    else:
        again = size if model.position_embedding == "rope" or model.qk_norm else 0
        ring = config.parallel.context_parallel_size > 1  # its output is laid out anew for the projection
        attention = {"query": size + again, "key": size + again, "value": size, "softmax_statistics": full}
        attention["attention_output"] = (1 + ring) * size
    normed = model.qk_norm and (on_cpu or size < full)
    return Kept(
        norm_input=full,
        norm_inputs=1 if shared else 2,
        norm_output=size,
        norm_statistics=full if rms else 2 * full,
        # and one statistic of each head
        query_key_norm=full * (normed + model.qk_norm / model.kv_channels),
        columns=size,
        activated=size,
        product=size,
        **attention,
    )


def _fuses(config: RunConfig) -> bool:
    """Whether the hand-written functions of a CPU compute (`scaling.engine.fusing`)."""
    selective = config.execution.recompute_granularity == "selective"
    short = config.execution.device == "cpu" and config.data.seq_length <= _LONGEST_FUSED
    return short and not selective and not config.parallel.uses_fsdp2


def _keeps_scores(config: RunConfig) -> bool:
    """Whether attention is written by hand on a CPU and keeps its scores."""
    model, layout, length = config.model, config.parallel, config.data.seq_length
    if config.execution.device != "cpu" or layout.context_parallel_size > 1:
        return False
    whole = model.position_embedding == "rope" and model.rotary_dim == model.kv_channels
    plain = whole and not model.add_bias_linear and not model.qk_norm and layout.tensor_parallel_size == 1
    return length <= _LONGEST_SCORES or (_fuses(config) and plain)


def _logit_bytes(config: RunConfig, size: int) -> int:
    """Bytes of one logit while the loss's backward pass starts."""
    if config.parallel.tensor_parallel_size > 1:
        return 4 + size
    return 8 if _fuses(config) else 12


def _sequence_ranks(config: RunConfig) -> int:
    """Ranks over which the tokens between tensor-parallel regions are divided."""
    layout = config.parallel
    even = config.data.seq_length // layout.context_parallel_size % layout.tensor_parallel_size == 0
    divided = even if layout.sequence_parallel is None else layout.sequence_parallel
    return layout.tensor_parallel_size if divided else 1
