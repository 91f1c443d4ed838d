"""The loss of compute-optimal runs as a function of compute alone."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from analysis.law import Law
from analysis.starts import line_and_power_starts


@dataclass(frozen=True)
class ComputeLaw(Law):
    """L*(C) = E + k C^-gamma: fitted to the minima of IsoFLOP curves, or to runs that are all near optimal."""

    E: Any
    k: Any
    gamma: Any

    form: ClassVar[str] = "E + k C^-gamma"
    name: ClassVar[str] = "compute"
    source: ClassVar[str] = "Henighan et al. 2020, arXiv 2010.14701, equation 1.1; Porian et al. 2024, arXiv 2406.19146"
    inputs: ClassVar[tuple[str, ...]] = ("flops",)
    linear: ClassVar[int] = 2
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"k"})

    def loss(self, flops: Any) -> np.ndarray:
        """Predicted loss, nats per token, of the best run with this compute."""
        return self.predict(flops)

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_e, log_k, log_gamma = theta.T[:, :, None]
        minus_gamma_x = -np.exp(log_gamma) * x[0]
        power = np.exp(log_k + minus_gamma_x)
        total = np.exp(log_e) + power
        share = power / total
        return np.log(total), np.stack([np.exp(log_e) / total, share, share * minus_gamma_x], 1)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        log_e, log_k, log_gamma = np.moveaxis(theta, -1, 0)
        gamma = np.exp(log_gamma)
        with np.errstate(over="ignore"):
            return cls(np.exp(log_e), np.exp(log_k + gamma * centre[0]), gamma)

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            log_e, log_k, log_gamma = np.log((self.E, self.k, self.gamma))
        return np.stack([log_e, log_k - self.gamma * centre[0], log_gamma], -1)

    @staticmethod
    def starting_points(x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        gammas = np.geomspace(0.01, 2.0, 32)
        terms = line_and_power_starts(np.exp(-gammas[:, None] * x[0]), log_target)
        return np.concatenate([terms, np.log(gammas)[:, None]], 1)
