"""Choose between forms, or average them, by what they predicted for budgets left out: `form="auto"`.

No form is best everywhere: the reference surface is where it is true, and is 2 to 8 % off where it is not; Approach 2
through the last budgets follows any curve, and all its noise. So N* and L* are, each for itself, weighted means of the
forms' logarithms. The weights are 1/e^4, where e^2 is a form's mean squared error over the largest budgets, left out in
turn and each predicted from those below it, and over one more error: what the form got wrong on public tables (PRIOR),
so that one lucky budget does not decide. (1/e^2 would be best for independent errors; here error is bias, which does
not average out. Choosing the best form alone does as well on average, and turns on a single run.)

The interval is that of the mixture: its variance is the forms' spread about the mean plus their own squared errors,
grown in proportion to how far the target is beyond the data. N* is never known better than the sizes tried tell apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.backtest import DEPTH, Score, backtest
from analysis.delta import student_quantile
from analysis.estimator import Estimator
from analysis.forecasts import Forecast, all_recipes, budgets_of, make_forecasts, surface_recipes, with_budgets
from analysis.law import Allocation
from analysis.table import Table
from scaling.errors import UserError

#: |ln N* error|, |ln L* error| of each form at the next budget: rounded means over 17 public IsoFLOP studies. Approach
#: 2 through the last budgets alone is put level with all budgets. Forms of one's own start like the reference surface.
PRIOR: Mapping[str, tuple[float, float]] = {
    **{"chinchilla": (0.25, 0.022), "gamma": (0.2, 0.009), "tied": (0.34, 0.03), "kaplan": (0.47, 0.018)},
    **{"kaplan_floor": (0.32, 0.018), "gamma_near": (0.2, 0.0065)},
    **{"approach2": (0.17, 0.0065), "approach2_recent": (0.17, 0.0065), "approach2_akima": (0.17, 0.0065)},
}
#: Factor in compute from the data to the budgets that PRIOR is about.
_PRIOR_STEP = 3.0
#: The least error believed of a form, in ln N* and ln L*: few budgets may be met by chance.
_LEAST_ERROR = {"params": 0.03, "loss": 0.001}
#: Weights are errors to the power of minus this.
_POWER = 4


class Prediction(NamedTuple):
    """The best split of a compute budget, and intervals (low, high) of its three numbers."""

    value: Allocation
    params: tuple[float, float]
    tokens: tuple[float, float]
    loss: tuple[float, float]


#: Errors grow as steps ahead to these powers: in benchmarks/backtest.py two steps multiply those of ln N* by 1.0 to 1.5
#: and those of L* by 1.4 to 2.1, whatever the form.
_GROWTH = {"params": 0.5, "loss": 0.75}


@dataclass(frozen=True)
class Errors:
    """Of each form, the root mean square of ln(predicted/measured) at the next budget, PRIOR included.

    num: how many budgets were left out in turn. step: mean distance in ln C from the fitted to the predicted, nan for
    num = 0.
    """

    params: Mapping[str, float]
    loss: Mapping[str, float]
    num: int
    step: float


def errors_of(scores: Sequence[Score], after: int = 0) -> Errors:
    """The errors at the next budget, of the last three such scores with more than `after` budgets left out."""
    chosen = [score for score in scores if score.steps == 1 and after < score.num_held_out <= after + DEPTH]

    def rms(form: str, name: str, prior: float) -> float:
        squares = np.array([prior**2, *(getattr(score, name) ** 2 for score in chosen if score.form == form)])
        return float(np.sqrt(squares[~np.isnan(squares)].mean()))  # nan: there was no minimum to compare with

    forms = {form: PRIOR.get(form, PRIOR["chinchilla"]) for form in (*PRIOR, *(score.form for score in chosen))}
    steps = [np.log(score.held_out_flops / score.fitted_flops) for score in chosen]
    return Errors(
        params={form: rms(form, "log_params_error", prior) for form, (prior, _) in forms.items()},
        loss={form: rms(form, "loss_error", prior) for form, (_, prior) in forms.items()},
        num=len({score.num_held_out for score in chosen}),
        step=float(np.mean(steps)) if steps else float("nan"),
    )


def weights_of(errors: Mapping[str, float], least: float) -> dict[str, float]:
    """Form -> share, proportional to 1/error^4."""
    inverse = {form: (error**2 + least**2) ** (-_POWER / 2) for form, error in errors.items()}
    total = sum(inverse.values())
    return {form: value / total for form, value in inverse.items()}


def combine(
    predictions: Mapping[str, Allocation], errors: Errors, steps_ahead: float, resolution: float, level: float = 0.9
) -> Prediction:
    """The weighted mean of predictions of one budget, with its interval.

    steps_ahead: how far the target is beyond the data, in steps of the backtest; errors grow by a power of it from 1
    on.
    resolution: standard error of ln N* that the spacing of sizes alone allows. Raises UserError without predictions.
    """
    quantile = student_quantile(level, errors.num + 2)
    ahead = max(steps_ahead, 1.0)

    def mixture(error: Mapping[str, float], name: str, of: str, floor: float) -> tuple[float, float]:
        with np.errstate(divide="ignore"):
            found = {form: float(np.log(getattr(best, of))) for form, best in predictions.items()}
        known = {form: value for form, value in error.items() if np.isfinite([value, found.get(form, np.nan)]).all()}
        if not known:
            raise UserError(f"form = auto: no form predicts {of} from these runs: choose a form by name")
        weights = weights_of(known, _LEAST_ERROR[name])
        share = np.array(list(weights.values()))
        logs = np.array([found[form] for form in weights])
        own = np.maximum([known[form] * ahead ** _GROWTH[name] for form in weights], floor)
        mean = share @ logs
        return float(mean), float(quantile * np.sqrt(share @ ((logs - mean) ** 2 + own**2)))

    centres = {
        "params": mixture(errors.params, "params", "params", resolution),
        "tokens": mixture(errors.params, "params", "tokens", resolution),
        "loss": mixture(errors.loss, "loss", "loss", _LEAST_ERROR["loss"]),
    }
    value = Allocation(*(np.exp(mean) for mean, _ in centres.values()))
    with np.errstate(over="ignore"):  # far beyond budgets that lie close together an interval has no end
        ends = {name: np.exp([mean - half, mean + half]) for name, (mean, half) in centres.items()}
    bounds = {name: (float(low), float(high)) for name, (low, high) in ends.items()}
    return Prediction(value, **bounds)


def _steps(flops: float, largest: float, errors: Errors) -> float:
    """How many steps of the backtest `flops` is beyond the data; without a backtest, of PRIOR."""
    step = errors.step if errors.num else np.log(_PRIOR_STEP)
    return float(np.log(flops / largest) / step)


def size_resolution(table: Table) -> float:
    """Standard error of ln N* from the spacing of sizes d alone, d/sqrt(12), by the median budget's median spacing."""
    spacing = [np.median(np.diff(np.unique(np.log(table.params[rows])))) for _, rows in budgets_of(table)]
    return float(np.median(spacing) / np.sqrt(12.0))


@dataclass(frozen=True)
class Choice:
    """What the backtest of one table says: the surface to draw, and the average of all forms to predict with.

    surface: name of the surface with the smallest error of the loss. reason: in words. scores: the backtest table.
    forecasts: the forms fitted to every run; {} for a table without IsoFLOP budgets, which has no minima to average by.
    """

    surface: str
    reason: str
    scores: Sequence[Score]
    errors: Errors
    forecasts: Mapping[str, Forecast]
    largest_flops: float
    resolution: float

    def predict(self, flops: float, level: float = 0.9) -> Prediction:
        """N*, D*, L* at `flops`, with intervals that include model-form error. Raises UserError without forecasts."""
        predictions = {form: forecast.optimum(flops) for form, forecast in self.forecasts.items()}
        return combine(predictions, self.errors, _steps(flops, self.largest_flops, self.errors), self.resolution, level)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `choice` in law.json: the surface, the reason, and the weights of each form."""
        return {
            "surface": self.surface,
            "reason": self.reason,
            "params_weights": weights_of(self.errors.params, _LEAST_ERROR["params"]),
            "loss_weights": weights_of(self.errors.loss, _LEAST_ERROR["loss"]),
        }


def choose_form(
    table: Table, estimator: Estimator = Estimator(), scores: Sequence[Score] | None = None
) -> Choice | None:
    """The choice for a table; None with fewer than two IsoFLOP budgets and too few runs to leave any out.

    scores: the backtest of this table, when it has been made already.
    """
    scores = backtest(table, estimator) if scores is None else scores
    errors, groups = errors_of(scores), budgets_of(table)
    if errors.num == 0 and len(groups) < 2:
        return None
    best = min((form for form in surface_recipes() if form in errors.loss), key=lambda form: errors.loss[form])
    leader = min(errors.loss, key=lambda form: errors.loss[form])
    left_out = "largest budgets" if groups else "tenths of the runs with the most compute"
    used = "predictions average all forms, each weighted by 1/error^4" if groups else f"predictions are those of {best}"
    reason = (
        f"{errors.num} {left_out} were left out in turn: the next loss was off by {100 * errors.loss[leader]:.2f} % "
        f"with {leader}, {100 * errors.loss[best]:.2f} % with the best surface, {best} "
        f"(public tables count as one more); {used}"
    )
    if not groups:
        return Choice(best, reason, scores, errors, {}, float(table.flops.max()), float("nan"))
    forecasts = make_forecasts(with_budgets(table, groups), estimator, all_recipes())
    return Choice(best, reason, scores, errors, forecasts, groups[-1][0], size_resolution(table))


def average_scores(scores: Sequence[Score], resolution: float, level: float = 0.9) -> list[tuple[Score, Prediction]]:
    """How the average itself does: each budget of a backtest, weighted by what was left out deeper, never by itself.

    A backtest of depth 1 + DEPTH gives the full depth to the largest budget's; with nothing deeper PRIOR alone weighs.
    """
    done = []
    for key in dict.fromkeys((score.num_held_out, score.steps) for score in scores):
        alike = [score for score in scores if (score.num_held_out, score.steps) == key]
        errors = errors_of(scores, after=key[0])
        one = alike[0]
        predictions = {score.form: Allocation(score.params, score.tokens, score.loss) for score in alike}
        found = combine(predictions, errors, _steps(one.held_out_flops, one.fitted_flops, errors), resolution, level)
        done.append(
            (
                Score(
                    *("average", one.num_held_out, one.fitted_flops, one.held_out_flops),
                    *(float(value) for value in found.value),
                    *(one.measured_params, one.measured_loss, one.steps),
                ),
                found,
            )
        )
    return done
