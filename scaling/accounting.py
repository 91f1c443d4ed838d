"""Parameters and FLOPs of a model, counted from its config alone.

`parameter_shapes` is the ground truth: every weight by its module name and shape. The parameter
count is its sum and the matrix-product FLOPs are read off the same shapes, so a count can never
drift from the modules. Imports neither torch nor numpy. Models that our trainer cannot train (experts, latent
attention) are counted in closed form by analysis/cost/counts.py.

Four conventions for training FLOPs are in use and differ by up to 1.7x on long sequences, so a
FLOP number never appears without the name of its convention (`FLOP_CONVENTIONS`).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from scaling.config import ModelConfig, RunConfig
from scaling.errors import UserError
from scaling.record import Flops

FlopConvention = Literal["c_6nd", "causal", "full", "hardware"]
FLOP_CONVENTIONS: tuple[FlopConvention, ...] = get_args(FlopConvention)

#: Token and position tables and an untied output layer: everything whose size is set by the vocabulary or the context.
_EMBEDDING_NAMES = ("embedding.weight", "position_embedding.weight", "output.weight")


@dataclass(frozen=True)
class ParameterCount:
    """Exact numbers of parameters. A weight shared by two modules (tied embeddings) counts once."""

    total: int
    #: Without token and position embeddings and without an untied output layer (Kaplan et al. 2020, sec. 2.1).
    non_embedding: int
    #: Token and position embeddings and an untied output layer: total - non_embedding.
    embedding: int
    #: Used for each token; equal to `total`, since every model here is dense.
    active: int


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its module name; matrices are [out_features, in_features].

    `add_bias_linear` gives a bias to every projection of attention and MLP, never to the output
    layer. `qk_norm` is one RMSNorm weight [kv_channels] for queries and one for keys, per layer,
    shared by the heads. With `parallel_residual` both norms of a layer stay (as in Pythia).

    `relative` positions are Transformer-XL's (Dai et al. 2019, eq. for A_rel): per layer one
    bias-free projection `attention.relative` [num_attention_heads * kv_channels, hidden_size] of the
    sinusoids, and the two learned vectors u (`content_bias`) and v (`position_bias`)
    [num_attention_heads, kv_channels], not shared between layers. This is the form that reproduces
    the parameter column of Hoffmann et al. 2022, Table A9; see scaling/presets.py.
    """
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (model.vocab_size, model.hidden_size)}
    if model.position_embedding == "learned":
        assert model.max_position_embeddings is not None  # ModelConfig has checked it
        shapes["position_embedding.weight"] = (model.max_position_embeddings, model.hidden_size)
    for index in range(model.num_layers):
        for name, shape in _layer_shapes(model).items():
            shapes[f"layers.{index}.{name}"] = shape
    shapes |= _norm_shapes(model, "final_norm")
    if not model.tie_word_embeddings:
        shapes["output.weight"] = (model.vocab_size, model.hidden_size)
    return shapes


def _layer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    query = model.num_attention_heads * model.kv_channels
    key = model.num_query_groups * model.kv_channels

    shapes = _norm_shapes(model, "attention_norm")
    shapes |= _linear_shapes(model, "attention.query", query, hidden)
    shapes |= _linear_shapes(model, "attention.key", key, hidden)
    shapes |= _linear_shapes(model, "attention.value", key, hidden)
    shapes |= _linear_shapes(model, "attention.output", hidden, query)
    if model.qk_norm:
        shapes["attention.query_norm.weight"] = (model.kv_channels,)
        shapes["attention.key_norm.weight"] = (model.kv_channels,)
    if model.position_embedding == "relative":
        shapes["attention.relative.weight"] = (query, hidden)
        shapes["attention.relative.content_bias"] = (model.num_attention_heads, model.kv_channels)
        shapes["attention.relative.position_bias"] = (model.num_attention_heads, model.kv_channels)

    shapes |= _norm_shapes(model, "mlp_norm")
    if model.activation == "swiglu":
        shapes |= _linear_shapes(model, "mlp.gate", ffn, hidden)
    shapes |= _linear_shapes(model, "mlp.up", ffn, hidden)
    shapes |= _linear_shapes(model, "mlp.down", hidden, ffn)
    return shapes


def _linear_shapes(model: ModelConfig, name: str, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (out_features, in_features)}
    if model.add_bias_linear:
        shapes[f"{name}.bias"] = (out_features,)
    return shapes


def _norm_shapes(model: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if model.normalization != "layernorm_no_affine":
        shapes[f"{name}.weight"] = (model.hidden_size,)
    if model.normalization == "layernorm":
        shapes[f"{name}.bias"] = (model.hidden_size,)
    return shapes


def parameter_count(model: ModelConfig) -> ParameterCount:
    """The sum over `parameter_shapes`, split into embedding and the rest."""
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(model).items()}
    total = sum(sizes.values())
    embedding = sum(sizes.get(name, 0) for name in _EMBEDDING_NAMES)
    return ParameterCount(total=total, non_embedding=total - embedding, embedding=embedding, active=total)


def flops_per_token(
    model: ModelConfig, seq_length: int, convention: FlopConvention, recompute_granularity: str = "none"
) -> int:
    """Training FLOPs (forward and backward) for one token of a sequence of `seq_length` tokens.

    A multiply-add is 2 FLOPs and the backward pass does twice the forward pass's work, hence 6 per
    weight of a matrix. Norms, biases, softmax, activations and the optimizer are left out.

    `c_6nd`: 6 x all parameters, embeddings included, no attention (the C = 6ND of Kaplan et al. 2020
        and Hoffmann et al. 2022; the latter count N with embeddings).
    `full`: 6 x the weights of every matrix product, plus 12 x num_layers x num_attention_heads x
        kv_channels x seq_length for scores and values, as if each token attended to all (Narayanan et
        al. 2021, eq. 3, and Chowdhery et al. 2022, appendix B, without recomputation). The lookup of
        input embeddings costs nothing; the logits are counted once, tied or not.
    `causal`: as `full` with half the attention, 6 instead of 12: the part that a causal mask leaves
        (what Megatron-LM and MaxText report today; both used `full` before).
    `hardware`: `full` plus what activation recomputation does again (Korthikanti et al. 2022, section 5):
        with `recompute_granularity` selective the forward pass of the attention, with full that of all layers.

    `relative` positions cost one more product of scores (queries with projected sinusoids), so the
    12 is 18 and the 6 is 9. The sinusoids are projected once per micro-batch, not per token, which is
    left out.

    Raises UserError for an unknown convention or a sequence length below 1.
    """
    if convention not in FLOP_CONVENTIONS:
        raise UserError(f"convention = {convention!r}: must be one of {', '.join(FLOP_CONVENTIONS)}")
    if seq_length < 1:
        raise UserError(f"seq_length = {seq_length}: must be at least 1")
    if convention == "c_6nd":
        return 6 * parameter_count(model).total
    score_products = 3 if model.position_embedding == "relative" else 2
    attention = 6 * score_products * model.num_layers * model.num_attention_heads * model.kv_channels * seq_length
    if convention == "causal":
        attention //= 2
    flops = 6 * _matrix_weights(model) + attention
    if convention == "hardware" and recompute_granularity != "none":
        layers = 6 * (_matrix_weights(model) - model.vocab_size * model.hidden_size)
        again = attention + (layers if recompute_granularity == "full" else 0)
        flops += again // 3  # a forward pass is a third of forward and backward
    return flops


def _matrix_weights(model: ModelConfig) -> int:
    """Weights that multiply every token: all matrices but the lookup tables, plus the output layer once."""
    layer = sum(
        math.prod(shape)
        for name, shape in _layer_shapes(model).items()
        if name.endswith(".weight") and len(shape) == 2 and name != "attention.relative.weight"
    )
    return model.num_layers * layer + model.vocab_size * model.hidden_size


def training_flops(config: RunConfig) -> Flops:
    """FLOPs of the whole run (all tokens, repeats included) under the four conventions; see `flops_per_token`."""
    model, length, again = config.model, config.data.seq_length, config.execution.recompute_granularity
    per_token = {name: flops_per_token(model, length, name, again) for name in FLOP_CONVENTIONS}
    return Flops(**{name: float(flops * config.tokens) for name, flops in per_token.items()})
