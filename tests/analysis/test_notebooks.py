import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from analysis import Law
from analysis.published import SURFACES
from analysis.surfaces import GammaLaw

FOLDER = Path(__file__).parents[2] / "analysis" / "notebooks"
NAMES = ("fit_your_table", "replicate_chinchilla", "compare_forms", "plan_the_next_runs")


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """The kernel neither reads nor writes the settings and the history of whoever runs the tests."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def execute(name, folder, **settings):
    """Run a notebook in `folder` beside its tables, settings changed; its JSON file is returned.

    Raises CellExecutionError when a cell does.
    """
    for table in FOLDER.glob("*.csv"):
        shutil.copy(table, folder)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    chosen = next(cell for cell in notebook.cells if cell.id == "settings")
    chosen.source += "".join(f"\n{key} = {value!r}" for key, value in settings.items())
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    figures = {path.suffix for path in (folder / name).iterdir() if path.stat().st_size > 5000}
    assert {".svg", ".pdf"} <= figures
    (written,) = (folder / name).glob("*.json")
    return json.loads(written.read_text())


def test_every_notebook_is_stored_valid_and_without_outputs():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)
    for name in NAMES:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        assert any("TABLE = " in cell.source for cell in code if cell.id == "settings")


def test_the_laptop_sweep_gives_its_law_and_a_prediction(tmp_path):
    law = execute("fit_your_table", tmp_path, RESAMPLES=50)
    assert law["n_points"] == 35 and law["excluded"] == []
    assert 0.35 < law["exponents"]["a"] < 0.5
    (prediction,) = law["predictions"]
    assert prediction["loss"]["low"] < prediction["loss"]["value"] < prediction["loss"]["high"]
    assert float(Law.from_dict(law).optimum(1e13).loss) == pytest.approx(prediction["loss"]["value"], rel=0.05)


def test_a_table_of_ones_own_that_is_not_there_stops_the_notebook_with_the_reason(tmp_path):
    with pytest.raises(CellExecutionError, match=r"absent\.csv: cannot be read"):
        execute("fit_your_table", tmp_path, TABLE="absent.csv")


def test_the_chinchilla_notebook_finds_the_law_that_its_table_is_drawn_from(tmp_path):
    found = execute("replicate_chinchilla", tmp_path, RESAMPLES=100)
    truth = SURFACES["Epoch (Besiroglu et al. 2024)"]
    for name in ("E", "alpha", "beta"):
        assert abs(found["parameters"][name] - getattr(truth, name)) < 3 * found["standard_errors"][name]
        assert found["parameters"][name] == pytest.approx(getattr(truth, name), rel=0.05)
    low, high = found["params"]["95_percent"]
    assert low < truth.optimum(5.76e23).params < high
    assert "simulated" in found["table"]


def test_the_chinchilla_notebook_reads_a_table_of_the_columns_that_epoch_has(tmp_path):
    truth = SURFACES["Hoffmann et al. 2022"]
    lines = ["Model Size,Training FLOP,loss"]
    for flops in (1e18, 1e19, 1e20, 1e21):
        for params in (1e8, 3e8, 1e9, 3e9):
            lines.append(f"{params},{flops},{float(truth.loss(params, flops / 6 / params))}")
    (tmp_path / "digitised.csv").write_text("\n".join(lines) + "\n")
    found = execute("replicate_chinchilla", tmp_path, TABLE="digitised.csv", OUTLIERS="none", RESAMPLES=20)
    assert found["parameters"] == pytest.approx(truth.parameters(), rel=1e-3)
    assert found["share_of_compute_wasted_by_hoffmanns_choice"] == pytest.approx(0, abs=1e-6)


def test_the_backtest_turns_down_the_form_that_cannot_follow_and_predicts_the_truth(tmp_path):
    found = execute("compare_forms", tmp_path)
    errors = found["loss_errors_percent"]
    assert found["surface"] == "gamma" and errors["chinchilla"] > 2 * errors["gamma"]
    truth = GammaLaw(E=1.8, A=6000.0, B=20000.0, alpha=0.5, beta=0.5, gamma=0.6).optimum(1e22)
    for name in ("params", "loss"):
        low, high = found["prediction"][name]["interval"]
        assert low < getattr(truth, name) < high


def test_the_plan_keeps_to_its_dollars_and_comes_near_the_true_optimum(tmp_path):
    plan = execute("plan_the_next_runs", tmp_path, RESAMPLES=50)
    models = plan["decision"]["models"]
    assert models["dollar_optimal"]["usd_lifetime"]["value"] == pytest.approx(50_000, rel=1e-3)
    assert models["dollar_optimal"]["params"]["value"] < models["loss_optimal"]["params"]["value"]
    best = models["loss_optimal"]
    truth = SURFACES["Epoch (Besiroglu et al. 2024)"].optimum(best["flops"]["value"])
    assert best["params"]["value"] == pytest.approx(float(truth.params), rel=0.2)
    spent = [step["spent"] for step in plan["design"]["buys"]]
    assert 1500 < spent[-1] <= 2000
    assert plan["design"]["buys"][-1]["sd_ln_loss"] < plan["design"]["buys"][0]["sd_ln_loss"]
