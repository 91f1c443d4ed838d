"""Whether the runs determine the law: parameters whose profile likelihood is flat, and rival optima of the fit.

A parameter is flat over a decade when values a factor ten apart all fit within the noise (profile likelihood, 90 %).
That asks for little: an exponent from 0.1 to 1 is anything from almost a second constant to a term that only the
smallest runs feel. A and B are judged where the runs are, as the term's share of the loss at their mean ln N and ln D:
in their own units they span decades with the third digit of their exponents, and mean nothing by themselves.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.delta import Covariance, covariance, student_quantile
from analysis.estimator import Fit, fit_law
from analysis.findings import Code, Finding
from analysis.profile import profile
from analysis.quantity import Quantity, optimum_params
from analysis.surface import Surface

_FLAT_DECADES = 1.0
#: Residuals of ln L below are rounding: rows without noise determine everything.
_EXACT = 1e-9
_LEVEL = 0.9
#: Standard error of a logarithm (delta method) below which no profile is needed: a fortieth of a decade.
_SURE = 0.06
#: Fits on each profile: where it crosses the threshold is wanted to a few percent only.
_POINTS = 8
#: Starts that look for rival optima; a fit itself needs fewer, all of which usually end in one place.
_NUM_STARTS = 24
#: Optima are rivals when N* of one is this much larger than that of the other (in ln): public surfaces are not known
#: better one budget ahead.
_RIVAL = 0.1


def identifiability_findings(
    fit: Fit, inputs: Sequence[np.ndarray], target: np.ndarray, weights: np.ndarray
) -> list[Finding]:
    """UNIDENTIFIED and MULTIMODAL, for a law of the loss; rows as `fit` had them.

    Laws of downstream error, learning rate and batch size have parameters of either sign, of which no decade can be
    said, and are left out.
    """
    if fit.law.target != "loss" or len(target) <= len(fit.coordinates):
        return []
    if np.abs(np.log(fit.law.predict(*inputs) / target)).max() < _EXACT:
        return []
    around = covariance(inputs, target, fit, weights)
    flat = _flat(fit, inputs, target, weights, around)
    return flat + (_rivals(fit, inputs, target, weights, around) if isinstance(fit.law, Surface) else [])


def _flat(
    fit: Fit, inputs: Sequence[np.ndarray], target: np.ndarray, weights: np.ndarray, around: Covariance
) -> list[Finding]:
    bound = fit.law.at_bound(*inputs)  # these are said to be at their limit, which is more
    flat = {}
    for name, quantity in _judged(fit, inputs, around.centre).items():
        if name in bound or name in fit.estimator.held:
            continue
        with np.errstate(invalid="ignore"):
            error = around.standard_error(quantity)
        if error < _SURE:
            continue
        if np.isnan(error):  # a direction without curvature: no profile can be begun
            flat[name] = {"low": 0.0, "high": np.inf, "decades": np.inf}
            continue
        found = profile(inputs, target, fit, quantity, weights, level=_LEVEL, points=_POINTS)
        if found.decades >= _FLAT_DECADES:
            flat[name] = {"low": found.low, "high": found.high, "decades": found.decades}
    if not flat:
        return []
    shown = ", ".join(f"{name} ({_width(ends['decades'])})" for name, ends in flat.items())
    return [
        Finding(
            Code.UNIDENTIFIED,
            f"the runs fit about equally well over a decade or more of {shown}: their profile likelihood is flat",
            "widen the range of params and tokens, independently of each other; or hold a parameter at a value that "
            "is known (--hold), or use a form with fewer",
            {"parameters": flat, "level": _LEVEL},
        )
    ]


def _width(decades: float) -> str:
    return f"{decades:.1f} decades" if np.isfinite(decades) else "open to one side"


def _judged(fit: Fit, inputs: Sequence[np.ndarray], centre: np.ndarray) -> dict[str, Quantity]:
    """Every parameter, coefficients at the centre of the runs; and of a surface N* at the most compute measured."""

    def coordinate(index: int, name: str) -> Quantity:
        return Quantity(name, lambda law: np.exp(law.coordinates(centre)[..., index]))

    judged = {name: coordinate(index, name) for index, name in enumerate(fit.law.parameters())}
    if isinstance(fit.law, Surface):
        judged["N*"] = optimum_params(_most_compute(inputs))
    return judged


def _most_compute(inputs: Sequence[np.ndarray]) -> float:
    return float((6.0 * inputs[0] * inputs[1]).max())


def _rivals(
    fit: Fit, inputs: Sequence[np.ndarray], target: np.ndarray, weights: np.ndarray, around: Covariance
) -> list[Finding]:
    """Optima of a surface's objective that the noise cannot tell from the best, and that want another N*."""
    flops = _most_compute(inputs)
    searched = fit_law(inputs, target, replace(fit.estimator, num_starts=_NUM_STARTS), weights)
    # Deviance: twice the rise of the objective, in units of the noise, as in `analysis.profile`.
    scale = np.trace(around.bread) / abs(np.trace(around.matrix))
    rise = 2 * (searched.optima_objectives - fit.objective) * scale
    reached = rise <= student_quantile(_LEVEL, around.degrees) ** 2
    if not reached.any():
        return []
    laws = fit.law.from_coordinates(searched.optima[reached], around.centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.append(laws.optimum(flops).params, fit.law.optimum(flops).params)
        apart = np.ptp(np.log(sizes))
    if not apart > _RIVAL:
        return []
    low, high = float(sizes.min()), float(sizes.max())
    return [
        Finding(
            Code.MULTIMODAL,
            f"the fit has several optima that the noise cannot tell apart, with N* from {low:.3g} to {high:.3g} at the "
            f"largest compute measured ({flops:.2e} FLOPs)",
            "add runs that separate size from data, raise delta, or use --loss log, whose objective is smoother",
            {"flops": flops, "params_low": low, "params_high": high, "num_starts": searched.num_starts},
        )
    ]
