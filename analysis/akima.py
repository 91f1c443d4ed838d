"""Minima of IsoFLOP curves by Akima interpolation, as Porian et al. 2024 (arXiv 2406.19146) find them.

An Akima spline (1970, J. ACM 17) passes through every point and takes its slope at each from the four chords around,
so that one bad run bends the curve near itself only; a parabola is bent everywhere, but averages the noise.
"""

import numpy as np

#: Chords that differ by less than this share of the largest difference are as good as equal.
_FLAT = 1e-9


def akima_minima(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest point of R Akima splines: x [n] ascending and distinct, n >= 3; y [R, n].

    Returns its position [R] and its value [R]; it may be at either end.
    """
    width = np.diff(x)
    slope = _slopes(width, y)
    chord = np.diff(y, axis=1) / width
    # On each interval y + slope t + c2 t^2 + c3 t^3, 0 <= t <= width.
    c2 = (3 * chord - 2 * slope[:, :-1] - slope[:, 1:]) / width
    c3 = (slope[:, :-1] + slope[:, 1:] - 2 * chord) / width**2
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(c2**2 - 3 * c3 * slope[:, :-1])
        # The root of the derivative where it rises, in the form that survives c3 = 0.
        t = np.where(c2 > 0, -slope[:, :-1] / (c2 + root), (root - c2) / (3 * c3))
    inside = (t > 0) & (t < width)
    t = np.where(inside, t, 0.0)
    value = y[:, :-1] + t * (slope[:, :-1] + t * (c2 + t * c3))
    position, value = np.concatenate([x[:-1] + t, x[-1:] + 0 * y[:, -1:]], 1), np.concatenate([value, y[:, -1:]], 1)
    best = value.argmin(1)[:, None]
    return np.take_along_axis(position, best, 1)[:, 0], np.take_along_axis(value, best, 1)[:, 0]


def _slopes(width: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Akima's slope at every point, [R, n]: chords weighted by how much their neighbours on the other side differ."""
    chord = np.diff(y, axis=1) / width
    before = 2 * chord[:, :1] - chord[:, 1:2]
    after = 2 * chord[:, -1:] - chord[:, -2:-1]
    chord = np.concatenate(
        [2 * before - chord[:, :1], before, chord, after, 2 * after - chord[:, -1:]], axis=1
    )  # two more at each end, by extrapolation
    change = np.abs(np.diff(chord, axis=1))
    left, right = change[:, 2:], change[:, :-2]
    total = left + right
    usable = total > _FLAT * total.max(1, keepdims=True)
    weighted = (left * chord[:, 1:-2] + right * chord[:, 2:-1]) / np.where(usable, total, 1.0)
    return np.where(usable, weighted, (chord[:, 1:-2] + chord[:, 2:-1]) / 2)
