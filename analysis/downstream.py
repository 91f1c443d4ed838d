"""Downstream error as a function of loss, and chained with a surface as a function of N and D.

The error is a share in (0, 1): one minus accuracy, averaged over tasks as the table does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from analysis.decay_law import DecayLaw
from analysis.law import Law
from analysis.starts import line_and_power_starts
from scaling.errors import UserError


class ErrorLaw(Law):
    """Base of the error laws: their one input is the loss itself, not its logarithm."""

    inputs: ClassVar[tuple[str, ...]] = ("loss",)
    target: ClassVar[str] = "error"

    @staticmethod
    def regressors(inputs: np.ndarray) -> np.ndarray:
        return inputs

    def error(self, loss: Any) -> np.ndarray:
        """Predicted downstream error at a loss (nats per token)."""
        return self.predict(loss)


@dataclass(frozen=True)
class ExponentialErrorLaw(ErrorLaw, DecayLaw):
    """Err(L) = epsilon - k exp(-gamma L): the error of chance, less what a falling loss gains."""

    epsilon: Any
    k: Any
    gamma: Any

    form: ClassVar[str] = "epsilon - k exp(-gamma L)"
    name: ClassVar[str] = "error_exponential"
    source: ClassVar[str] = "Gadre et al. 2024, arXiv 2403.08540, equation 5"
    sign: ClassVar[float] = -1.0

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        # epsilon - k e^(-gamma x) = (epsilon - k e^(-gamma low)) + k (e^(-gamma low) - e^(-gamma x)): both positive.
        gammas = np.geomspace(0.1, 50.0, 32) / max(np.ptp(x[0]), 1e-6)
        falls = np.exp(-gammas[:, None] * x[0])
        most = falls.max(1)
        lowest, k = np.exp(line_and_power_starts(most[:, None] - falls, log_target)).T
        return np.log(np.stack([lowest + k * most, k, gammas], 1))


@dataclass(frozen=True)
class SigmoidErrorLaw(ErrorLaw):
    """Err(L) = floor + height / (1 + exp(-slope (L - middle))): from nothing learnt to everything the task allows."""

    floor: Any
    height: Any
    slope: Any
    middle: Any

    form: ClassVar[str] = "floor + height/(1 + exp(-slope (L - middle)))"
    name: ClassVar[str] = "error_sigmoid"
    source: ClassVar[str] = "Bhagia et al. 2024, arXiv 2412.04403, for error in place of accuracy"
    linear: ClassVar[int] = 2

    # Coordinates (ln floor, ln height, ln slope, middle less the mean loss).

    @classmethod
    def log_prediction(cls, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_floor, log_height, log_slope, middle = theta.T[:, :, None]
        argument = np.exp(log_slope) * (x[0] - middle)
        sigmoid = 1 / (1 + np.exp(-argument))
        total = np.exp(log_floor) + np.exp(log_height) * sigmoid
        share = np.exp(log_height) * sigmoid / total
        by_argument = share * (1 - sigmoid)
        columns = np.exp(log_floor) / total, share, by_argument * argument, -by_argument * np.exp(log_slope)
        return np.log(total), np.stack(columns, 1)

    @classmethod
    def from_coordinates(cls, theta: np.ndarray, centre: np.ndarray) -> Self:
        log_floor, log_height, log_slope, middle = np.moveaxis(theta, -1, 0)
        return cls(np.exp(log_floor), np.exp(log_height), np.exp(log_slope), middle + centre[0])

    def coordinates(self, centre: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            logs = np.log((self.floor, self.height, self.slope))
        return np.stack([*logs, self.middle - centre[0]], -1)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        width = max(np.ptp(x[0]), 1e-6)
        slope, middle = (
            grid.ravel()
            for grid in np.meshgrid(np.geomspace(1, 30, 8) / width, np.linspace(-1, 1, 9) * width, indexing="ij")
        )
        sigmoid = 1 / (1 + np.exp(-slope[:, None] * (x[0] - middle[:, None])))
        return np.concatenate([line_and_power_starts(sigmoid, log_target), np.log(slope)[:, None], middle[:, None]], 1)


@dataclass(frozen=True)
class ChainedLaw:
    """Downstream error of N and D (and what else the surface reads): the error law at the loss of the surface.

    Each part is fitted by itself, the surface to loss and the error law to error against measured loss (Gadre et al.
    2024; Bhagia et al. 2024); parts with array fields [R], such as refits of one set of resamples, chain pairwise.
    """

    surface: Law
    error_law: ErrorLaw

    form: ClassVar[str] = "chained"

    def error(self, *inputs: Any) -> np.ndarray:
        """Predicted downstream error; inputs in the order of `surface.inputs`, broadcast."""
        return self.error_law.error(self.surface.predict(*inputs))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: {"form": "chained", "surface", "error"}."""
        return {"form": self.form, "surface": self.surface.to_dict(), "error": self.error_law.to_dict()}

    def to_json(self) -> str:
        """The chain as JSON; `Law.from_json` reads it back to an equal object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "ChainedLaw":
        """The chain in plain data. Raises UserError when a part is missing or not a law."""
        missing = [part for part in ("surface", "error") if not isinstance(data.get(part), Mapping)]
        if missing:
            raise UserError(f"{missing[0]} = {data.get(missing[0])!r}: must be a law; fit the chain again")
        return ChainedLaw(Law.from_dict(data["surface"]), Law.from_dict(data["error"]))
