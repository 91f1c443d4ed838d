from dataclasses import replace

import pytest

from analysis.cost.architecture import Architecture, architecture_of
from analysis.cost.counts import FLOP_CONVENTIONS, block_parameters, flops_per_token, mean_keys, parameters
from analysis.cost.models import find_model
from scaling import accounting
from scaling.errors import UserError
from scaling.presets import PRESETS

GPT = Architecture(
    "gpt", 24, 2304, 24, 24, 96, 9216, 51200, gated=False, tie_word_embeddings=True, normalization="layernorm",
    add_bias_linear=True, learned_positions=2048,
)  # fmt: skip


def gpt(num_layers: int, hidden_size: int, vocab_size: int) -> Architecture:
    return replace(
        GPT, num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=32, num_query_groups=32,
        kv_channels=hidden_size // 32, ffn_hidden_size=4 * hidden_size, vocab_size=vocab_size,
    )  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_our_own_modules(name):
    model = PRESETS[name].model
    arch = architecture_of(model, name)
    counted, ours = parameters(arch), accounting.parameter_count(model)
    assert (counted.total, counted.embedding, counted.active) == (ours.total, ours.embedding, ours.active)
    for convention in FLOP_CONVENTIONS:
        for recompute in ("none", "selective", "full"):
            expected = accounting.flops_per_token(model, 1536, convention, recompute)
            assert flops_per_token(arch, 1536, convention, recompute) == pytest.approx(expected, rel=1e-9)


# FLOPs per token, as (reported TFLOP/s per GPU) x GPUs x seconds a step / tokens a step, or stated so by the source.
@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "flops"),
    [(24, 2304, 14.7502e9), (48, 8192, 324.628e9), (96, 16384, 2530.46e9), (128, 25600, 8168.31e9)],
)
def test_narayanan_2021_counts_full_attention_and_full_recomputation(num_layers, hidden_size, flops):
    # Narayanan et al. 2021 (arXiv:2104.04473), equation 3 and the models of table 1
    arch = gpt(num_layers, hidden_size, 51200)
    assert flops_per_token(arch, 2048, "hardware", "full") == pytest.approx(flops, rel=1e-3)


@pytest.mark.parametrize(
    ("num_layers", "hidden_size", "flops"),
    [(24, 2048, 11.2779e9), (84, 8192, 446.136e9), (112, 18432, 2855.51e9)],
)
def test_megatron_readme_of_2024_counts_full_attention(num_layers, hidden_size, flops):
    # Megatron-LM README, table of H100 runs: sequences of 4096, vocabulary 131072
    assert flops_per_token(gpt(num_layers, hidden_size, 131072), 4096, "full") == pytest.approx(flops, rel=1e-3)


def test_bloom_logs_count_full_recomputation():
    # bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md: the size that was trained, on 384 GPUs,
    # 2048 sequences of 2048 tokens in 104.50 s at 150.05 TFLOP/s per GPU
    arch = replace(find_model("bloom"), vocab_size=250680)  # before padding
    published = 150.05e12 * 384 * 104.50 / (2048 * 2048)
    assert flops_per_token(arch, 2048, "hardware", "full") == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(("name", "flops"), [("llama3-70b", 449.21e9), ("llama3.1-405b", 2524.2e9)])
def test_megatron_bridge_counts_causal_attention(name, flops):
    # NVIDIA-NeMo/Megatron-Bridge, docs/performance-summary.md: sequences of 8192
    assert flops_per_token(find_model(name), 8192, "causal") == pytest.approx(flops, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "flops"),
    [("qwen3-30b-a3b", 23.007e9), ("qwen3-235b-a22b", 147.98e9), ("deepseek-v3", 259.97e9), ("kimi-k2", 204.44e9)],
)
def test_megatron_bridge_counts_experts_without_their_router(name, flops):
    # the same tables, sequences of 4096; DeepSeek-V3 with its layer of multi-token prediction
    arch = find_model(name)
    router = 6 * (arch.num_moe_layers + arch.mtp_num_layers) * arch.hidden_size * arch.num_experts
    assert flops_per_token(arch, 4096, "causal") - router == pytest.approx(flops, rel=1e-3)


def test_palm_utilisation():
    # Chowdhery et al. 2022, section 4.1 and appendix B: 238.3K tokens/s on 6144 chips of 275 TFLOP/s are 46.2 % with
    # attention and 45.7 % without
    arch = find_model("palm-540b")
    peak = 6144 * 275e12
    assert 238.3e3 * flops_per_token(arch, 2048, "full") / peak == pytest.approx(0.462, abs=5e-4)
    assert 238.3e3 * flops_per_token(arch, 2048, "c_6nd") / peak == pytest.approx(0.457, abs=5e-4)


def test_mlperf_samples():
    # MODEL_TFLOP_PER_SAMPLE of NVIDIA's MLPerf Training v5.0 and v5.1 configurations: full for 405B, causal for 8B
    large, small = find_model("llama3.1-405b"), find_model("llama3.1-8b")
    assert 8192 * flops_per_token(large, 8192, "full") == pytest.approx(21508e12, rel=1e-3)
    assert 8192 * flops_per_token(small, 8192, "causal") == pytest.approx(421.59e12, rel=1e-3)


def test_deepseek_v3_splits_as_its_authors_say():
    # README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: 671B, 0.9B each for embedding and output layer, 36.7B active
    # (without the embedding); 11.5B in the layer of multi-token prediction beside both tables
    counted = parameters(find_model("deepseek-v3"))
    assert counted.total == 671_026_419_200
    assert counted.embedding / 2 == pytest.approx(0.9e9, rel=0.05)
    assert counted.active - counted.embedding / 2 == pytest.approx(36.7e9, rel=0.01)
    assert counted.mtp == pytest.approx(11.5e9, rel=0.01)


@pytest.mark.parametrize(("name", "weights"), [("glm-4.5", 358_337_791_296), ("glm-4.5-air", 110_468_824_832)])
def test_a_checkpoint_holds_multi_token_prediction_with_tables_of_its_own(name, weights):
    # the weights of zai-org/GLM-4.5 and GLM-4.5-Air; a routing bias for each expert of the extra layer is among them
    arch = find_model(name)
    counted = parameters(arch)
    assert counted.total + counted.mtp + counted.embedding + arch.num_experts == weights


def test_parts_of_a_block_make_the_model():
    arch = find_model("deepseek-v2-lite")
    dense, moe = block_parameters(arch, moe=False), block_parameters(arch, moe=True)
    assert parameters(arch).non_embedding == dense.total + 26 * moe.total + arch.hidden_size
    assert moe.routed_experts == 64 * 3 * 2048 * 1408
    assert moe.mlp == 2 * 3 * 2048 * 1408  # two shared experts
    assert moe.router == 64 * 2048
    assert dense.routed_experts == dense.router == 0
    assert moe.attention == dense.attention


def test_only_the_experts_of_a_token_are_active():
    counted = parameters(find_model("mixtral-8x7b"))
    assert counted.total == 46_702_792_704
    assert counted.active == counted.total - 32 * 6 * 3 * 4096 * 14336


def test_a_sliding_window_bounds_the_keys():
    assert mean_keys(8192, None, causal=True) == 4096
    assert mean_keys(8192, 8192, causal=True) == 4096
    assert mean_keys(4096, 8192, causal=True) == 2048  # no longer than the sequence
    exact = sum(min(position, 100) for position in range(1, 1001)) / 1000
    assert mean_keys(1000, 100, causal=True) == pytest.approx(exact, abs=0.5)
    assert mean_keys(1000, 100, causal=False) == 100
    chunks = sum(position % 100 + 1 for position in range(1050)) / 1050
    assert mean_keys(1050, 100, causal=True, chunked=True) == pytest.approx(chunks, abs=0.5)


def test_windowed_layers_save_flops_on_long_sequences_alone():
    windowed = find_model("gpt-oss-20b")
    plain = replace(windowed, num_windowed_layers=0)
    assert flops_per_token(windowed, 128, "causal") == flops_per_token(plain, 128, "causal")
    saved = flops_per_token(plain, 65536, "causal") - flops_per_token(windowed, 65536, "causal")
    attention = 12 * 12 * 64 * 64 * (32768 - (128 - 128**2 / 131072))
    assert saved == pytest.approx(attention, rel=1e-9)


def test_causal_counts_half_of_full_attention():
    arch = find_model("deepseek-v2")  # 192 channels for scores and 128 for values
    scores_and_values = 6 * 60 * 128 * (192 + 128) * 4096
    difference = flops_per_token(arch, 4096, "full") - flops_per_token(arch, 4096, "causal")
    assert difference == pytest.approx(scores_and_values / 2, rel=1e-12)


def test_recomputation_counts_a_forward_pass_again():
    arch = find_model("mixtral-8x7b")
    none, selective, full = (flops_per_token(arch, 4096, "hardware", mode) for mode in ("none", "selective", "full"))
    assert none == flops_per_token(arch, 4096, "full")
    assert selective - none == pytest.approx(4 * 32 * 32 * 128 * 4096)  # scores and values
    logits = 6 * 32000 * 4096
    assert full - none == pytest.approx((none - logits) / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1024, "6nd"), "convention = '6nd': must be one of c_6nd, causal, full, hardware"),
        ((0, "causal"), "seq_length = 0: must be at least 1"),
        ((1024, "hardware", "some"), "recompute_granularity = 'some': must be one of none, selective, full"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        flops_per_token(GPT, *arguments)
