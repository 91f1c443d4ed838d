import statistics

import pytest

from analysis.cost.devices import require_device
from analysis.cost.run_utilisation import (
    COEFFICIENTS,
    SPREAD,
    RunFacts,
    fitted,
    held_out_predictions,
    published_runs,
    run_gpu_hours,
    run_utilisation,
    unlike_published,
)
from scaling.errors import UserError

#: The runs that other cost models are held against (models of which totals are quoted everywhere).
WELL_KNOWN = {
    *("GPT-3", "BLOOM", "GLM", "LLaMA", "Llama 2", "Llama 3", "Llama 4", "Falcon", "Pythia", "TinyLlama"),
    *("Phi-4", "Nemotron-4", "DeepSeek-V2", "DeepSeek-V3", "nanoGPT", "llm.c", "FMS"),
}
A100, H100 = require_device("A100 SXM 80GB"), require_device("H100 SXM")


def median_error(predict):
    return statistics.median(abs(run.utilisation / predict(run) - 1) for run in published_runs())


def test_held_out_families_are_predicted_better_than_by_constants():
    held_out = held_out_predictions()
    model = median_error(lambda run: held_out[run.model].value)
    constant = median_error(lambda run: 0.4)
    family_median = median_error(
        lambda run: statistics.median(other.utilisation for other in published_runs() if other.family != run.family)
    )
    assert constant == pytest.approx(0.342, abs=0.005)
    assert family_median == pytest.approx(0.311, abs=0.005)
    assert model < 0.19
    well_known = [run for run in published_runs() if run.family in WELL_KNOWN]
    errors = [abs(run.utilisation / held_out[run.model].value - 1) for run in well_known]
    assert len(well_known) > 30 and statistics.median(errors) < 0.15


def test_the_coefficients_are_those_of_the_table():
    coefficients, spread = fitted()
    assert COEFFICIENTS == pytest.approx(coefficients, abs=1e-4), "write these down: " + repr(coefficients)
    assert SPREAD == pytest.approx(spread, abs=1e-3)


def test_the_interval_holds_nine_of_ten_held_out_runs():
    held_out = held_out_predictions()
    inside = [held_out[run.model].low <= run.utilisation <= held_out[run.model].high for run in published_runs()]
    assert 0.85 <= statistics.mean(inside) <= 0.95


def test_every_published_run_is_possible_and_sourced():
    runs = published_runs()
    assert len(runs) >= 80 and len({run.model for run in runs}) == len(runs)
    assert len({run.family for run in runs}) > 40
    for run in runs:
        assert 0.05 < run.utilisation < 0.7, run.model
        assert run.source


def test_hours_are_the_authors():
    hours = {run.model: run.gpu_hours for run in published_runs()}
    assert hours["LLaMA-65B"] == 1_022_362
    assert hours["BLOOM-176B"] == 1_082_990
    assert hours["DeepSeek-V3"] == 2_664_000
    assert hours["Llama 3.1 405B"] == 30_840_000


def test_gpu_hours_are_flops_over_utilised_peak():
    facts = RunFacts(params=7e9, tokens=2e12, device=A100)
    hours, share = run_gpu_hours(facts), run_utilisation(facts)
    assert hours.value == pytest.approx(6 * 7e9 * 2e12 / (312e12 * share.value) / 3600)
    assert hours.low == pytest.approx(hours.value * share.value / share.high)
    assert hours.low < 184_320 < hours.high  # Llama 2 7B


def test_what_lowers_utilisation():
    def share(**changes):
        facts = {"params": 7e9, "tokens": 2e12, "device": A100} | changes
        return run_utilisation(RunFacts(**facts)).value

    assert share(device=H100) < share()
    assert share(params=1e9) < share()
    assert share(active_params=1e9) < share()
    assert share(year=2021.5) < share()
    assert share(year=2024.0) == share()


def test_tiny_and_huge_models_are_held_at_what_was_seen():
    tiny, small = (run_utilisation(RunFacts(params=size, tokens=2e12, device=A100)).value for size in (1e6, 1.35e8))
    assert tiny == pytest.approx(small, rel=0.01)
    assert 0.3 < run_utilisation(RunFacts(params=7e9, tokens=2e12, device=A100)).value < 0.4


def test_runs_unlike_the_published_ones_are_named():
    assert unlike_published(RunFacts(params=7e9, tokens=2e12, device=H100)) == []
    (chip,) = unlike_published(RunFacts(params=7e9, tokens=2e12, device=require_device("B200")))
    assert chip.startswith("no published run on B200 SXM 180GB is known")
    (chip,) = unlike_published(RunFacts(params=7e9, tokens=2e12, device=require_device("A10")))  # the peak of a V100
    assert chip.startswith("no published run on A10 is known")
    for variant in ("A100 PCIe 80GB", "A100 SXM 40GB", "H100 NVL", "V100 PCIe 16GB"):
        assert unlike_published(RunFacts(params=7e9, tokens=2e12, device=require_device(variant))) == [], variant
    (small,) = unlike_published(RunFacts(params=1e6, tokens=2e7, device=H100))
    assert "outside of the published runs'" in small


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": -1}, "tokens = -1: must be a number greater than 0"),
        ({"params": float("nan")}, "params = nan: must be a number"),
        ({"active_params": 8e9}, "active_params = 8e+09: must be at most params, 7e\\+09"),
    ],
)
def test_impossible_facts_are_refused(changes, message):
    with pytest.raises(UserError) as error:
        RunFacts(**({"params": 7e9, "tokens": 1e12, "device": A100} | changes))
    assert message.replace("\\", "") in str(error.value)
