"""What a `model_type` of Hugging Face's transformers means beyond the sizes in its config.json.

One row a family: which norms, biases and gates it has, which of its flags switch them, and the values that its files
may leave out. Held against the parameter counts of transformers itself by tests/analysis/cost/test_config_json.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.cost.architecture import Architecture

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ModelType:
    """One family of models."""

    #: Fields of Architecture that are the same for all of the family; those left out are Llama's.
    fixed: Mapping[str, Any] = field(default_factory=dict)
    #: Fields of Architecture by the flag of config.json that switches them.
    flags: Mapping[str, str] = field(default_factory=dict)
    #: Fields of Architecture that take more than a flag.
    derived: Callable[[Config], dict[str, Any]] = lambda config: {}
    #: Values of config.json where the file is silent.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: tie_word_embeddings where the file is silent.
    tied: bool = False
    #: How many layers have the sliding window where the file lists no layer_types.
    windowed_layers: Callable[[Config, int], int] = lambda config, layers: layers
    #: Parameters that no field of Architecture explains.
    other_parameters: Callable[[Architecture, Config], int] = lambda arch, config: 0

    @property
    def flag_fields(self) -> tuple[str, ...]:
        """Fields of config.json that this family has and that are true or false."""
        switches = (name for name, value in self.defaults.items() if isinstance(value, bool))
        return (*self.flags.values(), *switches)


_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "attention_output_bias": "attention_bias"}
_LLAMA_BIASES = {**_ATTENTION_BIAS, "mlp_bias": "mlp_bias"}
#: GPT-2's block: LayerNorm, two matrices in the MLP, biases.
_GPT = {"normalization": "layernorm", "gated": False, "add_bias_linear": True}
#: GPT-J's: one norm for attention and MLP in parallel, biases in the MLP alone.
_GPT_J = {"normalization": "layernorm", "gated": False, "mlp_bias": True, "extra_norms": -1}


def _all_but_every(field_name: str, default: int) -> Callable[[Config, int], int]:
    """All layers but each n-th have the window, n being the value of that field."""
    return lambda config, layers: layers - layers // (config.get(field_name) or default)


def _every_second(config: Config, layers: int) -> int:
    return (layers + 1) // 2


def _from_max_window_layers(config: Config, layers: int) -> int:
    return max(0, layers - config.get("max_window_layers", layers)) if config.get("use_sliding_window") else 0


def _output_bias(arch: Architecture, config: Config) -> int:
    return arch.vocab_size


def _falcon(config: Config) -> dict[str, Any]:
    new, parallel = config["new_decoder_architecture"], config["parallel_attn"]
    two_norms = not parallel or (new and (config.get("num_ln_in_parallel_attn") or 2) == 2)
    groups = {"num_query_groups": 1} if config["multi_query"] and not new else {}
    return {**groups, "extra_norms": 0 if two_norms else -1}


def _opt(config: Config) -> dict[str, Any]:
    # the first two rows of its position table are never used
    affine = "layernorm" if config["layer_norm_elementwise_affine"] else "layernorm_no_affine"
    return {"learned_positions": config["max_position_embeddings"] + 2, "normalization": affine}


def _opt_other(arch: Architecture, config: Config) -> int:
    """OPT-350M alone: narrower embeddings with a projection at both ends, and no norm after the last layer."""
    narrow = config.get("word_embed_proj_dim") or arch.hidden_size
    projections = 2 * narrow * arch.hidden_size if narrow != arch.hidden_size else 0
    no_final_norm = not config["do_layer_norm_before"] or config["_remove_final_layer_norm"]
    return projections + arch.vocab_size * (narrow - arch.hidden_size) - 2 * arch.hidden_size * no_final_norm


def _mpt(config: Config) -> dict[str, Any]:
    positions = config["max_seq_len"] if config.get("learned_pos_emb", True) and not config["alibi"] else None
    bias = not config.get("no_bias", True)
    norm = "layernorm" if bias else "layernorm_no_bias"
    return {"learned_positions": positions, "add_bias_linear": bias, "normalization": norm}


def _gpt_neo_windows(config: Config) -> int:
    pattern = [kind for kinds, repeats in config.get("attention_types", []) for kind in kinds * repeats]
    return (config.get("attention_layers") or pattern).count("local")


def _learned(field_name: str) -> Callable[[Config], dict[str, Any]]:
    return lambda config: {"learned_positions": config[field_name]}


def _stablelm(config: Config) -> dict[str, Any]:
    return {"extra_norms": -1 if config.get("use_parallel_residual") else 0}


def _qwen(config: Config) -> dict[str, Any]:
    """Qwen 1, whose intermediate_size is that of gate and up projection together; all heads have their own keys."""
    bias = not config["no_bias"]
    return {
        "ffn_hidden_size": config["intermediate_size"] // 2,
        "attention_output_bias": bias,
        "mlp_bias": bias,
    }


def _ernie_moe(config: Config) -> dict[str, Any]:
    if config["use_bias"]:
        raise ValueError("use_bias = true, which no published one has: whether experts have biases is not known")
    return {}


def _chatglm(config: Config) -> dict[str, Any]:
    groups = {} if config["multi_query_attention"] else {"num_query_groups": config["num_attention_heads"]}
    return {**groups, "normalization": "rmsnorm" if config["rmsnorm"] else "layernorm"}


PLAIN = ModelType(flags=_LLAMA_BIASES)
_QWEN2 = ModelType(fixed={"qkv_bias": True}, windowed_layers=_from_max_window_layers)
_QWEN3 = ModelType(fixed={"qk_norm": True}, flags=_ATTENTION_BIAS, windowed_layers=_from_max_window_layers)
_DEEPSEEK = ModelType()
_GEMMA = ModelType(flags=_ATTENTION_BIAS, tied=True)
_GEMMA3 = ModelType(
    fixed={"qk_norm": True, "extra_norms": 2},
    flags=_ATTENTION_BIAS,
    tied=True,
    # its multimodal files give only what differs from the 4B model
    defaults={
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    },
    windowed_layers=_all_but_every("sliding_window_pattern", 6),
)  # fmt: skip
_PHI3 = ModelType()
_LLAMA4 = ModelType(
    flags=_ATTENTION_BIAS,
    # its shared expert is as large as a routed one; no field says so
    derived=lambda config: {"moe_shared_expert_intermediate_size": config["intermediate_size"]},
    defaults={"attention_chunk_size": 8192},
    windowed_layers=_all_but_every("no_rope_layer_interval", 4),
)
_GLM = ModelType(flags={"qkv_bias": "attention_bias"}, defaults={"head_dim": 128})
_OLMO2 = ModelType(fixed={"qk_norm": True, "qk_norm_over_heads": True}, flags=_ATTENTION_BIAS)

MODEL_TYPES: dict[str, ModelType] = {
    "llama": PLAIN,
    "granite": PLAIN,
    "arcee": ModelType(fixed={"gated": False}, flags=_LLAMA_BIASES),
    "helium": ModelType(flags=_ATTENTION_BIAS),
    "ernie4_5": ModelType(flags={"add_bias_linear": "use_bias"}, tied=True),
    "ernie4_5_moe": ModelType(
        tied=True,
        derived=_ernie_moe,
        defaults={"moe_layer_start_index": 1, "moe_num_shared_experts": 2, "use_bias": False},
        # biases that choose among the experts
        other_parameters=lambda arch, config: arch.num_experts * arch.num_moe_layers,
    ),
    "seed_oss": ModelType(
        flags={"qkv_bias": "attention_bias", "attention_output_bias": "attention_out_bias", "mlp_bias": "mlp_bias"},
        defaults={"attention_bias": True},
    ),
    "smollm3": ModelType(
        flags=_LLAMA_BIASES,
        tied=True,
        windowed_layers=lambda config, layers: layers // (config.get("no_rope_layer_interval") or 4),
    ),
    "mistral": ModelType(),
    "mixtral": ModelType(),
    "qwen": ModelType({"qkv_bias": True}, derived=_qwen, defaults={"no_bias": True}),
    "qwen2": _QWEN2,
    "qwen2_moe": ModelType(
        fixed={"qkv_bias": True},
        windowed_layers=_from_max_window_layers,
        # the gate of the shared expert
        other_parameters=lambda arch, config: arch.hidden_size * arch.num_moe_layers,
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "gpt2": ModelType(_GPT, derived=_learned("n_positions"), defaults={"n_positions": 1024}, tied=True),
    "gpt_bigcode": ModelType(
        _GPT,
        derived=lambda config: {
            "learned_positions": config["n_positions"],
            **({"num_query_groups": 1} if config["multi_query"] else {}),
        },
        defaults={"multi_query": True, "n_positions": 1024},
        tied=True,
    ),
    "gpt_neo": ModelType(
        {"normalization": "layernorm", "gated": False, "attention_output_bias": True, "mlp_bias": True},
        derived=lambda config: {
            "learned_positions": config["max_position_embeddings"],
            "sliding_window": config.get("window_size", 256),
            "num_windowed_layers": _gpt_neo_windows(config),
        },
        defaults={"max_position_embeddings": 2048},
        tied=True,
    ),
    "gpt_neox": ModelType(
        {"normalization": "layernorm", "gated": False, "mlp_bias": True},
        flags=_ATTENTION_BIAS,
        defaults={"attention_bias": True},
    ),
    "gptj": ModelType(_GPT_J, other_parameters=_output_bias),
    "codegen": ModelType(_GPT_J, other_parameters=_output_bias),
    "opt": ModelType(
        {"gated": False},
        flags={"add_bias_linear": "enable_bias"},
        derived=_opt,
        defaults={
            "max_position_embeddings": 2048,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
        },
        tied=True,
        other_parameters=_opt_other,
    ),
    # a norm follows the embedding
    "bloom": ModelType(_GPT, tied=True, other_parameters=lambda arch, config: 2 * arch.hidden_size),
    "falcon": ModelType(
        {"normalization": "layernorm", "gated": False},
        flags={"add_bias_linear": "bias"},
        derived=_falcon,
        defaults={"new_decoder_architecture": False, "parallel_attn": True, "multi_query": True},
        tied=True,
    ),
    "mpt": ModelType({"gated": False}, derived=_mpt, defaults={"max_seq_len": 2048, "alibi": True}, tied=True),
    "gemma": _GEMMA,
    "gemma2": ModelType({"extra_norms": 2}, flags=_ATTENTION_BIAS, tied=True, windowed_layers=_every_second),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi": ModelType({**_GPT, "extra_norms": -1}, other_parameters=_output_bias),
    "phi3": _PHI3,
    "phimoe": ModelType(
        {"normalization": "layernorm"},
        flags=_ATTENTION_BIAS,
        other_parameters=lambda arch, config: arch.vocab_size if config.get("lm_head_bias") else 0,
    ),
    "olmo": ModelType({"normalization": "layernorm_no_affine"}, flags=_ATTENTION_BIAS),
    "olmo2": _OLMO2,
    "olmo3": ModelType(_OLMO2.fixed, _ATTENTION_BIAS, windowed_layers=_all_but_every("sliding_window_pattern", 4)),
    "olmoe": _OLMO2,
    "gpt_oss": ModelType(
        {"add_bias_linear": True},
        windowed_layers=_every_second,
        # one attention sink for each head
        other_parameters=lambda arch, config: arch.num_layers * arch.num_attention_heads,
    ),
    "cohere": ModelType(
        {"normalization": "layernorm_no_bias", "extra_norms": -1, "qk_norm_over_heads": True},
        flags={**_ATTENTION_BIAS, "qk_norm": "use_qk_norm"},
        tied=True,
    ),
    "cohere2": ModelType(
        {"normalization": "layernorm_no_bias", "extra_norms": -1},
        flags=_ATTENTION_BIAS,
        tied=True,
        windowed_layers=_all_but_every("sliding_window_pattern", 4),
    ),
    "stablelm": ModelType(
        {"normalization": "layernorm", "qk_norm_over_heads": True},
        flags={"qkv_bias": "use_qkv_bias", "qk_norm": "qk_layernorm"},
        derived=_stablelm,
    ),
    "starcoder2": ModelType(
        {"normalization": "layernorm", "gated": False},
        flags={"add_bias_linear": "use_bias"},
        defaults={"use_bias": True},
        tied=True,
    ),
    "dbrx": ModelType({"normalization": "layernorm_no_bias"}),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "granitemoe": ModelType(flags=_ATTENTION_BIAS),
    "nemotron": ModelType({"normalization": "layernorm", "gated": False}, flags=_LLAMA_BIASES),
    # ChatGLM2 and 3, GLM-4 of 2024
    "chatglm": ModelType(
        flags={"add_bias_linear": "add_bias_linear", "qkv_bias": "add_qkv_bias"},
        derived=_chatglm,
        defaults={"multi_query_attention": False, "rmsnorm": True, "post_layer_norm": True},
        other_parameters=lambda arch, config: 0 if config["post_layer_norm"] else -arch.hidden_size,
    ),
    "glm": _GLM,
    "glm4": ModelType({"extra_norms": 2}, flags=_GLM.flags, defaults=_GLM.defaults),
    "glm4_moe": ModelType(flags={**_GLM.flags, "qk_norm": "use_qk_norm"}),
    "exaone4": ModelType({"qk_norm": True}, windowed_layers=_all_but_every("sliding_window_pattern", 4)),
    "hunyuan_v1_dense": ModelType({"qk_norm": True}, flags=_LLAMA_BIASES),
    "persimmon": ModelType(
        _GPT,
        # norms of queries and keys have a bias, too
        flags={"qk_norm": "qk_layernorm"},
        defaults={"qk_layernorm": True},
        other_parameters=lambda arch, config: 2 * arch.kv_channels * arch.num_layers * arch.qk_norm,
    ),
    "apertus": ModelType(
        {"gated": False, "qk_norm": True},
        flags=_ATTENTION_BIAS,
        # its activation, xIELU, has two
        other_parameters=lambda arch, config: 2 * arch.num_layers,
    ),
    "minimax_m2": ModelType({"qk_norm": True, "qk_norm_over_heads": True}),
    "dots1": ModelType({"qk_norm": True}, flags=_ATTENTION_BIAS),
}
