import math

import pytest

from scaling.accounting import FLOP_CONVENTIONS, flops_per_token, parameter_count, parameter_shapes, training_flops
from scaling.config import ModelConfig, RunConfig
from scaling.errors import UserError


def model(**fields):
    values = {"num_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 50} | fields
    return ModelConfig(**values)


def test_plain_llama_by_hand():
    # h = 16, f = 48 (8h/3 rounded up to 8), V = 50, L = 3; tied.
    layer = 4 * 16 * 16 + 3 * 16 * 48 + 2 * 16
    count = parameter_count(model())
    assert count.total == 3 * layer + 16 + 50 * 16
    assert count.embedding == 50 * 16
    assert count.non_embedding == count.total - count.embedding
    assert count.active == count.total


@pytest.mark.parametrize(
    "fields, per_layer, outside",
    [
        ({"num_query_groups": 2}, -2 * 16 * 8, 0),
        ({"kv_channels": 8}, 4 * 16 * 16, 0),
        ({"qk_norm": True}, 4 + 4, 0),
        ({"normalization": "layernorm"}, 2 * 16, 16),
        ({"normalization": "layernorm_no_affine"}, -2 * 16, -16),
        ({"add_bias_linear": True}, 4 * 16 + 2 * 48 + 16, 0),
        ({"activation": "gelu", "ffn_hidden_size": 48}, -16 * 48, 0),
        ({"tie_word_embeddings": False}, 0, 50 * 16),
        ({"position_embedding": "learned", "max_position_embeddings": 7}, 0, 7 * 16),
        ({"position_embedding": "relative"}, 16 * 16 + 2 * 16, 0),
        ({"parallel_residual": True}, 0, 0),
        ({"position_embedding": "none"}, 0, 0),
    ],
)
def test_what_each_option_adds(fields, per_layer, outside):
    assert parameter_count(model(**fields)).total - parameter_count(model()).total == 3 * per_layer + outside


def test_embedding_parameters_are_tables_and_an_untied_output():
    count = parameter_count(model(tie_word_embeddings=False, position_embedding="learned", max_position_embeddings=7))
    assert count.embedding == (50 + 7 + 50) * 16


def test_names_and_shapes_of_a_gpt2_layer():
    gpt2 = model(
        num_layers=1, normalization="layernorm", activation="gelu", add_bias_linear=True,
        position_embedding="learned", max_position_embeddings=7,
    )  # fmt: skip
    assert parameter_shapes(gpt2) == {
        "embedding.weight": (50, 16),
        "position_embedding.weight": (7, 16),
        "layers.0.attention_norm.weight": (16,),
        "layers.0.attention_norm.bias": (16,),
        "layers.0.attention.query.weight": (16, 16),
        "layers.0.attention.query.bias": (16,),
        "layers.0.attention.key.weight": (16, 16),
        "layers.0.attention.key.bias": (16,),
        "layers.0.attention.value.weight": (16, 16),
        "layers.0.attention.value.bias": (16,),
        "layers.0.attention.output.weight": (16, 16),
        "layers.0.attention.output.bias": (16,),
        "layers.0.mlp_norm.weight": (16,),
        "layers.0.mlp_norm.bias": (16,),
        "layers.0.mlp.up.weight": (64, 16),
        "layers.0.mlp.up.bias": (64,),
        "layers.0.mlp.down.weight": (16, 64),
        "layers.0.mlp.down.bias": (16,),
        "final_norm.weight": (16,),
        "final_norm.bias": (16,),
    }


def test_names_that_only_other_variants_have():
    shapes = parameter_shapes(
        model(num_query_groups=2, qk_norm=True, position_embedding="relative", tie_word_embeddings=False)
    )
    assert shapes["layers.2.attention.key.weight"] == (8, 16)
    assert shapes["layers.2.attention.query_norm.weight"] == (4,)
    assert shapes["layers.2.attention.relative.weight"] == (16, 16)
    assert shapes["layers.2.attention.relative.content_bias"] == (4, 4)
    assert shapes["layers.2.mlp.gate.weight"] == (48, 16)
    assert shapes["output.weight"] == (50, 16)
    assert parameter_count(model(qk_norm=True)).total == sum(
        math.prod(shape) for shape in parameter_shapes(model(qk_norm=True)).values()
    )


LLAMA3_8B = model(
    num_layers=32, hidden_size=4096, num_attention_heads=32, num_query_groups=8, ffn_hidden_size=14336,
    vocab_size=128256, tie_word_embeddings=False,
)  # fmt: skip
LLAMA3_70B = model(
    num_layers=80, hidden_size=8192, num_attention_heads=64, num_query_groups=8, ffn_hidden_size=28672,
    vocab_size=128256, tie_word_embeddings=False,
)  # fmt: skip
LLAMA3_405B = model(
    num_layers=126, hidden_size=16384, num_attention_heads=128, num_query_groups=8, ffn_hidden_size=53248,
    vocab_size=128256, tie_word_embeddings=False,
)  # fmt: skip
BLOOM_PREQUEL = model(
    num_layers=72, hidden_size=14336, num_attention_heads=64, activation="gelu", vocab_size=250680
)  # fmt: skip


@pytest.mark.parametrize(
    "model, convention, tflop",
    [
        # MODEL_TFLOP_PER_SAMPLE at 8192 tokens in NVIDIA's MLPerf Training v5 code: two conventions side by side.
        (LLAMA3_405B, "full", 21508),
        (LLAMA3_8B, "causal", 421.59),
    ],
)
def test_published_flops_of_a_sample(model, convention, tflop):
    assert flops_per_token(model, 8192, convention) * 8192 / 1e12 == pytest.approx(tflop, rel=5e-4)


@pytest.mark.parametrize(
    "model, num_gpus, sequences, step_seconds, tflops_per_gpu",
    [
        # Megatron-Bridge performance summary: TFLOP/s per GPU at 8192 tokens, causal.
        (LLAMA3_70B, 64, 256, 6.2499, 2355.0),
        (LLAMA3_70B, 64, 256, 6.8295, 2157.0),
        (LLAMA3_405B, 256, 1536, 62.7739, 1976.0),
        (LLAMA3_405B, 256, 1536, 45.6803, 2716.0),
    ],
)
def test_causal_flops_equal_megatrons(model, num_gpus, sequences, step_seconds, tflops_per_gpu):
    flops = flops_per_token(model, 8192, "causal") * 8192 * sequences
    assert flops / step_seconds / num_gpus / 1e12 == pytest.approx(tflops_per_gpu, rel=1e-3)


@pytest.mark.parametrize("step_seconds, tflops_per_gpu", [(143.31, 112.49), (123.69, 130.34), (111.71, 144.31)])
def test_full_flops_equal_those_of_blooms_logs(step_seconds, tflops_per_gpu):
    # bigscience tr11-176B chronicles (384 A100, 2048 sequences of 2048). Full recomputation repeats the
    # forward pass of the layers but not of the logits: 4/3 of the layers (Narayanan et al. 2021, eq. 3).
    recomputed = flops_per_token(BLOOM_PREQUEL, 2048, "hardware", "full")
    assert recomputed * 2048 * 2048 / step_seconds / 384 / 1e12 == pytest.approx(tflops_per_gpu, rel=1e-3)


def test_conventions_by_hand():
    small = model(num_query_groups=2, kv_channels=8)
    layer = 2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 48
    matrices = 6 * (3 * layer + 50 * 16)
    assert flops_per_token(small, 10, "full") == matrices + 12 * 3 * 32 * 10
    assert flops_per_token(small, 10, "causal") == matrices + 6 * 3 * 32 * 10
    assert flops_per_token(small, 10, "hardware") == flops_per_token(small, 10, "full")
    assert flops_per_token(small, 10, "hardware", "selective") == matrices + 16 * 3 * 32 * 10
    assert flops_per_token(small, 10, "hardware", "full") == 8 * 3 * layer + 6 * 50 * 16 + 16 * 3 * 32 * 10
    assert flops_per_token(small, 10, "c_6nd") == 6 * parameter_count(small).total


def test_tying_moves_6nd_but_not_the_matrix_products():
    tied, untied = model(), model(tie_word_embeddings=False)
    assert flops_per_token(untied, 10, "full") == flops_per_token(tied, 10, "full")
    assert flops_per_token(untied, 10, "c_6nd") == flops_per_token(tied, 10, "c_6nd") + 6 * 50 * 16


def test_relative_positions_cost_half_again_as_much_attention():
    rope, relative = model(), model(position_embedding="relative")
    for convention, extra in (("full", 6), ("causal", 3)):
        difference = flops_per_token(relative, 10, convention) - flops_per_token(rope, 10, convention)
        assert difference == extra * 3 * 16 * 10


def test_training_flops_are_per_token_times_tokens():
    config = RunConfig.model_validate(
        {
            "model": {"num_layers": 3, "hidden_size": 16, "num_attention_heads": 4},
            "data": {"name": "text", "fingerprint": "0", "seq_length": 32},
            "optimizer": {"learning_rate": 0.01},
            "global_batch_size": 4,
            "train_steps": 10,
        }
    )
    flops = training_flops(config)
    for convention in FLOP_CONVENTIONS:
        assert getattr(flops, convention) == 4 * 32 * 10 * flops_per_token(config.model, 32, convention)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="convention = '6nd': must be one of c_6nd, causal, full, hardware"):
        flops_per_token(model(), 10, "6nd")
    with pytest.raises(UserError, match="seq_length = 0"):
        flops_per_token(model(), 0, "full")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_query_groups": 2, "qk_norm": True, "tie_word_embeddings": False},
        {"kv_channels": 8, "activation": "gelu", "add_bias_linear": True, "normalization": "layernorm"},
    ],
)
def test_full_flops_are_what_torch_counts_in_the_modules(fields):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from scaling.model import Transformer

    transformer = Transformer(model(**fields))
    tokens = torch.zeros(2, 12, dtype=torch.int64)
    # The plain backend does the whole square of the attention, and its products are visible to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(tokens, tokens).backward()
    assert counter.get_total_flops() == 2 * 12 * flops_per_token(model(**fields), 12, "full")
