"""Repeated data: what tokens are worth that were seen before, and parameters beyond what the unique tokens need."""

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np

from analysis.law import SMALLEST_SHARE, Allocation, Law
from analysis.starts import variable_projection_starts
from analysis.surfaces import ChinchillaLaw

_GOLDEN = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class RepeatedDataLaw(Law):
    """L(N, D, U) = E + A/N'^alpha + B/D'^beta, where N', D' are what N parameters and D tokens are worth.

    Muennighoff et al. 2023, section 3. U unique tokens seen D/U = 1 + r times are worth
    D' = U + U R_D (1 - exp(-r/R_D)); likewise N' from the N that is best for U tokens, U_N, and R_N. With no repetition
    and N below U_N this is the surface E + A/N^alpha + B/D^beta.
    """

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any
    R_D: Any
    R_N: Any

    form: ClassVar[str] = "E + A/N'^alpha + B/D'^beta, repeated data"
    name: ClassVar[str] = "repeated"
    source: ClassVar[str] = "Muennighoff et al. 2023, arXiv 2305.16264, section 3"
    inputs: ClassVar[tuple[str, ...]] = ("params", "tokens", "unique_tokens")
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"A", "B"})

    @property
    def surface(self) -> ChinchillaLaw:
        """The law of data that are never repeated."""
        return ChinchillaLaw(self.E, self.A, self.B, self.alpha, self.beta)

    def at_bound(self, *inputs: np.ndarray) -> list[str]:
        """As for the surface; and R_D, R_N where repeats (or excess parameters) cost these runs all or nothing.

        Beyond that any other value fits as well: nothing if what tokens are worth is all of them, everything if it is
        the unique ones alone. R_D is at a bound also when no run repeats its data, R_N when none exceeds U_N.
        """
        log_n, log_d, log_u = np.log(np.stack([np.asarray(column, np.float64) for column in inputs]))
        unique = np.minimum(log_u, log_d)
        with np.errstate(all="ignore"):  # where the surface has degenerated
            _, log_a, log_b, log_alpha, log_beta = self.surface.coordinates(np.zeros(2))
            best = _log_best_size(log_a, log_b, log_alpha, log_beta, unique)
            decided = {"R_D": _decided(unique, log_d, self.R_D), "R_N": _decided(best, log_n, self.R_N)}
        return self.surface.at_bound(*inputs[:2]) + [name for name, known in decided.items() if not known]

    def loss(self, params: Any, tokens: Any, unique_tokens: Any) -> np.ndarray:
        """Predicted loss, nats per token; arguments broadcast."""
        return self.predict(params, tokens, unique_tokens)

    def optimum(self, flops: Any, unique_tokens: Any) -> Allocation:
        """The split of `flops` = 6ND with the lowest loss when there are `unique_tokens`; arguments broadcast.

        There is no closed form: golden-section search over ln N, in four decades about the unconstrained optimum.
        """
        log_c6 = np.log(np.asarray(flops, np.float64)) - np.log(6.0)
        middle = np.log(self.surface.optimum(flops).params) + 0.0 * np.asarray(unique_tokens, np.float64)
        low, high = middle - 2 * np.log(10), middle + 2 * np.log(10)

        def loss(log_n: np.ndarray) -> np.ndarray:
            return self.loss(np.exp(log_n), np.exp(log_c6 - log_n), unique_tokens)

        for _ in range(60):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            keep_left = loss(left) <= loss(right)
            low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
        log_n = (low + high) / 2
        return Allocation(np.exp(log_n), np.exp(log_c6 - log_n), loss(log_n))

    @staticmethod
    def centre(regressors: np.ndarray) -> np.ndarray:
        log_n, log_d, _ = regressors.mean(1)
        return np.array([log_n, log_d, log_d])  # unique tokens are compared with tokens

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_e, log_a, log_b, log_alpha, log_beta, log_rd, log_rn = theta.T[:, :, None]
        alpha, beta = np.exp(log_alpha), np.exp(log_beta)
        log_n, log_d, log_u = x
        unique = np.where(log_u < log_d, log_u, log_d)
        best = _log_best_size(log_a, log_b, log_alpha, log_beta, unique)
        excess = best.real < log_n
        base = np.where(excess, best, log_n)
        worth_d, by_rd, _ = _worth(unique, log_d, log_rd)
        worth_n, by_rn, by_base = _worth(base, log_n, log_rn)
        size, data = np.exp(log_a - alpha * worth_n), np.exp(log_b - beta * worth_d)
        total = np.exp(log_e) + size + data
        share_n, share_d = size / total, data / total
        by_best = -alpha * share_n * by_base * excess
        columns = (
            np.exp(log_e) / total,
            share_n + by_best / alpha,
            share_d - by_best / alpha,
            -share_n * alpha * worth_n + by_best * (1 / alpha - best),
            -share_d * beta * worth_d + by_best * (beta * unique - 1) / alpha,
            -share_d * beta * by_rd,
            -share_n * alpha * by_rn,
        )
        return np.log(total), np.stack(columns, 1)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        law = ChinchillaLaw.from_coordinates(theta[..., :5], centre[:2])
        return cls(*law.parameters().values(), *np.exp(np.moveaxis(theta[..., 5:], -1, 0)))

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        repeats = np.stack(np.broadcast_arrays(np.log(self.R_D), np.log(self.R_N)), -1)
        return np.concatenate([self.surface.coordinates(centre[:2]), repeats], -1)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        exponents = np.geomspace(0.1, 1.5, 6)
        unique = np.minimum(x[1], x[2])
        starts = []
        for log_rd, log_rn in product(np.log((2.0, 8.0, 30.0, 120.0)), np.log((0.5, 5.0, 50.0))):
            surface = variable_projection_starts(x[0], _worth(unique, x[1], log_rd)[0], log_target, exponents)
            repeats = np.broadcast_to((log_rd, log_rn), (len(surface), 2))
            starts.append(np.concatenate([surface, repeats], 1))
        return np.concatenate(starts)


def _log_best_size(log_a: Any, log_b: Any, log_alpha: Any, log_beta: Any, log_unique: np.ndarray) -> np.ndarray:
    """ln U_N: the size at which U unique tokens are the best split, alpha A/N^alpha = beta B/U^beta."""
    return (log_a + log_alpha - log_b - log_beta + np.exp(log_beta) * log_unique) / np.exp(log_alpha)


def _decided(base: np.ndarray, used: np.ndarray, big_r: float) -> bool:
    """Whether at this R the worth of some run differs from both limits, all that was used and the base alone."""
    worth, _, _ = _worth(base, np.maximum(used, base), np.log(np.float64(big_r)))
    return bool((np.minimum(used - worth, worth - base) > SMALLEST_SHARE).any())


def _worth(base: np.ndarray, used: np.ndarray, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log of base + base R (1 - exp(-r/R)), r = used/base - 1; and its derivatives by ln R and by ln base."""
    big_r = np.exp(log_r)
    repeats = np.expm1(used - base)
    decayed, lost = np.exp(-repeats / big_r), -np.expm1(-repeats / big_r)  # 1 - decayed is rounding at a large R
    growth = 1 + big_r * lost
    by_log_r = (big_r * lost - repeats * decayed) / growth
    return base + np.log(growth), by_log_r, 1 - (repeats + 1) * decayed / growth
