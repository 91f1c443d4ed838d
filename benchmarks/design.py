"""Which runs tell most for their cost: ours against random, cheapest-first and D-optimal choices of runs.

    python -m benchmarks.design --data FOLDER [--json FILE]

FOLDER holds farseer.csv and datablations.csv (columns params_N, tokens_D, flops_C, loss; farseer: split; datablations:
epochs). Each strategy spends 1, 5 and 10 % of the cost of all runs outside of the held-out region; the law is then
fitted in one way (`analysis.design.Belief`, gamma form) and its R^2 over the held-out region is reported. The choices
are made again at 15, 30, 45, 60 and 80 % of the spending; nothing of the held-out losses is used. Last: the standard
errors of ln N* and ln L* at 1e23 FLOPs from a tenth of the cost of a 6 x 9 grid, where the form is exactly right.
"""

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.design import (
    Belief,
    choose,
    ignorance,
    information_gain,
    joint_covariance,
    loss_targets,
    optimum_targets,
    relative_gain,
    variance_gain,
)
from analysis.laws import FORMS, ChinchillaLaw

SHARES = (0.01, 0.05, 0.1)
ROUNDS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
RANDOM_ORDERS = 20
SUBSETS = 8


class Runs:
    """Runs [n] and held-out runs [t]."""

    def __init__(self, rows: np.ndarray, held_out: np.ndarray) -> None:
        self.params, self.tokens, self.cost, self.loss = rows[~held_out].T
        self.target_params, self.target_tokens, _, self.target_loss = rows[held_out].T

    def subset(self, seed: int) -> "Runs":
        """Four fifths of the runs, the same held-out ones."""
        keep = np.random.default_rng(seed).permutation(len(self.cost))[: len(self.cost) * 4 // 5]
        part = object.__new__(Runs)
        part.__dict__.update(self.__dict__)
        for name in ("params", "tokens", "cost", "loss"):
            setattr(part, name, getattr(self, name)[np.sort(keep)])
        return part

    def belief(self, chosen: list[int]) -> Belief:
        start = ignorance(FORMS["gamma"], self.params, self.tokens)
        return start.learn(self.params[chosen], self.tokens[chosen], self.loss[chosen]) if chosen else start

    def r_squared(self, chosen: list[int]) -> float:
        """Of the held-out losses."""
        error = self.belief(chosen).predict(self.target_params, self.target_tokens) - self.target_loss
        return float(1 - (error**2).sum() / ((self.target_loss - self.target_loss.mean()) ** 2).sum())


def farseer(folder: Path) -> Runs:
    rows = _read(folder / "farseer.csv")
    return Runs(_numbers(rows), np.array([row["split"] == "test" for row in rows]))


def datablations(folder: Path) -> Runs:
    """Runs of at most four epochs, which repetition hardly hurts; held out: the tenth with the most compute."""
    rows = [row for row in _read(folder / "datablations.csv") if float(row["epochs"]) <= 4]
    numbers = _numbers(rows)
    return Runs(numbers, numbers[:, 2] >= np.quantile(numbers[:, 2], 0.9))


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _numbers(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[name]) for name in ("params_N", "tokens_D", "flops_C", "loss")] for row in rows])


def in_order(runs: Runs, budget: float, order: np.ndarray) -> list[int]:
    """The runs of an order that the budget still pays when their turn comes."""
    chosen, spent = [], 0.0
    for index in order:
        if spent + runs.cost[index] <= budget:
            chosen.append(int(index))
            spent += runs.cost[index]
    return chosen


def sequential(runs: Runs, budget: float, gain: Callable, form_error: float) -> list[int]:
    """Runs chosen by a gain for its cost, again after every round."""
    chosen: list[int] = []
    for share in ROUNDS:
        belief = replace(runs.belief(chosen), form_error=form_error)
        targets = loss_targets(belief, runs.target_params, runs.target_tokens)
        covariance = joint_covariance(belief, runs.params, runs.tokens, targets)
        spent = runs.cost[chosen].sum()
        used = np.isin(np.arange(len(runs.cost)), chosen)
        pause = share * budget - spent
        chosen += choose(covariance, runs.cost, budget - spent, belief.noise, False, gain, used, pause)
    return chosen


def strategies(runs: Runs, budget: float) -> dict[str, list[float]]:
    """R^2 of each strategy; several of random orders."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(runs.cost)) for _ in range(RANDOM_ORDERS)]
    return {
        "random": [runs.r_squared(in_order(runs, budget, order)) for order in orders],
        "cheapest first": [runs.r_squared(in_order(runs, budget, np.argsort(runs.cost)))],
        "D-optimal": [runs.r_squared(sequential(runs, budget, information_gain, 0.0))],
        "V-optimal, form exact": [runs.r_squared(sequential(runs, budget, variance_gain, 0.0))],
        "V-optimal, form error 1 %": [runs.r_squared(sequential(runs, budget, variance_gain, 0.01))],
        "the same on 4/5 of the runs": [
            part.r_squared(sequential(part, budget / runs.cost.sum() * part.cost.sum(), variance_gain, 0.01))
            for part in (runs.subset(seed) for seed in range(SUBSETS))
        ],
    }


def against_a_grid(form_error: float, share: float = 0.1) -> dict[str, float]:
    """Standard errors of ln N* and ln L* at 1e23 FLOPs: a design over those of 6 budgets x 9 sizes within 4x of N*.

    Truth: the fit of Besiroglu et al. 2024 (arXiv 2404.10102) to the runs of Hoffmann et al. 2022; noise 0.3 %.
    """
    law = ChinchillaLaw(E=1.8172, A=477.8, B=2143.4, alpha=0.3473, beta=0.3672)

    def cells(budgets: int, sizes: int, width: float) -> tuple[np.ndarray, np.ndarray]:
        flops = np.geomspace(1e18, 1e21, budgets).repeat(sizes)
        params = law.optimum(flops).params * np.tile(np.geomspace(1 / width, width, sizes), budgets)
        return params, flops / 6 / params

    grid, candidates = cells(6, 9, 4.0), cells(13, 17, 4.0)
    known = ignorance(ChinchillaLaw, *candidates, form_error=form_error)
    known = replace(known, mean=law.coordinates(known.centre))
    targets = optimum_targets(known, 1e23)
    cost, total = 6 * candidates[0] * candidates[1], (6 * grid[0] * grid[1]).sum()
    covariance = joint_covariance(known, *candidates, targets)
    chosen = choose(covariance, cost, share * total, known.noise, gain=relative_gain)

    def errors(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        jacobian = known.gradient(known.place(params, tokens))
        spread = known.noise**2 * np.linalg.inv(jacobian @ jacobian.T)
        return np.sqrt(np.diag(targets.gradient.T @ spread @ targets.gradient))

    ratio = errors(candidates[0][chosen], candidates[1][chosen]) / errors(*grid)
    largest = float(cost[chosen].max())
    return {"runs": len(chosen), "cost": float(cost[chosen].sum() / total), "largest_flops": largest} | {
        "ratio_ln_params": float(ratio[0]),
        "ratio_ln_loss": float(ratio[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of farseer.csv and datablations.csv")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    found: dict = {"r_squared": {}, "against_6x9_grid": {}}
    for runs_of in (farseer, datablations):
        runs = runs_of(options.data)
        held_out = len(runs.target_loss)
        print(f"{runs_of.__name__}: {len(runs.cost)} runs, {held_out} held out; R^2 at {SHARES} of the cost")
        by_share = [strategies(runs, share * runs.cost.sum()) for share in SHARES]
        for name in by_share[0]:
            values = [at[name] for at in by_share]
            found["r_squared"].setdefault(runs_of.__name__, {})[name] = dict(zip(map(str, SHARES), values))
            shown = "  ".join(
                f"{np.median(each):6.2f}" + (f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else "")
                for each in values
            )
            print(f"  {name:<28} {shown}")
    for form_error in (0.0, 0.01):
        against = found["against_6x9_grid"][str(form_error)] = against_a_grid(form_error)
        print(
            f"6 x 9 grid, form error {form_error:g}: {against['cost']:.1%} of its cost in {against['runs']} runs gives "
            f"{against['ratio_ln_params']:.2f} x its s.e. of ln N*, {against['ratio_ln_loss']:.2f} x that of ln L*"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
