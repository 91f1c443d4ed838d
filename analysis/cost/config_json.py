"""The Architecture of a Hugging Face config.json.

The file names the sizes, each family in its own words; what it does not name (norms, biases, gates) follows from
`model_type` and is in config_types.py.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.cost.architecture import Architecture
from analysis.cost.config_types import MODEL_TYPES, PLAIN, ModelType
from scaling.errors import UserError

#: Fields of a config.json by the field of Architecture; the first that is there counts.
_SIZES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("padded_vocab_size", "vocab_size"),
}
_GROUPS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "kv_n_heads")
_CHANNELS = ("head_dim", "kv_channels")
_FFN = ("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
_EXPERT_FFN = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size")

#: Fields that a file may leave out or set to null, and what they hold where it does not.
_OPTIONAL = {
    int: (
        "n_positions", "max_position_embeddings", "max_seq_len", "expansion_ratio", "word_embed_proj_dim",
        "sliding_window", "sliding_window_pattern", "attention_chunk_size", "max_window_layers",
        "no_rope_layer_interval", "window_size", "n_shared_experts", "shared_expert_intermediate_size",
        "first_k_dense_replace", "decoder_sparse_step", "interleave_moe_layer_step", "q_lora_rank",
        "num_nextn_predict_layers",
    ),
    list: ("architectures", "layer_types", "mlp_only_layers", "attention_types", "attention_layers"),
}  # fmt: skip

#: Sizes above these are of no model.
_MOST_LAYERS, _LARGEST = 10**4, 10**8

#: Nested parts of a config.json whose fields are those of the language model.
_PARTS = ("text_config", "llm_config", "language_config", "attn_config", "ffn_config")

#: Words in the fields of models whose layers are not plain attention and MLP: state-space and linear attention, then
#: sparse attention (DeepSeek-V3.2, V4) and Gemma 3n's alternating updates.
_OTHER_LAYERS = (
    "mamba", "ssm_", "linear_attn", "linear_num_", "linear_conv", "block_type", "hybrid_override", "lru_", "rwkv",
    "index_topk", "compress_ratio", "altup",
)  # fmt: skip


def read_config_json(path: Path) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture in a config.json (or in the directory that holds one), and remarks on what was assumed.

    Raises UserError for a file that is absent or no JSON, and as `architecture_of_config` does.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give the config.json of a model") from None
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise UserError(f"{path}: not JSON ({error}): give the config.json of a model") from None
    return architecture_of_config(values, str(path))


def architecture_of_config(values: Any, source: str) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture that the contents of a config.json describe, and remarks on what was assumed.

    A `model_type` that is not known is read by the standard field names as a Llama (RMSNorm, gated MLP, no biases), and
    a remark says so. source names the file in messages. Raises UserError for what is no decoder-only transformer, and
    for sizes that are missing or impossible.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: holds a {type(values).__name__}: give the config.json of a model, a mapping")
    config = _flat(values)
    name = str(values.get("_name_or_path") or values.get("model_type") or source)
    model_type = config.get("model_type")
    known = MODEL_TYPES.get(str(model_type))
    _check_optional(config, source)
    _refuse_what_is_no_decoder(config, known is not None, source)
    notes = []
    if known is None:
        notes.append(f"model_type = {model_type!r} is not known: counted as a Llama (RMSNorm, gated MLP, no biases)")
    kind = known or PLAIN
    config = {**kind.defaults, **{field: value for field, value in config.items() if value is not None}}

    sizes = {ours: _integer(config, theirs, source) for ours, theirs in _SIZES.items()}
    fields: dict[str, Any] = {**sizes, **_heads(config, sizes, source), **_experts(config, source)}
    fields["ffn_hidden_size"] = _ffn(config, sizes, fields, source)
    fields |= _latent(config, source)
    fields["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", kind.tied))
    fields["mtp_num_layers"] = int(config.get("num_nextn_predict_layers") or 0)
    fields |= kind.fixed
    fields |= {ours: bool(config.get(flag)) for ours, flag in kind.flags.items()}
    try:  # what a family reads beyond the fields that are checked above
        fields |= _window(config, kind, sizes["num_layers"]) | kind.derived(config)
        arch = Architecture(name=name, **fields)
        arch = replace(arch, other_parameters=kind.other_parameters(arch, config))
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]} is missing: every {model_type} has it") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: a field has not the form that it has in a {model_type} ({error})") from None
    if arch.num_attention_heads % arch.num_query_groups:
        raise UserError(
            f"{source}: {arch.num_query_groups} key/value heads do not divide {arch.num_attention_heads} heads: "
            "correct one of them"
        )
    if arch.moe_router_topk > arch.num_experts:
        raise UserError(
            f"{source}: a token goes to {arch.moe_router_topk} experts of {arch.num_experts}: correct one of them"
        )
    if arch.num_windowed_layers > arch.num_layers:
        raise UserError(f"{source}: lists {arch.num_windowed_layers} layers with a window, of {arch.num_layers} in all")
    if arch.mtp_num_layers:
        notes.append(f"num_nextn_predict_layers = {arch.mtp_num_layers}: trained along, not in the total of parameters")
    return arch, tuple(notes)


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of the language model, nested parts opened; those of a part go before those around it."""
    config = dict(values)
    for part in _PARTS:
        inner = values.get(part)
        if isinstance(inner, dict):
            config |= {key: value for key, value in _flat(inner).items() if value is not None and value != ""}
    return config


def _refuse_what_is_no_decoder(config: dict[str, Any], known: bool, source: str) -> None:
    remedy = "only decoder-only transformers can be counted"
    if config.get("is_encoder_decoder"):
        raise UserError(f"{source}: is_encoder_decoder = true: {remedy}")
    if any(isinstance(config.get(field), list) for names in (*_SIZES.values(), _GROUPS, _FFN) for field in names):
        raise UserError(f"{source}: sizes differ from layer to layer: only layers that are alike can be counted")
    if known:
        return
    if "type_vocab_size" in config:  # of the two segments that encoders such as BERT take
        raise UserError(f"{source}: type_vocab_size is a field of encoders: {remedy}")
    heads = [str(name) for name in config.get("architectures") or []]
    if heads and not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in heads):
        raise UserError(f"{source}: architectures = {', '.join(heads)}: {remedy}")
    other = [field for field in config if any(word in field for word in _OTHER_LAYERS)]
    if other or "linear_attention" in (config.get("layer_types") or []):
        field = other[0] if other else "layer_types"
        raise UserError(f"{source}: {field} speaks of layers other than attention and MLP: {remedy}")


def _check_optional(config: dict[str, Any], source: str) -> None:
    for kind, names in _OPTIONAL.items():
        for name in names:
            value = config.get(name)
            if value is not None and (not isinstance(value, kind) or (kind is int and value < 0)):
                what = "a whole number, at least 0" if kind is int else "a list"
                raise UserError(f"{source}: {name} = {value!r}: must be {what}")


def _first(config: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _integer(config: dict[str, Any], names: tuple[str, ...], source: str) -> int:
    """The first of the fields that is there, a positive integer."""
    value = _first(config, names)
    if value is None:
        raise UserError(f"{source}: {names[0]} is missing: only the config.json of a decoder-only transformer has it")
    most = _MOST_LAYERS if names == _SIZES["num_layers"] else _LARGEST
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        field = next(name for name in names if config.get(name) is not None)
        raise UserError(f"{source}: {field} = {value!r}: must be a positive integer, at most {most}")
    return value


def _heads(config: dict[str, Any], sizes: dict[str, int], source: str) -> dict[str, int]:
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    groups = heads if _first(config, _GROUPS) is None else _integer(config, _GROUPS, source)
    if _first(config, _CHANNELS) is not None:
        return {"num_query_groups": groups, "kv_channels": _integer(config, _CHANNELS, source)}
    if hidden % heads and not config.get("kv_lora_rank"):
        raise UserError(f"{source}: hidden_size = {hidden} is no multiple of {heads} heads: add head_dim")
    return {"num_query_groups": groups, "kv_channels": hidden // heads}


def _ffn(config: dict[str, Any], sizes: dict[str, int], fields: dict[str, Any], source: str) -> int:
    """Inner size of a dense MLP; 0 where every layer has experts."""
    if fields["num_experts"] and not fields["num_dense_layers"]:
        return 0
    if _first(config, _FFN) is not None:
        return _integer(config, _FFN, source)
    # the families whose files leave it out (GPT-2, BLOOM, MPT) all mean four times the hidden size
    return int(config.get("expansion_ratio") or 4) * sizes["hidden_size"]


def _latent(config: dict[str, Any], source: str) -> dict[str, int]:
    if not config.get("kv_lora_rank"):
        return {}
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    latent = {name: _integer(config, (name,), source) for name in names}
    return {**latent, "q_lora_rank": int(config.get("q_lora_rank") or 0)}


def _experts(config: dict[str, Any], source: str) -> dict[str, int]:
    """The fields of a mixture of experts, and which layers have one."""
    if _first(config, _EXPERTS) in (None, 0, 1):
        return {"num_experts": 0, "num_dense_layers": 0}
    layers = _integer(config, _SIZES["num_layers"], source)
    step = config.get("decoder_sparse_step") or config.get("interleave_moe_layer_step") or 1
    sparse = {
        index
        for index in range(config.get("first_k_dense_replace") or 0, layers)
        if (index + 1) % step == 0 and index not in (config.get("mlp_only_layers") or [])
    }
    inner = _integer(config, _EXPERT_FFN, source)
    shared = config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * inner
    return {
        "num_experts": _integer(config, _EXPERTS, source),
        "moe_router_topk": _integer(config, _TOP_K, source),
        "moe_ffn_hidden_size": inner,
        "moe_shared_expert_intermediate_size": shared,
        "num_dense_layers": layers - len(sparse),
    }


def _window(config: dict[str, Any], kind: ModelType, layers: int) -> dict[str, Any]:
    """The window and how many layers have it: as `layer_types` lists them, else by the rule of the family."""
    chunk = config.get("attention_chunk_size")
    window = chunk or config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return {}
    listed = config.get("layer_types")
    if listed:
        windowed = sum(kind_of_layer in ("sliding_attention", "chunked_attention") for kind_of_layer in listed)
    else:
        windowed = kind.windowed_layers(config, layers)
    if not windowed:
        return {}
    return {"sliding_window": window, "num_windowed_layers": windowed, "chunked_attention": bool(chunk)}
