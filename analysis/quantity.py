"""What intervals are given for: numbers that follow from a law, such as N*(C), its exponents, or wasted dollars.

A and B are not worth an interval: they correlate at 0.999 with the exponents. The optimum, the loss it reaches and
what a wrong choice costs are what a decision needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.surface import Surface


@dataclass(frozen=True)
class Quantity:
    """A number of a law. `of` maps a law whose fields are [R] to [R]; `positive`: approximations are made in its log.

    name: as it is reported, with its unit.
    """

    name: str
    of: Callable[[Any], Any]
    positive: bool = True

    def scale(self, values: Any) -> np.ndarray:
        """Values where a normal approximation is good: the logarithm of what is positive."""
        values = np.asarray(values, np.float64)
        if not self.positive:
            return values
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(values)

    def unscale(self, values: Any) -> np.ndarray:
        """The opposite of `scale`."""
        with np.errstate(over="ignore"):
            return np.exp(values) if self.positive else np.asarray(values, np.float64)


def parameter(name: str) -> Quantity:
    """A parameter of the law, or a property such as the exponents a and b of N* ~ C^a and D* ~ C^b."""
    return Quantity(name, lambda law: getattr(law, name))


def optimum_params(flops: float) -> Quantity:
    """N*(C): the parameters with the lowest loss at `flops` = 6ND."""
    return Quantity(f"params at {flops:.3g} FLOPs", lambda law: law.optimum(flops).params)


def optimum_tokens(flops: float) -> Quantity:
    """D*(C): the tokens with the lowest loss at `flops` = 6ND."""
    return Quantity(f"tokens at {flops:.3g} FLOPs", lambda law: law.optimum(flops).tokens)


def optimum_loss(flops: float) -> Quantity:
    """L*(C): the lowest loss at `flops` = 6ND, nats per token."""
    return Quantity(f"loss at {flops:.3g} FLOPs", lambda law: law.optimum(flops).loss)


def tokens_per_param(flops: float) -> Quantity:
    """D*/N* at `flops` = 6ND."""

    def ratio(law: Surface) -> np.ndarray:
        best = law.optimum(flops)
        with np.errstate(all="ignore"):  # where the form has degenerated, the optimum is zero, inf or nan
            return best.tokens / best.params

    return Quantity(f"tokens per parameter at {flops:.3g} FLOPs", ratio)


def wasted_share(law: Surface, params: Any, tokens: Any) -> np.ndarray:
    """Share of C = 6ND that the best split would not have needed for the loss that (N, D) reaches: deadweight.

    With s = A/N^alpha + B/D^beta, s*(C) ~ C^-p and p = alpha beta / (alpha + beta) at the optimum, the best split
    reaches the same loss with C' = C (s / s*(C))^(-1/p); the share is 1 - C'/C. E and an outer exponent drop out.
    Arguments and the law's parameters broadcast. 0 at the optimum, nan where the law has none.
    """
    params, tokens = np.asarray(params, np.float64), np.asarray(tokens, np.float64)
    with np.errstate(all="ignore"):
        terms = law.terms()
        best = law.optimum(6.0 * params * tokens)

        def log_sum(log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
            return np.logaddexp(terms.log_a - terms.alpha * log_n, terms.log_b - terms.beta * log_d)

        excess = log_sum(np.log(params), np.log(tokens)) - log_sum(np.log(best.params), np.log(best.tokens))
        return -np.expm1(-np.maximum(excess, 0.0) * (1 / terms.alpha + 1 / terms.beta))


def wasted_flops(params: float, tokens: float) -> Quantity:
    """FLOPs wasted by training N = `params` on D = `tokens` instead of the best split: see `wasted_share`."""
    flops = 6.0 * params * tokens
    return Quantity("wasted FLOPs", lambda law: flops * wasted_share(law, params, tokens), positive=False)


def wasted_usd(params: float, tokens: float, usd_per_flop: float) -> Quantity:
    """The same in dollars. usd_per_flop: dollars per hour / (peak FLOP/s x utilisation x 3600)."""
    usd = 6.0 * params * tokens * usd_per_flop
    return Quantity("wasted USD", lambda law: usd * wasted_share(law, params, tokens), positive=False)
