"""The memory estimate against the formulas it states, and against what the model really keeps."""

import pytest
import torch

from parallel import backends
from parallel.kernels import UNCHECKED, Kernels
from scaling.accounting import parameter_count
from scaling.config import RunConfig, build_config
from scaling.engine import Engine
from scaling.memory import memory_estimate, rank_memory

SEQUENCES, LENGTH = 4, 64


def run(model=None, parallel=None, batch=SEQUENCES, length=LENGTH, **execution) -> RunConfig:
    shape = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_query_groups": 4, "vocab_size": 512}
    return build_config(
        {
            "model": {**shape, **(model or {})},
            "data": {"name": "words", "fingerprint": "f" * 64, "seq_length": length},
            "optimizer": {"learning_rate": 0.01},
            "global_batch_size": batch,
            "train_steps": 3,
            "execution": {"device": "cpu", "dtype": "float32", **execution},
            "parallel": parallel or {},
        },
        "test",
    )


def kept_by_forward(config: RunConfig, dtype: str = "float32", attention=backends.lab_attention) -> int:
    """Bytes of the distinct buffers that autograd keeps after one forward pass, weights apart."""
    # what a run on a CPU chooses (parallel.kernels.PREFERENCE); a GPU's RMSNorm keeps as much as the one by hand
    kernels = Kernels({**UNCHECKED.chosen, "rms_norm": backends.lab_rms_norm, "attention": attention}, {})
    engine = Engine(config, torch.device("cpu"), dtype, kernels=kernels)
    weights = {p.untyped_storage().data_ptr() for p in engine.stages[0].parameters()}
    weights.add(engine.storage.compute.untyped_storage().data_ptr())
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.zeros(SEQUENCES, config.data.seq_length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = engine.stages[0](ids, ids)
    assert loss.requires_grad
    return sum(buffer.nbytes() for pointer, buffer in kept.items() if pointer not in weights)


GPT2 = {"activation": "gelu", "normalization": "layernorm", "position_embedding": "learned", "add_bias_linear": True}
GPT2 |= {"max_position_embeddings": 640, "num_query_groups": 8}
PYTHIA = {"activation": "gelu", "normalization": "layernorm", "parallel_residual": True, "rotary_percent": 0.5}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model", "recompute"),
    [
        ({}, "none"),
        ({"qk_norm": True}, "none"),
        ({"qk_norm": True}, "selective"),
        (GPT2, "none"),
        (GPT2, "selective"),
        ({"position_embedding": "relative"}, "none"),
    ],
)
@pytest.mark.parametrize("length", [64, 640])
def test_activations_are_what_the_model_keeps_on_a_cpu_to_a_percent(model, recompute, length, dtype):
    config = run(model, length=length, recompute_granularity=recompute, dtype=dtype)
    gradient_of_logits = 4 * SEQUENCES * length * config.model.vocab_size
    found = kept_by_forward(config, dtype) - gradient_of_logits
    assert memory_estimate(config).activations == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("model", [{}, {"qk_norm": True}, GPT2, PYTHIA])
def test_activations_are_what_the_model_keeps_with_the_kernels_of_a_gpu(model):
    # 640 positions: too long for the hand-written functions, which a GPU never uses
    config = run(model, length=640, dtype="bfloat16")
    gradient_of_logits = 4 * SEQUENCES * 640 * config.model.vocab_size
    found = kept_by_forward(config, "bfloat16", backends.attention) - gradient_of_logits
    on_gpu = run(model, length=640, dtype="bfloat16", device="cuda")
    assert memory_estimate(on_gpu).activations == pytest.approx(found, rel=0.01)


def test_full_recomputation_keeps_one_residual_a_layer():
    few, many = (kept_by_forward(run({"num_layers": n}, recompute_granularity="full")) for n in (2, 8))
    assert many - few == 6 * 4 * SEQUENCES * LENGTH * 64
    estimates = [memory_estimate(run({"num_layers": n}, recompute_granularity="full")).activations for n in (2, 8)]
    assert estimates[1] - estimates[0] == many - few


def test_sixteen_bytes_a_parameter_and_two_more_in_bfloat16():
    config = run()
    params = parameter_count(config.model).total
    memory = memory_estimate(config)
    assert (memory.weights, memory.gradients, memory.moments) == (4 * params, 4 * params, 8 * params)
    assert memory.compute_copy == 0 and memory_estimate(run(dtype="bfloat16")).compute_copy == 2 * params
    assert memory.total == sum(getattr(memory, name) for name in memory.__dataclass_fields__)


def test_each_axis_divides_what_it_should():
    whole = memory_estimate(run())
    data = memory_estimate(run(parallel={"data_parallel_size": 4}))
    assert (data.weights, data.moments) == (whole.weights, whole.moments // 4), "ZeRO-1"
    assert data.activations * 4 == whole.activations, "each rank has its part of the batch"
    sharded = memory_estimate(run(parallel={"data_parallel_size": 4, "data_parallel_method": "fsdp2"}))
    assert sharded.weights == whole.weights // 4 and sharded.gradients == whole.gradients // 4
    tensor = memory_estimate(run(parallel={"tensor_parallel_size": 4}))
    norms = 4 * (2 * 4 * 64 + 64)
    assert tensor.weights - norms == (whole.weights - norms) // 4 and tensor.logits == whole.logits // 4
    apart = memory_estimate(run(parallel={"tensor_parallel_size": 4, "sequence_parallel": False}))
    assert apart.activations > tensor.activations > whole.activations // 8
    context = memory_estimate(run(parallel={"context_parallel_size": 2}))
    assert context.weights == whole.weights and context.logits == whole.logits // 2


def test_key_value_heads_that_tensor_ranks_share_are_not_divided_further():
    four, eight = (memory_estimate(run(parallel={"tensor_parallel_size": size})) for size in (4, 8))
    shared = 4 * 4 * 2 * 8 * 64  # layers x bytes x (key, value) x channels x hidden
    norms = 4 * (2 * 4 * 64 + 64)
    assert eight.weights - norms - shared == (four.weights - norms - shared) // 2


def test_a_pipeline_divides_layers_and_its_first_rank_has_the_most_in_flight():
    config = run({"tie_word_embeddings": False}, {"pipeline_parallel_size": 2}, batch=8, micro_batch_size=1)
    first, last = rank_memory(config, 0), rank_memory(config, 1)
    assert first.weights + last.weights == 4 * parameter_count(config.model).total
    final_norm = LENGTH * 4 * (2 * 64 + 1)
    assert first.activations == 2 * (last.activations - final_norm) and first.logits == 0 < last.logits
    tied = run(None, {"pipeline_parallel_size": 2}, batch=8, micro_batch_size=1)
    both = rank_memory(tied, 0).weights + rank_memory(tied, 1).weights
    assert both == 4 * (parameter_count(tied.model).total + 512 * 64), "a tied embedding is held at both ends"
    gpipe = run(None, {"pipeline_parallel_size": 2, "pipeline_schedule": "gpipe"}, batch=8, micro_batch_size=1)
    assert rank_memory(gpipe, 0).activations == 4 * first.activations


def test_smaller_micro_batches_and_recomputation_need_less():
    def total(**execution):
        return memory_estimate(run({"qk_norm": True}, **execution)).total

    assert total() > total(micro_batch_size=2) > total(micro_batch_size=1)
    granularities = [total(recompute_granularity=name) for name in ("none", "selective", "full")]
    assert granularities == sorted(granularities, reverse=True) and len(set(granularities)) == 3
