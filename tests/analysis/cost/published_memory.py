"""Published peaks of memory, each with its setup: what the estimates are held against.

MEGATRON: MooreThreads/SimuMax, docs/b200/b200_release_v1.2_summary.json (2026-05): Megatron-LM 0.14 with Transformer
Engine 2.11 on 8 B200, torch's peak allocated GiB and the largest peak reserved. Layers are cut off real models; micro-
batches of one sequence, bf16, distributed optimizer, no recomputation. DeepSeek's with one dense layer.
BLOOM: bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md (2022-02): Megatron-DeepSpeed on 384
A100-80GB, fp16, from 02-28 bf16 with gradients in float32, full recomputation, GB as nvidia-smi shows them, largest of
the first and last nodes.
"""

from analysis.cost.architecture import Architecture
from analysis.cost.devices import Device
from analysis.cost.setup import Setup

B200 = Device("B200", 2.25e15, 8e12, "test", memory_bytes=180 * 2**30)
A100 = Device("A100-80GB", 312e12, 2e12, "test", {"bf16": 312e12}, memory_bytes=80 * 2**30)


def llama(layers: int, hidden: int, heads: int, inner: int, vocab: int = 128256, groups: int = 8) -> Architecture:
    return Architecture("llama", layers, hidden, heads, groups, hidden // heads, inner, vocab)


def deepseek(
    hidden: int, inner: int, vocab: int, experts: int, topk: int, expert_inner: int, shared: int
) -> Architecture:
    """DeepSeek-V2's (arXiv:2405.04434) or V3's (arXiv:2412.19437) first layers: one dense, three with experts."""
    return Architecture(
        "deepseek", 4, hidden, 128, 128, 128, inner, vocab,
        num_experts=experts, moe_router_topk=topk, moe_ffn_hidden_size=expert_inner,
        moe_shared_expert_intermediate_size=shared, num_dense_layers=1,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    )  # fmt: skip


LLAMA_70B, LLAMA_405B = llama(12, 8192, 64, 28672), llama(4, 16384, 128, 53248)
DEEPSEEK_V2 = deepseek(5120, 12288, 102400, 160, 6, 1536, 3072)
DEEPSEEK_V3 = deepseek(7168, 18432, 129280, 256, 8, 2048, 2048)

#: model, (tensor, pipeline, context, expert) sizes, sequence length, GiB allocated, GiB reserved.
MEGATRON = [
    (LLAMA_70B, (1, 2, 1, 1), 4096, 66.55, 70.88),
    (LLAMA_70B, (2, 1, 1, 1), 4096, 60.68, 62.53),
    (LLAMA_70B, (4, 1, 1, 1), 4096, 39.07, 40.18),
    (LLAMA_70B, (8, 1, 1, 1), 4096, 28.29, 29.12),
    (LLAMA_405B, (1, 2, 1, 1), 4096, 87.08, 92.26),
    (LLAMA_405B, (2, 1, 1, 1), 4096, 81.59, 84.70),
    (LLAMA_405B, (4, 1, 1, 1), 4096, 52.89, 54.65),
    (LLAMA_405B, (8, 1, 1, 1), 4096, 38.57, 39.83),
    (DEEPSEEK_V2, (1, 1, 1, 8), 4096, 45.63, 48.79),
    (DEEPSEEK_V2, (1, 2, 1, 4), 4096, 44.70, 47.05),
    (DEEPSEEK_V3, (1, 1, 1, 8), 4096, 104.30, 110.18),
    (DEEPSEEK_V3, (1, 2, 1, 4), 4096, 114.00, 118.61),
    (LLAMA_70B, (2, 1, 4, 1), 32768, 68.43, 70.33),
    (LLAMA_70B, (1, 1, 8, 1), 32768, 104.51, 111.94),
    (LLAMA_405B, (2, 1, 4, 1), 32768, 87.03, 91.15),
    (LLAMA_405B, (1, 1, 8, 1), 32768, 139.22, 152.14),
    (LLAMA_70B, (2, 1, 4, 1), 131072, 112.67, 121.40),
    (LLAMA_70B, (1, 1, 8, 1), 131072, 147.99, 159.65),
    (LLAMA_405B, (2, 1, 4, 1), 131072, 118.13, 127.50),
]

#: layers, hidden, (tensor, pipeline) sizes, micro-batch, GB used; None where memory ran out.
BLOOM = [
    (72, 14336, (8, 12), 1, "fp16", 29),
    (72, 14336, (8, 12), 2, "fp16", 37),
    (72, 14336, (8, 12), 4, "fp16", 49),
    (72, 14336, (8, 12), 8, "fp16", 69),
    (72, 14336, (8, 6), 1, "fp16", 38),
    (72, 14336, (8, 6), 4, "fp16", 56),
    (72, 14336, (8, 4), 4, "fp16", 59),
    (72, 14336, (4, 12), 4, "fp16", 60),
    (72, 14336, (4, 6), 4, "fp16", 75),
    (96, 12288, (1, 48), 1, "fp16", 58),
    (82, 13312, (8, 12), 4, "bf16", 52),
    (70, 14336, (8, 12), 2, "bf16", 40),
    (70, 14336, (4, 12), 2, "bf16", 59),
    (72, 14336, (8, 1), 1, "fp16", None),
    (72, 14336, (2, 6), 2, "fp16", None),
    (72, 14336, (2, 6), 1, "fp16", None),
    (100, 12288, (4, 6), 2, "bf16", None),
    (100, 12288, (4, 6), 1, "bf16", None),
    (82, 14336, (4, 12), 2, "bf16", None),
]


def megatron_setup(model: Architecture, sizes: tuple[int, int, int, int], seq_length: int, **fields) -> Setup:
    tensor, pipeline, context, expert = sizes
    return Setup(
        model, B200, 8, seq_length, global_batch_size=32, tensor_parallel_size=tensor, pipeline_parallel_size=pipeline,
        context_parallel_size=context, expert_parallel_size=expert, **fields,
    )  # fmt: skip


def bloom_setup(layers: int, hidden: int, sizes: tuple[int, int], micro_batch_size: int, precision: str) -> Setup:
    model = Architecture(
        "gpt", layers, hidden, 64, 64, hidden // 64, 4 * hidden, 250680,
        gated=False, tie_word_embeddings=True, normalization="layernorm", add_bias_linear=True,
    )  # fmt: skip
    return Setup(
        model, A100, 384, 2048, global_batch_size=2048, micro_batch_size=micro_batch_size,
        tensor_parallel_size=sizes[0], pipeline_parallel_size=sizes[1], sequence_parallel=False,
        recompute_granularity="full", precision=precision, flash_attention=False, stack="megatron_2021",
    )  # fmt: skip
