"""CPU seconds of fits, bootstraps, a whole report and the import, on one core.

    python -m benchmarks.fit_speed [--all-starts] [--data FOLDER] [--json FILE]

The table is drawn from Epoch's law with 0.5 % of noise. The peer for fit and bootstrap is Epoch's published procedure
(`benchmarks/epoch.py`): a random sample of its 4,500 starts and of its resamples is run and the time scaled to all,
unless --all-starts. With --data, every CSV of a folder that has the columns params_N, tokens_D, flops_C and loss is
fitted as by `scaling fit FILE --form auto`.
"""

import os

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # before NumPy

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.estimator import fit_law, refit
from analysis.laws import ChinchillaLaw
from analysis.report.page import write_report
from analysis.study import analyse, fit_table
from analysis.uncertainty import draw
from benchmarks.epoch import NUM_BOOTSTRAPS, STARTS, EpochObjective, bootstrap_fit, fit_from
from benchmarks.timing import middle, table
from scaling.errors import UserError
from sweeps.machine import detect

TRUTH = ChinchillaLaw(E=1.81724, A=477.84, B=2143.86, alpha=0.34731, beta=0.36718)
BUDGETS, FACTOR, NOISE = np.geomspace(6e18, 3e21, 10), 8.0, 0.005
RESAMPLES = 1000
COLUMNS = {"params": "params_N", "tokens": "tokens_D", "loss": "loss", "flops": "flops_C"}
_IMPORTS = ("import analysis", "from analysis import fit, Law; fit")


@dataclass(frozen=True)
class Row:
    """CPU seconds of one candidate, one entry a turn. goal: upper limit; ran: what was run, when it is scaled up."""

    what: str
    seconds: list[float]
    goal: float | None = None
    ran: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the median, rounded to what a clock can tell."""
        seconds = [float(f"{value:.4g}") for value in self.seconds]
        return {**asdict(self), "median": float(f"{statistics.median(seconds):.4g}"), "seconds": seconds}


def simulate(sizes: int) -> dict[str, np.ndarray]:
    """10 IsoFLOP budgets of `sizes` runs within a factor 8 of N*; columns [10 * sizes]."""
    flops = np.repeat(BUDGETS, sizes)
    params = TRUTH.optimum(flops).params * np.tile(np.geomspace(1 / FACTOR, FACTOR, sizes), len(BUDGETS))
    tokens = flops / 6 / params
    loss = TRUTH.loss(params, tokens) * np.exp(NOISE * np.random.default_rng(0).standard_normal(len(flops)))
    return {"params": params, "tokens": tokens, "loss": loss, "flops_budget": flops}


def curve_of(params: float, tokens: float, points: int = 200) -> list[dict[str, float]]:
    """Lines of a metrics.jsonl: the law at the tokens seen so far."""
    seen = np.geomspace(tokens / 1000, tokens, points)
    return [{"tokens": float(d), "loss": float(loss)} for d, loss in zip(seen, TRUTH.loss(params, seen), strict=True)]


def cpu_seconds(job: Callable[[], object], turns: int, warm_up: int = 1) -> list[float]:
    """CPU seconds of each of `turns` calls."""
    for _ in range(warm_up):
        job()
    found = []
    for _ in range(turns):
        begin = time.process_time()
        job()
        found.append(time.process_time() - begin)
    return found


def ours(turns: int) -> Iterator[Row]:
    """The fit, the bootstraps and the report."""
    study = simulate(24)
    inputs, loss = (study["params"], study["tokens"]), study["loss"]
    yield Row("ours: five-parameter fit, 240 runs", cpu_seconds(lambda: fit_law(inputs, loss), 5 * turns), 0.025)
    fit = fit_law(inputs, loss)

    def bootstrap() -> None:
        refit(inputs, loss, draw(len(loss), None, RESAMPLES, 0.9, 0, "pairs").counts, fit)

    yield Row("ours: 1,000 bootstraps of it", cpu_seconds(bootstrap, turns), 1.0)
    with tempfile.TemporaryDirectory() as folder:
        yield Row("ours: report of 250 runs", cpu_seconds(lambda: report(Path(folder)), max(turns // 3, 1), 0), 15.0)


def report(folder: Path) -> None:
    """The law of 250 runs by --form auto (all forms, backtest, averages, intervals, findings) and the HTML page."""
    study = simulate(25)
    law = analyse(study, form="auto", resamples=RESAMPLES, at_flops=[1e22, 1e23])
    rows = [dict(zip(study, values), run_id=f"run {i}") for i, values in enumerate(zip(*study.values(), strict=True))]
    curves = {row["run_id"]: curve_of(row["params"], row["tokens"]) for row in rows}
    write_report(folder / "report.html", records=rows, law=law, curves=curves)


def imports(turns: int) -> Iterator[Row]:
    """Each import in a fresh process, timed inside it."""
    for statement in _IMPORTS:
        code = f"import time; begin = time.process_time(); {statement}; print(time.process_time() - begin)"
        found = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(turns)]
        yield Row(f"ours: {statement.removesuffix('; fit')}", found, 0.4)


def peer(turns: int, num_starts: int, num_bootstraps: int) -> tuple[list[Row], dict[str, float]]:
    """Epoch's grid and bootstraps, scaled up from samples; and which objective the grid reached against ours."""
    study = simulate(24)
    columns = study["params"], study["tokens"], study["loss"]
    objective, rng = EpochObjective(*columns), np.random.default_rng(0)
    starts = STARTS[rng.permutation(len(STARTS))[:num_starts]]
    grid_seconds, reached = [], []
    for part in np.array_split(starts, turns):
        begin = time.process_time()
        reached += [fit_from(objective, start).objective for start in part]
        grid_seconds.append((time.process_time() - begin) * len(STARTS) / len(part))
    each = num_bootstraps // turns
    boot = cpu_seconds(lambda: [bootstrap_fit(*columns, rng) for _ in range(each)], turns, 0)
    best, own = np.nanmin(reached), fit_law(columns[:2], columns[2]).objective
    rows = [
        Row("Epoch: grid of 4,500 starts", grid_seconds, ran=f"{len(starts)} starts"),
        Row("Epoch: 1,000 bootstraps", [s * RESAMPLES / each for s in boot], ran=f"{each * turns} resamples"),
        Row("Epoch: 4,000 bootstraps", [s * NUM_BOOTSTRAPS / each for s in boot], ran=f"{each * turns} resamples"),
    ]
    share = float(np.mean(np.array(reached) <= own * (1 + 1e-4)))
    return rows, {"ours": own, "epoch_best": float(best), "epoch_share_of_starts_within_1e-4": share}


def tables(folder: Path) -> Iterator[Row]:
    """`scaling fit FILE --form auto` of every usable CSV of a folder."""
    for path in sorted(folder.glob("*.csv")):
        try:
            begin = time.process_time()
            law = fit_table(path, COLUMNS, form="auto", resamples=RESAMPLES)
            yield Row(f"{path.name}: {law['n_points']} runs", [time.process_time() - begin], 15.0)
        except UserError as error:
            print(f"left out: {error}")


def main() -> None:
    """Run everything, print the table, and keep every turn on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10, help="turns of each candidate; five times as many of a fit")
    parser.add_argument("--starts", type=int, default=200, help="of Epoch's 4,500, at random")
    parser.add_argument("--bootstraps", type=int, default=100, help="of Epoch's 4,000")
    parser.add_argument("--all-starts", action="store_true", help="all of Epoch's starts and resamples: minutes")
    parser.add_argument("--data", type=Path, help="a folder of CSV files to fit as well")
    parser.add_argument("--json", type=Path, help="write every turn to this file")
    options = parser.parse_args()
    counts = (len(STARTS), NUM_BOOTSTRAPS) if options.all_starts else (options.starts, options.bootstraps)
    rows = [*imports(options.turns), *ours(options.turns)]
    peers, objectives = peer(options.turns, *counts)
    rows += [*peers, *(tables(options.data) if options.data else ())]
    found = detect()
    machine = f"{found.cpu_model}, {found.cores} cores, one thread, NumPy {np.__version__}, {time.strftime('%Y-%m-%d')}"
    print(machine)
    cells = [[row.what, middle(row.seconds, 4), "" if row.goal is None else f"{row.goal:g}", row.ran] for row in rows]
    print(table(("CPU seconds, median (range)", "", "goal", "scaled from"), cells))
    print(objectives)
    if options.json:
        about = {"machine": machine, "load_average_at_end": round(os.getloadavg()[0], 1), "objective": objectives}
        lines = ",\n".join(json.dumps(row.to_dict()) for row in rows)
        options.json.write_text(f'{json.dumps(about)[:-1]}, "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
