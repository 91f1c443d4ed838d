"""The loss of compute-optimal runs as a function of compute alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.decay_law import DecayLaw
from analysis.starts import line_and_power_starts


@dataclass(frozen=True)
class ComputeLaw(DecayLaw):
    """L*(C) = E + k C^-gamma: fitted to the minima of IsoFLOP curves, or to runs that are all near optimal."""

    E: Any
    k: Any
    gamma: Any

    form: ClassVar[str] = "E + k C^-gamma"
    name: ClassVar[str] = "compute"
    source: ClassVar[str] = "Henighan et al. 2020, arXiv 2010.14701, equation 1.1; Porian et al. 2024, arXiv 2406.19146"
    inputs: ClassVar[tuple[str, ...]] = ("flops",)
    linear: ClassVar[int] = 2

    def loss(self, flops: Any) -> np.ndarray:
        """Predicted loss, nats per token, of the best run with this compute."""
        return self.predict(flops)

    @classmethod
    def starting_points(cls, x: np.ndarray, log_target: np.ndarray) -> np.ndarray:
        gammas = np.geomspace(0.01, 2.0, 32)
        terms = line_and_power_starts(np.exp(-gammas[:, None] * x[0]), log_target)
        return np.concatenate([terms, np.log(gammas)[:, None]], 1)
