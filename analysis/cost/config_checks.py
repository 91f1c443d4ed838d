"""What of a config.json is refused before anything is counted: fields of a wrong form, models that are not covered."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from scaling.errors import UserError

#: Sizes above these are of no model.
MOST_LAYERS, LARGEST = 10**4, 10**8

#: Fields that a file may leave out or set to null, and what they hold where it does not.
_OPTIONAL = {
    int: (
        "n_positions", "max_position_embeddings", "max_seq_len", "expansion_ratio", "word_embed_proj_dim",
        "sliding_window", "sliding_window_pattern", "attention_chunk_size", "max_window_layers",
        "no_rope_layer_interval", "window_size", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
        "shared_expert_intermediate_size", "shared_intermediate_size", "first_k_dense_replace",
        "moe_layer_start_index", "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval",
        "q_lora_rank", "num_nextn_predict_layers",
    ),
    list: (
        "architectures", "layer_types", "mlp_layer_types", "mlp_only_layers", "attention_types", "attention_layers",
        "attn_type_list",
    ),
}  # fmt: skip
#: Fields that are true or false in every family; those of one family are in its ModelType.
_FLAGS = (
    "is_encoder_decoder", "tie_word_embeddings", "use_sliding_window", "learned_pos_emb", "no_bias", "lm_head_bias",
    "use_parallel_residual",
)  # fmt: skip
#: Fields that have one entry a layer.
_PER_LAYER = ("layer_types", "mlp_layer_types", "attn_type_list")
#: Fields that are at most the number of layers.
_LAYER_COUNTS = ("first_k_dense_replace", "moe_layer_start_index", "num_nextn_predict_layers")

#: What words in the names of fields speak of. A field that is null, false, zero or empty says nothing.
_WORDS_OF_OTHER_LAYERS = {
    "layers other than attention and MLP": (
        "mamba", "ssm_", "linear_attn", "linear_num_", "linear_conv", "block_type", "hybrid_override", "lru_", "rwkv",
        "conv_L_cache", "attn_layer_indices",
    ),
    "sparse attention": ("index_topk", "compress_ratio"),
    "layers that differ from each other": (
        "block_configs", "global_head_dim", "num_key_value_heads_per_layer", "hybrid_layer_pattern", "swa_num_",
    ),
    "inputs that layers have beside the hidden states": ("altup", "hidden_size_per_layer_input"),
    "experts that compute nothing": ("zero_expert",),
    "ChatGLM-6B's block, unlike that of its successors": ("inner_hidden_size", "position_encoding_2d"),
}  # fmt: skip
_ATTENTION = ("attention", "full_attention", "sliding_attention", "chunked_attention")

_NO_GATED_MLP = (
    "jais2", "nanochat", "gpt_neox_japanese", "openai-gpt", "biogpt", "ctrl", "cpmant", "bert-generation", "git",
)  # fmt: skip
#: model_type of families that no Architecture describes although the names of their fields are usual ones.
_NOT_COVERED = {
    "longcat_flash": "layers have two attentions and two MLPs, and some experts compute nothing",
    "jetmoe": "attention is a mixture of experts as well",
    "afmoe": "attention has a gate",
    "doge": "experts are looked up in a table of single vectors",
    "moshi": "a second transformer runs over the depth of each step",
    "xlstm": "layers are recurrent",
    "mamba2": "layers are state-space models",
    "xlnet": "attention has two streams",
    "hrm_text": "layers are run several times over",
    "phi4_multimodal": "adapters are part of the model",
    **dict.fromkeys(_NO_GATED_MLP, "the MLP has no gate"),
}
_REMEDY = "only decoder-only transformers can be counted"
_NEAREST = "give --params N for a Llama of its size"
_ALIKE = "only layers of attention and MLP that are alike can be counted"


def shown(value: Any) -> str:
    """A value for a message, cut short where it is long."""
    short = reprlib.Repr()
    short.maxlist, short.maxstring, short.maxother = 4, 60, 60
    return short.repr(value)


def check_forms(config: Mapping[str, Any], flags: Iterable[str], source: str) -> None:
    """Raises UserError for an optional field that is not of its type. flags: those of the family."""
    for kind, names in _OPTIONAL.items():
        for name in names:
            value = config.get(name)
            if value is None or isinstance(value, kind) and (kind is list or _is_count(value)):
                continue
            what = f"a whole number, at least 0 and at most {LARGEST}" if kind is int else "a list"
            raise UserError(f"{source}: {name} = {shown(value)}: must be {what}")
    for name in (*_FLAGS, *flags):
        if not isinstance(config.get(name), bool | None):
            raise UserError(f"{source}: {name} = {shown(config[name])}: must be true or false, without quotes")


def refuse_other_models(config: Mapping[str, Any], known: bool, source: str) -> None:
    """Raises UserError for what is no decoder-only transformer with layers that are alike.

    known: whether the family is one of MODEL_TYPES, which may have heads of any name.
    """
    if config.get("is_encoder_decoder"):
        raise UserError(f"{source}: is_encoder_decoder = true: {_REMEDY}")
    model_type = str(config.get("model_type"))
    if model_type in _NOT_COVERED:
        raise UserError(f"{source}: model_type = {model_type} is not covered: {_NOT_COVERED[model_type]}: {_NEAREST}")
    for field, value in config.items():
        for what, words in _WORDS_OF_OTHER_LAYERS.items():
            if value and any(word in field for word in words):
                raise UserError(f"{source}: {field} speaks of {what}: {_ALIKE}")
    # MiniMax marks layers of plain attention with 1, of linear attention with 0
    if any(kind != 1 for kind in config.get("attn_type_list") or []):
        raise UserError(f"{source}: attn_type_list speaks of layers other than attention and MLP: {_ALIKE}")
    for kind in config.get("layer_types") or []:
        if not isinstance(kind, str):
            raise UserError(f"{source}: layer_types holds {shown(kind)}: must hold names such as full_attention")
        if kind not in _ATTENTION:
            raise UserError(f"{source}: layer_types speaks of layers other than attention and MLP ({kind}): {_ALIKE}")
    for kind in config.get("mlp_layer_types") or []:
        if kind not in ("dense", "sparse"):
            raise UserError(f"{source}: mlp_layer_types holds {shown(kind)}: must hold dense and sparse alone")
    if known:
        return
    if "type_vocab_size" in config:  # of the two segments that encoders such as BERT take
        raise UserError(f"{source}: type_vocab_size is a field of encoders: {_REMEDY}")
    heads = [str(name) for name in config.get("architectures") or []]
    if heads and not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in heads):
        raise UserError(f"{source}: architectures = {', '.join(heads)}: {_REMEDY}")


def check_layers(config: Mapping[str, Any], num_layers: int, source: str) -> None:
    """Raises UserError for lists that have not one entry a layer, and for counts of layers above all that there are."""
    for name in _PER_LAYER:
        listed = config.get(name)
        if listed is not None and len(listed) != num_layers:
            raise UserError(
                f"{source}: {name} has {len(listed)} entries for {num_layers} layers: give one a layer or leave it out"
            )
    for name in _LAYER_COUNTS:
        if (config.get(name) or 0) > num_layers:
            raise UserError(f"{source}: {name} = {config[name]}: must be at most the {num_layers} layers")


def _is_count(value: int) -> bool:
    return not isinstance(value, bool) and 0 <= value <= LARGEST
