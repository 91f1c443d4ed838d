"""The search: nothing faster is missed, what is listed fits and divides, and the reasons add up."""

from dataclasses import fields, replace

import pytest

from analysis.cost.architecture import Architecture
from analysis.cost.devices import find_device
from analysis.cost.feasibility import is_possible
from analysis.cost.layout_reasons import compare
from analysis.cost.layout_space import LAYOUT_FIELDS, divisions, variants
from analysis.cost.layouts import on_more_gpus, search
from analysis.cost.memory import MemoryEstimate, memory
from analysis.cost.setup import Setup
from analysis.cost.shape import llama_of
from analysis.cost.step import StepTime, step_time

EIGHT = Architecture("8B", 32, 4096, 32, 8, 128, 14336, 128256)
SEVENTY = Architecture("70B", 80, 8192, 64, 8, 128, 28672, 128256)
EXPERTS = replace(EIGHT, name="experts", num_experts=8, moe_router_topk=2, moe_ffn_hidden_size=14336)
H100 = find_device("H100")
SETUP = Setup(SEVENTY, H100, num_gpus=64, seq_length=8192, global_batch_size=128)
SMALL = replace(SETUP, model=EIGHT, num_gpus=16, global_batch_size=48)


def with_headroom(held: MemoryEstimate) -> float:
    """Bytes that a layout is chosen with."""
    return (1 + held.headroom) * held.device


def everything(template):
    """Every layout of the space that fits, by another way than the search: all sizes, micro-batches, shares of 1/8."""
    for division in divisions(template, LAYOUT_FIELDS).divisions:
        for micro_batch in (1, 2, 3, 4, 6, 8):
            sized = replace(division, micro_batch_size=micro_batch)
            if not is_possible(sized) or micro_batch > 1 and sized.context_parallel_size > 1:
                continue
            for variant in variants(sized, LAYOUT_FIELDS):
                for share in (0, *(part / 8 for part in range(1, 9))):
                    trial = replace(variant, recompute_granularity="full", recompute_share=share) if share else variant
                    if with_headroom(memory(trial)) <= trial.device.memory_bytes:
                        yield trial


@pytest.mark.parametrize("template", [SMALL, replace(SMALL, model=EXPERTS, num_gpus=32, global_batch_size=64)])
def test_nothing_faster_is_missed(template):
    fastest = min(step_time(trial).total for trial in everything(template))
    assert search(template).candidates[0].seconds <= fastest
    assert search(template, count=1).candidates[0].seconds == search(template).candidates[0].seconds


def test_virtual_stages_that_hide_gradients_are_not_missed():
    """The bound of a division counts nothing that its virtual stages could hide."""
    many = replace(SETUP, model=EXPERTS, num_gpus=1024, seq_length=8192, global_batch_size=512, precision="fp8")
    by_hand = replace(many, pipeline_parallel_size=2, context_parallel_size=2, expert_parallel_size=8)
    by_hand = replace(by_hand, virtual_pipeline_parallel_size=8, pipeline_schedule="interleaved1f1b")
    assert with_headroom(memory(by_hand)) <= H100.memory_bytes
    for count in (1, 5):
        assert search(many, count=count).candidates[0].seconds <= step_time(by_hand).total


def test_where_scores_are_written_attention_alone_is_recomputed():
    long = replace(SMALL, model=llama_of(8e8), num_gpus=1, seq_length=32768, global_batch_size=4)
    (found,) = search(replace(long, flash_attention=False, stack="megatron_2021"), count=1).candidates
    assert found.setup.recompute_granularity == "selective"
    whole = replace(found.setup, recompute_granularity="full")
    assert memory(whole).device > H100.memory_bytes > found.memory.device


def test_a_given_number_of_context_ranks_may_take_several_sequences():
    open_fields = [name for name in LAYOUT_FIELDS if name != "context_parallel_size"]
    given = replace(SMALL, context_parallel_size=4, num_gpus=64, global_batch_size=512)
    assert max(each.setup.micro_batch_size for each in search(given, open_fields).candidates) > 1
    assert {
        each.setup.micro_batch_size for each in search(given).candidates if each.setup.context_parallel_size > 1
    } <= {1}


def test_what_is_listed_fits_divides_and_is_sorted():
    found = search(SETUP)
    assert len(found.candidates) == 5 and found.margin == found.wanted_margin and found.nearest is None
    for each in found.candidates:
        assert is_possible(each.setup)
        assert each.seconds == step_time(each.setup).total and each.memory == memory(each.setup)
        assert with_headroom(each.memory) <= H100.memory_bytes
        assert each.setup.num_gpus == 64 and each.setup.global_batch_size == 128
    seconds = [each.seconds for each in found.candidates]
    assert seconds == sorted(seconds)
    sizes = {(each.setup.tensor_parallel_size, each.setup.pipeline_parallel_size) for each in found.candidates}
    assert len(sizes) >= 2
    counted = found.too_large + found.too_slow
    assert found.space.size == len(found.space.divisions) + sum(found.space.impossible.values()) > counted > 0


def test_given_fields_stay():
    given = "tensor_parallel_size", "recompute_granularity", "sharding"
    open_fields = [name for name in LAYOUT_FIELDS if name not in given]
    template = replace(SETUP, tensor_parallel_size=8, recompute_granularity="full", recompute_share=1.0)
    for each in search(template, open_fields).candidates:
        assert each.setup.tensor_parallel_size == 8 and each.setup.recompute_granularity == "full"
        assert each.setup.recompute_share == 1.0 and each.setup.sharding == "zero1"


def test_without_recomputation_only_what_fits_so_is_listed():
    open_fields = [name for name in LAYOUT_FIELDS if name != "recompute_granularity"]
    for each in search(SETUP, open_fields, count=20).candidates:
        assert each.setup.recompute_granularity == "none" and with_headroom(each.memory) <= H100.memory_bytes


def test_as_few_whole_layers_are_recomputed_as_make_it_fit():
    some = [each.setup for each in search(SETUP, count=20).candidates if 0 < each.setup.recompute_share < 1]
    assert len(some) > 3
    for setup in some:
        layers = setup.recompute_share * setup.model.num_layers / setup.pipeline_parallel_size
        assert layers == pytest.approx(round(layers)) and layers >= 1
        less = replace(setup, recompute_share=setup.recompute_share * (layers - 2) / layers) if layers > 2 else setup
        assert layers <= 2 or with_headroom(memory(less)) > H100.memory_bytes


def test_a_schedule_that_is_given_stays():
    open_fields = [name for name in LAYOUT_FIELDS if name != "pipeline_schedule"]
    interleaved = replace(SETUP, pipeline_schedule="interleaved1f1b")
    for schedule, template in (("zbv", replace(SETUP, pipeline_schedule="zbv")), ("interleaved1f1b", interleaved)):
        for each in search(template, open_fields).candidates:
            assert each.setup.pipeline_schedule == schedule
            assert (each.setup.virtual_pipeline_parallel_size > 1) == (schedule == "interleaved1f1b")


def test_stages_are_alike_and_interleaved_ones_take_whole_groups_of_micro_batches():
    odd = replace(SETUP.model, num_layers=77)  # a prime less two: with embedding and output 79, and nothing divides it
    assert {each.pipeline_parallel_size for each in divisions(replace(SETUP, model=odd), LAYOUT_FIELDS).divisions} <= {
        1, 2, 4, 8, 16,
    }  # fmt: skip
    llama = replace(SETUP.model, num_layers=126)
    sizes = {each.pipeline_parallel_size for each in divisions(replace(SETUP, model=llama), LAYOUT_FIELDS).divisions}
    assert sizes == {1, 2, 4, 8, 16, 32, 64}  # with embedding and output 128
    division = replace(SETUP, tensor_parallel_size=4, pipeline_parallel_size=8)
    for variant in variants(division, LAYOUT_FIELDS):
        stages = 8 * variant.virtual_pipeline_parallel_size
        assert 80 % stages == 0 and (stages == 8 or variant.num_micro_batches % 8 == 0)


def test_tensor_ranks_stay_on_fast_links():
    def tensors(device, heads=64, num_gpus=576):
        model = replace(SEVENTY, num_attention_heads=heads, num_query_groups=heads)
        space = divisions(replace(SETUP, model=model, device=find_device(device), num_gpus=num_gpus), LAYOUT_FIELDS)
        return {each.tensor_parallel_size for each in space.divisions}

    assert tensors("H100") == {1, 2, 4, 8}
    assert tensors("H100", heads=48) == {1, 2, 4, 8}  # 6 ranks would lie in two nodes
    assert tensors("GB200", num_gpus=512) == {1, 2, 4, 8, 16, 32, 64}


def test_what_fits_only_without_margin_is_said():
    tight = replace(SMALL, device=replace(H100, memory_bytes=0.0), stack="fsdp_eager", sharding="zero3")
    needed = memory(search(replace(tight, device=H100), count=1).candidates[0].setup)
    least = min(
        memory(replace(division, sharding="zero3", recompute_granularity="full")).device
        for division in divisions(tight, LAYOUT_FIELDS).divisions
    )
    found = search(replace(tight, device=replace(H100, memory_bytes=1.1 * least)))
    assert found.candidates and found.margin == 0.06 < found.wanted_margin
    assert found.candidates[0].memory.device <= 1.1 * least / 1.06 < with_headroom(needed)


def test_when_nothing_fits_the_nearest_and_more_gpus_are_given():
    template = replace(SETUP, num_gpus=4, global_batch_size=64)
    found = search(template)
    assert not found.candidates and found.too_large == len(found.space.divisions)
    others = [replace(each, recompute_granularity="full") for each in found.space.divisions]
    assert found.nearest.memory.device == min(memory(each).device for each in others) > H100.memory_bytes
    more = on_more_gpus(template)
    assert more.setup.num_gpus > 4 and with_headroom(memory(more.setup)) <= H100.memory_bytes
    assert not search(replace(template, num_gpus=more.setup.num_gpus // 2)).candidates


def test_when_nothing_is_possible_the_reasons_are_counted():
    found = search(replace(SETUP, num_gpus=11, global_batch_size=64))
    assert not found.candidates and found.nearest is None
    assert sum(found.space.impossible.values()) == found.space.size == 4


def test_a_batch_that_interleaved_stages_cannot_take_is_a_reason():
    given = {"tensor_parallel_size": 8, "pipeline_parallel_size": 4, "virtual_pipeline_parallel_size": 2}
    odd = replace(SETUP, **given, pipeline_schedule="interleaved1f1b", global_batch_size=10, micro_batch_size=1)
    found = search(odd, ["context_parallel_size", "expert_parallel_size"])
    assert not found.candidates and found.nearest is None and found.too_slow == 0
    assert "micro-batches are no multiple of the pipeline ranks, as interleaved stages need" in found.space.impossible


def test_ranks_that_share_an_expert_are_searched():
    found = [each.setup for each in search(replace(SMALL, model=EXPERTS), count=20).candidates]
    assert {setup.expert_tensor_parallel_size for setup in found} > {1}
    assert all(setup.tensor_parallel_size % setup.expert_tensor_parallel_size == 0 for setup in found)


def test_reasons_add_up_and_say_what_differs():
    found = search(SETUP, count=8)
    best = found.candidates[0]
    for other in found.candidates[1:]:
        why = compare(best, other)
        assert why.seconds == pytest.approx(other.seconds - best.seconds) and why.seconds >= 0
        for saved, parts in ((1, why.saved), (-1, why.cost)):
            for part, seconds in parts.items():
                assert seconds == pytest.approx(saved * (getattr(other.time, part) - getattr(best.time, part)))
        said = sum(why.saved.values()) - sum(why.cost.values())
        every = sum(abs(getattr(other.time, each.name) - getattr(best.time, each.name)) for each in fields(StepTime))
        assert said == pytest.approx(why.seconds, abs=0.25 * every)


def test_a_reason_reads_as_a_sentence():
    four = replace(SETUP, tensor_parallel_size=4, pipeline_parallel_size=8)
    one, other = (
        replace(search(SETUP, count=1).candidates[0], setup=setup, time=step_time(setup))
        for setup in (four, replace(four, tensor_parallel_size=8, pipeline_parallel_size=4))
    )
    text = str(compare(one, other))
    assert text.startswith("tensor 4 instead of 8, pipeline 8 instead of 4: saves ")
    assert "of tensor communication" in text and "costs" in text and "of pipeline bubble" in text
    assert text.endswith(" %) less a step")
    assert str(compare(other, one)).endswith(" %) more a step")


def test_fsdp_divides_weights_where_memory_asks_for_it():
    def sharding(gpu):
        template = replace(SMALL, device=find_device(gpu), num_gpus=8, stack="fsdp_eager", global_batch_size=8)
        return search(template).candidates[0].setup.sharding

    assert sharding("B300") == "zero2" and sharding("A100-40GB") == "zero3"
