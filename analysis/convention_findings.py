"""Whether all runs of a table mean the same by params, FLOPs and loss: runs that do not belong in no common fit."""

from collections import Counter

import numpy as np

from analysis.estimator import Fit
from analysis.findings import Code, Finding
from analysis.table import Table

#: Relative difference of a FLOPs column from 6ND that rounding explains.
_FLOPS_ROUNDING = 0.02
#: Gap in ln(FLOPs / 6ND) between two conventions at one size: causal attention alone adds more from 1 k context on.
_RATIO_GAP = 0.03
#: Gap in ln(measured / fitted) between two units of the loss: far beyond noise, far below nats to bits (0.37) or to
#: bits per byte.
_LOSS_GAP = 0.12
#: ... and how many times the spread (interquartile range) of either side it must be.
_LOSS_GAP_SPREADS = 3.0
#: Fewer runs, or a smaller share of them, are outliers and no second convention.
_FEWEST, _SMALLEST_SHARE = 3, 0.05
#: A column with fewer runs to each value than this names the runs, not how they were made.
_RUNS_PER_VALUE = 3
_NATS_TO_BITS = 1 / np.log(2)


def convention_findings(table: Table) -> list[Finding]:
    """What the columns show: those that name conventions, and FLOPs against 6ND."""
    found = []
    for name, values in table.conventions.items():
        counts = Counter(value for value in values if value)
        if len(counts) > 1 and len(values) >= _RUNS_PER_VALUE * len(counts):
            shown = ", ".join(f"{value} ({number})" for value, number in counts.most_common(4))
            more = f" and {len(counts) - 4} more" if len(counts) > 4 else ""
            found.append(
                Finding(
                    Code.MIXED_CONVENTIONS,
                    f"the runs differ in {name}: {shown}{more}; one law through all of them describes none",
                    f"fit the runs of one {name} at a time",
                    {"column": name, "values": dict(counts.most_common())},
                )
            )
    return found + _flops_findings(table)


def _flops_findings(table: Table) -> list[Finding]:
    if not {"params", "tokens", "flops"} <= table.values.keys():
        return []
    log_ratio = np.log(table.flops / (6.0 * table.params * table.tokens))
    if np.abs(log_ratio).max() <= _FLOPS_ROUNDING:
        return []
    column = table.columns.get("flops", "flops")
    high = _second_convention(log_ratio, np.log(table.params))
    if high is not None:
        low_ratio, high_ratio = (float(np.exp(np.median(log_ratio[rows]))) for rows in (~high, high))
        return [
            Finding(
                Code.MIXED_CONVENTIONS,
                f"the column {column!r} is about {low_ratio:.3g} x 6ND in {(~high).sum()} runs and {high_ratio:.3g} "
                f"x in {high.sum()} runs of the same sizes: two ways of counting params or FLOPs",
                "count all runs alike, or fit those of one convention at a time",
                {"column": column, "ratios": [low_ratio, high_ratio], "n_runs": [int((~high).sum()), int(high.sum())]},
            )
        ]
    ratio = np.exp(log_ratio)
    return [
        Finding(
            Code.FLOPS_NOT_6ND,
            f"the column {column!r} is {ratio.min():.3g} to {ratio.max():.3g} times 6 x params x tokens: budgets "
            "follow the column, the surface's optimum is at C = 6ND",
            "compare the two with that in mind, or give params and flops of one convention",
            {"ratio_min": float(ratio.min()), "ratio_max": float(ratio.max())},
        )
    ]


def _second_convention(log_ratio: np.ndarray, log_params: np.ndarray) -> np.ndarray | None:
    """Rows [n] of the higher of two conventions, None where the ratio is one: it may change with size, but not jump.

    Attention makes the ratio fall smoothly with size, so rows either side of a gap are of different sizes; where the
    sizes overlap, the gap is between conventions.
    """
    ascending = np.sort(log_ratio)
    for cut in np.flatnonzero(np.diff(ascending) > _RATIO_GAP):
        high = log_ratio > ascending[cut]
        overlap = [
            (log_params[own] >= log_params[other].min()) & (log_params[own] <= log_params[other].max())
            for own, other in ((high, ~high), (~high, high))
        ]
        if _enough(high) and min(rows.mean() for rows in overlap) >= 0.5:
            return high
    return None


def loss_findings(fit: Fit, table: Table) -> list[Finding]:
    """Whether the runs fall into two by ln(measured / fitted loss), as they do when two units are mixed."""
    if fit.law.target != "loss":
        return []
    off = np.log(table.loss) - np.log(fit.law.predict(*(table.column(name) for name in fit.law.inputs)))
    ascending = np.sort(off)
    cut = int(np.argmax(np.diff(ascending)))
    high = off > ascending[cut]
    if not _enough(high):  # an exact fit may even have all runs on one side
        return []
    gap = ascending[cut + 1] - ascending[cut]
    spread = max(float(np.subtract(*np.quantile(off[rows], (0.75, 0.25)))) for rows in (high, ~high))
    if gap < max(_LOSS_GAP, _LOSS_GAP_SPREADS * spread):
        return []
    ratio = float(np.exp(np.median(off[high]) - np.median(off[~high])))
    counts = [int((~high).sum()), int(high.sum())]
    bits = " (1.44 is nats to bits)" if abs(ratio / _NATS_TO_BITS - 1) < 0.05 else ""
    return [
        Finding(
            Code.MIXED_CONVENTIONS,
            f"{counts[1]} runs have {ratio:.3g} times the loss of the other {counts[0]} at the same size and "
            f"data{bits}: two units, tokenizers or validation sets",
            "give every loss in one unit on one set, or fit the runs of one kind at a time",
            {"column": table.columns.get("loss", "loss"), "ratio": ratio, "n_runs": counts},
        )
    ]


def _enough(high: np.ndarray) -> bool:
    """Whether either side has enough rows to be a convention of its own."""
    return min(high.sum(), (~high).sum()) >= max(_FEWEST, _SMALLEST_SHARE * len(high))
