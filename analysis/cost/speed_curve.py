"""How fast a device trains models of each size, measured: a power law of utilisation in N, and its resamples.

Utilisation grows with size: about N^0.24 on H100s at 1e8 to 1e9 parameters in public tables, so that the model which
is soonest trained is larger than the one which needs the fewest FLOPs.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.cost.devices import find_device
from analysis.formatting import is_number
from scaling.errors import UserError

#: Sizes that show a slope; with fewer the speed is one number.
_MIN_SIZES = 3


@dataclass(frozen=True)
class SpeedCurve:
    """FLOP/s (6ND convention) of one device: flops_at_largest x (N / largest)^slope, for N up to `largest`.

    Beyond the largest size measured, a speed that grew with size is held: utilisation has a ceiling, and no data say
    where. The numbers may be arrays [R], one for each resample; a speed of all sizes has slope 0 and no largest.
    """

    flops_at_largest: Any
    slope: Any
    smallest: float | None
    largest: float | None
    device: str
    source: str

    def flops_per_second(self, params: Any) -> np.ndarray:
        """Training speed of one device at N = `params`; arguments and resamples broadcast."""
        size = np.log(np.asarray(params, np.float64) / (self.largest or 1.0))
        return self.flops_at_largest * np.exp(self.slope * np.where(self.slope > 0, np.minimum(size, 0.0), size))

    def to_dict(self) -> dict[str, Any]:
        """Plain data of one curve, or of the first where there are several."""
        return {
            "flops_per_second_at_largest": float(np.ravel(self.flops_at_largest)[0]),
            "exponent_of_params": float(np.ravel(self.slope)[0]),
            "smallest_params": self.smallest,
            "largest_params": self.largest,
            "device": self.device,
            "source": self.source,
        }


def constant_speed(device: str, mfu: float) -> SpeedCurve:
    """One utilisation at every size: `mfu` of the device's dense bf16 peak.

    Raises UserError for a device that is not in the table and for a share outside of 0 to 1.
    """
    found = find_device(device)
    if found is None:
        raise UserError(f"device = {device}: its peak is not known: give measured speeds instead of a utilisation")
    if not 0 < mfu <= 1:
        raise UserError(f"mfu = {mfu:g}: must be a share of the peak between 0 and 1, such as 0.4")
    return SpeedCurve(mfu * found.bf16_flops, 0.0, None, None, found.name, f"{mfu:g} of the dense bf16 peak")


def fit_speed(
    rows: Iterable[Mapping[str, Any]], source: str, resamples: int, seed: int, device: str | None = None
) -> SpeedCurve | None:
    """The curve through measured rows, least squares on logs: arrays [1 + R], the estimate and R pairs resamples.

    rows: {"params", and one of "flops" (6ND) with "device_hours", "tokens_per_second" of one device, or "mfu"}, and
    "device" where known; others and rows without a speed are passed over. None when nothing is left. Raises UserError
    when they are of several devices and none is chosen, or when the chosen one is not among them.
    """
    measured = [(row, speed) for row in rows if (speed := _speed_of(row, device)) is not None]
    if not measured:
        return None
    names = sorted({str(row["device"]) for row, _ in measured if row.get("device")})
    if device is not None and names:
        wanted = {name for name in names if name == device or _same_device(name, device)}
        if not wanted:
            raise UserError(f"device = {device}: {source} was measured on {', '.join(names)}: choose one of these")
        measured = [(row, speed) for row, speed in measured if row.get("device") in wanted]
    elif len(names) > 1:
        raise UserError(f"{source}: runs of {len(names)} devices ({', '.join(names)}): choose one with --device")
    log_params = np.log([float(row["params"]) for row, _ in measured])
    log_speed = np.log([speed for _, speed in measured])
    total = len(measured)
    counts = np.random.default_rng(seed).multinomial(total, np.full(total, 1 / total), resamples)
    level, slope = _lines(log_params - log_params.max(), log_speed, np.vstack([np.ones(total), counts]))
    return SpeedCurve(
        flops_at_largest=np.exp(level),
        slope=slope,
        smallest=float(np.exp(log_params.min())),
        largest=float(np.exp(log_params.max())),
        device=device or (names[0] if names else "device of the table"),
        source=source,
    )


def read_speeds(path: Path) -> list[dict[str, Any]]:
    """Rows for `fit_speed` from a CSV file: params, and device_hours with flops, tokens_per_second, or mfu.

    Raises UserError when the file cannot be read or has none of these.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): give a table of speeds") from None
    columns = set(rows[0]) if rows else set()
    if "params" not in columns or not ({"tokens_per_second", "mfu"} & columns or {"flops", "device_hours"} <= columns):
        raise UserError(
            f"{path}: needs a column params, and tokens_per_second of one device, mfu, or flops and device_hours"
        )
    return [{name: _number(value) for name, value in row.items()} for row in rows]


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text or None


def _speed_of(row: Mapping[str, Any], device: str | None) -> float | None:
    """FLOP/s (6ND) of one device in this row; None when it has none."""

    def positive(*names: str) -> bool:
        return all(is_number(row.get(name)) and row[name] > 0 for name in names)

    if not positive("params"):
        return None
    if positive("flops", "device_hours"):
        return row["flops"] / (3600.0 * row["device_hours"])
    if positive("tokens_per_second"):
        return 6.0 * row["params"] * row["tokens_per_second"]
    if positive("mfu"):
        found = find_device(str(row.get("device") or device or ""))
        if found is None:
            raise UserError("mfu: a share of which peak? Choose the GPU with --device, such as --device H100")
        return row["mfu"] * found.bf16_flops
    return None


def _same_device(name: str, other: str) -> bool:
    first, second = find_device(name), find_device(other)
    return first is not None and second is not None and first.name == second.name


def _lines(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intercept and slope of the lines through (x, y) [n] under weights [R, n]; slope 0 where x hardly varies."""
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    spread = weights @ x**2 - total * mean_x**2
    varies = spread > 1e-9
    slope = np.where(varies, (weights @ (x * y) - total * mean_x * mean_y) / np.where(varies, spread, 1.0), 0.0)
    if len(np.unique(x)) < _MIN_SIZES:
        slope = np.zeros_like(slope)
    return mean_y - slope * mean_x, slope
