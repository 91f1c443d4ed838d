"""Bytes that one rank of a run needs: an estimate, tensor by tensor, from the config alone. Imports no torch.

For a rank that holds P parameters, with R = data x context parallel ranks that hold the same ones:

    weights          4 P            float32
    compute copy     2 P            bfloat16, when the matrix products are
    gradients        4 P            float32, accumulated over micro-batches
    Adam's moments   8 P / R        ZeRO-1 (Rajbhandari et al. 2020, section 5.1)

FSDP2 divides the first three by R as well (ZeRO-3, section 5.3).

Activations are what the backward pass needs of the forward pass. Korthikanti et al. (2022, section 4) count another
block (two-byte elements, dropout, no gate); the list here is this model's. A micro-batch on one rank has
M = sequences x T / context ranks tokens. With D hidden, H query and G key/value heads of K channels, F inner channels,
t tensor ranks and e bytes an element of the matrix products (4 or 2), a layer keeps for each token:

    norms              2 x 4 D              the residual stream, float32; / t with sequence parallelism (section 4.2);
                                            twice for RMSNorm on a CPU, which torch composes of several operations
    their outputs      2 x e D              inputs of the projections; / t likewise, gathered again in the backward pass
    q, k, v            e (H + 2 G) K / t    as projected
    q, k again         e (H + G) K / t      once for rotary positions and once for qk_norm
    o                  2 x e H K / t        of the attention, and as the input of the output projection
    scores             e H T / t            only without a blocked kernel: short sequences on a CPU; twice if relative
    MLP                e x 4 F / t          gate, up, silu(gate) and product; 2 F for GELU

Selective recomputation keeps what the projections give and take, (2 H + 2 G) K and 3 F (2 F for GELU); full
recomputation keeps the layer's input, 4 D, and has one layer's whole list at a time (ibid. section 5).

A pipeline rank holds the activations of every micro-batch in flight; under 1F1B rank r of p has p - r (Narayanan et
al. 2021, section 2.2). The last stage has the logits' gradient besides, scaled and unscaled: (8 + e) M V / t, once.

What the estimate leaves out: the allocator's unused room, workspaces of libraries, communication buffers.
"""

import math
from dataclasses import dataclass, fields
from itertools import pairwise

from scaling.accounting import parameter_shapes
from scaling.config import ModelConfig, RunConfig

#: Up to this length a CPU's attention is hand-written and keeps [T, T] scores.
_LONGEST_CPU_SCORES = 512

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
        activations=tokens * _activations(config, pipeline_rank, layers, size),
        logits=(8 + size) * tokens * table if last else 0,
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


def _activations(config: RunConfig, rank: int, layers: int, size: int) -> int:
    """Bytes a token of one micro-batch, for all of a rank's layers and all micro-batches in flight."""
    recompute = config.execution.recompute_granularity
    kept = {
        "none": _layer_bytes(config, size, selective=False),
        "selective": _layer_bytes(config, size, selective=True),
        "full": 4 * config.model.hidden_size // _sequence_ranks(config),
    }[recompute]
    again = _layer_bytes(config, size, selective=False) if recompute == "full" else 0
    return math.ceil(layers * kept * _in_flight(config, rank)) + again


def _layer_bytes(config: RunConfig, size: int, selective: bool) -> int:
    """Bytes a token that one layer keeps on one tensor rank, for the backward pass; `size` is e."""
    model, tensor = config.model, config.parallel.tensor_parallel_size
    heads, groups = model.num_attention_heads // tensor, max(1, model.num_query_groups // tensor)
    inner = math.ceil(model.ffn_hidden_size / tensor)
    gated = model.activation == "swiglu"
    composed = config.execution.device == "cpu" and model.normalization == "rmsnorm"
    kept = 2 * (4 * (1 + composed) + size) * model.hidden_size // _sequence_ranks(config)
    kept += size * (2 * heads + 2 * groups) * model.kv_channels + size * (3 if gated else 2) * inner
    if selective:
        return kept
    again = (model.position_embedding == "rope") + model.qk_norm
    kept += size * (again * (heads + groups) + heads) * model.kv_channels + size * gated * inner
    return kept + size * _scores(config) * heads * config.data.seq_length


def _sequence_ranks(config: RunConfig) -> int:
    """Ranks over which the tokens between tensor-parallel regions are divided."""
    layout = config.parallel
    even = config.data.seq_length // layout.context_parallel_size % layout.tensor_parallel_size == 0
    divided = even if layout.sequence_parallel is None else layout.sequence_parallel
    return layout.tensor_parallel_size if divided else 1


def _scores(config: RunConfig) -> int:
    """How many matrices [T, T] of each head are kept."""
    if config.model.position_embedding == "relative":
        return 2
    layout, length = config.parallel, config.data.seq_length
    alone = layout.tensor_parallel_size == layout.context_parallel_size == 1 and not config.model.qk_norm
    return int(config.execution.device == "cpu" and alone and length <= _LONGEST_CPU_SCORES)


def _in_flight(config: RunConfig, rank: int) -> float:
    """Micro-batches whose activations a pipeline rank holds at once, in units of all of its layers."""
    layout = config.parallel
    size = layout.pipeline_parallel_size
    if size == 1:
        return 1
    batches = config.global_batch_size // layout.data_parallel_size // config.micro_batch_size
    if layout.pipeline_schedule == "gpipe":
        return batches
    if layout.pipeline_schedule == "1f1b":
        return min(size - rank, batches)
    if layout.pipeline_schedule == "interleaved1f1b":  # Korthikanti et al. 2022, section 4.2.3, for the first rank
        return min(size * (1 + (size - 1) / (size * layout.stages_per_rank)), batches)
    if layout.pipeline_schedule == "zbv":  # 1F1B's peak, on every rank (Qi et al. 2024, arXiv:2405.15362, section 4)
        return min(size, batches)
    return min(size + 0.5, batches)  # dualpipev: 2 p + 1 stages of half a rank
