"""Learning rate and batch size as power laws of N and D: the "step law"."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from analysis.law import Law


class PowerLaw(Law):
    """Base of c times powers of the inputs. Fields: c, then one exponent (of either sign) for each input.

    In logarithms it is a line, so coordinates are (ln c', exponents) and the start is already the least-squares fit.
    """

    coefficients_in_units: ClassVar[frozenset[str]] = frozenset({"c"})

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value = theta[:, :1] + sum(theta[:, i + 1, None] * x[i] for i in range(len(x)))
        ones = np.ones_like(value)
        return value, np.stack([ones, *(ones * row for row in x)], 1)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        exponents = theta[..., 1:]
        return cls(np.exp(theta[..., 0] - exponents @ centre), *np.moveaxis(exponents, -1, 0))

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        c, *exponents = self.parameters().values()
        exponents = np.stack(np.broadcast_arrays(*exponents), -1)
        return np.concatenate([(np.log(c) + exponents @ centre)[..., None], exponents], -1)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(np.stack([np.ones_like(log_target), *x], 1), log_target, rcond=None)[0][None]


@dataclass(frozen=True)
class LearningRateLaw(PowerLaw):
    """Best peak learning rate c N^params_exponent D^tokens_exponent."""

    c: Any
    params_exponent: Any
    tokens_exponent: Any

    form: ClassVar[str] = "LR = c N^p D^q"
    name: ClassVar[str] = "learning_rate"
    source: ClassVar[str] = "Li et al. 2025 (step law), arXiv 2503.04715"
    target: ClassVar[str] = "learning_rate"


@dataclass(frozen=True)
class BatchSizeLaw(PowerLaw):
    """Best batch size c D^tokens_exponent, in tokens."""

    c: Any
    tokens_exponent: Any

    form: ClassVar[str] = "BS = c D^q"
    name: ClassVar[str] = "batch_size"
    source: ClassVar[str] = "Li et al. 2025 (step law), arXiv 2503.04715"
    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    target: ClassVar[str] = "batch_size"


@dataclass(frozen=True)
class BatchSizeOfBothLaw(PowerLaw):
    """Best batch size c N^params_exponent D^tokens_exponent, in tokens: where size matters too."""

    c: Any
    params_exponent: Any
    tokens_exponent: Any

    form: ClassVar[str] = "BS = c N^p D^q"
    name: ClassVar[str] = "batch_size_of_both"
    source: ClassVar[str] = "BatchSizeLaw with a power of N"
    target: ClassVar[str] = "batch_size"
