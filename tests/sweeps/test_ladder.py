"""The choice of a cell's layout, and what follows when memory runs out."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from sweep_lab import grid_values

from analysis.cost.devices import require_device
from scaling.config import RunConfig, build_config
from scaling.errors import UserError
from scaling.layouts import check_layout
from scaling.memory import memory_estimate
from scaling.presets import get_preset
from sweeps.attempts import OUT_OF_MEMORY
from sweeps.grid import Grid, make_cells
from sweeps.ladder import _ladder, choose, lay_out, layout_to_try, roomier, settings
from sweeps.plan import Workers
from sweeps.prediction import GpuPredictor

GPU_BYTES = 80 * 2**30


def run(preset: str = "chinchilla-1266m", batch: int = 128, **execution) -> RunConfig:
    return build_config(
        {
            "model": {**get_preset(preset).model_dump(), "position_embedding": "rope"},
            "data": {"name": "words", "fingerprint": "f" * 64, "seq_length": 2048},
            "optimizer": {"learning_rate": 0.01},
            "global_batch_size": batch,
            "train_steps": 10,
            "execution": {"device": "cuda", **execution},
        },
        "test",
    )


seconds = GpuPredictor(require_device("H100"), None, "a test").step_seconds


def fits(config: RunConfig) -> bool:
    return memory_estimate(config).total <= GPU_BYTES


def test_the_fastest_settings_by_prediction_are_chosen_and_compared_with_the_next_layout():
    small = run("gpt2-small", batch=8)
    assert choose(small, 1, GPU_BYTES, 8, seconds) == (small, "one process")
    config, reason = choose(run(batch=64), 8, GPU_BYTES, 8, seconds)
    assert config.parallel.data_parallel_size == 8
    rivals = [rung for rung in _ladder(run(batch=64), 8, 8) if rung.parallel != config.parallel and fits(rung)]
    slower = 100 * (seconds(min(rivals, key=seconds)) / seconds(config) - 1)
    assert reason == f"fastest that fits; {settings(min(rivals, key=seconds))} is {slower:.0f} % slower"
    assert settings(choose(run(), 8, None, 8, seconds)[0]) == "dp8 mb16", "memory unknown: nothing demands more"


def test_a_prediction_that_data_parallelism_is_slow_is_reason_enough_to_take_another():
    def slow_data_parallel(config: RunConfig) -> float:
        return seconds(config) * (10 if config.parallel.data_parallel_size > 1 else 1)

    config, _ = choose(run(), 4, GPU_BYTES, 8, slow_data_parallel)
    assert config.parallel.data_parallel_size == 1 and config.parallel.world_size == 4


def test_what_the_prediction_cannot_tell_apart_goes_to_data_parallelism():
    config, reason = choose(run("gpt2-small", batch=8), 8, GPU_BYTES, 8, seconds)
    assert settings(config) == "dp8 mb1" and "is only" in reason and "% faster" in reason


def test_ranks_that_gain_nothing_are_left_to_other_cells():
    config, reason = choose(run("gpt2-small", batch=8), 8, GPU_BYTES, 8, lambda config: 1.0)
    assert config.parallel.world_size == 1 and reason.startswith("fastest that fits")


def test_memory_demands_smaller_micro_batches_then_ranks_that_divide_the_weights():
    chosen = [
        choose(run(name), 8, GPU_BYTES, 8, seconds)
        for name in ("chinchilla-74m", "chinchilla-1266m", "chinchilla-16183m")
    ]
    assert all(fits(config) for config, _ in chosen)
    (small, _), (middle, _), (large, reason) = chosen
    assert small.parallel == middle.parallel and small.parallel.data_parallel_size == 8
    assert small.micro_batch_size > middle.micro_batch_size
    assert large.parallel.data_parallel_size < 8 and "dp8 is faster and does not fit" in reason
    across = choose(run("chinchilla-16183m"), 16, 40 * 2**30, 2, seconds)[0].parallel
    assert across.tensor_parallel_size <= 2, "tensor ranks stay within a node of 2"
    assert across.world_size == 16


def test_where_nothing_fits_the_roomiest_is_tried_with_a_warning():
    grid = Grid.model_validate(grid_values())
    corpus = SimpleNamespace(name="words", fingerprint="f" * 64, tokenizer="byte", vocab_size=256)
    cells = make_cells(grid.profiles["laptop"], corpus, "test")
    workers = Workers(executor="local", count=1, num_threads=1, device="cpu", reason="test")
    done, warnings = lay_out(cells, 1, 2**40, workers, lambda config: 1.0)
    assert [cell.config.parallel for cell in done] == [cell.config.parallel for cell in cells] and not warnings
    done, warnings = lay_out(cells, 1, 10_000, workers, lambda config: 1.0)
    assert len(warnings) == len(cells) and "may not fit" in warnings[0] and "ranks_per_cell" in warnings[0]
    assert all(settings(cell.config).startswith("single mb1") for cell in done)


@pytest.mark.parametrize("ranks", [1, 4])
def test_each_fallback_needs_clearly_less_on_the_same_ranks_until_there_is_none(ranks):
    config, _ = choose(run(), ranks, None, 8, seconds)
    rungs = [config]
    while (config := roomier(config, 8)) is not None:
        check_layout(config)
        rungs.append(config)
    needs = [memory_estimate(rung).total for rung in rungs]
    assert all(after < before for before, after in pairwise(needs))
    assert all(after <= 0.75 * before for before, after in pairwise(needs[:-1])), "few rungs, each worth the while"
    assert {rung.parallel.world_size for rung in rungs} == {ranks} and len({rung.run_id for rung in rungs}) == 1
    assert 3 <= len(rungs) <= 12
    assert "full" in settings(rungs[-1])
    if ranks == 4:
        assert rungs[-1].parallel.data_parallel_size < 4


def test_what_ran_out_of_memory_is_not_tried_again():
    config = run(batch=8)
    first, second = roomier(config, 8), roomier(roomier(config, 8), 8)
    assert layout_to_try(config, [], "a", 8) == (config, None)
    failed = [{"event": "start", "attempt": 1, "launch": "a", "layout": settings(config)}]
    failed += [{"event": "end", "attempt": 1, "launch": "a", "outcome": OUT_OF_MEMORY, "layout": settings(config)}]
    assert layout_to_try(config, failed, "b", 8) == (first, f"out of memory under {settings(config)}")
    failed += [{"event": "end", "attempt": 2, "launch": "b", "outcome": OUT_OF_MEMORY, "layout": settings(first)}]
    assert layout_to_try(config, failed, "b", 8)[0] == second


def test_workers_that_die_without_a_word_are_taken_for_a_lack_of_memory_the_second_time():
    config = run(batch=8)
    lost = [{"event": "start", "attempt": n, "launch": "a", "layout": settings(config)} for n in (1, 2)]
    assert layout_to_try(config, lost[:1], "a", 8)[0] == config
    other, because = layout_to_try(config, lost, "a", 8)
    assert other == roomier(config, 8) and "died 2 times" in because
    assert layout_to_try(config, lost, "b", 8)[0] == config, "those of another launch may have been killed by anybody"


def a_grid(parallel: dict) -> list:
    values = grid_values()
    values["profiles"]["laptop"]["parallel"] = parallel
    corpus = SimpleNamespace(name="words", fingerprint="f" * 64, tokenizer="byte", vocab_size=256)
    return make_cells(Grid.model_validate(values).profiles["laptop"], corpus, "test")


def test_a_grid_gives_layouts_by_the_names_of_cells():
    cells = a_grid({"*-h4": {"data_parallel_size": 2}, "*": {}})
    assert {str(cell.config.parallel) for cell in cells if cell.cell.endswith("-h4")} == {"dp2"}
    assert {str(cell.config.parallel) for cell in cells if not cell.cell.endswith("-h4")} == {"single"}
    assert all(cell.layout_given for cell in cells) and not any(cell.layout_given for cell in a_grid({}))
    assert [cell.config.run_id for cell in cells] == [cell.config.run_id for cell in a_grid({})]


def test_a_layout_that_cannot_work_and_a_name_that_is_no_cell_are_refused_before_anything_starts():
    with pytest.raises(
        UserError, match=r"cell 2e\+08-L1-h4: parallel.tensor_parallel_size = 2: must divide .* = 1;.*dp2"
    ):
        a_grid({"*": {"tensor_parallel_size": 2}})
    with pytest.raises(UserError, match=r"parallel 2e\+08-L1-h5: there is none .*did you mean .*2e\+08-L1-h4"):
        a_grid({"2e+08-L1-h5": {"data_parallel_size": 2}})
    with pytest.raises(UserError, match="tensor_paralel_size"):
        a_grid({"*": {"tensor_paralel_size": 2}})
