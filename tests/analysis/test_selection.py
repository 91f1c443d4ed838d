import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from studies import TRUTH, isoflop_study

from analysis import FORMS, Fit, Law, fit
from scaling.errors import UserError


def frame(**settings):
    return pd.DataFrame(isoflop_study(noise=0.002, **settings))


def test_fit_takes_a_frame_a_file_and_other_names(tmp_path):
    table = frame()
    whole = fit(table)
    assert isinstance(whole, Fit) and whole.law.a == pytest.approx(TRUTH.a, abs=0.01)
    renamed = table.rename(columns={"params": "N", "tokens": "D", "loss": "L"})
    renamed.to_csv(tmp_path / "runs.csv", index=False)
    text = "params=N,tokens=D,loss=L"
    for source in (renamed, tmp_path / "runs.csv", str(tmp_path / "runs.csv")):
        assert fit(source, columns=text).law.a == pytest.approx(whole.law.a, abs=1e-6)
    assert Law.from_json(whole.law.to_json()) == whole.law


@pytest.mark.parametrize("form", [form for form in FORMS.values() if form.inputs == ("params", "tokens")])
def test_every_form_of_size_and_data_fits_a_frame(form):
    power = {"learning_rate": lambda rows: 2.0 * rows.params**-0.5 * rows.tokens**0.2}
    table = frame().assign(**power, batch_size=lambda rows: 3.0 * rows.params**0.1 * rows.tokens**0.5)
    fitted = fit(table, form)
    assert fitted.settings["form"] == form.name and fitted.r_squared_log_loss > 0.9
    with pytest.raises(AttributeError):
        fitted.objective = 0.0


def test_nothing_is_left_out_unasked():
    table = frame()
    table.loc[3, "loss"] *= 1.5
    table = pd.concat([table, table[5:7]])
    fitted = fit(table)
    assert fitted.n_points == 44
    assert fitted.settings["outlier_run_ids"] == [] and fitted.settings["n_duplicates"] == 0


def test_outlier_rules_name_the_rows_they_leave_out():
    table = frame()
    table.loc[3, "loss"] *= 1.5
    highest = fit(table, outliers="highest:2")
    assert highest.n_points == 40 and "row 4" in highest.settings["outlier_run_ids"]
    residual = fit(table, outliers="residual:8")
    assert residual.settings["outlier_run_ids"] == ["row 4"] and residual.settings["outliers"] == "residual:8"
    assert fit(table, outliers="lowest:0.5").n_points == 21


def test_duplicates_are_kept_dropped_or_averaged():
    table = frame()
    copies = pd.concat([table, table[:4], table[:4].assign(loss=lambda rows: rows.loss * 1.02)])
    assert [fit(copies, duplicates=rule).n_points for rule in ("keep", "drop", "mean")] == [50, 46, 42]
    seeds = pd.concat([table.assign(loss=table.loss * 1.01), table.assign(loss=table.loss / 1.01)])
    assert fit(seeds, duplicates="mean").law.a == pytest.approx(fit(table).law.a, abs=1e-6)


def test_weights_pull_the_fit_to_the_heavier_rows():
    table = frame()
    table["weight"] = np.where(table.flops_budget > 1e12, 1.0, 1e-6)
    heavy = fit(table, weights="column", loss="log")
    alone = fit(table[table.flops_budget > 1e12], loss="log")
    assert heavy.law.loss(1e5, 1e7) == pytest.approx(alone.law.loss(1e5, 1e7), rel=1e-4)
    assert fit(table, weights="flops").law != fit(table, weights="sqrt_flops").law


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"duplicates": "merge"}, "duplicates = 'merge'"),
        ({"outliers": "worst"}, "outliers = 'worst'"),
        ({"outliers": "highest:1.5"}, "highest:K"),
        ({"outliers": "highest:40"}, "2 rows are left"),
        ({"weights": "heavy"}, "weights = 'heavy'"),
        ({"weights": "column"}, "no column for weight"),
        ({"form": "repeated"}, "no column 'unique_tokens'"),
        ({"form": "quadratic"}, "form = 'quadratic'"),
    ],
)
def test_a_bad_setting_is_one_clear_error(settings, message):
    with pytest.raises(UserError, match=message):
        fit(frame(), **settings)


def test_too_few_rows_for_the_form():
    table = frame().iloc[::7]
    with pytest.raises(UserError, match="6 finished runs; a fit needs at least 7"):
        fit(table, "gamma")


def test_the_package_offers_its_names_without_importing_anything_heavy():
    code = (
        "import sys, analysis; before = set(sys.modules); from analysis import fit, Law; import analysis.study; "
        "from analysis import fit as again; assert fit is again and callable(fit); "
        "print('numpy' in before, sorted({'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split(maxsplit=1) == ["False", "[]\n"]
    with pytest.raises(ImportError, match="fitt"):
        from analysis import fitt  # noqa: F401
