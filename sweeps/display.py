"""What a launch shows: the plan before, the progress while cells train, the results after."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.cost.interval import Interval
from analysis.formatting import count, dollars, duration, fixed, percent, significant
from analysis.formatting import interval as bounds
from analysis.law_json import form_errors
from analysis.prediction_errors import PredictionErrors
from sweeps.ladder import settings
from sweeps.plan import Plan
from sweeps.status import CellStatus, SweepStatus

_LINE_SECONDS = 15.0
#: Of the cells outside of their interval, so many are named.
_FARTHEST = 3


def _table(title: str | None, texts: list[str], numbers: list[str], more_texts: list[str] | None = None) -> Table:
    """An empty table: columns of text on the left, of numbers on the right, and perhaps text again."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    for name in more_texts or []:
        table.add_column(name)
    return table


def _parameters(number: int) -> str:
    """Every digit of a small model's count, three of a large one's: the columns fit a terminal of 80."""
    return f"{number:,}" if number < 10**7 else count(number)


def show_plan(console: Console, plan: Plan) -> None:
    """The plan as a table, then its totals and warnings."""
    on_gpus = plan.workers.device == "cuda"
    spread = any(cell.ranks > 1 for cell in plan.cells)
    table = _table(
        f"grid {plan.grid}, profile {plan.profile}: {len(plan.cells)} cells",
        ["cell"],
        ["layers", "width", "params", "non-emb.", "tokens", "6ND FLOPs", "time", *(["GiB/GPU"] if on_gpus else [])],
        [*(["layout"] if spread or on_gpus else []), *(["why"] if spread else [])],
    )
    for cell in plan.cells:
        table.add_row(
            cell.cell,
            str(cell.num_layers),
            str(cell.hidden_size),
            _parameters(cell.params),
            _parameters(cell.params_non_embedding),
            count(cell.tokens),
            f"{cell.flops:.3g}",
            duration(cell.seconds),
            *([significant(cell.prediction.peak_memory_bytes.value / 2**30)] if on_gpus else []),
            *([settings(cell.config)] if spread or on_gpus else []),
            *([cell.layout_reason] if spread else []),
        )
    console.print()
    console.print(table)
    console.print()
    for line in _totals(plan):
        console.print(line, soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _totals(plan: Plan) -> list[str]:
    totals, price = plan.totals, plan.price
    workers = "1 worker" if plan.workers.count == 1 else f"{plan.workers.count} workers"
    lines = [
        f"{totals.cells} cells, {totals.tokens:,} tokens, {totals.flops:.3g} FLOPs (6ND, params with embeddings; "
        f"{totals.flops_causal:.3g} with causal attention)",
        f"predicted: {_ranged(totals.hours.scaled(3600), duration)} on {workers}, "
        f"{_ranged(totals.device_hours, significant)} {plan.device_name} hours"
        + ("" if totals.energy_kwh is None else f", {_ranged(totals.energy_kwh, significant)} kWh"),
        f"in brackets 90 % intervals; the times rest on {plan.prediction}",
    ]
    if price is None or totals.usd is None:
        return [*lines, "cost: unknown, since no price of this device is known: give one with --price"]
    each = price.usd_per_device_hour
    return [
        *lines,
        f"cost: {_ranged(totals.usd, dollars)} at {dollars(each.mid)} ({dollars(each.low)} to {dollars(each.high)}) "
        f"per {price.device} hour, prices of {price.date} ({price.provider})",
    ]


def _ranged(value: Interval, show: Callable[[float], str]) -> str:
    return f"{show(value.value)} ({show(value.low)} to {show(value.high)})"


class ProgressDisplay:
    """Progress of a sweep: a live table on a terminal, now and then a line elsewhere."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._console = console
        self._plan = plan
        self._live: Live | None = None
        self._settled: set[str] | None = None
        self._next_line = 0.0

    @contextmanager
    def running(self) -> Iterator["ProgressDisplay"]:
        """Show progress while the context lasts."""
        if not self._console.is_terminal:
            yield self
            return
        # No refresh thread: nothing is drawn while the standard streams are lent to a starting job.
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            yield self
        self._live = None

    def show(self, status: SweepStatus) -> None:
        """Draw or print a newly read status."""
        settled = {cell.run_id for cell in status.cells if cell.state in ("finished", "diverged", "failed")}
        for cell in status.cells:
            if self._settled is not None and cell.run_id in settled - self._settled:
                self._console.print(_settled_line(cell), soft_wrap=True)
        self._settled = settled
        if self._live is not None:
            self._live.update(self._draw(status), refresh=True)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_SECONDS
            self._console.print(progress_line(status), soft_wrap=True)

    def _draw(self, status: SweepStatus) -> Group:
        running = _table(None, ["running", ""], ["step", "loss", "tokens/s"], ["worker"])
        workers = {worker.get("run_id"): worker for worker in status.workers}
        for cell in status.cells:
            if cell.state == "running":
                worker = workers.get(cell.run_id, {})
                running.add_row(
                    cell.cell,
                    ProgressBar(total=cell.train_steps, completed=cell.step, width=20),
                    f"{cell.step}/{cell.train_steps}",
                    "" if cell.loss is None else f"{cell.loss:.3f}",
                    "" if cell.tokens_per_second is None else count(cell.tokens_per_second),
                    f"{worker.get('host', '?')} pid {worker.get('pid', '?')}",
                )
        total = sum(cell.predicted_seconds for cell in status.cells)
        done = sum(cell.predicted_seconds * min(cell.step / cell.train_steps, 1) for cell in status.cells)
        bar = Table.grid()  # a bar by itself does not end its line, and what follows would be cut off
        bar.add_row(ProgressBar(total=total, completed=done, width=60))
        return Group(bar, Text(progress_line(status)), running)


def progress_line(status: SweepStatus) -> str:
    """One line: cells by state, tokens per second, loss, time left."""
    counts = status.counts
    parts = [f"{counts['finished'] + counts['diverged']}/{len(status.cells)} cells done"]
    parts += [f"{counts[state]} {state}" for state in ("running", "failed", "diverged") if counts[state]]
    if counts["running"]:
        running = [cell for cell in status.cells if cell.state == "running"]
        parts.append(f"{count(sum(cell.tokens_per_second or 0 for cell in running))} tokens/s")
        losses = [f"{cell.loss:.3f}" for cell in running if cell.loss is not None]
        if losses:
            parts.append(f"loss {' '.join(losses[:8])}")
    if status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    return ", ".join(parts)


def _settled_line(cell: CellStatus) -> str:
    loss = "" if cell.loss is None else f", loss {cell.loss:.4f}"
    seconds = "" if cell.seconds is None else f", {duration(cell.seconds)}"
    reason = "" if cell.reason is None else f": {cell.reason}"
    return f"{cell.state} {cell.cell} ({cell.run_id}){loss}{seconds}{reason}"


def show_status(console: Console, status: SweepStatus) -> None:
    """A sweep's status for people."""
    numbers = ["step", "loss", "tokens/s", "time", "attempts"]
    spread = any(cell.ranks > 1 for cell in status.cells)
    table = _table(status.sweep_dir, ["cell", "run", "state"], numbers, [*(["layout"] if spread else []), "reason"])
    for cell in status.cells:
        table.add_row(
            cell.cell,
            cell.run_id,
            cell.state,
            f"{cell.step}/{cell.train_steps}",
            "" if cell.loss is None else f"{cell.loss:.4f}",
            "" if cell.tokens_per_second is None else count(cell.tokens_per_second),
            "" if cell.seconds is None else duration(cell.seconds),
            str(cell.attempts),
            *([cell.layout] if spread else []),
            cell.reason or "",
        )
    console.print(table)
    launcher = status.launcher
    if launcher is None:
        console.print("launcher: none runs")
    else:
        since = launcher.get("started_at")
        console.print(f"launcher: pid {launcher.get('pid')} on {launcher.get('host')} since {since}", soft_wrap=True)
    for worker in status.workers:
        ranks = f", {worker['ranks']} processes" if worker.get("ranks", 1) > 1 else ""
        console.print(f"worker {worker['slot']}: pid {worker.get('pid')} on {worker.get('host')}{ranks}")
    console.print(progress_line(status))
    show_predictions_held(console, status.predictions)


def show_predictions_held(console: Console, found: list[PredictionErrors]) -> None:
    """Predicted against measured, a line for each quantity; nothing before a run has finished."""
    for errors in found:
        farthest = ", ".join(f"{cell} ({significant(ratio)} x)" for cell, ratio in errors.outside[:_FARTHEST])
        console.print(
            f"{errors.quantity} predicted before the runs: median error {percent(errors.median_error)}, "
            f"{errors.within} of {errors.runs} within the 90 % interval"
            + (f"; farthest off: {farthest}" if farthest else ""),
            soft_wrap=True,
        )


def show_results(console: Console, rows: list[dict[str, Any]]) -> None:
    """The table of results: one line for each cell."""
    numbers = ["params", "tokens", "loss, nats/token", "bits/byte", "time"]
    spread = any((row.get("ranks") or 1) > 1 for row in rows)
    table = _table("results", ["cell"], numbers, [*(["layout"] if spread else []), ""])
    for row in rows:
        finished = row["status"] == "finished"
        table.add_row(
            row["cell"],
            _parameters(row["params"]),
            count(row["tokens"]),
            "" if row["loss"] is None else f"{row['loss']:.4f} ± {row['loss_stderr']:.4f}",
            "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}",
            "" if row.get("seconds") is None else duration(row["seconds"]),
            *([row["layout"]] if spread else []),
            "" if finished else f"{row['status']}: {row['reason']}" if row["reason"] else row["status"],
        )
    console.print()
    console.print(table)
    console.print()


def show_law(console: Console, law: dict[str, Any]) -> None:
    """The fitted law with its intervals, and what to be careful about. An undefined number is a dash."""

    def value(number: float | None, interval: list[float | None] | None) -> str:
        return f"{significant(number, 4)} ({bounds(interval, lambda bound: significant(bound, 4))})"

    intervals = law["intervals"]
    means = law["conventions"]
    console.print(f"L(N, D) = {law['form']}   N: {means['params']}; D: tokens; L: {means['loss']}", soft_wrap=True)
    for name, number in law["parameters"].items():
        console.print(f"  {name:<5} = {value(number, intervals.get(name))}")
    console.print(
        f"  {law['n_points']} runs, R² = {fixed(law['r_squared_log_loss'], 4)} in log loss; "
        f"in brackets {intervals['level']:.0%} intervals ({intervals['method']})",
        soft_wrap=True,
    )
    a, b = (value(law["exponents"][name], intervals.get(name)) for name in ("a", "b"))
    console.print(f"compute-optimal: N* grows as C to the power {a}, D* as C to the power {b}", soft_wrap=True)
    if found := law.get("isoflop"):
        inside = sum(budget["interior"] for budget in found["budgets"])
        a = value(found["exponents"]["a"], found["intervals"]["a"])
        console.print(
            f"IsoFLOP minima: N* grows as C to the power {a}; "
            f"{inside} of {len(found['budgets'])} lie inside their grid",
            soft_wrap=True,
        )
    for run in law.get("held_out") or []:
        expected = value(run["predicted"]["value"], [run["predicted"]["low"], run["predicted"]["high"]])
        console.print(
            f"held out, N {count(run['params'])}, D {count(run['tokens'])}: predicted {expected}, "
            f"measured {significant(run['measured'], 4)}, {100 * run['error']:+.2f} %",
            soft_wrap=True,
        )
    show_findings(console, law["warnings"])


def show_forms(console: Console, law: dict[str, Any]) -> None:
    """The backtest: what every form got wrong at budgets left out, and which was chosen; nothing without one."""
    rows, chosen = form_errors(law), law["choice"]
    if rows:
        weighed = any(row["loss_weight"] is not None for row in rows) and law["optimum"][0].get("average")
        console.print("what each form predicted for the next budget, the largest left out in turn", soft_wrap=True)
        table = _table(
            None,
            ["form"],
            ["budgets", "error of N*", "error of loss", *(["weight in N*", "in loss"] if weighed else [])],
        )
        for row in rows:
            shares = (row["params_weight"], row["loss_weight"]) if weighed else ()
            errors = (row["log_params_error"], row["loss_error"])
            table.add_row(row["form"], str(row["n"]), *map(percent, errors), *map(_share, shares))
        console.print(table)
    if chosen:
        console.print(f"chosen surface: {chosen['surface']}. {chosen['reason']}", soft_wrap=True)


def _share(weight: float | None) -> str:
    return "" if weight is None else f"{weight:.0%}"


def show_predictions(console: Console, law: dict[str, Any]) -> None:
    """N*, D*, L* at each compute that was asked for, with intervals, and what these hold."""
    for point in law["predictions"]:
        wide = point.get("with_form_error")
        parts = []
        for name, show in (("params", count), ("tokens", count), ("loss", lambda value: fixed(value, 4))):
            ends = bounds([point[name]["low"], point[name]["high"]], show)
            more = f"; {bounds(wide[name], show)}" if wide else ""
            parts.append(f"{name} {show(point[name]['value'])} ({ends}{more})")
        console.print(f"at {point['flops']:.3g} FLOPs, {point['of']}: {', '.join(parts)}", soft_wrap=True)
    if law["predictions"]:
        first, level = law["predictions"][0], law["intervals"]["level"]
        second = "; then with the error of the form, by its backtest" if "with_form_error" in first else ""
        console.print(f"in brackets {level:.0%} intervals: {first['interval']}{second}", soft_wrap=True)


def show_findings(console: Console, findings: list[dict[str, Any]]) -> None:
    """What to be careful about, and what to do about it: one line each."""
    for finding in findings:
        said = f"{finding['message']}: {finding['remedy']}"
        console.print(f"warning ({finding['code']}): {said}", style="yellow", soft_wrap=True)


def show_failures(console: Console, sweep_dir: Path, status: SweepStatus, trouble: str | None, command: str) -> None:
    """What went wrong, and how to go on; nothing when all went well."""
    failed = [cell for cell in status.cells if cell.state == "failed"]
    if failed:
        table = _table(f"{len(failed)} cells failed", ["cell", "run"], ["attempts"], ["reason"])
        for cell in failed:
            table.add_row(cell.cell, cell.run_id, str(cell.attempts), cell.reason or "")
        console.print(table)
        console.print(f"tracebacks: {sweep_dir}/RUN/error.log; the same command tries these cells again: {command}")
    if trouble:
        console.print(f"stopped early: {trouble}", style="red", soft_wrap=True)
