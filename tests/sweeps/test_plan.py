from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_lab import grid_values

from analysis.cost.cpu_throughput import CPU_CONSTANTS, CpuThroughput
from analysis.cost.interval import Interval
from scaling.accounting import parameter_count
from scaling.errors import UserError
from sweeps.grid import Grid, make_cells
from sweeps.plan import (
    PLAN_FILE,
    DevicePrice,
    Dollars,
    PlannedCorpus,
    Workers,
    check_budget,
    check_repetition,
    make_plan,
    makespan,
    read_plan,
)
from sweeps.prediction import CpuPredictor

PREDICTOR = CpuPredictor(CpuThroughput("a CPU", 1e11, CPU_CONSTANTS, "a test"), corpus_bytes=10**6)
PRICE = DevicePrice(
    device="CPU core",
    usd_per_device_hour=Dollars(low=0.01, mid=0.04, high=0.09),
    date="2026-01-31",
    provider="somebody",
    source="somewhere",
)


def a_plan(train_tokens=10**6, price=PRICE, num_threads=1, count=2, parallel=None, made_before=None):
    values = grid_values()
    values["profiles"]["laptop"]["parallel"] = parallel or {}
    grid = Grid.model_validate(values)
    corpus = SimpleNamespace(name="words", fingerprint="f" * 64, tokenizer="byte", vocab_size=256)
    return make_plan(
        grid=grid.name,
        profile_name="laptop",
        profile=grid.profiles["laptop"],
        cells=make_cells(grid.profiles["laptop"], corpus, "test"),
        corpus=PlannedCorpus(
            name="words", path=Path("data/words"), source="words", fingerprint="f" * 64, train_tokens=train_tokens
        ),
        machine="a machine",
        command="scaling launch",
        workers=Workers(executor="local", count=count, num_threads=num_threads, device="cpu", reason="test"),
        price=price,
        warnings=[],
        predict=PREDICTOR.predict,
        prediction=PREDICTOR.source,
        made_before=made_before or {},
    )


def test_cells_are_counted_under_every_convention():
    for cell in a_plan().cells:
        count = parameter_count(cell.config.model)
        assert (cell.params, cell.params_non_embedding) == (count.total, count.non_embedding)
        assert cell.tokens == cell.train_steps * cell.global_batch_size * cell.seq_length
        assert cell.flops == 6 * cell.params * cell.tokens
        assert cell.flops_causal < cell.flops_full == cell.flops_hardware
        assert cell.run_id == cell.config.run_id
        assert cell.prediction == PREDICTOR.predict(cell.config)
        assert 0 < cell.prediction.training_seconds.value < cell.seconds


def test_totals_are_the_sums_and_dollars_follow_the_device_hours():
    plan = a_plan(num_threads=3)
    seconds = sum(cell.seconds for cell in plan.cells)
    assert plan.totals.cells == len(plan.cells) == 6
    assert plan.totals.flops == sum(cell.flops for cell in plan.cells)
    hours = plan.totals.device_hours
    assert hours.value == pytest.approx(3 * seconds / 3600), "a worker of 3 threads keeps 3 cores busy"
    assert hours.high == pytest.approx(3 * sum(cell.prediction.seconds.high for cell in plan.cells) / 3600)
    assert plan.totals.usd.value == pytest.approx(0.04 * hours.value)
    assert 0.09 * hours.value < plan.totals.usd.high < 0.09 * hours.high, "not both at their worst at once"
    assert plan.totals.energy_kwh is None, "a CPU's power is not known"
    assert all(cell.config.execution.num_threads == 3 for cell in plan.cells)
    wide = a_plan(parallel={"*": {"data_parallel_size": 2}})
    assert wide.totals.device_hours.value == pytest.approx(2 * sum(cell.seconds for cell in wide.cells) / 3600)


def test_a_cell_that_has_begun_keeps_the_prediction_made_before():
    first = a_plan()
    earlier = first.cells[2].prediction.model_copy(update={"seconds": Interval(7.0, 5.0, 9.0)})
    plan = a_plan(made_before={first.cells[2].run_id: earlier})
    assert plan.cells[2].prediction == earlier and plan.cells[2].seconds == 7
    assert [cell.prediction for cell in plan.cells[3:]] == [cell.prediction for cell in first.cells[3:]]


def test_makespan_gives_each_worker_the_longest_task_left():
    assert makespan([(length, 1) for length in (3, 3, 2, 2, 2)], 2) == 7
    assert makespan([(length, 1) for length in (5, 1, 1)], 3) == 5
    assert makespan([], 2) == 0


def test_makespan_of_a_task_that_needs_several_slots_waits_for_all_of_them():
    assert makespan([(4, 1), (3, 2), (2, 1)], 2) == 9
    assert makespan([(4, 1), (3, 2), (3, 1)], 3) == 6
    assert makespan([(3, 4)], 2) == 3


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        (lambda totals: {"max_flops": totals.flops}, "--max-flops"),
        (lambda totals: {"max_gpu_hours": totals.device_hours.value}, "--max-gpu-hours"),
        (lambda totals: {"max_usd": totals.usd.value}, "--max-usd"),
    ],
)
def test_a_plan_above_a_limit_is_refused_with_both_numbers(limits, option):
    plan = a_plan()
    (name, cost), *_ = limits(plan.totals).items()
    check_budget(plan, **{name: cost * 1.01})
    with pytest.raises(UserError, match="so nothing was started") as raised:
        check_budget(plan, **{name: cost * 0.5})
    assert str(raised.value).startswith(f"{option} {cost * 0.5:g}: ") and f"{cost:.4g}" in str(raised.value)


def test_without_a_price_there_are_no_dollars_and_no_dollar_limit():
    plan = a_plan(price=None)
    assert plan.totals.usd is None
    with pytest.raises(UserError, match="--max-usd 5: no price.*--price"):
        check_budget(plan, max_usd=5)


def test_repeating_the_text_is_said_and_too_much_of_it_refused():
    assert a_plan(train_tokens=10**6).warnings == []
    plan = a_plan(train_tokens=5000)
    assert "see the text more than once" in plan.warnings[0] and "--data" in plan.warnings[0]
    most = max(cell.epochs for cell in plan.cells)
    check_repetition(plan, most)
    with pytest.raises(UserError, match=f"{most:.3g} epochs of the 5,000 .*max_epochs = 1:"):
        check_repetition(plan, 1)


def test_a_plan_reads_back_equal(tmp_path):
    plan = a_plan()
    (tmp_path / PLAN_FILE).write_text(plan.model_dump_json())
    assert read_plan(tmp_path) == plan


def test_a_directory_without_a_readable_plan_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        read_plan(tmp_path)
    (tmp_path / PLAN_FILE).write_text('{"plan_version": 1')
    with pytest.raises(UserError, match="plan.json: .*launch the grid again") as raised:
        read_plan(tmp_path)
    assert "\n" not in str(raised.value)
    (tmp_path / PLAN_FILE).write_text('{"plan_version": 1, "grid": "chinchilla"}')
    with pytest.raises(UserError, match="plan.json: was written by another version: launch the grid again"):
        read_plan(tmp_path)
