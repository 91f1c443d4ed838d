"""Memory estimates against published peaks, against what torch's autograd keeps, and by what they must obey."""

from dataclasses import replace

import pytest
import torch
from published_memory import (
    A100,
    B200,
    BLOOM,
    DEEPSEEK_V2,
    LLAMA_70B,
    MEGATRON,
    bloom_setup,
    llama,
    megatron_setup,
)

from analysis.cost.architecture import Architecture
from analysis.cost.counts import block_parameters, parameters
from analysis.cost.memory import fits, memory
from analysis.cost.memory_stacks import stack_memory
from analysis.cost.setup import Setup
from scaling.activations import LayerSizes, layer_tensors

GIB = 2**30


def test_published_peaks_of_megatron_are_met_within_two_percent():
    errors, reserved = [], []
    for model, sizes, seq_length, measured, held in MEGATRON:
        estimate = memory(megatron_setup(model, sizes, seq_length))
        errors.append(estimate.allocated / GIB / measured - 1)
        reserved.append(estimate.reserved / GIB / held - 1)
        expected = estimate.interval("allocated")
        assert expected.low <= measured * GIB <= expected.high
    assert sum(map(abs, errors)) / len(errors) < 0.01 and max(map(abs, errors)) < 0.02
    assert sum(map(abs, reserved)) / len(reserved) < 0.025, "what the allocator took"


def test_published_peaks_of_the_runs_before_bloom_and_which_ran_out_of_memory():
    """nvidia-smi's figures of an old stack, whose bf16 optimizer keeps gradients in float32 besides."""
    errors, inside, found, false = [], 0, 0, 0
    for *setup, measured in BLOOM:
        estimate = memory(bloom_setup(*setup))
        refused = not fits(estimate, A100)
        if measured is None:
            found += refused
            continue
        false += refused
        errors.append(estimate.device / GIB / measured - 1)
        expected = estimate.interval()
        inside += expected.low <= measured * GIB <= expected.high
    assert sum(map(abs, errors)) / len(errors) < 0.08
    assert inside >= 0.85 * len(errors)
    assert found >= 3 and false <= 1, "of 6 that ran out of memory, and of 13 that did not"


def kept_per_token(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Bytes of the distinct buffers that autograd keeps of one forward pass, weights apart, for each token."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, use_cache=False)
    return sum(size for pointer, size in kept.items() if pointer not in weights) / ids.numel()


def hugging_face_layer(heads: int, groups: int, hidden: int, inner: int) -> float:
    """What one layer of Hugging Face's Llama keeps: the difference of a model of three layers and one of two."""
    transformers = pytest.importorskip("transformers")
    kept = []
    for layers in (2, 3):
        config = transformers.LlamaConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=groups,
            intermediate_size=inner, vocab_size=64, attn_implementation="sdpa",
        )  # fmt: skip
        model = transformers.LlamaModel(config).to(torch.bfloat16).train()
        for layer in model.layers:  # one kernel, as in training; theirs is composed of several operations
            layer.input_layernorm = torch.nn.LayerNorm(hidden, bias=False, dtype=torch.bfloat16)
            layer.post_attention_layernorm = torch.nn.LayerNorm(hidden, bias=False, dtype=torch.bfloat16)
        kept.append(kept_per_token(model, torch.zeros(2, 256, dtype=torch.int64)))
    return kept[1] - kept[0]


@pytest.mark.parametrize(("heads", "groups", "hidden", "inner"), [(8, 2, 256, 704), (4, 4, 128, 512), (8, 1, 128, 352)])
def test_a_layer_keeps_what_autograd_keeps_of_hugging_faces_llama(heads, groups, hidden, inner):
    found = hugging_face_layer(heads, groups, hidden, inner)
    setup = Setup(llama(2, hidden, heads, inner, 64, groups), A100, 1, 256, 2, stack="untuned", sharding="none")
    per_layer = memory(replace(setup, model=replace(setup.model, num_layers=3))).tensors["activations"]
    per_layer -= memory(setup).tensors["activations"]
    assert per_layer / 256 == pytest.approx(found, rel=0.01)
    published = 12 + 4 * groups / heads + 8 * inner / hidden
    assert per_layer / 256 / hidden == pytest.approx(published, rel=0.02), "statistics of norms and softmax besides"


def test_the_unfused_block_of_korthikanti_equation_2():
    """s b h (34 + 5 a s / h) bytes: fp16, plain MLP of 4 h, dropout."""
    hidden, heads, length = 1024, 16, 2048
    model = Architecture("gpt", 1, hidden, heads, heads, hidden // heads, 4 * hidden, 64, gated=False)
    setup = Setup(model, A100, 1, length, 1, precision="fp16", flash_attention=False, stack="megatron_2021")
    sizes = LayerSizes(hidden, hidden, hidden, hidden, hidden, hidden, heads, 4 * hidden, length)
    found = sum(layer_tensors(sizes, stack_memory(setup).kept, gated=False).values())
    assert found == pytest.approx(hidden * (34 + 5 * heads * length / hidden), rel=0.001)


def test_eighteen_bytes_a_parameter_and_what_each_level_of_zero_divides():
    setup = Setup(LLAMA_70B, A100, 8, 4096, 8, sharding="none")
    count = parameters(LLAMA_70B).total
    states = ("weights", "gradients", "main_weights", "optimizer")
    by_level = {
        level: [memory(replace(setup, sharding=level)).tensors[name] / count for name in states]
        for level in ("none", "zero1", "zero2", "zero3")
    }
    assert by_level["none"] == [2, 4, 4, 8]
    assert by_level["zero1"] == [2, 4, 0.5, 1]
    assert by_level["zero2"] == [2, 0.5, 0.5, 1]
    assert by_level["zero3"] == [0.25, 0.5, 0.5, 1]
    hybrid = memory(replace(setup, sharding="zero3", sharding_size=4))
    assert hybrid.tensors["weights"] == 2 * memory(replace(setup, sharding="zero3")).tensors["weights"]
    fsdp = memory(replace(setup, sharding="zero3", stack="fsdp_eager"))
    assert [fsdp.tensors[name] / count for name in states] == [0.5, 0.5, 0, 1]


def test_experts_are_divided_by_their_own_ranks_alone():
    model = replace(DEEPSEEK_V2, vocab_size=64)
    setup = Setup(model, A100, 64, 4096, 64, expert_parallel_size=8, sharding="none")
    weights = [
        memory(replace(setup, tensor_parallel_size=tensor, expert_tensor_parallel_size=split)).tensors["weights"]
        for tensor, split in ((1, 1), (4, 1), (4, 4))
    ]
    experts = 2 * block_parameters(model, moe=True).routed_experts / 8 * model.num_moe_layers
    assert weights[1] - weights[2] == pytest.approx(0.75 * experts)
    assert weights[0] - weights[1] < 0.75 * (weights[0] - experts)  # the rest: matrices by four, norms not at all
    # optimizer state: 64 GPUs hold 8 different experts, so 8 ranks share one; with 4 ranks an expert, 2 do
    optimizer = {
        split: memory(
            replace(setup, sharding="zero1", tensor_parallel_size=4, expert_tensor_parallel_size=split)
        ).tensors["optimizer"]
        for split in (1, 4)
    }
    assert optimizer[1] == pytest.approx(optimizer[4])


def test_tensors_add_up_and_ranks_differ():
    setup = megatron_setup(DEEPSEEK_V2, (1, 2, 1, 4), 4096)
    estimate = memory(setup)
    assert sum(estimate.tensors.values()) == pytest.approx(estimate.allocated)
    assert estimate.allocated < estimate.reserved < estimate.device
    assert estimate.pipeline_rank == 1, "the first of its two layers is dense, both of the last have experts"


def activations(**fields) -> float:
    model = llama(16, 1024, 16, 4096, vocab=512)  # few, so that the first rank needs most
    size = fields.pop("pipeline_parallel_size", 4)
    setup = Setup(model, A100, 4 * size, 4096, 64, pipeline_parallel_size=size, **fields)
    return memory(setup).tensors["activations"]


def test_schedules_hold_as_many_micro_batches_as_they_should():
    one = activations(pipeline_schedule="1f1b") / 4
    assert activations(pipeline_schedule="gpipe") == pytest.approx(16 * one, rel=0.01)
    interleaved = activations(pipeline_schedule="interleaved1f1b", virtual_pipeline_parallel_size=4)
    assert interleaved == pytest.approx(4 * (1 + 3 / 16) * one), "Korthikanti et al. 2022, section 4.2.3"
    assert activations(pipeline_schedule="zb1p") == pytest.approx(4 * one, rel=0.01), "Qi et al. 2023, section 4"
    assert activations(pipeline_schedule="zb2p") == pytest.approx(8 * one, rel=0.01)
    assert activations(pipeline_schedule="zbv") == pytest.approx(4 * one, rel=0.01)
    assert activations(pipeline_schedule="dualpipev") == pytest.approx(4.5 * one, rel=0.01)


def test_recomputation_sequence_context_and_precision_save_what_they_should():
    kept = [activations(recompute_granularity=mode, stack="fsdp_eager") for mode in ("none", "selective", "full")]
    assert kept[0] > 2 * kept[1] > 4 * kept[2]
    half = activations(recompute_granularity="full", recompute_share=0.5, stack="fsdp_eager")
    assert half == pytest.approx((kept[0] + kept[2]) / 2, rel=0.01)
    eager, compiled = (
        activations(recompute_granularity="selective", stack=stack, pipeline_parallel_size=2)
        for stack in ("fsdp_eager", "fsdp_compiled")
    )
    dropped = 2 * 8 * 4096 * 2 * 1024  # micro-batches, layers, tokens, and the MLP's output in bf16
    assert eager - compiled == pytest.approx(dropped, rel=0.01), "what no backward pass takes"
    unfused = activations(flash_attention=False), activations(flash_attention=False, recompute_granularity="selective")
    assert unfused[1] == pytest.approx(activations(), rel=0.01) and unfused[0] > 3 * unfused[1]
    model = llama(4, 1024, 16, 4096)
    apart, together = (
        memory(Setup(model, A100, 8, 4096, 8, tensor_parallel_size=8, sequence_parallel=flag)) for flag in (False, True)
    )
    whole = memory(Setup(model, A100, 1, 4096, 8)).tensors["activations"]
    assert together.tensors["activations"] == pytest.approx(whole / 8, rel=0.01)
    assert apart.tensors["activations"] > 2.5 * together.tensors["activations"]
    context = memory(Setup(model, A100, 8, 4096, 8, context_parallel_size=8, stack="untuned")).tensors["activations"]
    assert context == pytest.approx(memory(Setup(model, A100, 1, 4096, 8, stack="untuned")).tensors["activations"] / 8)
    low = Setup(model, A100, 1, 4096, 8, precision="fp8")
    assert memory(low).tensors["activations"] < whole
    assert memory(low).tensors["workspace"] > memory(replace(low, precision="bf16")).tensors["workspace"]


def test_ends_of_a_pipeline_are_a_layer_shorter_where_that_makes_stages_even():
    """14 layers on 4 ranks: 3 4 4 3, so that rank 0 holds 3 of them and 4 micro-batches."""
    each = activations(pipeline_schedule="1f1b") / 16  # of 4 layers and 4 micro-batches
    setup = Setup(llama(14, 1024, 16, 4096, vocab=512), A100, 16, 4096, 64, pipeline_parallel_size=4)
    found = memory(setup)
    assert setup.shortens_ends and not replace(setup, pipeline_parallel_size=2).shortens_ends
    assert found.pipeline_rank == 1
    assert found.tensors["activations"] == pytest.approx(3 * 4 * each, rel=0.01), "3 in flight of 4 layers"
    alike = memory(replace(setup, pipeline_schedule="zb2p"))  # 8 in flight on every rank: the last has no more layers
    assert alike.pipeline_rank == 1


def test_what_a_torch_loss_holds_of_each_logit():
    """bf16 logits and gradient where it is compiled, fp32 copies elsewhere; see memory_stacks."""
    model = llama(2, 1024, 16, 4096, vocab=128256)

    def bytes_of_a_logit(**fields) -> float:
        setup = Setup(model, A100, 8, 4096, 8, sharding="zero3", **fields)
        ranks = setup.tensor_parallel_size
        return memory(setup).tensors["logits"] / (4096 * 128256 / ranks)

    assert bytes_of_a_logit(stack="fsdp_compiled", loss="compiled") == pytest.approx(4)
    assert bytes_of_a_logit(stack="fsdp_compiled") == pytest.approx(14)
    assert bytes_of_a_logit(stack="fsdp_eager") == pytest.approx(14)
    hidden = 4 * 1024 / 128256  # the gradient of what the logits are made of
    assert bytes_of_a_logit(stack="fsdp_eager", loss="chunked") == pytest.approx(14 / 8 + hidden)
    assert bytes_of_a_logit(stack="fsdp_eager", tensor_parallel_size=8) == pytest.approx(18)
    assert bytes_of_a_logit(stack="fsdp_compiled", tensor_parallel_size=8, loss="compiled") == pytest.approx(18)


def test_all_in_16_bits_keeps_half_of_the_state():
    model = llama(16, 1024, 16, 4096)
    setup = Setup(model, A100, 1, 4096, 8, sharding="none", stack="fsdp_eager", mixed_precision=False)
    held = memory(setup)
    state = sum(held.tensors[name] for name in ("weights", "gradients", "main_weights", "optimizer"))
    assert state == 8 * parameters(model).total, "2 bytes each of weight, gradient and both moments"


def test_deepspeed_keeps_its_buckets_where_it_divides_state():
    setup = Setup(llama(16, 1024, 16, 4096), A100, 8, 4096, 8, stack="megatron_2021", sharding="zero1")
    apart = memory(setup).tensors["workspace"] - memory(replace(setup, sharding="none")).tensors["workspace"]
    assert apart == 2 * 5e8 * 2
    flat, piped = (memory(replace(setup, pipeline_parallel_size=size, num_gpus=16)) for size in (1, 4))
    assert flat.tensors["gradients"] / flat.tensors["weights"] == 2, "4 bytes a gradient"
    assert piped.tensors["gradients"] / piped.tensors["weights"] == 4, "its optimizer of pipelines sums them again"


def test_what_is_made_like_megatron_recomputes_attention_alone():
    """As its time is priced; torch's policy is for FSDP."""
    setup = Setup(llama(16, 1024, 16, 4096), A100, 8, 4096, 8, stack="untuned", flash_attention=False)
    written, again = (
        memory(replace(setup, recompute_granularity=mode)).tensors["activations"] for mode in ("none", "selective")
    )
    flash = memory(replace(setup, flash_attention=True)).tensors["activations"]
    assert written > 2 * again and again == pytest.approx(flash, rel=0.01)


def test_torchs_selective_policy_keeps_what_experts_exchange_and_none_of_their_products():
    model = DEEPSEEK_V2
    setup = Setup(model, A100, 8, 4096, 8, stack="fsdp_compiled", sharding="zero3", recompute_granularity="selective")
    alone, exchanged = (memory(replace(setup, expert_parallel_size=size)).tensors["activations"] for size in (1, 8))
    each_token = 2 * model.moe_router_topk * 2 * model.hidden_size * model.num_moe_layers
    assert exchanged - alone == pytest.approx(4096 * each_token), "there and back in 16 bits"
    wider = replace(setup, model=replace(model, moe_ffn_hidden_size=2 * model.moe_ffn_hidden_size))
    assert memory(wider).tensors["activations"] == alone
    for stack in ("fsdp_compiled", "fsdp_eager"):
        for tensor in (1, 2):
            sizes = {"expert_parallel_size": 8, "tensor_parallel_size": tensor, "num_gpus": 16, "stack": stack}
            modes = (
                memory(replace(setup, **sizes, recompute_granularity=mode)).tensors["activations"]
                for mode in ("none", "selective", "full")
            )
            assert sorted(found := list(modes), reverse=True) == found


def test_fsdps_zero2_divides_weights_and_keeps_them_gathered():
    model = llama(16, 1024, 16, 4096)
    setup = Setup(model, A100, 8, 4096, 8, sharding="zero2", stack="fsdp_eager")
    two, three = memory(setup), memory(replace(setup, sharding="zero3"))
    assert two.tensors["weights"] == three.tensors["weights"]
    assert two.tensors["communication"] == pytest.approx(2 * parameters(model).total, rel=0.1)
    assert memory(replace(setup, stack="megatron")).tensors["weights"] == 2 * parameters(model).total


def test_fsdp_in_a_pipeline_keeps_weights_gathered():
    setup = Setup(llama(16, 1024, 16, 4096), A100, 16, 4096, 64, sharding="zero3", stack="fsdp_eager")
    flat, piped = memory(setup), memory(replace(setup, pipeline_parallel_size=4))
    per_rank = sum(piped.tensors[name] for name in ("weights", "gradients", "optimizer"))
    assert piped.tensors["communication"] > 1.2 * per_rank > 1.2 * flat.tensors["communication"] / 4


def test_torchs_output_layer_keeps_what_tensor_ranks_gather_for_it():
    setup = Setup(llama(1, 1024, 16, 4096), A100, 8, 4096, 8, tensor_parallel_size=8, recompute_granularity="full")
    hidden = 2 * 4096 * 1024  # of one sequence, in 16 bits
    megatron, torch_ = (
        memory(replace(setup, stack=stack)).tensors["activations"] for stack in ("megatron", "fsdp_eager")
    )
    assert megatron == pytest.approx(3 / 8 * hidden), "the layer's input, the last norm's input and its output, divided"
    assert torch_ == pytest.approx((2 / 8 + 1) * hidden), "the last one whole"


def test_experts_and_low_precision_have_wider_intervals():
    def width(**fields) -> float:
        expected = memory(Setup(fields.pop("model", LLAMA_70B), B200, 8, 4096, 8, **fields)).interval()
        return expected.high / expected.low

    plain = width()
    assert width(model=DEEPSEEK_V2) == width(precision="fp8") > 1.5 * plain
    assert width(stack="fsdp_eager", precision="fp8") == width(stack="fsdp_eager")
