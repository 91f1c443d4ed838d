"""Why a step takes its time: parts that add up, and changes that do what is said of them when they are made."""

from dataclasses import replace

import pytest

from analysis.cost.architecture import Architecture
from analysis.cost.devices import find_device
from analysis.cost.memory import fits, memory
from analysis.cost.setup import Setup
from analysis.cost.step import step_time
from analysis.cost.waterfall import PART_TEXTS, waterfall

SEVENTY = Architecture("70B", 80, 8192, 64, 8, 128, 28672, 128256)
SETUP = Setup(
    SEVENTY,
    find_device("H100"),
    num_gpus=512,
    seq_length=8192,
    global_batch_size=256,
    tensor_parallel_size=8,
    pipeline_parallel_size=8,
)


def test_parts_add_up_largest_first():
    found = waterfall(SETUP)
    sizes = [seconds for _, seconds in found.time_parts()]
    assert sum(sizes) == pytest.approx(step_time(SETUP).total) and sizes == sorted(sizes, reverse=True)
    assert sum(gib for _, gib in found.memory_parts()) == pytest.approx(memory(SETUP).device / 2**30)
    assert set(PART_TEXTS) == set(vars(found.time))


def test_the_bubble_of_a_deep_pipeline_is_a_reason_and_its_remedy_shrinks_it():
    setup = replace(SETUP, pipeline_parallel_size=16, num_gpus=1024, global_batch_size=128)
    found = waterfall(setup)
    bubble = next(reason for reason in found.reasons if reason.part == "pipeline_bubble")
    assert bubble.seconds == pytest.approx(found.time.pipeline_bubble) and bubble.share > 0.3
    assert bubble.remedy.part_seconds < 0.7 * bubble.seconds and bubble.remedy.seconds < found.time.total


def test_the_best_change_is_as_fast_as_said_and_fits():
    setup = replace(SETUP, recompute="full")
    found = waterfall(setup)
    assert found.best.fits and found.best.seconds < found.time.total
    field, before, _, after = found.best.change.split()
    changed = replace(setup, **{field: type(getattr(setup, field))(after)})
    assert str(getattr(setup, field)) == before
    scale = setup.tokens_per_step / changed.tokens_per_step
    assert step_time(changed).total * scale == pytest.approx(found.best.seconds)
    assert fits(memory(changed), setup.device) and memory(changed).device / 2**30 == pytest.approx(found.best.peak_gib)


def test_a_change_that_does_not_fit_says_so():
    crowded = replace(SETUP, micro_batch_size=4, pipeline_parallel_size=4, global_batch_size=1024)
    remedies = [reason.remedy for reason in waterfall(crowded).reasons if reason.remedy is not None]
    assert any(not remedy.fits and remedy.peak_gib > 75 for remedy in remedies)


def test_calibrated_constants_are_used():
    from analysis.cost.stacks import constants_of

    slow = replace(constants_of("megatron"), matmul_efficiency=0.5)
    assert waterfall(SETUP, slow).time.linear > 1.3 * waterfall(SETUP).time.linear
