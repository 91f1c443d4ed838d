"""What a transformer layer keeps for its backward pass, tensor by tensor, under any implementation.

Korthikanti et al. (2022, arXiv:2205.05198, section 4) count one block: plain MLP, dropout, two-byte elements. Here the
sizes of the layer (`LayerSizes`) and the habits of an implementation (`Kept`: bytes of each element, 0 for what it
computes again) are apart, so that one list serves our trainer, Megatron and torch's autograd alike. Pure arithmetic.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerSizes:
    """Elements of each token on one tensor rank: channels, or heads.

    hidden is the residual stream and entering what the column-parallel products take; sequence parallelism divides the
    first, and the second unless the gathered tokens are kept.
    """

    hidden: float
    entering: float
    query: float
    key: float
    value: float
    #: Of the attention's output: query heads x channels of a value.
    output: float
    heads: float
    #: Inner channels of the MLP; those of the routed experts are below.
    inner: float
    #: Positions that a query has scores with.
    keys: float = 0
    #: Latents of queries and of keys and values (multi-head latent attention), with the shared rotary key.
    latent: float = 0
    #: Copies of each token that experts of this rank see, their channels, and inner channels of one expert.
    routed: float = 0
    routed_hidden: float = 0
    routed_inner: float = 0


@dataclass(frozen=True)
class Kept:
    """Bytes that an implementation keeps of one element of each tensor."""

    #: Inputs of the norms: what the norm saves, each of `norm_inputs` times.
    norm_input: float
    #: Outputs of the norms, which the column-parallel products take, twice a layer.
    norm_output: float
    #: Queries, keys and values as the attention takes them, or as they are projected.
    query: float
    key: float
    value: float
    #: Of the attention, as its own backward pass and the output projection take it.
    attention_output: float
    #: Gate and up projection, or the one of a plain MLP.
    columns: float
    #: silu(gate), by itself.
    activated: float
    #: What the down projection takes.
    product: float
    norm_inputs: int = 2
    #: Of one norm and token: mean and standard deviation.
    norm_statistics: float = 0
    #: Of queries and keys once more, where they have norms of their own.
    query_key_norm: float = 0
    #: Of one head and token: the logarithm of softmax's denominator.
    softmax_statistics: float = 0
    #: Of one score, where attention writes scores to memory (Korthikanti et al. 2022, eq. 2: 5 with dropout).
    scores: float = 0
    #: Dropout masks after attention and after the MLP.
    masks: float = 0
    #: What an expert returns, kept where its weight is applied afterwards.
    expert_output: float = 0


def layer_tensors(sizes: LayerSizes, kept: Kept, gated: bool) -> dict[str, float]:
    """Bytes of each token that one layer keeps on one tensor rank, by tensor."""
    columns = (2 if gated else 1) * kept.columns + (kept.activated if gated else 0)
    mlp = columns + kept.product
    expert = (kept.norm_output + kept.expert_output) * sizes.routed_hidden + mlp * sizes.routed_inner
    return {
        "norms": kept.norm_inputs * kept.norm_input * sizes.hidden
        + 2 * (kept.norm_output * sizes.entering + kept.norm_statistics),
        "latents": (kept.norm_input + kept.norm_output) * sizes.latent,
        "queries_keys_values": kept.query * sizes.query
        + kept.key * sizes.key
        + kept.value * sizes.value
        + kept.query_key_norm * (sizes.query + sizes.key),
        "attention_output": kept.attention_output * sizes.output + kept.softmax_statistics * sizes.heads,
        "scores": kept.scores * sizes.heads * sizes.keys,
        "mlp": mlp * sizes.inner,
        "experts": sizes.routed * expert,
        "masks": 2 * kept.masks * sizes.hidden,
    }


def micro_batches_in_flight(schedule: str, size: int, rank: int, stages_per_rank: int, micro_batches: int) -> float:
    """Micro-batches whose activations pipeline rank `rank` of `size` holds at once, in units of all of its layers.

    Under 1F1B rank r of p has p - r (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1); interleaved with v
    stages a rank, 2 (p - r - 1) + (v - 1) p + 1 of them before its first backward pass (ibid., section 2.2.2, and
    Korthikanti et al. 2022, section 4.2.3, for r = 0); zb1p p and zb2p 2 p on every rank (Qi et al. 2023,
    arXiv:2401.10241, section 4); zbv p on every rank (Qi et al. 2024, arXiv:2405.15362, section 4); dualpipev 2 p + 1
    stages of half a rank.
    """
    if size == 1:
        return 1
    most = {
        "gpipe": micro_batches,
        "1f1b": size - rank,
        "interleaved1f1b": (2 * (size - rank - 1) + (stages_per_rank - 1) * size + 1) / stages_per_rank,
        "zb1p": size,
        "zb2p": 2 * size,
        "zbv": size,
        "dualpipev": size + 0.5,
    }[schedule]
    return min(most, micro_batches)
