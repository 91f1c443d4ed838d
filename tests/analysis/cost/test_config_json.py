"""config.json against transformers itself: models of every family are built, without storage, and counted."""

import json

import pytest
import torch

from analysis.cost.config_json import architecture_of_config, read_config_json
from analysis.cost.counts import parameters
from scaling.errors import UserError

#: The sizes of a small model, in the words of each group of families.
LLAMA = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 128, "pad_token_id": 0,
}  # fmt: skip
WIDE = {**LLAMA, "head_dim": 16}
GPT2 = {"n_embd": 64, "n_layer": 4, "n_head": 8, "vocab_size": 128, "n_positions": 32}
NEOX = {name: size for name, size in LLAMA.items() if name != "num_key_value_heads"}
FALCON = {name: size for name, size in NEOX.items() if name != "intermediate_size"}
OPT = {**FALCON, "ffn_dim": 256, "max_position_embeddings": 32}
EXPERTS = {**LLAMA, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL_EXPERTS = {**LLAMA, "num_local_experts": 6, "num_experts_per_tok": 2}
ROUTED = {
    **LLAMA, "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_shared_experts": 2,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": 8, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4, "v_head_dim": 10,
}  # fmt: skip
LLAMA4 = {**LOCAL_EXPERTS, "head_dim": 16, "intermediate_size_mlp": 112}
NEO = {
    "hidden_size": 64, "num_layers": 4, "num_heads": 8, "vocab_size": 128, "max_position_embeddings": 32,
    "attention_types": [[["global", "local"], 2]],
}  # fmt: skip
DBRX = {
    "d_model": 64, "n_layers": 4, "n_heads": 8, "vocab_size": 128,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 6, "moe_top_k": 2},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip

SLIDING_THREE = ["sliding_attention"] * 3 + ["full_attention"]
ERNIE = {
    **LLAMA, "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
}  # fmt: skip

CONFIGS = [
    ("llama", LLAMA),
    ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", WIDE),
    ("mixtral", LOCAL_EXPERTS),
    ("qwen2", LLAMA),
    ("qwen3", {**WIDE, "attention_bias": True}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [0, 2]}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    ("deepseek_v3", LATENT),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 100}),
    ("gpt_bigcode", GPT2),
    ("gpt_bigcode", {**GPT2, "multi_query": False}),
    ("gpt_neo", NEO),
    ("gpt_neox", NEOX),
    ("gpt_neox", {**NEOX, "attention_bias": False}),
    ("gptj", {**GPT2, "rotary_dim": 4}),
    ("codegen", {**GPT2, "rotary_dim": 4}),
    ("opt", OPT),
    ("opt", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),  # as OPT-350M
    ("bloom", {"hidden_size": 64, "n_layer": 4, "n_head": 8, "vocab_size": 128}),
    ("falcon", FALCON),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {**FALCON, "parallel_attn": False, "multi_query": False, "bias": True, "alibi": True}),
    ("mpt", {"d_model": 64, "n_layers": 4, "n_heads": 8, "vocab_size": 128, "max_seq_len": 32}),
    ("gemma", WIDE),
    ("gemma2", WIDE),
    ("gemma3_text", WIDE),
    ("phi", NEOX),
    ("phi3", LLAMA),
    ("phimoe", {**LOCAL_EXPERTS, "attention_bias": True, "lm_head_bias": True}),
    ("olmo", LLAMA),
    ("olmo2", LLAMA),
    ("olmo3", LLAMA),
    ("olmoe", {**LLAMA, "num_experts": 6, "num_experts_per_tok": 2}),
    ("gpt_oss", {**LOCAL_EXPERTS, "head_dim": 16}),
    ("cohere", {**LLAMA, "use_qk_norm": True}),
    ("cohere2", LLAMA),
    ("stablelm", LLAMA),
    ("stablelm", {**LLAMA, "use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", LLAMA),
    ("dbrx", DBRX),
    ("llama4_text", LLAMA4),
    ("llama4_text", {**LLAMA4, "interleave_moe_layer_step": 2}),
    ("granite", {**LLAMA, "attention_bias": True}),
    ("granitemoe", LOCAL_EXPERTS),
    ("nemotron", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    ("glm", {**WIDE, "attention_bias": True}),
    ("glm4", {**WIDE, "attention_bias": True}),
    ("glm4_moe", {**ROUTED, "head_dim": 16, "use_qk_norm": True, "attention_bias": True}),
    ("exaone4", WIDE),
    ("hunyuan_v1_dense", WIDE),
    ("persimmon", NEOX),
    ("apertus", LLAMA),
    ("minimax_m2", {**LOCAL_EXPERTS, "head_dim": 16}),
    ("dots1", {**ROUTED, "head_dim": 16}),
    ("smollm3", LLAMA),
    ("arcee", LLAMA),
    ("helium", {**LLAMA, "head_dim": 8}),
    ("ernie4_5", {**WIDE, "use_bias": True}),
    ("seed_oss", WIDE),
    ("ernie4_5_moe", ERNIE),
    ("ernie4_5_moe", {**ERNIE, "moe_layer_interval": 2, "moe_layer_end_index": 2, "num_hidden_layers": 6}),
    # not known by name: counted as a Llama with experts
    ("granitemoeshared", {**LOCAL_EXPERTS, "shared_intermediate_size": 80}),
    ("glm4_moe_lite", {**LATENT, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]}),
]


@pytest.mark.parametrize(("model_type", "sizes"), CONFIGS, ids=lambda value: value if isinstance(value, str) else "")
def test_count_is_that_of_transformers(model_type, sizes):
    transformers = pytest.importorskip("transformers", reason="pip install '.[hf]' to count its models")
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    expected = sum(weight.numel() for weight in model.parameters())
    written = json.loads(config.to_json_string())  # what save_pretrained writes
    for values in (written, {**sizes, "model_type": model_type}):
        assert parameters(architecture_of_config(values, "config.json")[0]).total == expected


# config.json of released checkpoints, the fields that matter, with the number of their weights.
RELEASED = {
    "meta-llama/Llama-3.2-1B": (
        1_235_814_400,
        {
            "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
            "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        },
    ),
    # only what differs from the class is written, and nested
    "google/gemma-3-4b-it": (
        3_880_263_168,
        {
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                "num_hidden_layers": 34, "sliding_window": 1024,
            },
            "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16},
        },
    ),
    "EleutherAI/gpt-j-6b": (
        6_050_882_784,
        {
            "model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16, "n_inner": None, "rotary_dim": 64,
            "vocab_size": 50400, "tie_word_embeddings": False,
        },
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        15_706_484_224,
        {
            "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "num_hidden_layers": 27,
            "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400, "q_lora_rank": None,
            "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1, "moe_layer_freq": 1,
        },
    ),
    "Qwen/Qwen-7B": (
        7_721_324_544,
        {
            "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 4096,
            "intermediate_size": 22016, "kv_channels": 128, "no_bias": True, "num_attention_heads": 32,
            "num_hidden_layers": 32, "vocab_size": 151936, "tie_word_embeddings": False,
        },
    ),
    "THUDM/chatglm3-6b": (
        6_243_584_000,
        {
            "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
            "ffn_hidden_size": 13696, "hidden_size": 4096, "kv_channels": 128, "multi_query_attention": True,
            "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "padded_vocab_size": 65024,
            "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_count_is_that_of_the_checkpoint(name):
    expected, values = RELEASED[name]
    assert parameters(architecture_of_config(values, name)[0]).total == expected


@pytest.mark.parametrize(
    ("values", "window", "layers"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 4096, 4),
        ({"model_type": "mistral", "sliding_window": None}, None, 0),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, None, 0),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3}, 64, 1),
        ({"model_type": "gemma2", "sliding_window": 4096}, 4096, 2),
        ({"model_type": "gpt_oss", "sliding_window": 128, "layer_types": SLIDING_THREE}, 128, 3),
        ({"model_type": "llama4_text", "attention_chunk_size": 8192}, 8192, 3),
    ],
)
def test_layers_with_a_window(values, window, layers):
    arch, _ = architecture_of_config({**LLAMA, **values}, "config.json")
    assert (arch.sliding_window, arch.num_windowed_layers) == (window, layers)


def test_a_layer_of_plain_attention_may_be_marked_as_such():
    values = {**LLAMA, "model_type": "minimax_m2", "attn_type_list": [1] * 4, "num_local_experts": 0}
    assert architecture_of_config(values, "config.json")[0].num_layers == 4


@pytest.mark.parametrize(("every", "dense"), [(1, 1), (2, 3), ([0, 1, 1, 0], 2), ([1, 1, 1, 1], 1)])
def test_moe_layer_freq_says_which_layers_have_experts(every, dense):
    # as in DeepSeek's own modules: from first_k_dense_replace on, each layer whose index it divides
    values = {**ROUTED, "model_type": "deepseek_v3", "moe_layer_freq": every}
    assert architecture_of_config(values, "config.json")[0].num_dense_layers == dense


def test_heads_of_the_first_chatglm2_without_shared_keys():
    values = {
        "model_type": "chatglm", "num_layers": 4, "hidden_size": 64, "ffn_hidden_size": 96, "num_attention_heads": 8,
        "kv_channels": 8, "padded_vocab_size": 128, "multi_query_group_num": 1,
    }  # fmt: skip
    assert architecture_of_config(values, "config.json")[0].num_query_groups == 8
    shared = {**values, "multi_query_attention": True}
    assert architecture_of_config(shared, "config.json")[0].num_query_groups == 1


def test_an_unknown_family_is_counted_as_a_llama_and_says_so():
    arch, notes = architecture_of_config({**LLAMA, "model_type": "newcomer"}, "config.json")
    assert notes == ("model_type = 'newcomer' is not known: counted as a Llama (RMSNorm, gated MLP, no biases)",)
    assert parameters(arch) == parameters(architecture_of_config({**LLAMA, "model_type": "llama"}, "config.json")[0])


def test_multi_token_prediction_is_remarked_on():
    arch, notes = architecture_of_config(
        {**LATENT, "model_type": "deepseek_v3", "num_nextn_predict_layers": 1}, "config.json"
    )
    assert arch.mtp_num_layers == 1
    assert notes == ("num_nextn_predict_layers = 1: trained along, not in the total of parameters",)


def test_a_file_or_its_directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": "llama"}))
    assert read_config_json(tmp_path) == read_config_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "is_encoder_decoder = true: only decoder-only transformers"),
        ({**LLAMA, "model_type": "bert", "architectures": ["BertForMaskedLM"]}, "architectures = BertForMaskedLM"),
        ({**LLAMA, "model_type": "bert", "type_vocab_size": 2}, "type_vocab_size is a field of encoders"),
        ({**LLAMA, "intermediate_size": [8192, 8192]}, "sizes differ from layer to layer"),
        ({**LLAMA, "model_type": "jamba", "mamba_d_state": 16}, "mamba_d_state speaks of layers other than attention"),
        ({**LLAMA, "model_type": "x", "layer_types": ["linear_attention"]}, "layer_types speaks of layers"),
        ({"model_type": "llama", "hidden_size": 64}, "num_hidden_layers is missing"),
        ({**LLAMA, "model_type": "llama", "num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: must be"),
        ({**LLAMA, "model_type": "llama", "vocab_size": -1}, "vocab_size = -1: must be a positive integer"),
        ({**GPT2, "model_type": "gpt2", "n_positions": "1k"}, "n_positions = '1k': must be a whole number, at least 0"),
        ({**LLAMA, "model_type": "gemma2", "layer_types": 3}, "layer_types = 3: must be a list"),
        ({**LLAMA, "model_type": "llama", "num_key_value_heads": 3}, "3 key/value heads do not divide 8 heads"),
        ({**LLAMA, "model_type": "x", "intermediate_size": [96, 128]}, "sizes differ from layer to layer"),
        ({**LLAMA, "model_type": "llama", "hidden_size": 60}, "hidden_size = 60 is no multiple of 8 heads"),
        ({**LOCAL_EXPERTS, "model_type": "mixtral", "num_experts_per_tok": None}, "num_experts_per_tok is missing"),
        ({**LOCAL_EXPERTS, "model_type": "mixtral", "num_experts_per_tok": 99}, "a token goes to 99 experts of"),
        (
            {**ROUTED, "model_type": "deepseek_v3", "moe_intermediate_size": None, "intermediate_size": None},
            "moe_intermediate_size is missing: the file has 6 experts a layer: add the inner size of one",
        ),
        (
            {**LATENT, "model_type": "deepseek_v3", "v_head_dim": None},
            "v_head_dim is missing: attention with a kv_lora",
        ),
        ({**LLAMA, "model_type": "llama", "vocab_size": None}, "(?<!_)vocab_size is missing"),
        (
            {**LLAMA, "model_type": "llama", "tie_word_embeddings": "false"},
            "tie_word_embeddings = 'false': must be true or false, without quotes",
        ),
        ({**LLAMA, "model_type": "llama", "attention_bias": "false"}, "attention_bias = 'false': must be true or"),
        ({**LLAMA, "model_type": "llama", "is_encoder_decoder": "false"}, "is_encoder_decoder = 'false': must be true"),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": "false"}, "use_sliding_window = 'false': must be true"),
        ({**FALCON, "model_type": "falcon", "multi_query": "false"}, "multi_query = 'false': must be true or false"),
        ({**LLAMA, "model_type": "newcomer", "mlp_bias": 1}, "mlp_bias = 1: must be true or false"),
        ({**LLAMA, "model_type": "llama", "layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers"),
        ({**LLAMA, "model_type": "llama", "layer_types": [1, 2, 3, 4]}, "layer_types holds 1: must hold names"),
        ({**ROUTED, "model_type": "x", "mlp_layer_types": ["moe"] * 4}, "mlp_layer_types holds 'moe': must hold dense"),
        ({**ROUTED, "model_type": "deepseek_v3", "first_k_dense_replace": 5}, "first_k_dense_replace = 5: must be at"),
        ({**ROUTED, "model_type": "deepseek_v3", "num_nextn_predict_layers": 9}, "num_nextn_predict_layers = 9: must"),
        ({**ROUTED, "model_type": "deepseek_v3", "n_shared_experts": 7}, "n_shared_experts = 7: must be at most the 6"),
        ({**ROUTED, "model_type": "deepseek_v3", "moe_layer_freq": [1]}, "moe_layer_freq = .1.: must be a whole"),
        ({**ROUTED, "model_type": "x", "q_lora_rank": 10**9}, "q_lora_rank = 1000000000: must be a whole number"),
        ({**ERNIE, "model_type": "ernie4_5_moe", "use_bias": True}, "use_bias = true, which no published one has"),
        ({**ERNIE, "model_type": "ernie4_5_moe", "moe_layer_end_index": "2"}, "moe_layer_end_index = '2': must be"),
        (
            {**ERNIE, "model_type": "ernie4_5_moe_vl", "moe_num_experts": [64, 64]},
            "moe_num_experts = .64, 64.: sizes differ from layer to layer, or between text and images",
        ),
        (
            {**LLAMA, "model_type": "x", "num_key_value_heads": list(range(1, 33))},
            r"num_key_value_heads = \[1, 2, 3, 4, \.\.\.\]: sizes differ",
        ),
        (
            {**ROUTED, "model_type": "longcat_flash", "expert_ffn_hidden_size": 2048},
            "model_type = longcat_flash is not covered: layers have two attentions and two MLPs",
        ),
        (
            {**ROUTED, "model_type": "newcomer", "zero_expert_num": 256},
            "zero_expert_num speaks of experts that compute",
        ),
        ({**LLAMA, "model_type": "nemotron-nas", "block_configs": [{}]}, "block_configs speaks of layers that differ"),
        ({**LLAMA, "model_type": "minimax_text_01", "attn_type_list": [0, 1, 0, 1]}, "attn_type_list speaks of layers"),
        ({**LLAMA, "model_type": "lfm2", "conv_L_cache": 3}, "conv_L_cache speaks of layers other than attention"),
        ({**LLAMA, "model_type": "bamba", "attn_layer_indices": [2]}, "attn_layer_indices speaks of layers other than"),
        ({**LLAMA, "model_type": "chatglm", "inner_hidden_size": 16384}, "inner_hidden_size speaks of ChatGLM-6B's"),
        ({**LLAMA, "model_type": "x", "architectures": 5}, "architectures = 5: must be a list"),
        ({**LLAMA, "model_type": "gpt_neo", "attention_types": ["global"]}, "has not the form that it has"),
        ([1, 2], "holds a list"),
    ],
)
def test_what_cannot_be_counted_is_refused(values, message):
    with pytest.raises(UserError, match=f"^config.json: .*{message}"):
        architecture_of_config(values, "config.json")


def test_a_file_that_is_no_json(tmp_path):
    with pytest.raises(UserError, match="config.json: No such file or directory"):
        read_config_json(tmp_path / "config.json")
    for text in ("hidden_size: 64", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json: not JSON"):
            read_config_json(tmp_path)
