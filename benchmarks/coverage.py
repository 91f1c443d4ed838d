"""How often nominal 90 % intervals hold the truth, in simulated IsoFLOP studies.

    python -m benchmarks.coverage

The truth is Epoch's law (Besiroglu et al. 2024, arXiv 2404.10102); each study trains 9 sizes within a factor 4 of
N*(C) at each of 6 budgets from 1e18 to 1e21 FLOPs, and its intervals are of ln N*, of a and of ln L* at 1e23 FLOPs,
100 times beyond the data. Noise of log loss: Gaussian of 0.3 % or of 1 %, or of 0.3 % with a tenth of the runs worse by
Exp(2 %). Every method sees the same studies: study i has seed i, and so have its resamples.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.estimator import Estimator, fit_law
from analysis.laws import ChinchillaLaw
from analysis.quantity import optimum_loss, optimum_params, parameter
from analysis.uncertainty import confidence_intervals

TRUTH = ChinchillaLaw(E=1.81724, A=477.84, B=2143.86, alpha=0.34731, beta=0.36718)
TARGET = 1e23
BUDGETS, SIZES, FACTOR = np.geomspace(1e18, 1e21, 6), 9, 4.0
LEVEL = 0.9
QUANTITIES = {"ln N*": optimum_params(TARGET), "a": parameter("a"), "ln L*": optimum_loss(TARGET)}
#: (loss that is fitted, method of the interval), the default of each loss first.
METHODS = (
    *(("huber", method) for method in ("weights", "pairs", "stratified", "delta", "profile")),
    *(("log", method) for method in ("pairs", "weights", "delta")),
)


#: Profiles cost five times a bootstrap: they see every third study.
THINNED = {"profile": 3}


def contaminated(rng: np.random.Generator, count: int) -> np.ndarray:
    """Noise of 0.3 %, and a tenth of the runs slower learners: worse by an exponential of mean 2 %."""
    noise = 0.003 * rng.standard_normal(count)
    return noise + (rng.random(count) < 0.1) * rng.exponential(0.02, count)


NOISE: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "Gaussian 0.3 %": lambda rng, count: 0.003 * rng.standard_normal(count),
    "Gaussian 1 %": lambda rng, count: 0.01 * rng.standard_normal(count),
    "0.3 %, 10 % bad runs": contaminated,
}


@dataclass(frozen=True)
class Study:
    """One simulated sweep; the arrays are [runs]."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    budgets: list[np.ndarray]


def simulate(noise: str, seed: int) -> Study:
    """The study of one seed."""
    flops = np.repeat(BUDGETS, SIZES)
    params = TRUTH.optimum(flops).params * np.tile(np.geomspace(1 / FACTOR, FACTOR, SIZES), len(BUDGETS))
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(NOISE[noise](np.random.default_rng(seed), len(flops)))
    return Study(params, tokens, loss, list(np.arange(len(flops)).reshape(len(BUDGETS), SIZES)))


def intervals(study: Study, loss: str, method: str, resamples: int, seed: int) -> np.ndarray:
    """Ends of the interval of each quantity, [quantities, 2]."""
    rows = (study.params, study.tokens)
    fit = fit_law(rows, study.loss, Estimator(loss=loss))
    found = confidence_intervals(
        rows,
        study.loss,
        fit,
        list(QUANTITIES.values()),
        method=method,
        groups=study.budgets,
        level=LEVEL,
        resamples=resamples,
        seed=seed,
    )
    return np.array([found[quantity.name] for quantity in QUANTITIES.values()])


def coverage(noise: str, loss: str, method: str, simulations: int, resamples: int) -> dict[str, dict[str, float]]:
    """Quantity -> share of the studies whose interval holds the truth, its standard error, median relative width."""
    truth = np.array([float(quantity.of(TRUTH)) for quantity in QUANTITIES.values()])
    seeds = range(0, simulations, THINNED.get(method, 1))
    ends = np.stack([intervals(simulate(noise, seed), loss, method, resamples, seed) for seed in seeds])
    held = ((ends[:, :, 0] <= truth) & (truth <= ends[:, :, 1])).mean(0)
    # A law without an optimum makes an end infinite: such an interval is wide, and its median is what is shown.
    width = np.median(np.log(ends[:, :, 1]) - np.log(ends[:, :, 0]), axis=0)
    return {
        name: {
            "coverage": round(float(held[i]), 4),
            "standard_error": round(float(np.sqrt(held[i] * (1 - held[i]) / len(seeds))), 4),
            "width_of_log": round(float(width[i]), 5),
        }
        for i, name in enumerate(QUANTITIES)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=300, help="studies in each cell")
    parser.add_argument("--resamples", type=int, default=200, help="of each bootstrap")
    parser.add_argument("--json", type=Path, help="write the table to this file")
    options = parser.parse_args()
    cells = []
    print("| noise | fit | interval | " + " | ".join(QUANTITIES) + " | width of ln N* | CPU-s |")
    print("|---|---|---|" + "---|" * (len(QUANTITIES) + 2))
    for noise in NOISE:
        for loss, method in METHODS:
            begin = time.process_time()
            found = coverage(noise, loss, method, options.simulations, options.resamples)
            seconds = time.process_time() - begin
            cells.append({"noise": noise, "loss": loss, "method": method, "cpu_seconds": round(seconds, 1), **found})
            shares = " | ".join(f"{found[name]['coverage']:.3f}" for name in QUANTITIES)
            width = found["ln N*"]["width_of_log"]
            print(f"| {noise} | {loss} | {method} | {shares} | {width:.3f} | {seconds:.0f} |", flush=True)
    if options.json:
        contents = {
            "truth": TRUTH.to_dict(),
            "budgets": BUDGETS.tolist(),
            "target_flops": TARGET,
            "level": LEVEL,
            "simulations": options.simulations,
            "resamples": options.resamples,
            "cells": cells,
        }
        options.json.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
