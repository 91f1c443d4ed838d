"""The choice of a cell's layout, and what follows when memory runs out."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from sweep_lab import grid_values

from scaling.config import RunConfig, build_config
from scaling.errors import UserError
from scaling.layouts import check_layout
from scaling.memory import memory_estimate
from scaling.presets import get_preset
from sweeps.attempts import OUT_OF_MEMORY
from sweeps.grid import Grid, make_cells
from sweeps.ladder import choose, lay_out, layout_to_try, roomier, settings
from sweeps.plan import Workers

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


def fits(config: RunConfig) -> bool:
    return memory_estimate(config).total <= GPU_BYTES


def test_a_cell_that_fits_on_its_ranks_is_left_as_it_is_but_for_data_parallelism():
    small = run("gpt2-small", batch=8)
    assert choose(small, 1, GPU_BYTES, 8) == small
    assert settings(choose(small, 8, GPU_BYTES, 8)) == "dp8 mb1"
    assert settings(choose(small, 6, GPU_BYTES, 8)) == "dp4 mb2", "as many as divide the batch"
    assert choose(run(), 8, None, 8).parallel.data_parallel_size == 8, "memory unknown: nothing demands more"


def test_memory_demands_first_micro_batches_then_recomputation_then_tensor_then_pipeline_ranks():
    order = [choose(run(name), 8, GPU_BYTES, 8) for name in ("chinchilla-74m", "chinchilla-1266m", "chinchilla-16183m")]
    assert all(fits(config) for config in order)
    small, middle, large = (config.parallel for config in order)
    assert small == middle and small.data_parallel_size == 8
    assert order[0].micro_batch_size > order[1].micro_batch_size
    assert large.tensor_parallel_size > 1 and large.pipeline_parallel_size == 1
    across = choose(run("chinchilla-16183m"), 16, 40 * 2**30, 2).parallel
    assert across.tensor_parallel_size <= 2 < across.pipeline_parallel_size, "tensor ranks stay within a node of 2"
    assert across.world_size == 16


def test_where_nothing_fits_the_roomiest_is_tried_with_a_warning():
    grid = Grid.model_validate(grid_values())
    corpus = SimpleNamespace(name="words", fingerprint="f" * 64, tokenizer="byte", vocab_size=256)
    cells = make_cells(grid.profiles["laptop"], corpus, "test")
    workers = Workers(executor="local", count=1, num_threads=1, device="cpu", reason="test")
    done, warnings = lay_out(cells, 1, 2**40, workers)
    assert [cell.config.parallel for cell in done] == [cell.config.parallel for cell in cells] and not warnings
    done, warnings = lay_out(cells, 1, 10_000, workers)
    assert len(warnings) == len(cells) and "may not fit" in warnings[0] and "ranks_per_cell" in warnings[0]
    assert all(settings(cell.config).startswith("single mb1") for cell in done)


@pytest.mark.parametrize("ranks", [1, 4])
def test_each_fallback_needs_clearly_less_on_the_same_ranks_until_there_is_none(ranks):
    config = choose(run(), ranks, None, 8)
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
