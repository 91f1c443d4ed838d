"""How far runs of one cell lie apart: the standard deviation of log loss between seeds, read from the runs."""

from typing import NamedTuple

import numpy as np

#: Between seeds of a cell, where no run tells: the middle of 0.03 % (DeepMind's routing runs) to 0.65 % (the noisiest
#: tenth of the data-constrained runs of Muennighoff et al. 2023).
TYPICAL_NOISE = 3e-3
#: So many differences between replicates, or runs beyond the coordinates of the law, make an estimate.
_ENOUGH = 3
#: Less is believed of no table: replicates may agree by chance.
_LEAST = 1e-4
#: The median of |x| of a standard normal.
_MEDIAN_ABSOLUTE = 0.6745


class Noise(NamedTuple):
    """value: standard deviation of log loss. source: what tells it, in words."""

    value: float
    source: str


def estimate_noise(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, residuals: np.ndarray | None, coordinates: int = 0
) -> Noise:
    """The noise of runs [n]; params, tokens and loss in the table's units.

    From replicates, runs of equal params and tokens, pooled over cells: s^2 = sum (x - mean of the cell)^2 / (runs -
    cells) with x = ln L. Else from `residuals` [n] = ln(predicted/measured) of a law of so many `coordinates`: their
    median absolute value as that of a normal, times sqrt(n / (n - coordinates)); what the form gets wrong is then in
    it. Else `TYPICAL_NOISE`.
    """
    log_loss = np.log(loss)
    # a run that is listed twice is no replicate
    cells = np.unique(np.stack([params, tokens, log_loss], 1), axis=0) if len(loss) else np.empty((0, 3))
    _, cell_of = np.unique(cells[:, :2], axis=0, return_inverse=True)
    cell_of = cell_of.ravel()
    size = np.bincount(cell_of)
    freedom = len(cells) - len(size)
    if freedom >= _ENOUGH:
        mean = np.bincount(cell_of, cells[:, 2]) / size
        value = np.sqrt(((cells[:, 2] - mean[cell_of]) ** 2).sum() / freedom)
        repeated = size > 1
        return _noise(value, f"between {size[repeated].sum()} replicates of {repeated.sum()} cells")
    freedom = len(loss) - coordinates
    if residuals is not None and freedom >= _ENOUGH:
        value = np.median(np.abs(residuals)) / _MEDIAN_ABSOLUTE * np.sqrt(len(loss) / freedom)
        return _noise(value, f"robust scatter of {len(loss)} runs around the law, form error included")
    return _noise(TYPICAL_NOISE, "typical between seeds; too few runs to tell")


def _noise(value: float, source: str) -> Noise:
    return Noise(max(float(value), _LEAST), source)
