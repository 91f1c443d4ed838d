"""Fit the shipped constants of the step-time model to a table of measured runs, and say how far each source is off.

    python -m benchmarks.cost_constants TABLE.csv [--leave-out | --five-runs] [--json FILE]

Maximum a posteriori: the logarithm of every constant (log-odds of an overlap) has a normal prior around a value of the
literature. ln(predicted / measured) has a part that all runs of a source share (standard deviation BETWEEN) and one of
each run (WITHIN), so that a source with a hundred runs does not outvote ten sources with a few. `--leave-out` leaves
one source out and predicts it: what a new source may expect. `--five-runs` fits nothing of its own: it calibrates to
five runs of a source and GPU, drawn three times, as `scaling cost calibrate` does, and predicts the others.
"""

import argparse
import collections
import json
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from analysis.cost.calibration import calibrate, step_interval, step_spread
from analysis.cost.interval import QUANTILE
from analysis.cost.measured import describe, measurements, read_rows
from analysis.cost.measured_cells import NotExpressible
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants, constants_of, stack_names
from analysis.cost.step import step_time

BETWEEN, WITHIN = 0.10, 0.05
#: Runs that one calibrates to, and how often they are drawn.
_FEW, _DRAWS = 5, 3
#: Runs of one source count at most as so many, and none further than so many standard deviations out.
MOST_RUNS, CLIP = 20, 6.0

#: (value, standard deviation of its logarithm), shared by the stacks that do not have their own.
COMMON = {
    "wave_loss": (0.5, 0.4),
    "half_depth": (256.0, 0.5),
    "bandwidth_efficiency": (0.8, 0.08),
    "link_efficiency": (0.75, 0.12),
    "network_efficiency": (0.8, 0.12),
}
STACKS = {
    "megatron": {
        "matmul_efficiency": (0.9, 0.08),
        "low_precision": (1.0, 0.15),
        "attention_efficiency": (0.7, 0.2),
        "elementwise": (1.3, 0.2),
        "jitter": (0.008, 0.7),
    },
    "megatron_2021": {
        "matmul_efficiency": (0.95, 0.08),
        "elementwise": (1.0, 0.3),
        "score_bytes": (6.0, 0.4),
        "host_layer_seconds": (8e-4, 0.5),
        "jitter": (0.008, 0.7),
    },
    "fsdp_compiled": {
        "matmul_efficiency": (0.88, 0.08),
        "late_device_share": (0.9, 0.12),
        "elementwise": (1.0, 0.3),
        "jitter": (0.008, 0.7),
    },
    "fsdp_eager": {
        "matmul_efficiency": (0.88, 0.08),
        "late_device_share": (0.9, 0.12),
        "attention_efficiency": (0.45, 0.4),
        "elementwise": (1.5, 0.5),
        "step_seconds": (0.01, 0.7),
        "jitter": (0.008, 0.7),
    },
}
#: (value, standard deviation of its log-odds).
ODDS = {
    ("megatron", "tensor_overlap"): (0.5, 1.0),
    ("megatron", "data_overlap"): (0.85, 1.0),
}

#: Of layers with experts; fitted to the runs that have them when everything else is settled by those that have none.
EXPERTS = {
    "half_expert": (600.0, 0.7),
    "expert_seconds": (1e-5, 1.0),
    "routed_values": (6.0, 0.3),
    "fused_share": (0.5, 0.7),
}
EXPERT_ODDS = {"expert_overlap": (0.3, 1.0)}

Run = tuple[str, Setup, float]


def read(path: Path) -> list[Run]:
    """(source, setup, seconds) of the rows that can be expressed and have a step time."""
    runs = []
    for row in read_rows(path):
        try:
            seconds = measurements(row).step_seconds
            if seconds is None:
                continue
            setup = describe(row).setup
        except NotExpressible:
            continue
        if setup.sharding == "zero3" and setup.stack == "megatron_2021":
            continue  # DeepSpeed's ZeRO-3 of 2021: three times slower than any of its parts explains
        kind = " experts" if setup.model.is_moe else ""
        runs.append((f"{row.get('group') or 'all'}{kind}", setup, seconds))
    return runs


Fitted = tuple[str, str, float, float, bool]


def of_dense() -> list[Fitted]:
    """(stack or "", constant, value, width, is an overlap) of all that runs without experts decide."""
    found = [("", name, value, width, False) for name, (value, width) in COMMON.items()]
    found += [(stack, name, *prior, False) for stack, group in STACKS.items() for name, prior in group.items()]
    return found + [(stack, name, *prior, True) for (stack, name), prior in ODDS.items()]


def of_experts() -> list[Fitted]:
    """The same of what layers with experts decide."""
    found = [("megatron", name, *prior, False) for name, prior in EXPERTS.items()]
    return found + [("megatron", name, *prior, True) for name, prior in EXPERT_ODDS.items()]


def moved(fitted: list[Fitted], shift: np.ndarray, start: dict[str, Constants]) -> dict[str, Constants]:
    """`start` with the fitted constants at standard deviations `shift` from their priors."""
    changes: dict[str, dict[str, float]] = {stack: {} for stack in start}
    for (stack, name, value, width, odds), part in zip(fitted, shift, strict=True):
        now = 1.0 / (1.0 + (1.0 / value - 1.0) * math.exp(-width * part)) if odds else value * math.exp(width * part)
        for each in [stack] if stack else changes:
            changes[each][name] = now
    return {stack: replace(start[stack], **change) for stack, change in changes.items()}


def errors(runs: list[Run], by_stack: dict[str, Constants]) -> dict[str, list[float]]:
    """Source -> ln(predicted / measured) of its runs."""
    found = collections.defaultdict(list)
    for source, setup, seconds in runs:
        found[source].append(math.log(step_time(setup, by_stack[setup.stack]).total / seconds))
    return found


def fit(runs: list[Run]) -> tuple[dict[str, Constants], list[tuple[Fitted, float]]]:
    """The constants of every stack that fit best, and how many standard deviations each is from its prior."""
    constants, found = {stack: constants_of(stack) for stack in stack_names()}, []
    for fitted, chosen in (
        (of_dense(), [run for run in runs if not run[1].model.is_moe]),
        (of_experts(), [run for run in runs if run[1].model.is_moe]),
    ):
        shift = least_squares(
            residuals, np.zeros(len(fitted)), args=(fitted, chosen, constants),
            loss="soft_l1", diff_step=1e-3, max_nfev=40,
        ).x  # fmt: skip
        constants = moved(fitted, shift, constants)
        found += zip(fitted, shift, strict=True)
    return constants, found


def residuals(shift: np.ndarray, fitted: list[Fitted], runs: list[Run], start: dict[str, Constants]) -> np.ndarray:
    """Standard deviations: of the constants from their priors, of runs from their source, of sources from the model."""
    parts = [shift]
    for each in errors(runs, moved(fitted, shift, start)).values():
        values, count = np.array(each), len(each)
        middle = float(np.median(values))
        weight = min(1.0, math.sqrt(MOST_RUNS / count))
        parts.append(weight * np.clip((values - middle) / WITHIN, -CLIP, CLIP))
        parts.append(np.array([middle / math.sqrt(BETWEEN**2 + WITHIN**2 / count)]))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--leave-out", action="store_true", help="predict each source from the others as well")
    parser.add_argument(
        "--five-runs", action="store_true", help="calibrate to five runs of each source and GPU instead"
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    arguments = parser.parse_args()
    runs = read(arguments.table)
    if arguments.five_runs:
        rows = after_five(runs)
        for row in rows:
            print(
                "{source:40s} n {n:4d}  before {before:5.1f}  after {after:5.1f}  in interval {coverage:.2f}".format(
                    **row
                )
            )
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        return
    constants, found = fit(runs)
    rows = []
    for source, off in sorted(errors(runs, constants).items()):
        rows.append({"source": source, **describe_errors(off)})
        line = "{source:34s} n {n:4d}  MAPE {mape:5.1f}  bias {bias:+6.1f}  spread {spread:5.1f}".format(**rows[-1])
        if arguments.leave_out:
            held = [run for run in runs if run[0] == source]
            left_out = errors(held, fit([run for run in runs if run[0] != source])[0])
            left = describe_errors(left_out[source])
            left["coverage"] = coverage(held, left_out[source])
            rows[-1] |= {f"{name}_left_out": value for name, value in left.items()}
            line += "  left out: MAPE {mape:5.1f}  bias {bias:+6.1f}  in interval {coverage:.2f}".format(**left)
        print(line, flush=True)
    values = {}
    for (stack, name, value, _, _), shift in found:
        now = getattr(constants[stack or "megatron"], name)
        values[f"{stack or 'common'}.{name}"] = now
        print(f"{stack or 'common':14s} {name:24s} {now:9.4g}  (prior {value:g}, {shift:+.1f} sd)")
    if arguments.json:
        arguments.json.write_text(json.dumps({"constants": values, "sources": rows}, indent=1) + "\n")


def after_five(runs: list[Run]) -> list[dict[str, Any]]:
    """Of each source and GPU with ten runs or more: mean absolute error of the others after five and before, in %."""
    alike = collections.defaultdict(list)
    for source, setup, seconds in runs:
        alike[f"{source}, {setup.device.name}"].append((setup, seconds))
    rows = []
    for name, group in sorted(alike.items()):
        if len(group) < 2 * _FEW or len({setup.stack for setup, _ in group}) > 1:
            continue
        before, after, inside = [], [], []
        for seed in range(_DRAWS):
            drawn = random.Random(seed).sample(group, len(group))
            found = calibrate(drawn[:_FEW], name)
            for setup, seconds in drawn[_FEW:]:
                interval = step_interval(setup, found)
                before.append(abs(step_time(setup).total / seconds - 1))
                after.append(abs(interval.value / seconds - 1))
                inside.append(interval.low <= seconds <= interval.high)
        errors = {"before": 100 * statistics.fmean(before), "after": 100 * statistics.fmean(after)}
        rows.append({"source": name, "n": len(group), **errors, "coverage": statistics.fmean(inside)})
    return rows


def coverage(runs: list[Run], off: list[float]) -> float:
    """Share of runs in the 90 % interval that an estimate would have given with the shipped spreads."""
    spreads = [step_spread(setup, constants_of(setup.stack)) for _, setup, _ in runs]
    return statistics.fmean(abs(error) <= QUANTILE * spread for error, spread in zip(off, spreads, strict=True))


def describe_errors(off: list[float]) -> dict[str, float]:
    """Percent: mean absolute error, mean and standard deviation of ln(predicted / measured)."""
    return {
        "n": len(off),
        "mape": 100 * statistics.fmean(abs(math.expm1(error)) for error in off),
        "bias": 100 * statistics.fmean(off),
        "spread": 100 * statistics.pstdev(off),
    }


if __name__ == "__main__":
    main()
