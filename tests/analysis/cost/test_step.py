"""Step time from the setup: what makes it longer and shorter, and its accuracy on published runs."""

import math
import statistics
from collections import defaultdict
from dataclasses import fields, replace

import pytest
from setups import setup

from analysis.cost.collectives import gather_seconds
from analysis.cost.counts import block_parameters, flops_per_token
from analysis.cost.measured import PUBLISHED, describe, measurements, read_rows
from analysis.cost.stacks import constants_of, stack_names
from analysis.cost.step import StepTime, step_time
from analysis.cost.validate import baseline_seconds


def test_parts_add_up_and_none_is_negative():
    for stack in stack_names():
        found = step_time(setup(stack=stack, context_parallel_size=2, recompute_granularity="full"))
        parts = [getattr(found, field.name) for field in fields(StepTime)]
        assert found.total == pytest.approx(sum(parts)) and min(parts) >= 0


def test_no_run_is_faster_than_its_products_at_the_peak():
    for change in ({}, {"tensor_parallel_size": 8}, {"pipeline_parallel_size": 1, "sharding": "zero3"}):
        run = setup(**change)
        flops = flops_per_token(run.model, run.seq_length, "causal") * run.tokens_per_step
        assert step_time(run).total > flops / (run.num_gpus * run.device.bf16_flops)


def test_pipeline_bubble_shrinks_with_chunks_and_micro_batches_and_zero_bubble_schedules():
    plain = step_time(setup())
    chunked = step_time(setup(virtual_pipeline_parallel_size=5, pipeline_schedule="interleaved1f1b"))
    assert chunked.pipeline_bubble == pytest.approx(plain.pipeline_bubble / 5)
    share = [step_time(setup(global_batch_size=size)).pipeline_bubble for size in (64, 256)]
    assert share[0] == pytest.approx(share[1])  # the same seconds, over a quarter of the work
    for schedule in ("zb1p", "zbv"):
        assert step_time(setup(pipeline_schedule=schedule)).pipeline_bubble < plain.pipeline_bubble / 2
    assert step_time(setup(pipeline_schedule="zb2p")).pipeline_bubble == 0


@pytest.mark.parametrize("schedule", ["zb1p", "zb2p", "zbv", "dualpipev"])
def test_a_bubble_is_filled_only_by_as_many_micro_batches_as_there_are(schedule):
    """One micro-batch on 4 ranks: 4 forward passes, 4 gradients of inputs, then one of weights: 3 of 9 parts work."""
    one = setup(global_batch_size=4, pipeline_schedule=schedule)
    assert one.num_micro_batches == 1
    plain = step_time(replace(one, pipeline_schedule="1f1b")).pipeline_bubble
    assert step_time(one).pipeline_bubble == pytest.approx(plain * 2 / 3)
    share = [step_time(replace(one, global_batch_size=4 * count)).pipeline_bubble / plain for count in (1, 3, 4, 7, 20)]
    assert share == sorted(share, reverse=True)
    assert share[-1] == pytest.approx(0.0 if schedule == "zb2p" else 1 / 3)
    assert share[2] == pytest.approx(1 / 3), "four of them hide two thirds under every schedule"


def test_all_in_16_bits_halves_what_is_exchanged_and_updated():
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "num_gpus": 256, "stack": "fsdp_eager"}
    mixed = setup("llama3-8b", **sizes, sharding="zero1")
    low = replace(mixed, mixed_precision=False)
    assert step_time(low).optimizer == pytest.approx(14 / 30 * step_time(mixed).optimizer)
    bare = replace(constants_of("fsdp_eager"), data_overlap=0.0, weight_overlap=0.0)
    exchanged = [step_time(run, bare).data_communication for run in (mixed, low)]
    assert exchanged[1] == pytest.approx(4 / 6 * exchanged[0], rel=0.05), "2 and 2 bytes of a parameter, not 4 and 2"
    fetched = [step_time(replace(run, sharding="zero3"), bare).weight_communication for run in (mixed, low)]
    assert fetched[1] == pytest.approx(6 / 8 * fetched[0], rel=0.05)


def test_fused_experts_lose_less_and_only_where_they_are_fused():
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "expert_parallel_size": 8, "precision": "mxfp8"}
    fused = setup("qwen3-30b-a3b", "B200", **sizes)
    before = replace(fused, fused_experts=False)
    now, then = step_time(fused), step_time(before)
    assert now.linear < 0.9 * then.linear and now.elementwise < 0.95 * then.elementwise
    assert now.attention == then.attention and now.expert_communication == then.expert_communication
    slow = replace(constants_of("megatron"), expert_seconds=1e-3)
    assert step_time(before, slow).linear > 1.5 * step_time(fused, slow).linear, "seconds of each expert are hidden too"
    amd = setup("qwen3-30b-a3b", "MI355X", **sizes)
    assert not amd.fuses_experts and step_time(amd) == step_time(replace(amd, fused_experts=False))


def test_recomputing_never_shortens_a_step():
    """What waits for the host hides weights too, so that neither is counted twice."""
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "sharding": "zero3", "stack": "fsdp_eager"}
    for model in ("gpt2", "llama3-8b"):
        for length in (256, 1024, 4096):
            run = setup(model, **sizes, seq_length=min(length, 1024) if model == "gpt2" else length)
            times = [
                step_time(replace(run, recompute_granularity=mode)).total for mode in ("none", "selective", "full")
            ]
            assert times == sorted(times)
    assert step_time(setup(pipeline_parallel_size=1)).pipeline_bubble == 0


def test_full_recomputation_adds_a_forward_pass_and_a_share_of_it_that_share():
    free = step_time(setup())
    full = step_time(setup(recompute_granularity="full"))
    half = step_time(setup(recompute_granularity="full", recompute_share=0.5))
    assert free.recompute == 0
    assert half.recompute == pytest.approx(full.recompute / 2)
    assert full.recompute / full.total == pytest.approx(0.23, abs=0.05)


def test_scores_that_are_written_cost_more_than_flash_attention_and_selective_recomputation_repeats_them():
    flash, written = (step_time(setup(flash_attention=flash)) for flash in (True, False))
    assert written.attention > 1.5 * flash.attention
    again = [
        step_time(setup(flash_attention=flash, recompute_granularity="selective")).recompute for flash in (True, False)
    ]
    assert 0 < again[0] < 0.5 * flash.attention
    assert again[1] > 1.5 * again[0]


def test_tensor_ranks_across_nodes_pay_for_the_network():
    inside, across = (step_time(setup(tensor_parallel_size=size, pipeline_parallel_size=1)) for size in (8, 16))
    assert across.tensor_communication > 2 * inside.tensor_communication


def test_stages_whose_ends_are_a_layer_shorter_wait_less_for_the_last():
    even = setup()  # 80 layers on 4 stages, and the output layer on the last
    ends = replace(even, model=replace(even.model, num_layers=78))  # 19, 20, 20, 19
    uneven = replace(even, model=replace(even.model, num_layers=79))
    assert step_time(ends).stage_imbalance < 0.5 * step_time(even).stage_imbalance
    assert step_time(uneven).stage_imbalance == pytest.approx(step_time(even).stage_imbalance)
    heavy = replace(ends, model=replace(ends.model, vocab_size=10**6))  # the output layer outweighs what was left out
    assert step_time(heavy).stage_imbalance > step_time(ends).stage_imbalance


def test_low_precision_speeds_up_products_and_leaves_attention():
    wide, narrow = (step_time(setup(precision=precision)) for precision in ("bf16", "fp8"))
    assert 1.4 < wide.linear / narrow.linear < 2.2
    assert wide.attention == narrow.attention


def test_small_models_wait_for_the_host():
    sizes = {"num_gpus": 8, "tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    small = setup("gpt2", **sizes, seq_length=1024, global_batch_size=64)
    eager, compiled = (step_time(replace(small, stack=stack)) for stack in ("fsdp_eager", "fsdp_compiled"))
    assert eager.launch > 0.2 * eager.total
    assert compiled.launch < 0.1 * eager.launch


def test_experts_exchange_tokens_and_more_ranks_hold_fewer():
    moe = setup("mixtral-8x7b", num_gpus=64, tensor_parallel_size=1, pipeline_parallel_size=1)
    alone, spread = step_time(moe), step_time(replace(moe, expert_parallel_size=8))
    assert alone.expert_communication == 0 < spread.expert_communication
    assert spread.optimizer <= alone.optimizer * 1.01


def test_ranks_that_share_an_expert_gather_its_tokens():
    whole = setup("mixtral-8x7b", num_gpus=64, tensor_parallel_size=4, pipeline_parallel_size=1, expert_parallel_size=8)
    apart, shared = (step_time(replace(whole, expert_tensor_parallel_size=size)) for size in (1, 4))
    assert shared.expert_communication > 1.5 * apart.expert_communication
    alone = step_time(replace(whole, expert_parallel_size=1, expert_tensor_parallel_size=4))
    assert alone.expert_communication > 0  # nothing is exchanged, all is gathered
    assert shared.linear == pytest.approx(apart.linear, rel=0.1)  # the same products, each cut in four
    assert shared.total > apart.total


def test_dualpipe_hides_the_exchange_of_experts():
    moe = setup("mixtral-8x7b", num_gpus=64, tensor_parallel_size=1, pipeline_parallel_size=4, expert_parallel_size=8)
    plain, hidden = (step_time(replace(moe, pipeline_schedule=each)) for each in ("1f1b", "dualpipev"))
    assert 0 < hidden.expert_communication < 0.2 * plain.expert_communication


def test_sums_over_copies_of_the_shards_hide_behind_the_backward_pass():
    sizes = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "sharding": "zero3", "stack": "fsdp_eager"}
    hybrid = setup("llama3-8b", **sizes, sharding_size=8, global_batch_size=512, micro_batch_size=8)
    exposed = replace(constants_of("fsdp_eager"), data_overlap=0.0)
    assert step_time(hybrid).data_communication < 0.5 * step_time(hybrid, exposed).data_communication


def test_a_fused_loss_costs_less():
    run = setup("gpt2", num_gpus=8, tensor_parallel_size=1, pipeline_parallel_size=1, seq_length=1024)
    for fused in ("megatron", "fsdp_compiled"):
        assert constants_of(fused).logit_bytes < 0.5 * constants_of("fsdp_eager").logit_bytes
    written = replace(constants_of("megatron"), logit_bytes=24.0)
    assert step_time(run).output_layer < 0.95 * step_time(run, written).output_layer


def test_sharded_weights_are_fetched_for_every_micro_batch():
    sizes = {"pipeline_parallel_size": 1, "tensor_parallel_size": 1, "micro_batch_size": 4}
    few = setup(**sizes, sharding="zero3", stack="fsdp_eager")
    many = replace(few, micro_batch_size=1, seq_length=512)
    fetched = [step_time(one).weight_communication / step_time(one).total for one in (few, many)]
    assert fetched[1] > fetched[0]


def test_gradients_of_interleaved_stages_hide_behind_those_that_come_later():
    """Of 6 stages of a rank 5 are done long before the end; the last has a sixth of the gradients to send."""
    plain = setup("gpt3-175b", num_gpus=8192, tensor_parallel_size=8, pipeline_parallel_size=8, global_batch_size=1024)
    plain = replace(plain, seq_length=2048)
    exposed = step_time(plain).data_communication
    chunked = replace(plain, virtual_pipeline_parallel_size=6, pipeline_schedule="interleaved1f1b")
    assert exposed / 7 < step_time(chunked).data_communication < exposed / 3
    bare = replace(constants_of("megatron"), data_overlap=0.0)
    whole, apart = (step_time(run, bare).data_communication for run in (plain, chunked))
    assert whole == pytest.approx(apart), "where nothing overlaps, stages make no difference"


def test_experts_that_fewer_ranks_share_come_through_each_ranks_own_card():
    """Expert ranks 8 apart have a node's eight cards to themselves, but each group only its own one."""
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "sharding": "zero3", "num_gpus": 128}
    apart = setup("mixtral-8x22b", **sizes, expert_parallel_size=8, global_batch_size=128, seq_length=4096)
    slow = replace(constants_of("megatron"), weight_overlap=0.0)
    seconds = step_time(apart, slow).weight_communication
    experts = block_parameters(apart.model, moe=True).routed_experts / 8 * apart.model.num_layers
    through_one_card = apart.device.scale_out_bandwidth * slow.network_efficiency
    # gathered twice in 16 bits and scattered once in 32, over 16 ranks
    assert seconds > 15 / 16 * (2 + 2 + 4) * experts / through_one_card


#: Mean absolute errors, percent, that published runs are predicted within; what was measured when it was set is some
#: points lower. `left out` of benchmarks/cost_constants.py says what to expect of a source that nothing was fitted to.
GATES = {
    "korthikanti2022_t5": 8.0,
    "narayanan2021_t1": 8.0,
    "megatron_readme_h100": 8.0,
    "dgxc_gb200": 9.0,
    "dgxc_maxtext_h100": 11.0,  # what it recomputes is not published
    "internevo_7b": 8.0,
    "vtrain_multi_a100": 11.0,
    "llm_foundry_mpt": 12.0,
    "fms_fsdp": 14.0,
}


@pytest.fixture(scope="module")
def published():
    """Group -> (ln(predicted / measured), ln(rule / measured)) of the shipped runs."""
    found = defaultdict(list)
    for row in read_rows(PUBLISHED):
        run, seconds = describe(row).setup, measurements(row).step_seconds
        errors = (step_time(run).total / seconds, baseline_seconds(run) / seconds)
        found[row["group"]].append(tuple(math.log(error) for error in errors))
    return found


def _mape(logs):
    return 100 * statistics.fmean(abs(math.expm1(value)) for value in logs)


@pytest.mark.parametrize("group", GATES)
def test_published_runs_are_predicted_within_the_gates_and_better_than_by_one_utilisation(published, group):
    model, rule = zip(*published[group], strict=True)
    assert _mape(model) < GATES[group]
    assert _mape(model) < _mape(rule)


def test_nine_of_ten_published_runs_lie_in_the_interval(published):
    spread = 1.645 * math.hypot(constants_of("megatron").between, constants_of("megatron").within)
    inside = [abs(error) <= spread for runs in published.values() for error, _ in runs]
    assert statistics.fmean(inside) > 0.8


def test_tensor_ranks_gather_and_scatter_twice_each_way():
    run, constants = setup(micro_batch_size=2), constants_of("megatron")
    block = 2.0 * run.micro_batch_tokens * run.model.hidden_size
    one = gather_seconds(block, run.tensor_parallel_size, 1, run.device, constants) * (1 - constants.tensor_overlap)
    layers = run.num_micro_batches * run.model.num_layers / run.pipeline_parallel_size
    assert step_time(run).tensor_communication == pytest.approx(2 * 4 * layers * one)


def test_written_scores_cost_the_bytes_that_they_move():
    run = setup(flash_attention=False, stack="megatron_2021")
    cheap = replace(constants_of("megatron_2021"), score_bytes=0.0)
    heads = run.model.num_attention_heads / run.tensor_parallel_size
    scores = run.micro_batch_tokens * heads * run.seq_length
    moved = 2.5 * 2 * scores * constants_of("megatron_2021").score_bytes
    bandwidth = run.device.memory_bandwidth * cheap.bandwidth_efficiency
    layers = run.num_micro_batches * run.model.num_layers / run.pipeline_parallel_size
    assert step_time(run).attention - step_time(run, cheap).attention == pytest.approx(layers * moved / bandwidth)
