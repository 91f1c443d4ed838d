"""The published surfaces: Chinchilla, its gamma form, tied exponents, and Kaplan's with and without a floor."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from analysis.starts import FLOORS, two_term_starts, variable_projection_starts
from analysis.surface import Surface, Terms, general_surface


@dataclass(frozen=True)
class ChinchillaLaw(Surface):
    """L(N, D) = E + A/N^alpha + B/D^beta: Hoffmann et al. 2022, equation 2.

    E, A and B are positive, in nats per token (A and B times powers of N and D); alpha and beta positive.
    """

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any

    form: ClassVar[str] = "E + A/N^alpha + B/D^beta"
    name: ClassVar[str] = "chinchilla"
    source: ClassVar[str] = "Hoffmann et al. 2022, arXiv 2203.15556, equation 2"
    linear: ClassVar[int] = 3
    embedding: ClassVar[np.ndarray] = np.eye(6)[:5]

    def terms(self) -> Terms:
        with np.errstate(divide="ignore"):
            return Terms(np.log(self.E), np.log(self.A), np.log(self.B), self.alpha, self.beta, np.ones_like(self.beta))

    @classmethod
    def from_terms(cls, terms: Terms) -> Self:
        return cls(*np.exp(terms[:3]), terms.alpha, terms.beta)

    @staticmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        return six[..., :5]

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The kernel at gamma = 1, without the logarithm and the power that this makes needless: half the time.
        log_e, log_a, log_b, log_alpha, log_beta = theta.T[:, :, None]
        minus_alpha_x, minus_beta_y = -np.exp(log_alpha) * x[0], -np.exp(log_beta) * x[1]
        size_term, data_term = np.exp(log_a + minus_alpha_x), np.exp(log_b + minus_beta_y)
        total = np.exp(log_e) + size_term + data_term
        jacobian = np.empty((len(theta), 5, total.shape[-1]), theta.dtype)
        np.divide(np.exp(log_e), total, out=jacobian[:, 0])
        np.divide(size_term, total, out=jacobian[:, 1])
        np.divide(data_term, total, out=jacobian[:, 2])
        np.multiply(jacobian[:, 1], minus_alpha_x, out=jacobian[:, 3])
        np.multiply(jacobian[:, 2], minus_beta_y, out=jacobian[:, 4])
        return np.log(total), jacobian

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        return variable_projection_starts(x[0], x[1], log_target)


@dataclass(frozen=True)
class GammaLaw(Surface):
    """L(N, D) = E + (A/N^alpha + B/D^beta)^gamma: size and data interact (gamma = 1: they do not)."""

    E: Any
    A: Any
    B: Any
    alpha: Any
    beta: Any
    gamma: Any

    form: ClassVar[str] = "E + (A/N^alpha + B/D^beta)^gamma"
    name: ClassVar[str] = "gamma"
    source: ClassVar[str] = "Beck et al. 2025 (xLSTM scaling laws), arXiv 2510.02228"
    embedding: ClassVar[np.ndarray] = np.eye(6)

    def terms(self) -> Terms:
        with np.errstate(divide="ignore"):
            return Terms(np.log(self.E), np.log(self.A), np.log(self.B), self.alpha, self.beta, self.gamma)

    @classmethod
    def from_terms(cls, terms: Terms) -> Self:
        return cls(*np.exp(terms[:3]), *terms[3:])

    @staticmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        return six

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return general_surface(theta, x)


@dataclass(frozen=True)
class TiedLaw(Surface):
    """L(N, D) = E + A/N^alpha + B/D^alpha: one exponent for both terms.

    In compute C = 6ND and over-training M = D/N it reads E + (a M^eta + b M^-eta) C^-eta with eta = alpha/2,
    a = A 6^eta, b = B 6^eta: along any M loss falls at one rate, so small over-trained runs extrapolate.
    N* and D* both grow as the square root of compute.
    """

    E: Any
    A: Any
    B: Any
    alpha: Any

    form: ClassVar[str] = "E + A/N^alpha + B/D^alpha"
    name: ClassVar[str] = "tied"
    source: ClassVar[str] = "Gadre et al. 2024, arXiv 2403.08540, equation 4"
    linear: ClassVar[int] = 3
    embedding: ClassVar[np.ndarray] = np.array([*np.eye(6)[:3], [0, 0, 0, 1, 1, 0]])

    def terms(self) -> Terms:
        with np.errstate(divide="ignore"):
            logs = np.log(self.E), np.log(self.A), np.log(self.B)
        return Terms(*logs, self.alpha, self.alpha, np.ones_like(self.alpha))

    @classmethod
    def from_terms(cls, terms: Terms) -> Self:
        return cls(*np.exp(terms[:3]), terms.alpha)

    @staticmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        return six[..., :4]

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        exponents = np.geomspace(0.05, 2.0, 24)
        return cls.reduce(two_term_starts(x, log_target, np.stack([exponents] * 2, 1), (1.0,), FLOORS))


@dataclass(frozen=True)
class KaplanLaw(Surface):
    """L(N, D) = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D: no floor, loss falls to zero."""

    N_c: Any
    D_c: Any
    alpha_N: Any
    alpha_D: Any

    form: ClassVar[str] = "((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    name: ClassVar[str] = "kaplan"
    source: ClassVar[str] = "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5"
    coefficients: ClassVar[tuple[None, str, str]] = (None, "N_c", "D_c")
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"N_c", "D_c"})
    # theta = (ln A', ln B', ln alpha_N, ln alpha_D): alpha = alpha_N/alpha_D, beta = 1, gamma = alpha_D.
    embedding: ClassVar[np.ndarray] = np.array(
        [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, -1, 0, 1]], float
    )
    offset: ClassVar[np.ndarray] = np.array([-np.inf, 0, 0, 0, 0, 0])

    def terms(self) -> Terms:
        inner = self.alpha_N / self.alpha_D
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 ln(0): an exponent that has run to zero
            log_e, log_a, log_b = np.full_like(inner, -np.inf), inner * np.log(self.N_c), np.log(self.D_c)
        return Terms(log_e, log_a, log_b, inner, np.ones_like(inner), self.alpha_D)

    @classmethod
    def from_terms(cls, terms: Terms) -> Self:
        with np.errstate(divide="ignore"):  # an exponent that has run to zero: N_c is then zero or infinite
            log_sizes = terms.log_a / terms.alpha, terms.log_b
        return cls(*np.exp(log_sizes), terms.alpha * terms.gamma, terms.gamma)

    @staticmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        log_a, log_b, log_alpha, _, log_gamma = np.moveaxis(six[..., 1:], -1, 0)
        return np.stack([log_a, log_b, log_alpha + log_gamma, log_gamma], -1)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        return cls.reduce(_kaplan_starts(x, log_target, (0.0,)))


@dataclass(frozen=True)
class KaplanFloorLaw(Surface):
    """L(N, D) = E + ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D: Kaplan's surface above an irreducible loss."""

    E: Any
    N_c: Any
    D_c: Any
    alpha_N: Any
    alpha_D: Any

    form: ClassVar[str] = "E + ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D"
    name: ClassVar[str] = "kaplan_floor"
    source: ClassVar[str] = "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5, with a constant added"
    coefficients: ClassVar[tuple[str, str, str]] = ("E", "N_c", "D_c")
    coefficients_in_units: ClassVar[frozenset[str]] = KaplanLaw.coefficients_in_units
    embedding: ClassVar[np.ndarray] = np.vstack([np.eye(6)[:1], KaplanLaw.embedding])

    def terms(self) -> Terms:
        with np.errstate(divide="ignore"):
            return KaplanLaw(self.N_c, self.D_c, self.alpha_N, self.alpha_D).terms()._replace(log_e=np.log(self.E))

    @classmethod
    def from_terms(cls, terms: Terms) -> Self:
        return cls(np.exp(terms.log_e), *KaplanLaw.from_terms(terms).parameters().values())

    @staticmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        return np.concatenate([six[..., :1], KaplanLaw.reduce(six)], -1)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        return cls.reduce(_kaplan_starts(x, log_target, FLOORS))


def _kaplan_starts(x: np.ndarray, log_loss: np.ndarray, floors: tuple[float, ...]) -> np.ndarray:
    inner = np.geomspace(0.2, 5.0, 10)
    return two_term_starts(x, log_loss, np.stack([inner, np.ones(10)], 1), (0.05, 0.1, 0.2, 0.4, 0.8), floors)
