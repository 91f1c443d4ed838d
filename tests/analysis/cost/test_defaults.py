"""What is left open is chosen by stated rules, what is given is kept, and what cannot be is refused."""

from dataclasses import replace

import pytest

from analysis.cost.defaults import complete_setup, step_law_batch
from analysis.cost.devices import find_device
from analysis.cost.memory import fits, memory
from analysis.cost.shape import llama_of
from analysis.cost.step import step_time
from scaling.errors import UserError

H100, SEVEN = find_device("H100"), llama_of(7e9)


def chosen(model=SEVEN, device=H100, tokens=1e12, **given):
    return complete_setup(model, device, tokens, given)


def days(completed):
    setup = completed.setup
    return step_time(setup).total * completed.tokens / setup.tokens_per_step / 86400


def test_every_choice_is_said_and_nothing_given_is():
    done = chosen(num_gpus=64, seq_length=8192, stack="megatron")
    fields = {choice.field: choice for choice in done.choices}
    assert not {"num_gpus", "seq_length", "stack", "tokens"} & set(fields)
    assert {"global_batch_size", "precision", "tensor_parallel_size", "recompute_granularity"} <= set(fields)
    for choice in fields.values():
        assert choice.why and getattr(done.setup, choice.field) == choice.value
    assert done.setup.num_gpus == 64 and done.setup.seq_length == 8192


def test_the_batch_follows_the_step_law_in_what_the_ranks_divide():
    assert step_law_batch(1e12) == pytest.approx(0.58 * 1e12**0.571)
    setup = chosen(num_gpus=64).setup
    assert setup.tokens_per_step == pytest.approx(step_law_batch(1e12), rel=0.5)
    odd = chosen(num_gpus=24).setup
    assert odd.global_batch_size % (24 * odd.micro_batch_size) == 0


def test_the_fewest_gpus_that_fit_and_end_in_a_month():
    done = chosen(tokens=2e12)
    assert fits(memory(done.setup), H100) and days(done) <= 30
    assert days(chosen(tokens=2e12, num_gpus=done.setup.num_gpus // 2)) > 30
    assert "30 days" in next(choice.why for choice in done.choices if choice.field == "num_gpus")
    small = chosen(model=llama_of(1e8), tokens=2e9)
    assert small.setup.num_gpus == 1


def test_a_month_may_be_out_of_reach_and_is_then_said():
    done = chosen(model=llama_of(1e12), tokens=2e13)
    assert days(done) > 30 and "out of reach" in next(c.why for c in done.choices if c.field == "num_gpus")


def test_a_given_batch_bounds_the_number_of_gpus():
    done = chosen(model=llama_of(70e9), tokens=2e12, global_batch_size=64)
    assert done.setup.global_batch_size == 64 and done.setup.data_parallel_size <= 64 and days(done) > 30


def test_large_models_are_divided_until_they_fit():
    small, large = chosen(num_gpus=512).setup, chosen(model=llama_of(405e9), num_gpus=512).setup
    assert small.tensor_parallel_size == small.pipeline_parallel_size == 1
    assert large.tensor_parallel_size == 8 and large.pipeline_parallel_size > 1 and fits(memory(large), H100)
    kept = chosen(model=llama_of(405e9), num_gpus=512, tensor_parallel_size=4).setup
    assert kept.tensor_parallel_size == 4 and kept.pipeline_parallel_size >= large.pipeline_parallel_size


def test_what_fits_nowhere_is_the_layout_of_least_memory():
    setup = chosen(model=llama_of(405e9), num_gpus=8).setup
    assert not fits(memory(setup), H100) and setup.recompute_granularity == "full"


def test_fsdp_divides_weights_and_leaves_tensors_alone():
    setup = chosen(num_gpus=64, stack="fsdp_eager").setup
    assert setup.sharding == "zero3" and setup.tensor_parallel_size == setup.pipeline_parallel_size == 1


def test_an_old_gpu_trains_in_fp16_and_tokens_default_to_twenty_a_parameter():
    done = chosen(device=find_device("V100"), tokens=None, num_gpus=64)
    assert done.setup.precision == "fp16"
    assert done.tokens == pytest.approx(20 * 7e9, rel=0.02)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"tokens": -1.0}, "tokens = -1: must be above zero"),
        ({"num_gpus": 10, "tensor_parallel_size": 4}, "num_gpus = 10: .*choose 8 or 12"),
        ({"num_gpus": 9, "tensor_parallel_size": 3}, "tensor_parallel_size = 3: .*choose 2 or 4"),
        ({"num_gpus": 64, "global_batch_size": 101, "tensor_parallel_size": 1}, "global_batch_size = 101: .*choose"),
        ({"num_gpus": 0}, "num_gpus = 0: must be 1 or more"),
        ({"seq_length": 0}, "seq_length = 0: must be 1 or more"),
        ({"global_batch_size": -4}, "global_batch_size = -4: must be 1 or more"),
        ({"num_gpus": 8, "micro_batch_size": 0}, "micro_batch_size = 0: must be 1 or more"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size = 0: must be 1 or more"),
        ({"pipeline_parallel_size": 640}, "more stages than the 28 layers"),
        ({"precision": "nvfp4"}, "no such products"),
        ({"num_gpus": 8, "loss": "chunked"}, "loss = chunked: megatron has its own: .*choose stack fsdp_compiled"),
    ],
)
def test_what_cannot_be_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        chosen(**given)


def test_what_a_given_size_needs_is_chosen_with_it():
    experts = replace(llama_of(7e9), num_experts=8, moe_router_topk=2, moe_ffn_hidden_size=4096)
    shared = chosen(model=experts, num_gpus=64, expert_tensor_parallel_size=2).setup
    assert shared.expert_tensor_parallel_size == 2 and shared.tensor_parallel_size % 2 == 0
    staged = chosen(num_gpus=64, virtual_pipeline_parallel_size=2).setup
    assert staged.virtual_pipeline_parallel_size == 2 and staged.pipeline_parallel_size > 1
    assert staged.pipeline_schedule == "interleaved1f1b"


def test_a_schedule_may_be_interleaved_and_its_stages_left_open():
    found = chosen(num_gpus=64, pipeline_schedule="interleaved1f1b", pipeline_parallel_size=4).setup
    assert found.virtual_pipeline_parallel_size > 1 and found.pipeline_schedule == "interleaved1f1b"


def test_virtual_stages_keep_their_schedule_where_nothing_fits():
    found = chosen(model=llama_of(405e9), num_gpus=8, pipeline_parallel_size=4, virtual_pipeline_parallel_size=2).setup
    assert found.pipeline_schedule == "interleaved1f1b" and not fits(memory(found), H100)


def test_where_it_fits_on_no_number_of_gpus_the_batch_is_still_what_was_given():
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "global_batch_size": 8}
    done = chosen(model=llama_of(70e9), **sizes)
    assert done.setup.global_batch_size == 8 and not fits(memory(done.setup), H100)
    assert any("fits on no number" in choice.why for choice in done.choices)


def test_the_loss_is_that_of_the_stack():
    for stack, loss in (("fsdp_compiled", "compiled"), ("fsdp_eager", "whole")):
        done = chosen(num_gpus=64, stack=stack)
        assert done.setup.loss == loss
        assert any((choice.field, choice.value) == ("loss", loss) for choice in done.choices)
    assert chosen(num_gpus=64, stack="fsdp_eager", loss="chunked").setup.loss == "chunked"
