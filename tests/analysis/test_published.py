"""Results of the literature, made again from the published tables."""

import numpy as np
import pytest
from references import FOLDER, numbers, published, rows_of

from analysis.downstream import ChainedLaw, ExponentialErrorLaw
from analysis.estimator import Estimator, fit_law
from analysis.frontier import Minimum, fit_frontier
from analysis.hyperparameters import HyperparameterRuns, fit_step_law
from analysis.repeated import RepeatedDataLaw
from analysis.surfaces import TiedLaw

needs_tables = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"NOT CHECKED against published values: {FOLDER} is absent"
)

# Gadre et al. 2024 fit four small models at 20 tokens per parameter and the smallest at 320; their top-1 error law has
# one model of 1.4 B parameters more. Targets: that model over-trained, and one of 6.9 B.
GADRE = {"rpj": "gadre_rpj", "c4": "gadre_c4_original", "rw": "gadre_rw_original"}


def gadre(corpus):
    rows = rows_of("gadre_overtraining.csv", experiment=GADRE[corpus])
    params, tokens, loss, ratio, error = numbers(
        rows, "params_N", "tokens_D", "loss_c4_val", "token_mult_M", "err_avg17"
    )
    fitted = (params < 1e9) & (ratio == 20) | (params < 2e7) & (ratio == 320)
    return params, tokens, loss, ratio, error, fitted


@pytest.mark.parametrize("entry", [p for p in published("gadre_c4_val_loss") if p.id not in ("form", "reproduced")])
def test_over_training_laws_of_gadre(entry):
    corpus, expected = entry
    params, tokens, loss, ratio, _, fitted = gadre(corpus)
    law = fit_law((params[fitted], tokens[fitted]), loss[fitted], Estimator(form=TiedLaw, loss="linear")).law
    assert law.A == pytest.approx(expected["alpha"], abs=0.06)
    assert law.B * 6 ** (law.alpha / 2) == pytest.approx(expected["beta"], abs=0.06)
    assert (law.alpha, law.E) == pytest.approx((-expected["b"], expected["E"]), abs=5e-4)
    misses = 100 * np.abs(law.loss(params, tokens) / loss - 1)
    assert misses[params > 6e9] == pytest.approx([expected["err_7b_M20_pct"]], abs=6e-3)
    if corpus == "rpj":
        assert misses[(params > 1e9) & (ratio == 640)] == pytest.approx([expected["err_1b_M640_pct"]], abs=1e-3)


@needs_tables
def test_chained_top_1_error_of_gadre():
    params, tokens, loss, ratio, error, fitted = gadre("rpj")
    surface = fit_law((params[fitted], tokens[fitted]), loss[fitted], Estimator(form=TiedLaw, loss="linear")).law
    more = fitted | (params > 1e9) & (params < 2e9) & (ratio == 20)
    law = fit_law((loss[more],), error[more], Estimator(form=ExponentialErrorLaw, loss="linear")).law
    assert (law.k, law.gamma, law.epsilon) == pytest.approx((2.2065, 0.7146, 0.8570), abs=1e-4)
    chained = ChainedLaw(surface, law)
    misses = 100 * np.abs(chained.error(params, tokens) / error - 1)
    assert misses[(params > 1e9) & (ratio == 640)] == pytest.approx([3.6365], abs=1e-3)
    assert misses[params > 6e9] == pytest.approx([0.0464], abs=1e-3)


#: The surface that Muennighoff et al. 2023 hold fixed, and their two constants.
DATABLATIONS = {
    **{"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974)},
    **{"alpha": 0.3526596, "beta": 0.3526596},
}
DECAY = {"R_D": 15.387756, "R_N": 5.309743}


@needs_tables
def test_repeated_data_of_muennighoff():
    rows = rows_of("datablations.csv", experiment="datablations_paper182")
    *inputs, loss = numbers(rows, "params_N", "tokens_D", "unique_tokens_U", "loss")
    theirs = RepeatedDataLaw(**DATABLATIONS, **DECAY)
    residual = np.abs(np.log(theirs.loss(*inputs)) - np.log(loss))
    objective = np.where(residual < 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum()
    assert objective == pytest.approx(0.01582594, abs=5e-9)
    # Theirs is a local optimum: repeats that lose next to nothing fit these runs better.
    ours = fit_law(inputs, loss, Estimator(form=RepeatedDataLaw, held=DATABLATIONS))
    assert ours.objective < 0.015805 and 47 < ours.law.R_D < 100
    joint = fit_law(inputs, loss, Estimator(form=RepeatedDataLaw))
    assert joint.objective <= 0.006566 * (1 + 1e-6)
    # No size beyond U_N is worth less here, so R_N runs away, and says so; R_D does not.
    assert joint.law.R_N > 1e6 and joint.law.at_bound(*inputs) == ["R_N"]


@pytest.mark.parametrize("entry", published("nanochat_slopes")[-1:])
def test_exponents_of_nanochat(entry):
    names = {"kaplan_style": "kaplan_transformer+lm_head", "all_params": "chinchilla_all_params"}
    for name, expected in entry[1].items():
        rows = rows_of("nanochat_isoflop_optima.csv", experiment=f"nanochat_isoflop_optima_{names.get(name, name)}")
        columns = numbers(rows, "flops_C", "params_N", "tokens_D", "loss")
        frontier = fit_frontier([Minimum(*row, True) for row in zip(*columns, strict=True)])
        assert (frontier.a, frontier.b) == pytest.approx(expected, abs=1e-3)


@needs_tables
def test_step_law_of_li():
    columns = numbers(rows_of("scalebench_lr_bsz.csv"), "params_N", "tokens_D", "lr", "bsz", "loss")
    columns[3] *= 2048  # sequences to tokens
    law = fit_step_law(HyperparameterRuns(*columns))
    assert list(law.learning_rate.parameters().values()) == pytest.approx([1.674, -0.710, 0.308], abs=1e-3)
    assert list(law.batch_size.parameters().values()) == pytest.approx([0.587, 0.570], abs=1e-3)
    assert law.num_groups == 42


@needs_tables
def test_prediction_of_the_olmo_ladder():
    rows = [row for row in rows_of("olmo_ladder.csv", experiment="olmo_ladder") if float(row["params_N"]) < 1.5e9]
    rows = [row for row in rows if "rerun" not in row["run"] and "0.5xC" not in row["run"]]
    params, tokens, loss = numbers(rows, "params_N", "tokens_D", "loss")
    (target,) = [row for row in rows_of("olmo_ladder.csv") if row["run"].startswith("13B")]
    law = fit_law((params, tokens), loss).law
    assert law.loss(float(target["params_N"]), float(target["tokens_D"])) == pytest.approx(2.344, abs=1e-3)
