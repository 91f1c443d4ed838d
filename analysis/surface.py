"""Surfaces: loss as a function of parameters N and training tokens D, and the split of compute that is best.

Every surface here is L(N, D) = E + (A/N^alpha + B/D^beta)^gamma with some of the six tied or fixed, so they share one
kernel, one gradient and one optimum. (An outer exponent does not move the minimum, so N*(C) is that of gamma = 1.)

Units: N is the column the table calls `params` (with or without embeddings is the table's choice and is
recorded beside the law), D is tokens seen, compute C = 6ND FLOPs, loss is nats per token.
"""

from abc import abstractmethod
from itertools import product
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from analysis.law import SMALLEST_SHARE, Allocation, Law
from analysis.starts import FLOORS, two_term_starts

#: An exponent below is a second constant, one above acts on the smallest runs only; published ones are 0.1 to 0.8.
_EXPONENT_RANGE = (0.02, 3.0)
#: Where a fit begins unless the form knows better.
_STARTING_EXPONENTS, _STARTING_GAMMAS = np.geomspace(0.05, 2.0, 8), (0.3, 0.6, 1.0, 1.5)


class Terms(NamedTuple):
    """E + (A/N^alpha + B/D^beta)^gamma, coefficients in logs because A may be 1e9 where N^-alpha is 1e-9."""

    log_e: Any
    log_a: Any
    log_b: Any
    alpha: Any
    beta: Any
    gamma: Any


class Surface(Law):
    """A loss surface over N and D.

    coefficients: names of E and of the two that lead the terms of N and D, where the form has them; its other
    fields are exponents. embedding [k, 6], offset [6]: the kernel's coordinates (ln E, ln A', ln B', ln alpha, ln beta,
    ln gamma) are theta @ embedding + offset.
    """

    coefficients: ClassVar[tuple[str | None, str, str]] = ("E", "A", "B")
    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"A", "B"})
    embedding: ClassVar[np.ndarray]
    offset: ClassVar[np.ndarray] = np.zeros(6)

    @abstractmethod
    def terms(self) -> Terms:
        """This law as the general surface."""

    @classmethod
    @abstractmethod
    def from_terms(cls, terms: Terms) -> Self:
        """The opposite of `terms`; ignores those that the form fixes."""

    @staticmethod
    @abstractmethod
    def reduce(six: np.ndarray) -> np.ndarray:
        """The form's own coordinates [..., k] from the kernel's [..., 6]."""

    @property
    def a(self) -> Any:
        """Exponent of N*(C) ~ C^a: beta / (alpha + beta), Hoffmann et al. 2022, equation 4."""
        terms = self.terms()
        return terms.beta / (terms.alpha + terms.beta)

    @property
    def b(self) -> Any:
        """Exponent of D*(C) ~ C^b: alpha / (alpha + beta), Hoffmann et al. 2022, equation 4."""
        terms = self.terms()
        return terms.alpha / (terms.alpha + terms.beta)

    def loss(self, params: Any, tokens: Any) -> np.ndarray:
        """Predicted loss, nats per token; arguments broadcast."""
        return self.predict(params, tokens)

    def loss_at(self, flops: Any, tokens_per_param: Any) -> np.ndarray:
        """Predicted loss of compute `flops` = 6ND spent at M = D/N: over-training, Gadre et al. 2024 (2403.08540)."""
        params = np.sqrt(np.asarray(flops, np.float64) / (6.0 * np.asarray(tokens_per_param, np.float64)))
        return self.loss(params, params * tokens_per_param)

    def optimum(self, flops: Any) -> Allocation:
        """The split of `flops` = 6ND that has the lowest loss; arguments and parameters broadcast.

        N* = G (C/6)^a, D* = (C/6)^b / G, G = (alpha A / (beta B))^(1/(alpha+beta)): Hoffmann et al. 2022, equation 4.
        """
        log_c6 = np.log(np.asarray(flops, np.float64)) - np.log(6.0)
        with np.errstate(all="ignore"):  # where the form has degenerated, the optimum is inf or nan
            terms = self.terms()
            ratio = np.log(terms.alpha) + terms.log_a - (np.log(terms.beta) + terms.log_b)
            log_g = ratio / (terms.alpha + terms.beta)
            params, tokens = np.exp(log_g + self.a * log_c6), np.exp(self.b * log_c6 - log_g)
            return Allocation(params, tokens, self.loss(params, tokens))

    def at_bound(self, *inputs: np.ndarray) -> list[str]:
        log_n, log_d = (np.log(np.asarray(column, np.float64)) for column in inputs)
        terms = self.terms()
        with np.errstate(all="ignore"):
            size, data = np.exp(terms.log_a - terms.alpha * log_n), np.exp(terms.log_b - terms.beta * log_d)
            reducible = (size + data) ** terms.gamma
            loss = np.exp(terms.log_e) + reducible
            shares = (
                np.exp(terms.log_e) / loss,
                reducible / loss * (size / (size + data)),
                reducible / loss * (data / (size + data)),
            )
            vanished = [
                name for name, share in zip(self.coefficients, shares) if name and np.max(share) < SMALLEST_SHARE
            ]
        low, high = _EXPONENT_RANGE
        exponents = {name: value for name, value in self.parameters().items() if name not in self.coefficients}
        return vanished + [name for name, value in exponents.items() if not low < value < high]

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        pairs = np.array(list(product(_STARTING_EXPONENTS, repeat=2)))
        return cls.reduce(two_term_starts(x, log_target, pairs, _STARTING_GAMMAS, FLOORS))

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, jacobian = general_surface(theta @ cls.embedding + cls.offset, x)
        return value, np.matmul(cls.embedding, jacobian)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        log_e, log_a, log_b, *log_exponents = np.moveaxis(theta @ cls.embedding + cls.offset, -1, 0)
        alpha, beta, gamma = np.exp(log_exponents)
        with np.errstate(over="ignore"):  # a runaway exponent gives A = inf, which the findings report
            terms = Terms(log_e, log_a + alpha * centre[0], log_b + beta * centre[1], alpha, beta, gamma)
            return cls.from_terms(terms)

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):  # a coefficient at zero
            log_e, log_a, log_b, alpha, beta, gamma = self.terms()
            six = (log_e, log_a - alpha * centre[0], log_b - beta * centre[1], *np.log((alpha, beta, gamma)))
        return self.reduce(np.stack(np.broadcast_arrays(*six), -1))


def general_surface(six: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of E + (A'e^(-alpha x) + B'e^(-beta y))^gamma and its derivatives.

    six [m, 6] = (ln E, ln A', ln B', ln alpha, ln beta, ln gamma); x [2, n] or [2, m, 1]: centred ln N and ln D.
    Returns [m, n] and [m, 6, n].
    """
    log_e, log_a, log_b, log_alpha, log_beta, log_gamma = six.T[:, :, None]
    floor, gamma = np.exp(log_e), np.exp(log_gamma)
    minus_alpha_x, minus_beta_y = -np.exp(log_alpha) * x[0], -np.exp(log_beta) * x[1]
    size, data = np.exp(log_a + minus_alpha_x), np.exp(log_b + minus_beta_y)
    inner = np.log(size + data)
    reducible = np.exp(gamma * inner)
    total = floor + reducible
    by_inner = gamma * reducible / total
    jacobian = np.empty((len(six), 6, total.shape[-1]), six.dtype)
    np.divide(floor, total, out=jacobian[:, 0])
    np.multiply(by_inner, size / (size + data), out=jacobian[:, 1])
    np.multiply(by_inner, data / (size + data), out=jacobian[:, 2])
    np.multiply(jacobian[:, 1], minus_alpha_x, out=jacobian[:, 3])
    np.multiply(jacobian[:, 2], minus_beta_y, out=jacobian[:, 4])
    np.multiply(by_inner, inner, out=jacobian[:, 5])
    return np.log(total), jacobian
