"""Parameters and training FLOPs of an Architecture, in closed form.

Agrees with scaling.accounting, which reads them off the shapes of our own modules, wherever both can express a
model. Training FLOPs per token, forward and backward; a multiply-add is 2 FLOPs and the backward pass does twice the
forward pass's work. Norms, biases, softmax, activations and the optimizer are left out of all of them.

convention  matrix products               attention scores and values                as used by
c_6nd       6 x active parameters,        none                                       Kaplan et al. 2020, sec. 2.1;
            embeddings included                                                      Hoffmann et al. 2022, app. F
full        6 x weights that multiply     6 x heads x (qk + v channels) x keys in    Narayanan et al. 2021, eq. 3, less
            a token, logits once          the window, later ones too                 recomputation; Chowdhery et al.
                                                                                     2022, app. B; nanochat
causal      as full                       only keys that the mask leaves: half of    Megatron-LM and MaxText today
                                          the sequence
hardware    as full; full recomputation:  as full; selective or full recomputation:  Narayanan et al. 2021, eq. 3;
            2 x all layers' again         a third of it again                        Korthikanti et al. 2022, sec. 5

Of experts, those a token goes to, shared ones and the router count (Megatron-LM leaves the router out, 0.2 to 0.5 % of
its published mixtures). Latent attention is counted as it is trained, with keys and values expanded from the latent. A
layer of multi-token prediction counts as one more layer, a projection of 2 x hidden_size to hidden_size, and the logits
once more. What flash attention computes again inside its own backward pass is in no convention.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from analysis.cost.architecture import Architecture
from scaling.errors import UserError

FlopConvention = Literal["c_6nd", "causal", "full", "hardware"]
FLOP_CONVENTIONS: tuple[FlopConvention, ...] = get_args(FlopConvention)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters. Tied embeddings count once; layers of multi-token prediction are in `mtp` alone."""

    #: embedding + non_embedding: what authors publish.
    total: int
    #: Token and position tables and an untied output layer.
    embedding: int
    non_embedding: int
    #: Used for one token: total less the experts that it does not go to. Embeddings are included.
    active: int
    #: Layers of multi-token prediction, which are trained along and left out of published totals (DeepSeek-V3).
    mtp: int


@dataclass(frozen=True)
class BlockParameters:
    """Parameters of one layer by what divides them: experts go to expert parallel ranks, the rest to tensor ranks."""

    #: Projections of queries, keys, values and output, with biases and the norms inside attention (qk_norm, latents).
    attention: int
    #: The MLP of a dense layer; the shared experts of a layer with experts.
    mlp: int
    #: All routed experts of the layer, not only those that one token goes to.
    routed_experts: int
    router: int
    #: Norms of hidden_size channels.
    norms: int

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.attention + self.mlp + self.routed_experts + self.router + self.norms


def parameters(arch: Architecture) -> ParameterCount:
    """Parameters of the whole model; see ParameterCount for what each number includes."""
    dense, moe = block_parameters(arch, moe=False), block_parameters(arch, moe=True)
    num_dense = arch.num_layers - arch.num_moe_layers
    non_embedding = num_dense * dense.total + arch.num_moe_layers * moe.total + _norm(arch) + arch.other_parameters
    embedding = embedding_parameters(arch) + (0 if arch.tie_word_embeddings else arch.vocab_size * arch.hidden_size)
    total = non_embedding + embedding
    idle = moe.routed_experts * (arch.num_experts - arch.moe_router_topk) // max(1, arch.num_experts)
    last = block_parameters(arch, moe=arch.is_moe)
    mtp = arch.mtp_num_layers * (last.total + 2 * arch.hidden_size**2 + 3 * _norm(arch))
    return ParameterCount(
        total=total,
        embedding=embedding,
        non_embedding=non_embedding,
        active=total - arch.num_moe_layers * idle,
        mtp=mtp,
    )


def embedding_parameters(arch: Architecture) -> int:
    """Token and learned position tables: what the first pipeline stage holds beside its layers."""
    return (arch.vocab_size + (arch.learned_positions or 0)) * arch.hidden_size


def block_parameters(arch: Architecture, moe: bool) -> BlockParameters:
    """Parameters of one layer; moe: of a layer with experts, else of a dense one."""
    query = arch.num_attention_heads * arch.qk_channels
    key, value = arch.num_query_groups * arch.qk_channels, arch.num_query_groups * arch.v_channels
    attention = attention_weights(arch)
    if arch.relative_positions:
        attention += query * arch.hidden_size + 2 * query
    if arch.is_latent:
        attention += arch.q_lora_rank + arch.kv_lora_rank  # RMSNorms of the latents
    else:
        attention += (query + key + value) * (arch.add_bias_linear or arch.qkv_bias)
    attention += arch.hidden_size * (arch.add_bias_linear or arch.attention_output_bias)
    if arch.qk_norm:
        attention += query + key if arch.qk_norm_over_heads else 2 * arch.qk_channels
    norms = (2 + arch.extra_norms) * _norm(arch)

    if not moe:
        return BlockParameters(attention, _mlp(arch, arch.ffn_hidden_size), 0, 0, norms)
    shared = arch.moe_shared_expert_intermediate_size
    return BlockParameters(
        attention=attention,
        mlp=_mlp(arch, shared) if shared else 0,
        routed_experts=arch.num_experts * _mlp(arch, arch.moe_ffn_hidden_size),
        router=arch.num_experts * (arch.hidden_size + arch.add_bias_linear),
        norms=norms,
    )


def _mlp(arch: Architecture, inner: int) -> int:
    biases = ((2 if arch.gated else 1) * inner + arch.hidden_size) * (arch.add_bias_linear or arch.mlp_bias)
    return mlp_weights(arch, inner) + biases


def _norm(arch: Architecture) -> int:
    per_channel = {"rmsnorm": 1, "layernorm": 2, "layernorm_no_bias": 1, "layernorm_no_affine": 0}
    return per_channel[arch.normalization] * arch.hidden_size


def attention_weights(arch: Architecture) -> int:
    """Weights of one layer's attention that multiply each token: its projections, without biases."""
    heads, hidden = arch.num_attention_heads, arch.hidden_size
    query = heads * arch.qk_channels
    output = heads * arch.v_channels * hidden
    if not arch.is_latent:
        return hidden * (query + arch.num_query_groups * (arch.qk_channels + arch.v_channels)) + output
    queries = (hidden + query) * arch.q_lora_rank if arch.q_lora_rank else hidden * query
    down = hidden * (arch.kv_lora_rank + arch.qk_rope_head_dim)
    up = arch.kv_lora_rank * heads * (arch.qk_nope_head_dim + arch.v_head_dim)
    return queries + down + up + output


def mlp_weights(arch: Architecture, inner: int) -> int:
    """Weights of one MLP or expert of that inner size, without biases."""
    return (3 if arch.gated else 2) * arch.hidden_size * inner


def active_block_weights(arch: Architecture, moe: bool) -> int:
    """Weights of one layer that multiply each token: attention, and an MLP or router, shared and top-k experts."""
    if not moe:
        return attention_weights(arch) + mlp_weights(arch, arch.ffn_hidden_size)
    experts = mlp_weights(arch, arch.moe_router_topk * arch.moe_ffn_hidden_size)
    shared = mlp_weights(arch, arch.moe_shared_expert_intermediate_size)
    return attention_weights(arch) + arch.hidden_size * arch.num_experts + shared + experts


def mean_keys(seq_length: int, window: int | None, causal: bool, chunked: bool = False) -> float:
    """Keys that a query sees, on average over a sequence, in a layer with that window (None: without).

    Causal: half of seq_length without a window, and window - window^2 / (2 seq_length) with one, to leading order as
    in every published count (the exact mean is half a key more). Not causal: all keys inside the window.
    """
    span = min(seq_length, window or seq_length)
    if chunked:
        whole, rest = divmod(seq_length, span)
        seen = (whole * span**2 + rest**2) / seq_length
        return seen / 2 if causal else seen
    return span - span**2 / (2 * seq_length) if causal else float(span)


def attention_flops(arch: Architecture, seq_length: int, causal: bool) -> float:
    """Forward FLOPs per token of scores and values over all layers, those of multi-token prediction left out."""
    products = arch.qk_channels * (2 if arch.relative_positions else 1) + arch.v_channels
    windowed = arch.num_windowed_layers if arch.sliding_window else 0
    keys = (arch.num_layers - windowed) * mean_keys(seq_length, None, causal)
    keys += windowed * mean_keys(seq_length, arch.sliding_window, causal, arch.chunked_attention)
    return 2.0 * arch.num_attention_heads * products * keys


def flops_per_token(
    arch: Architecture, seq_length: int, convention: FlopConvention, recompute_granularity: str = "none"
) -> float:
    """Training FLOPs, forward and backward, for one token of a sequence of `seq_length` tokens; see the module.

    recompute_granularity: none, selective (the attention of every layer) or full (every layer), for convention hardware
    alone.
    Raises UserError for an unknown convention or recomputation mode, or a sequence length below 1.
    """
    if convention not in FLOP_CONVENTIONS:
        raise UserError(f"convention = {convention!r}: must be one of {', '.join(FLOP_CONVENTIONS)}")
    if recompute_granularity not in ("none", "selective", "full"):
        raise UserError(f"recompute_granularity = {recompute_granularity!r}: must be one of none, selective, full")
    if seq_length < 1:
        raise UserError(f"seq_length = {seq_length}: must be at least 1")
    if convention == "c_6nd":
        return 6.0 * parameters(arch).active

    logits = arch.vocab_size * arch.hidden_size
    num_dense = arch.num_layers - arch.num_moe_layers
    layers = num_dense * active_block_weights(arch, moe=False)
    layers += arch.num_moe_layers * (active_block_weights(arch, moe=True) if arch.is_moe else 0)
    mtp = arch.mtp_num_layers
    layers += mtp * active_block_weights(arch, moe=arch.is_moe)
    attention = attention_flops(arch, seq_length, causal=convention == "causal") * (1 + mtp / arch.num_layers)
    flops = 6.0 * (layers + mtp * 2 * arch.hidden_size**2 + (1 + mtp) * logits) + 3.0 * attention
    if convention == "hardware" and recompute_granularity != "none":
        flops += attention + (2.0 * layers if recompute_granularity == "full" else 0.0)
    return flops
