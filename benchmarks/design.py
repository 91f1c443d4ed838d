"""Which runs tell most for their cost: our designs against random, cheapest-first and D-optimal choices of runs.

    python -m benchmarks.design --data FOLDER [--json FILE]

FOLDER holds the public tables named in TABLES, as CSV files with the columns params_N, tokens_D, flops_C and loss. Each
strategy spends 1, 5 and 10 % of the cost of all runs outside of the held-out region; the law is then fitted in one way
(`analysis.design.Belief`, gamma form) and predicts the held-out runs. The choices are made again at 15, 30, 45, 60 and
80 % of the spending; nothing of the held-out losses is used. Last, standard errors of ln N* and ln L* at 1e23 FLOPs: a
proposal for a tenth of the cost of a 6 x 9 grid against that grid, where the form is exactly right.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.design import (
    COST_EXPONENT,
    Belief,
    choose,
    ignorance,
    information_gain,
    joint_covariance,
    loss_targets,
    optimum_targets,
    variance_gain,
)
from analysis.estimator import Estimator, fit_law
from analysis.laws import FORMS, ChinchillaLaw
from analysis.proposal import HELD_OUT, Space, propose

SHARES = (0.01, 0.05, 0.1)
ROUNDS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
RANDOM_ORDERS = 20
SUBSETS = 6
_SIMULATIONS = 400

#: Table -> file, and the rows that are taken. Held out: the tenth with the most compute; of farseer, its test split.
TABLES: dict[str, tuple[str, Callable[[dict[str, str]], bool]]] = {
    "farseer": ("farseer", lambda row: True),
    # repetition hardly hurts up to four epochs
    "datablations": ("datablations", lambda row: float(row["epochs"]) <= 4),
    "kyotakano": ("kyotakano_chinchilla_digitised", lambda row: True),
    "gemstones, cooled": ("gemstones", lambda row: row["experiment"].startswith("gemstones_cool")),
    "olmo ladder": ("olmo_ladder", lambda row: True),
    **{
        f"gadre {name}": ("gadre_overtraining", lambda row, name=name: row["experiment"].startswith(f"gadre_{name}"))
        for name in ("c4", "rpj", "rw")
    },
    **{
        f"porian {name}": ("porian_isoflops", lambda row, name=name: row["experiment"] == f"porian_{name}_standard_val")
        for name in (
            *("rw_base_long_kaplan", "rw_base_short_kaplan", "rw_base_short_chinchilla"),
            *("rw_tuned_short_const", "owt2_base_long_kaplan", "owt2_base_short_kaplan"),
            *("owt2_base_short_chinchilla", "owt2_tuned_short_const"),
        )
    },
}


@dataclass(frozen=True)
class Runs:
    """Runs to choose from, [n] each, and held-out runs, [t] each."""

    params: np.ndarray
    tokens: np.ndarray
    cost: np.ndarray
    loss: np.ndarray
    target_params: np.ndarray
    target_tokens: np.ndarray
    target_loss: np.ndarray

    def subset(self, seed: int) -> "Runs":
        """Four fifths of the runs, the same held-out ones."""
        keep = np.sort(np.random.default_rng(seed).permutation(len(self.cost))[: len(self.cost) * 4 // 5])
        return replace(self, **{name: getattr(self, name)[keep] for name in ("params", "tokens", "cost", "loss")})

    def belief(self, chosen: list[int]) -> Belief:
        start = ignorance(FORMS["gamma"], self.params, self.tokens)
        return start.learn(self.params[chosen], self.tokens[chosen], self.loss[chosen]) if chosen else start

    def score(self, chosen: list[int]) -> tuple[float, float]:
        """R^2 of the held-out losses, and the root mean square error of their logarithm."""
        predicted = self.belief(chosen).predict(self.target_params, self.target_tokens)
        spread = ((self.target_loss - self.target_loss.mean()) ** 2).sum()
        r_squared = 1 - ((predicted - self.target_loss) ** 2).sum() / spread
        return float(r_squared), float(np.sqrt((np.log(predicted / self.target_loss) ** 2).mean()))


def read_runs(folder: Path, table: str) -> Runs:
    file, taken = TABLES[table]
    with open(folder / f"{file}.csv", newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if taken(row)]
    numbers = np.array([[float(row[name]) for name in ("params_N", "tokens_D", "flops_C", "loss")] for row in rows])
    held_out = numbers[:, 2] >= np.quantile(numbers[:, 2], 0.9)
    if table == "farseer":
        held_out = np.array([row["split"] == "test" for row in rows])
    params, tokens, _, loss = numbers[held_out].T
    return Runs(*numbers[~held_out].T, params, tokens, loss)


def in_order(runs: Runs, budget: float, order: np.ndarray) -> list[int]:
    """The runs of an order that the budget still pays when their turn comes."""
    chosen, spent = [], 0.0
    for index in order:
        if spent + runs.cost[index] <= budget:
            chosen.append(int(index))
            spent += runs.cost[index]
    return chosen


def sequential(
    runs: Runs, budget: float, gain: Callable = variance_gain, form_error: float = 0.01, exponent: float = COST_EXPONENT
) -> list[int]:
    """Runs chosen by a gain for its cost, again after every round; by default as `analysis.design` does."""
    chosen: list[int] = []
    for share in ROUNDS:
        belief = replace(runs.belief(chosen), form_error=form_error)
        targets = loss_targets(belief, runs.target_params, runs.target_tokens)
        covariance = joint_covariance(belief, runs.params, runs.tokens, targets)
        spent = runs.cost[chosen].sum()
        used = np.isin(np.arange(len(runs.cost)), chosen)
        pause = share * budget - spent
        chosen += choose(
            covariance, runs.cost, budget - spent, belief.noise, False, gain, used, pause, cost_exponent=exponent
        )
    return chosen


STRATEGIES: dict[str, Callable[[Runs, float], list[int]]] = {
    "cheapest first": lambda runs, budget: in_order(runs, budget, np.argsort(runs.cost)),
    "D-optimal": lambda runs, budget: sequential(runs, budget, information_gain, 0.0, 1.0),
    "V-optimal, form exact, per cost": lambda runs, budget: sequential(runs, budget, form_error=0.0, exponent=1.0),
    "V-optimal, per cost": lambda runs, budget: sequential(runs, budget, exponent=1.0),
    "V-optimal, per cost^(3/4)": sequential,
}


def scores(runs: Runs, share: float) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Of each strategy (R^2, error): on the table, then on parts of it; of random orders, on the table alone."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(runs.cost)) for _ in range(RANDOM_ORDERS)]
    yield "random", [runs.score(in_order(runs, share * runs.cost.sum(), order)) for order in orders]
    parts = [runs, *(runs.subset(seed) for seed in range(SUBSETS))]
    for name, strategy in STRATEGIES.items():
        yield name, [part.score(strategy(part, share * part.cost.sum())) for part in parts]


def compare(folder: Path) -> dict[str, dict]:
    """Table -> strategy -> share -> r_squared (of random: the median) and its range over parts, log_loss_error."""
    found: dict[str, dict] = {}
    for table in TABLES:
        runs = read_runs(folder, table)
        found[table] = {"runs": len(runs.cost), "held_out": len(runs.target_loss), "strategies": {}}
        for share in SHARES:
            for name, pairs in scores(runs, share):
                r_squared, error = np.array(pairs).T
                found[table]["strategies"].setdefault(name, {})[str(share)] = {
                    "r_squared": float(np.median(r_squared) if name == "random" else r_squared[0]),
                    "r_squared_range": [float(r_squared.min()), float(r_squared.max())],
                    "log_loss_error": float(np.exp(np.log(error).mean())),
                }
    return found


def print_comparison(found: dict[str, dict]) -> None:
    """R^2 and error of every table, and the error over all, the Porian tables counted as one."""
    errors: dict[str, dict[str, list[float]]] = {}
    for table, about in found.items():
        print(f"{table}: {about['runs']} runs, {about['held_out']} held out; R^2, error of ln L at {SHARES} of cost")
        for name, at in about["strategies"].items():
            cells = [f"{each['r_squared']:7.2f} {100 * each['log_loss_error']:6.2f} %" for each in at.values()]
            print(f"  {name:<32} {'  '.join(cells)}")
            study = errors.setdefault(name, {}).setdefault(table.split()[0], [])
            study.append(np.log([each["log_loss_error"] for each in at.values()]))
    print("geometric mean error of ln L over studies (tables of one study count as one)")
    for name, studies in errors.items():
        mean = np.exp(np.mean([np.mean(each, 0) for each in studies.values()], 0))
        print(f"  {name:<32} {'  '.join(f'{100 * value:6.2f} %' for value in mean)}")


def against_a_grid(form_error: float, share: float) -> dict[str, float]:
    """Standard errors of ln N* and ln L* at 1e23 FLOPs: a proposal over those of 6 budgets x 9 sizes within 4x of N*.

    By the information matrix of a least-squares fit, and from simulated fits. Truth: the fit of Besiroglu et al. 2024
    (arXiv 2404.10102) to the runs of Hoffmann et al. 2022; noise 0.3 %.
    """
    law = ChinchillaLaw(E=1.8172, A=477.8, B=2143.4, alpha=0.3473, beta=0.3672)
    flops = np.geomspace(1e18, 1e21, 6).repeat(9)
    params = law.optimum(flops).params * np.tile(np.geomspace(0.25, 4.0, 9), 6)
    grid, total = (params, flops / 6 / params), flops.sum()
    known = ignorance(ChinchillaLaw, *grid, form_error=form_error)
    known = replace(known, mean=law.coordinates(known.centre))
    targets = optimum_targets(known, 1e23)
    found = propose(known, 1e23, share * total, Space(1e18), lambda params, tokens: 6 * params * tokens)
    kept = np.array(found.role) != HELD_OUT

    def expected(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        jacobian = known.gradient(known.place(params, tokens))
        spread = known.noise**2 * np.linalg.inv(jacobian @ jacobian.T)
        return np.sqrt(np.diag(targets.gradient.T @ spread @ targets.gradient))

    def simulated(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rng, loss = np.random.default_rng(0), law.loss(params, tokens)
        noisy = loss * np.exp(known.noise * rng.standard_normal((_SIMULATIONS, len(loss))))
        laws = [fit_law((params, tokens), one, Estimator(loss="log")).law.optimum(1e23) for one in noisy]
        return np.log([(best.params, best.loss) for best in laws]).std(0, ddof=1)

    without = found.params[kept], found.tokens[kept]
    ratios = {
        "": expected(*without) / expected(*grid),
        "_released": expected(found.params, found.tokens) / expected(*grid),
        "_simulated": simulated(*without) / simulated(*grid),
    }
    about = {"runs": len(kept), "cost": float(found.cost.sum() / total), "largest_flops": float(found.cost.max())}
    return about | {
        f"ratio_{name}{how}": float(ratio[index])
        for how, ratio in ratios.items()
        for index, name in enumerate(("ln_params", "ln_loss"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public tables")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    found: dict = {"tables": compare(options.data), "against_6x9_grid": []}
    print_comparison(found["tables"])
    print("6 x 9 grid: standard errors of ln N*, ln L* over the grid's (held-out run learned from; simulated)")
    for form_error in (0.0, 0.01):
        for share in (0.1, 0.12):
            ratio = against_a_grid(form_error, share)
            found["against_6x9_grid"].append({"form_error": form_error, "share": share, **ratio})
            by_how = [
                f"{ratio[f'ratio_ln_params{how}']:.2f}, {ratio[f'ratio_ln_loss{how}']:.2f}"
                for how in ("", "_released", "_simulated")
            ]
            print(f"  form error {form_error:g}, {share:.0%} of its cost, {ratio['runs']} runs: {' | '.join(by_how)}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
