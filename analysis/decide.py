"""Which model to train: the loss-, the time- and the dollar-optimal one of a budget, and the price of others.

A budget buys a loss; these are the models that reach that loss with the fewest FLOPs, in the least device time, and
for the fewest dollars when tokens served count too (Sardana et al. 2024, arXiv 2401.00448: training costs 6ND FLOPs,
serving T tokens 2NT). FLOPs are 6ND, hours are device-hours of training at the measured speed.

In ln N the logarithm of each cost at a given loss, and the loss at a given cost, are convex as long as utilisation is
a power of N that stops growing (`analysis.cost.speed_curve`), so a golden-section search finds the optimum, for the
estimate and all its resamples at once: every array here is [m] with the estimate first and the resamples after it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from analysis.cost.speed_curve import SpeedCurve
from analysis.law import Law
from analysis.surface import Surface
from scaling.errors import UserError

BUDGETS = ("flops", "gpu_hours", "usd", "loss")
#: Sizes of the models whose price is given, relative to the loss-optimal one.
SIZES = (0.125, 0.25, 0.5, 2.0)
#: Half the bracket of ln N around the loss-optimal size.
_REACH = math.log(1e5)
_GOLDEN = (math.sqrt(5) - 1) / 2
_SEARCH_STEPS = 70
_SECONDS = 3600.0


@dataclass(frozen=True)
class Costs:
    """What FLOPs cost: a device's speed, the price of its hour in US dollars, and tokens to serve after training.

    Serving is taken to run at the speed of training. None where it is not known.
    """

    speed: SpeedCurve | None = None
    usd_per_hour: float | None = None
    inference_tokens: float = 0.0

    def hours(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Device-hours of training."""
        return 6.0 * params * tokens / self._flops_per_hour(params)

    def lifetime_hours(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Device-hours of training and serving."""
        return self.hours(params, tokens) + 2.0 * params * self.inference_tokens / self._flops_per_hour(params)

    def tokens_for(self, hours: np.ndarray, params: np.ndarray, inference_tokens: float) -> np.ndarray:
        """Training tokens that device-hours pay for, serving deducted; negative when they do not pay for that."""
        return (hours * self._flops_per_hour(params) - 2.0 * params * inference_tokens) / (6.0 * params)

    def _flops_per_hour(self, params: np.ndarray) -> np.ndarray:
        return _SECONDS * self.speed.flops_per_second(params)


def stack_laws(law: Surface, samples: Surface | None) -> Surface:
    """The estimate and its resamples (fields [R], or None for none) as one law with fields [1 + R]."""
    if samples is None:
        return type(law)(*(np.atleast_1d(np.float64(getattr(law, f.name))) for f in fields(law)))
    return type(law)(*(np.concatenate([[getattr(law, f.name)], getattr(samples, f.name)]) for f in fields(law)))


def tokens_to_reach(laws: Surface, loss: Any, params: Any) -> np.ndarray:
    """D at which a model of N = `params` reaches `loss`; infinite when no number of tokens does."""
    terms = laws.terms()
    with np.errstate(all="ignore"):
        inner = (np.asarray(loss) - np.exp(terms.log_e)) ** (1 / terms.gamma)
        left = inner - np.exp(terms.log_a - terms.alpha * np.log(params))
        return np.where(left > 0, np.exp((terms.log_b - np.log(left)) / terms.beta), np.inf)


def cheapest_params(laws: Surface, loss: Any) -> np.ndarray:
    """N of the model that reaches `loss` with the fewest FLOPs, nan where none does.

    Of (L - E)^(1/gamma) the share beta / (alpha + beta) falls to size: the closed form of Hoffmann et al. 2022,
    equation 4, solved for the loss.
    """
    terms = laws.terms()
    with np.errstate(all="ignore"):
        share = terms.beta / (terms.alpha + terms.beta)
        inner = (np.asarray(loss) - np.exp(terms.log_e)) ** (1 / terms.gamma)
        return np.exp((terms.log_a - np.log(share * inner)) / terms.alpha)


def decide(
    law: Law,
    kind: str,
    amount: float,
    costs: Costs = Costs(),
    samples: Law | None = None,
    level: float = 0.9,
    sizes: Sequence[float] = SIZES,
) -> dict[str, Any]:
    """The decision for a budget, as plain numbers; {"value", "low", "high"} wherever the resamples tell.

    kind: one of BUDGETS; amount: FLOPs, device-hours of training, dollars of training and serving, or nats per token.
    samples: the law's bootstrap resamples (fields [R]); a speed then has [1 + R] as well, or one number for all.
    sizes: relative to the loss-optimal model, each with what it costs to choose it.

    Returns {"budget", "loss", "models", "sizes", "wasted"}; hours and dollars are None where costs does not know them.
    Raises UserError for a law without a surface, an amount that cannot be, and a budget whose price is not known.
    """
    if not isinstance(law, Surface):
        raise UserError(f"form = {law.form}: a decision weighs N against D: fit a surface, such as chinchilla or gamma")
    _check_budget(law, kind, amount, costs)
    laws = stack_laws(law, samples)
    loss = _loss_bought(laws, kind, amount, costs)
    if not np.isfinite(loss[0]):
        raise UserError(f"{kind} = {amount:g}: does not pay for any training here: raise it, or serve fewer tokens")
    best = cheapest_params(laws, loss)
    chosen = {"loss_optimal": best}
    if costs.speed is not None:
        chosen["time_optimal"] = _cheapest(laws, loss, costs.hours)
        chosen["dollar_optimal"] = (
            _cheapest(laws, loss, costs.lifetime_hours) if costs.inference_tokens else chosen["time_optimal"]
        )
    summary = _Summary(level)
    models = {name: _model(laws, params, loss, costs, summary, best) for name, params in chosen.items()}
    return {
        "budget": {"kind": kind, "amount": amount},
        "loss": summary(loss),
        "models": models,
        "sizes": [_otherwise(laws, loss, best, size, costs, summary) for size in sizes],
        "wasted": _wasted(laws, loss, best, costs, level),
    }


def _check_budget(law: Surface, kind: str, amount: float, costs: Costs) -> None:
    if not 0 < amount < math.inf:
        raise UserError(f"{kind} = {amount:g}: must be a number above zero")
    if kind in ("gpu_hours", "usd") and costs.speed is None:
        raise UserError(f"{kind} = {amount:g}: needs to know how fast models train: give speeds, or a device and mfu")
    if kind == "usd" and not costs.usd_per_hour:
        raise UserError(f"usd = {amount:g}: the price of a device-hour is not known: give yours with --price")
    if costs.inference_tokens and costs.speed is None:
        raise UserError("inference_tokens: serving is priced in device-hours: give speeds, or a device and mfu")
    floor = float(np.exp(law.terms().log_e))
    if kind == "loss" and amount <= floor:
        raise UserError(f"loss = {amount:g}: the law never falls below E = {floor:.4g}: ask for a higher loss")


def _loss_bought(laws: Surface, kind: str, amount: float, costs: Costs) -> np.ndarray:
    """The lowest loss [m] that the budget reaches; inf where it buys no training."""
    flops = laws.terms().alpha * 0 + amount
    if kind == "loss":
        return flops
    if kind == "flops":
        return laws.optimum(flops).loss
    hours, served = (amount, 0.0) if kind == "gpu_hours" else (amount / costs.usd_per_hour, costs.inference_tokens)

    def loss(log_params: np.ndarray) -> np.ndarray:
        tokens = costs.tokens_for(hours, np.exp(log_params), served)
        # no training at all: large models are the ones that cannot be served, so the search turns to smaller ones
        return np.where(tokens > 0, laws.loss(np.exp(log_params), np.maximum(tokens, 1e-300)), np.inf)

    with np.errstate(all="ignore"):
        rate = costs.speed.flops_per_second(costs.speed.largest or 1.0)
        scale = np.log(laws.optimum(hours * _SECONDS * rate).params)
        return loss(_golden_section(loss, scale - _REACH, scale + _REACH))


def _cheapest(laws: Surface, loss: np.ndarray, hours: Callable[..., np.ndarray]) -> np.ndarray:
    """N [m] of the model that reaches `loss` [m] in the fewest hours(N, D)."""
    terms = laws.terms()
    with np.errstate(all="ignore"):
        smallest = (terms.log_a - np.log(loss - np.exp(terms.log_e)) / terms.gamma) / terms.alpha
        middle = np.log(cheapest_params(laws, loss))

        def log_hours(log_params: np.ndarray) -> np.ndarray:
            params = np.exp(log_params)
            return np.log(hours(params, tokens_to_reach(laws, loss, params)))

        low = np.maximum(smallest, middle - _REACH)  # at `smallest` the tokens are infinite
        found = np.exp(_golden_section(log_hours, low, middle + _REACH))
        return np.where(np.isfinite(middle), found, np.nan)


def _golden_section(function: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The minima [m] of convex functions between low and high [m]; where both probes are infinite it goes left."""
    for _ in range(_SEARCH_STEPS):
        step = _GOLDEN * (high - low)
        left, right = high - step, low + step
        at_left, at_right = function(left), function(right)
        leave_right = (at_left < at_right) | (np.isposinf(at_left) & np.isposinf(at_right))
        low, high = np.where(leave_right, low, left), np.where(leave_right, right, high)
    return (low + high) / 2


@dataclass(frozen=True)
class _Summary:
    """An array [m] as its estimate with the percentile interval of its resamples."""

    level: float

    def __call__(self, values: np.ndarray) -> dict[str, float | None]:
        """{"value", "low", "high"}; infinite samples count as such, and None stands for what is not finite."""
        values = np.atleast_1d(values)
        low = high = None
        drawn = values[1:][~np.isnan(values[1:])]
        if len(drawn) and len(drawn) * 2 >= len(values) - 1:
            tail = (1 - self.level) / 2
            low, high = (np.quantile(drawn, at, method=how) for at, how in ((tail, "lower"), (1 - tail, "higher")))
        return {"value": _finite(values[0]), "low": _finite(low), "high": _finite(high)}


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


def _model(
    laws: Surface, params: np.ndarray, loss: np.ndarray, costs: Costs, summary: _Summary, best: np.ndarray
) -> dict[str, Any]:
    """One model that reaches the loss: its size, data and costs."""
    tokens = tokens_to_reach(laws, loss, params)
    flops = 6.0 * params * tokens
    return {
        "params": summary(params),
        "tokens": summary(tokens),
        "tokens_per_param": summary(tokens / params),
        "flops": summary(flops),
        "params_ratio": summary(params / best),
        **_prices(params, tokens, costs, summary),
    }


def _prices(params: np.ndarray, tokens: np.ndarray, costs: Costs, summary: _Summary) -> dict[str, Any]:
    if costs.speed is None:
        return {"device_hours": None, "usd_training": None, "usd_lifetime": None}
    hours, lifetime, price = costs.hours(params, tokens), costs.lifetime_hours(params, tokens), costs.usd_per_hour
    return {
        "device_hours": summary(hours),
        "usd_training": summary(hours * price) if price is not None else None,
        "usd_lifetime": summary(lifetime * price) if price is not None else None,
    }


def _otherwise(
    laws: Surface, loss: np.ndarray, best: np.ndarray, size: float, costs: Costs, summary: _Summary
) -> dict[str, Any]:
    """What a model of `size` times the loss-optimal estimate costs, at the same loss and at the same FLOPs.

    `pays_back_after` is the number of tokens served from which on the cheaper serving of a smaller model has repaid its
    longer training, in FLOPs, or in device time where the speed is known.
    """
    params = np.full_like(best, size * best[0])
    tokens, least = tokens_to_reach(laws, loss, params), tokens_to_reach(laws, loss, best)
    with np.errstate(all="ignore"):
        flops, least_flops = 6.0 * params * tokens, 6.0 * best * least
        at_same_flops = laws.loss(params, least_flops / (6.0 * params))
        trained, served = (flops, least_flops), (2.0 * params, 2.0 * best)
        if costs.speed is not None:
            rates = costs.speed.flops_per_second(params), costs.speed.flops_per_second(best)
            trained, served = (tuple(np.divide(pair, rates)) for pair in (trained, served))
        saved = served[1] - served[0]
        pays_back = np.where(saved > 0, np.maximum(trained[0] - trained[1], 0.0) / saved, np.nan)
        return {
            "size": size,
            "params": float(params[0]),
            "reachable": bool(np.isfinite(tokens[0])),
            "tokens": summary(tokens),
            "tokens_per_param": summary(tokens / params),
            "flops": summary(flops),
            "flops_ratio": summary(flops / least_flops),
            "loss_at_same_flops": summary(at_same_flops),
            "loss_excess_at_same_flops": summary(at_same_flops - loss),
            "pays_back_after": summary(pays_back) if size < 1 else None,
            **_prices(params, tokens, costs, summary),
        }


def _wasted(laws: Surface, loss: np.ndarray, best: np.ndarray, costs: Costs, level: float) -> dict[str, float | None]:
    """Compute wasted by training the loss-optimal estimate, if a resample is the truth: its share of the FLOPs spent.

    A run of N* and D* reaches a loss L' there, which C'(L') FLOPs would have reached at best: 1 - C'(L') / C.
    """
    params = np.full_like(best, best[0])
    tokens = np.full_like(best, tokens_to_reach(laws, loss, best)[0])
    reached = laws.loss(params, tokens)
    cheapest = cheapest_params(laws, reached)
    with np.errstate(all="ignore"):
        share = 1 - cheapest * tokens_to_reach(laws, reached, cheapest) / (params * tokens)
    drawn = np.clip(share[1:][np.isfinite(share[1:])], 0.0, 1.0)
    if not len(drawn):
        return {"share_mean": None, "share_high": None, "usd_mean": None, "usd_high": None}
    mean, high = float(drawn.mean()), float(np.quantile(drawn, (1 + level) / 2, method="higher"))
    spent = None
    if costs.speed is not None and costs.usd_per_hour is not None:
        spent = float(np.ravel(costs.hours(params, tokens))[0]) * costs.usd_per_hour
    return {
        "share_mean": mean,
        "share_high": high,
        "usd_mean": None if spent is None else mean * spent,
        "usd_high": None if spent is None else high * spent,
    }
