"""The geometry of any decoder-only transformer: what parameters, FLOPs, memory and time are counted from.

Wider than `scaling.config.ModelConfig`, which holds what our own trainer can train: also mixtures of experts,
multi-head latent attention, sliding windows. Imports nothing heavy.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scaling.config import ModelConfig


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer. Sizes are numbers of elements; names are Megatron's where it has one."""

    name: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    #: Heads of keys and values; equal to num_attention_heads without grouped-query attention.
    num_query_groups: int
    #: Channels of one head of queries and keys; with latent attention these are the fields below.
    kv_channels: int
    #: Inner size of the MLP of a dense layer.
    ffn_hidden_size: int
    vocab_size: int
    #: Whether the MLP has a gate (SwiGLU, GeGLU): three matrices instead of two.
    gated: bool = True
    tie_word_embeddings: bool = False
    normalization: Literal["rmsnorm", "layernorm", "layernorm_no_bias", "layernorm_no_affine"] = "rmsnorm"
    #: A bias on every projection of attention and MLP, experts and router included; the three below give one to a part:
    #: the projections of queries, keys and values, the output projection of attention, the MLP.
    add_bias_linear: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    #: One norm of queries and one of keys a layer, shared by the heads; over_heads: with a weight for every channel of
    #: all heads (OLMo 2, Command R+) instead of for the channels of one.
    qk_norm: bool = False
    qk_norm_over_heads: bool = False
    #: Norms a layer has beside two: 2 where outputs of attention and MLP are normed as well as inputs (Gemma 2), -1
    #: where a parallel block has one norm for both (GPT-J, PaLM).
    extra_norms: int = 0
    #: Rows of a learned position table; None for rotary and other positions without parameters.
    learned_positions: int | None = None
    #: Transformer-XL's relative positions: per layer one projection of the sinusoids and two vectors (Gopher).
    relative_positions: bool = False
    #: Parameters that the fields do not explain, such as an embedding norm's or a position projection's.
    other_parameters: int = 0

    #: Keys that a query of a windowed layer sees at most, itself included, and the number of such layers. Chunked: they
    #: cut the sequence into pieces that do not see each other (Llama 4), and nothing slides.
    sliding_window: int | None = None
    num_windowed_layers: int = 0
    chunked_attention: bool = False

    #: Mixture of experts: experts of one layer, experts a token goes to, their inner size, the inner size of what every
    #: token passes through beside them (shared experts, all together), and how many of num_layers have a dense MLP
    #: instead (the first ones in DeepSeek-V3, every second one in Llama 4 Maverick).
    num_experts: int = 0
    moe_router_topk: int = 0
    moe_ffn_hidden_size: int = 0
    moe_shared_expert_intermediate_size: int = 0
    num_dense_layers: int = 0

    #: Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1); kv_lora_rank = 0 means plain attention.
    #: q_lora_rank = 0: queries are projected at once.
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    #: Layers of multi-token prediction, each with one more pass through the output layer.
    mtp_num_layers: int = 0

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        return self.num_experts > 0

    @property
    def is_latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank > 0

    @property
    def num_moe_layers(self) -> int:
        """Layers whose MLP is a mixture of experts."""
        return self.num_layers - self.num_dense_layers if self.is_moe else 0

    @property
    def qk_channels(self) -> int:
        """Channels of one head of queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_latent else self.kv_channels

    @property
    def v_channels(self) -> int:
        """Channels of one head of values."""
        return self.v_head_dim if self.is_latent else self.kv_channels


def architecture_of(model: "ModelConfig", name: str) -> Architecture:
    """The geometry of a model of ours, under the name that messages and tables call it by."""
    return Architecture(
        name=name,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        ffn_hidden_size=model.ffn_hidden_size,
        vocab_size=model.vocab_size,
        gated=model.activation == "swiglu",
        tie_word_embeddings=model.tie_word_embeddings,
        normalization=model.normalization,
        add_bias_linear=model.add_bias_linear,
        qk_norm=model.qk_norm,
        learned_positions=model.max_position_embeddings if model.position_embedding == "learned" else None,
        relative_positions=model.position_embedding == "relative",
    )
