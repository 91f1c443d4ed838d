"""Hugging Face's Llama: its names, its order of channels, its config.json, from our weights and back.

A model of ours is a LlamaForCausalLM of `transformers`, or a Qwen3ForCausalLM where it normalises queries and
keys, which Llama cannot. The one difference besides names is the order of the channels within a head. Rotary
positions turn pairs of channels (Su et al., 2021): here neighbours, (2j, 2j+1) as in the paper, there
(j, j + K/2), for heads of K channels. So the rows of the query and key matrices and the weights of their norms
are reordered; attention's scores are sums over the channels and stay as they were.

Functions of their arguments alone; scaling/export.py reads and writes the files.
"""

from typing import Any

from pydantic import ValidationError
from torch import Tensor

from scaling.accounting import parameter_shapes
from scaling.config import ModelConfig, explain
from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import UserError

_OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_ROTATED = ("attention.query", "attention.key", "attention.query_norm", "attention.key_norm")
_FIELDS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "ffn_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "tie_word_embeddings": "tie_word_embeddings",
    "rotary_base": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "init_method_std": "initializer_range",
}
#: What every Llama has, in our fields and in theirs.
_OUR_LLAMA = {
    "normalization": "rmsnorm",
    "position_embedding": "rope",
    "activation": "swiglu",
    "add_bias_linear": False,
    "parallel_residual": False,
}
_THEIR_LLAMA = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def _their_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.weight"
    _, index, part = stem.split(".", 2)
    return f"model.layers.{index}.{_LAYER[part]}.weight"


def _is_rotated(name: str) -> bool:
    return name.removesuffix(".weight").endswith(_ROTATED)


def _neighbours_to_halves(weight: Tensor, head: int) -> Tensor:
    """Rows [heads x (pair, 2)] -> [heads x (2, pair)], for heads of `head` channels; any further axes stay."""
    return weight.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)


def _halves_to_neighbours(weight: Tensor, head: int) -> Tensor:
    return weight.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def _check_shapes(weights: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], source: str) -> None:
    missing, surplus = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    other = [
        f"{name} {tuple(weights[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    faults = {"missing": missing, "surplus": surplus, "of another shape": other}
    shown = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"
        for what, names in faults.items()
        if names
    ]
    if shown:
        raise UserError(
            f"{source}: the weights are not those of its config: {'; '.join(shown)}: find the files that belong "
            f"together"
        )


def huggingface_config(config: ModelConfig, max_position_embeddings: int) -> dict[str, Any]:
    """The contents of config.json but for the dtype; `max_position_embeddings` is the longest sequence trained on.

    Raises UserError naming the field of a model that neither Llama nor Qwen3 can express.
    """
    for field, only in _OUR_LLAMA.items():
        if (value := getattr(config, field)) != only:
            raise UserError(
                f"model.{field} = {value}: Hugging Face's Llama has {only} only: this model cannot be exported"
            )
    if config.rotary_dim != config.kv_channels:
        raise UserError(
            f"model.rotary_percent = {config.rotary_percent}: Hugging Face's Llama rotates all channels: "
            "this model cannot be exported"
        )
    model_type = "qwen3" if config.qk_norm else "llama"
    if model_type == "llama" and config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"model.hidden_size = {config.hidden_size}: Hugging Face's Llama wants a multiple of num_attention_heads = "
            f"{config.num_attention_heads}, whatever the size of a head: this model cannot be exported"
        )
    values = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    values |= {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": max_position_embeddings,
        # transformers 5 reads these; 4 reads rope_theta, and without it would silently take 10000
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        # Llama's own defaults are 1 and 2, which mean nothing here
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.init_method_std is None:
        del values["initializer_range"]
    return values


def model_config(values: dict[str, Any], source: str) -> ModelConfig:
    """The ModelConfig of a Llama's or Qwen3's config.json, as transformers 4 or 5 writes it.

    `source` names the file in messages. Raises UserError naming the field that our models do not have.
    """
    model_type = values.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise UserError(f"{source}: model_type = {model_type!r}: only {' and '.join(_ARCHITECTURES)} can be imported")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{source}: rope_parameters = {rope!r}: must be a mapping")
    flat = {**values, **rope}
    for field, only in _THEIR_LLAMA.items():
        if (value := flat.get(field, only)) != only:
            raise UserError(f"{source}: {field} = {value!r}: only models with {only!r} can be imported")
    kind = flat.get("rope_type", flat.get("type", "default"))
    if kind != "default":
        raise UserError(f"{source}: rope_type = {kind!r}: only unscaled rotary positions, 'default', can be imported")
    # the format's defaults where they are not ours
    ours: dict[str, Any] = {"tie_word_embeddings": False, "norm_epsilon": 1e-6, "qk_norm": model_type == "qwen3"}
    ours |= {field: flat[theirs] for field, theirs in _FIELDS.items() if flat.get(theirs) is not None}
    try:
        return ModelConfig.model_validate(ours)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None


def to_huggingface(
    weights: dict[str, Tensor], config: ModelConfig, max_position_embeddings: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under Hugging Face's names, in the order of channels that transformers wants, and config.json.

    Tensors that need no reordering are those of `weights`. Tied embeddings are written once, as the
    embedding. Raises UserError for a model that Llama cannot express (see `huggingface_config`) and for
    weights that are not those of `config`.
    """
    values = huggingface_config(config, max_position_embeddings)
    _check_shapes(weights, parameter_shapes(config), "weights to export")
    values["dtype"] = str(weights["embedding.weight"].dtype).removeprefix("torch.")
    head = config.kv_channels
    named = {
        _their_name(name): _neighbours_to_halves(weight, head) if _is_rotated(name) else weight
        for name, weight in weights.items()
    }
    return named, values


def from_huggingface(
    weights: dict[str, Tensor], values: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], ModelConfig]:
    """The inverse of `to_huggingface`: weights under our names, and their ModelConfig; bit-equal, in the same dtype.

    values: the contents of config.json. source: where both came from, for messages. Raises UserError for a
    model that this project cannot express (see `model_config`), and for missing, surplus or misshapen weights.
    """
    config = model_config(values, source)
    shapes = parameter_shapes(config)
    # old checkpoints carry the frequencies, which follow from the config
    weights = {name: weight for name, weight in weights.items() if not name.endswith(".rotary_emb.inv_freq")}
    output, embedding = weights.get("lm_head.weight"), weights.get("model.embed_tokens.weight")
    if config.tie_word_embeddings and output is not None and embedding is not None and output.equal(embedding):
        del weights["lm_head.weight"]  # written twice
    _check_shapes(weights, {_their_name(name): shape for name, shape in shapes.items()}, source)
    named = {name: weights[_their_name(name)] for name in shapes}
    for name in filter(_is_rotated, shapes):
        named[name] = _halves_to_neighbours(named[name], config.kv_channels)
    return named, config


def byte_tokenizer_files(max_length: int) -> dict[str, Any]:
    """tokenizer.json and tokenizer_config.json of ByteTokenizer, in the format of Hugging Face's tokenizers.

    Its byte-level model writes every byte as one printable character (the table of GPT-2, Radford et al.,
    2019): here a vocabulary of 256 such characters and no merges. Byte 0 ends a document and goes as itself.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    end = ByteTokenizer.end_of_document
    characters[end] = chr(end)
    special = {"id": end, "content": chr(end), "single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**special, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {characters[byte]: byte for byte in range(256)}, "merges": []},
    }
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": chr(end),
        "eos_token": chr(end),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": options}
