"""The Architecture of a Hugging Face config.json.

The file names the sizes, each family in its own words; what it does not name (norms, biases, gates) follows from
`model_type` and is in config_types.py; what is refused at once is in config_checks.py.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.cost.architecture import Architecture
from analysis.cost.config_checks import (
    LARGEST,
    MOST_LAYERS,
    check_forms,
    check_layers,
    refuse_other_models,
    shown,
)
from analysis.cost.config_types import MODEL_TYPES, PLAIN, ModelType
from scaling.errors import UserError

#: Fields of a config.json by the field of Architecture; the first that is there counts.
_SIZES = {
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
}
_GROUPS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "kv_n_heads")
_CHANNELS = ("head_dim", "kv_channels")
_FFN = ("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k")
_EXPERT_FFN = ("moe_intermediate_size", "intermediate_size", "ffn_hidden_size")
_SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
_SHARED_FFN = ("shared_expert_intermediate_size", "shared_intermediate_size")
_FIRST_MOE = ("first_k_dense_replace", "moe_layer_start_index")
_MOE_STEP = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")

#: Nested parts of a config.json whose fields are those of the language model.
_PARTS = ("text_config", "llm_config", "language_config", "attn_config", "ffn_config")


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
    kind = known or PLAIN
    check_forms(config, kind.flag_fields, source)
    refuse_other_models(config, known is not None, source)
    _refuse_lists_of_sizes(config, source)
    notes = []
    if known is None:
        notes.append(
            f"model_type = {shown(model_type)} is not known: counted as a Llama (RMSNorm, gated MLP, no biases)"
        )
    config = {**kind.defaults, **{field: value for field, value in config.items() if value is not None}}

    sizes = {ours: _integer(config, theirs, source) for ours, theirs in _SIZES.items()}
    check_layers(config, sizes["num_layers"], source)
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


def _refuse_lists_of_sizes(config: dict[str, Any], source: str) -> None:
    for field in (*(name for names in _SIZES.values() for name in names), *_GROUPS, *_FFN, *_EXPERTS, *_EXPERT_FFN):
        if isinstance(config.get(field), list):
            raise UserError(
                f"{source}: {field} = {shown(config[field])}: sizes differ from layer to layer, or between text and "
                "images: only layers that are alike can be counted"
            )


def _first(config: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _integer(
    config: dict[str, Any],
    names: tuple[str, ...],
    source: str,
    remedy: str = "only the config.json of a decoder-only transformer has it",
) -> int:
    """The first of the fields that is there, a positive integer; remedy: what to do where none is."""
    value = _first(config, names)
    if value is None:
        raise UserError(f"{source}: {names[0]} is missing: {remedy}")
    most = MOST_LAYERS if names == _SIZES["num_layers"] else LARGEST
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        field = next(name for name in names if config.get(name) is not None)
        raise UserError(f"{source}: {field} = {shown(value)}: must be a positive integer, at most {most}")
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
    remedy = "attention with a kv_lora_rank has it: add it"
    latent = {name: _integer(config, (name,), source, remedy) for name in names}
    return {**latent, "q_lora_rank": int(config.get("q_lora_rank") or 0)}


def _experts(config: dict[str, Any], source: str) -> dict[str, int]:
    """The fields of a mixture of experts, and which layers have one."""
    if _first(config, _EXPERTS) in (None, 0, 1):
        return {"num_experts": 0, "num_dense_layers": 0}
    layers, num_experts = _integer(config, _SIZES["num_layers"], source), _integer(config, _EXPERTS, source)
    beside = f"the file has {num_experts} experts a layer: add "
    inner = _integer(config, _EXPERT_FFN, source, beside + "the inner size of one")
    num_shared = _first(config, _SHARED_EXPERTS) or 0
    if num_shared > num_experts:
        field = next(name for name in _SHARED_EXPERTS if config.get(name) is not None)
        raise UserError(f"{source}: {field} = {num_shared}: must be at most the {num_experts} routed experts")
    return {
        "num_experts": num_experts,
        "moe_router_topk": _integer(config, _TOP_K, source, beside + "how many of them a token goes to"),
        "moe_ffn_hidden_size": inner,
        "moe_shared_expert_intermediate_size": _first(config, _SHARED_FFN) or num_shared * inner,
        "num_dense_layers": sum(not sparse for sparse in _sparse_layers(config, layers, source)),
    }


def _sparse_layers(config: dict[str, Any], layers: int, source: str) -> list[bool]:
    """Whether each layer has experts, by all of the fields that families say it with."""
    listed = config.get("mlp_layer_types")
    if listed:
        return [kind == "sparse" for kind in listed]
    first, step = _first(config, _FIRST_MOE) or 0, _first(config, _MOE_STEP) or 1
    last, every = config.get("moe_layer_end_index", -1), config.get("moe_layer_freq", 1)
    if not isinstance(last, int):
        raise UserError(f"{source}: moe_layer_end_index = {shown(last)}: must be a whole number, -1 for the last layer")
    if isinstance(every, list) and len(every) == layers:
        frequent = [bool(entry) for entry in every]
    elif isinstance(every, int) and not isinstance(every, bool) and every > 0:
        frequent = [index % every == 0 for index in range(layers)]
    else:
        raise UserError(f"{source}: moe_layer_freq = {shown(every)}: must be a whole number above 0, or one a layer")
    return [
        frequent[index]
        and first <= index <= (layers if last == -1 else last)
        and (index + 1) % step == 0
        and index not in (config.get("mlp_only_layers") or [])
        for index in range(layers)
    ]


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
