"""A constant and a term that decays exponentially with the regressor: what loss against compute and error share."""

from dataclasses import fields
from typing import ClassVar, Self

import numpy as np

from analysis.law import SMALLEST_SHARE, Law


class DecayLaw(Law):
    """Base of c + sign k exp(-gamma z). Fields: c, k, gamma, all positive; z is the form's one regressor.

    Coordinates are (ln c, ln k', ln gamma) with k' = k exp(-gamma z0) at the centre z0.
    """

    sign: ClassVar[float] = 1.0
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"k"})

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_constant, log_k, log_gamma = theta.T[:, :, None]
        minus_gamma_x = -np.exp(log_gamma) * x[0]
        term = cls.sign * np.exp(log_k + minus_gamma_x)
        total = np.exp(log_constant) + term
        with np.errstate(invalid="ignore", divide="ignore"):  # below zero there is no logarithm: the search rejects it
            share = term / total
            return np.log(total), np.stack([np.exp(log_constant) / total, share, share * minus_gamma_x], 1)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        log_constant, log_k, log_gamma = np.moveaxis(theta, -1, 0)
        gamma = np.exp(log_gamma)
        with np.errstate(over="ignore"):
            return cls(np.exp(log_constant), np.exp(log_k + gamma * centre[0]), gamma)

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        constant, k, gamma = self.parameters().values()
        with np.errstate(divide="ignore"):
            log_constant, log_k, log_gamma = np.log((constant, k, gamma))
        return np.stack([log_constant, log_k - gamma * centre[0], log_gamma], -1)

    def at_bound(self, *inputs: np.ndarray) -> list[str]:
        constant, _, _ = self.parameters().values()
        share = constant / self.predict(*inputs)
        names = [field.name for field in fields(self)]
        vanished = np.max(share) < SMALLEST_SHARE, np.max(np.abs(1 - share)) < SMALLEST_SHARE
        return [name for name, gone in zip(names, vanished) if gone]
