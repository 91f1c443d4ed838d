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


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute_granularity": "full"},
        {"pipeline_parallel_size": 16, "num_gpus": 1024, "global_batch_size": 128},
        {"tensor_parallel_size": 4},
        {"micro_batch_size": 2},
        {"sharding": "none", "precision": "fp8"},
    ],
)
def test_a_change_does_what_is_said_of_it(changes):
    setup = replace(SETUP, **changes)
    found = waterfall(setup)
    said = [(reason.part, reason.remedy) for reason in found.reasons if reason.remedy is not None]
    said += [("total", found.best)] if found.best is not None else []
    assert said
    for part, trial in said:
        changed = _after(setup, trial.change)
        scale = setup.tokens_per_step / changed.tokens_per_step
        assert step_time(changed).total * scale == pytest.approx(trial.seconds) and trial.seconds < found.time.total
        assert getattr(step_time(changed), part) * scale == pytest.approx(trial.part_seconds)
        assert fits(memory(changed), setup.device) == trial.fits
        assert memory(changed).device / 2**30 == pytest.approx(trial.peak_gib)


def _after(setup, change):
    """The setup after "field before -> after"."""
    field, before, _, after = change.split()
    assert str(getattr(setup, field)) == before
    changed = replace(setup, **{field: type(getattr(setup, field))(after)})
    return replace(changed, pipeline_schedule="interleaved1f1b") if field.startswith("virtual") else changed


def test_the_best_change_is_of_the_layout_and_fits_where_any_does():
    found = waterfall(replace(SETUP, recompute_granularity="full", pipeline_parallel_size=4))
    assert found.best.fits and found.best.change == "recompute_granularity full -> none"
    batch = {"micro_batch_size": 4, "global_batch_size": 1024}
    tight = replace(SETUP, recompute_granularity="full", pipeline_parallel_size=2, **batch)
    found = waterfall(tight).best
    assert not fits(memory(replace(tight, recompute_granularity="none")), tight.device)
    assert step_time(replace(tight, recompute_granularity="none")).total < found.seconds and found.fits


def test_doubling_the_batch_halves_the_bubble_of_as_many_tokens():
    deep = replace(SEVENTY, num_layers=160)  # that fewer pipeline ranks cannot hold
    given = {"sharding": "none", "pipeline_schedule": "zbv", "seq_length": 8190}  # which context ranks do not divide
    given["device"] = find_device("A100")  # without fp8
    found = waterfall(replace(SETUP, model=deep, num_gpus=1024, global_batch_size=32, **given))
    bubble = next(reason for reason in found.reasons if reason.part == "pipeline_bubble")
    changed = bubble.remedy
    assert changed.change == "global_batch_size 32 -> 64" and changed.alters_training
    assert changed.part_seconds < 0.6 * bubble.seconds and changed.seconds < found.time.total


def test_a_change_that_does_not_fit_says_so():
    crowded = replace(SETUP, micro_batch_size=4, pipeline_parallel_size=4, global_batch_size=1024)
    remedies = [reason.remedy for reason in waterfall(crowded).reasons if reason.remedy is not None]
    assert any(not remedy.fits and remedy.peak_gib > 75 for remedy in remedies)


def test_where_a_setup_fits_only_changes_that_fit_are_proposed():
    ampere = replace(SETUP, device=find_device("A100"), micro_batch_size=4, global_batch_size=1024)  # without fp8
    full = replace(ampere, recompute_granularity="full", sharding="none")
    found = waterfall(full)
    assert fits(memory(full), full.device)
    assert not fits(memory(replace(full, recompute_granularity="none")), full.device)
    assert all(one.remedy is None or one.remedy.fits for one in found.reasons)
    assert next(one for one in found.reasons if one.part == "recompute").remedy is None


def test_calibrated_constants_are_used():
    from analysis.cost.stacks import constants_of

    slow = replace(constants_of("megatron"), matmul_efficiency=0.5)
    assert waterfall(SETUP, slow).time.linear > 1.3 * waterfall(SETUP).time.linear
