"""The tables of the report: plain data that the template prints and escapes."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from analysis import formatting, published
from analysis.formatting import DASH, is_number
from analysis.law_json import (
    answered,
    interval_level,
    isoflop_budgets,
    optimum_at,
    optimum_points,
    tokens_per_parameter,
)
from analysis.runs import Rows, by_budget, compute_of, finished_runs

ALLOCATION_ROWS = 8
#: Statuses of runs that ended without a loss to fit.
LOST = ("diverged", "failed")
#: Multiples of the largest budget that the allocation is also given for.
BEYOND = (3, 10)


@dataclass(frozen=True)
class Column:
    """A column: its name, its unit, and whether it holds words (short, or `prose` that may wrap)."""

    label: str
    unit: str = ""
    text: bool = False
    prose: bool = False


@dataclass(frozen=True)
class Cell:
    """What is printed, and what a click on the column's head sorts by."""

    text: str
    sort: str = ""


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; `kind` is "", "off" (not fitted) or "beyond" (extrapolated)."""

    cells: list[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table; `label` is for screen readers, `caption` is printed below."""

    label: str
    caption: str
    columns: list[Column]
    rows: list[Row]


def words(text: Any) -> Cell:
    """A cell of words; a dash for nothing."""
    return Cell(DASH if text in (None, "") else str(text), "" if text is None else str(text))


def number(value: Any, show: Callable[[Any], str]) -> Cell:
    """A cell of a number, printed by `show`, sorted by its value."""
    return Cell(show(value), repr(float(value)) if is_number(value) else "")


def allocation_table(law: dict | None, rows: Rows) -> Table | None:
    """What to train at the sweep's budgets and beyond, with intervals; None without a surface."""
    trained = [compute_of(row) for row in finished_runs(rows)]
    last = max(trained, default=math.inf)
    known = optimum_points(law)
    budgets = [flops for flops in by_budget(rows) if flops] or [point["flops"] for point in known]
    further = [factor * budgets[-1] for factor in BEYOND if budgets] if trained else []
    points = [optimum_at(law, flops) for flops in _spread(budgets, ALLOCATION_ROWS) + further]
    body = []
    averaged = any("average" in point for point in known)
    for point in map(answered, filter(None, points)):
        cells = [number(point["flops"], formatting.power)]
        for value, show in (
            (point["params"], formatting.count),
            (point["tokens"], formatting.count),
            (tokens_per_parameter(point), formatting.significant),
            (point["loss"], formatting.fixed),
        ):
            cells += [number(value["value"], show), words(formatting.interval([value["low"], value["high"]], show))]
        body.append(Row(cells, "beyond" if point["flops"] > 1.1 * last else ""))
    columns = [Column("Compute", "FLOPs, 6ND")]
    for name, unit in (
        ("N*", "parameters"),
        ("D*", "tokens"),
        ("D*/N*", "tokens per parameter"),
        ("L*", "nats per token"),
    ):
        columns += [Column(name, unit), Column("", interval_level(law), text=True)]
    source = "the average over forms, with model-form error" if averaged else "the fitted surface"
    caption = f"The best split of each compute budget by {source}; parameters count embeddings."
    if any(row.kind for row in body):
        caption += " Rows in italics lie beyond the largest run."
    return Table("What to train at each compute budget", caption, columns, body) if body else None


def isoflop_table(law: dict | None) -> Table | None:
    """The minimum of each budget's parabola; None without budgets."""
    body = []
    for fit in isoflop_budgets(law):
        inside = bool(fit.get("interior"))
        cells = [
            number(fit["flops"], formatting.power),
            number(fit.get("n_points"), formatting.whole),
            number(fit.get("params_opt"), formatting.count),
            words(formatting.interval(fit.get("params_interval"), formatting.count)),
            number(fit.get("tokens_opt"), formatting.count),
            number(fit.get("loss_opt"), formatting.fixed),
            words("inside the grid" if inside else "not inside the grid"),
        ]
        body.append(Row(cells, "" if inside else "off"))
    columns = [
        Column("Budget", "FLOPs, 6ND"),
        Column("Runs"),
        Column("N at the minimum", "parameters, with embeddings"),
        Column("", interval_level(law), text=True),
        Column("D there", "tokens"),
        Column("Loss there", "nats per token"),
        Column("Minimum", text=True),
    ]
    caption = "Vertex of the parabola in ln N fitted to each budget (Hoffmann et al., Approach 2)."
    return Table("IsoFLOP minima", caption, columns, body) if body else None


def exponent_table(law: dict | None) -> Table | None:
    """Our exponents beside the published ones; None without a law."""
    ours = []
    for name, part in (("This sweep, fitted surface", law), ("This sweep, IsoFLOP minima", (law or {}).get("isoflop"))):
        exponents = (part or {}).get("exponents") or {}
        if is_number(exponents.get("a")):
            intervals = part.get("intervals") or {}
            interval = formatting.interval(intervals.get("a"), formatting.fixed)
            ours.append(
                Row([words(name), *_ab(exponents["a"], exponents.get("b"), interval), words(interval_level(law))])
            )
    if not ours:
        return None
    theirs = [
        Row(
            [
                words(p.name),
                *_ab(p.a, p.b, formatting.interval(p.a_interval, formatting.fixed)),
                words(f"{p.note}; {p.source}"),
            ]
        )
        for p in published.EXPONENTS
    ]
    columns = [
        Column("Law"),
        Column("a"),
        Column("interval of a", text=True),
        Column("b"),
        Column("Remark", prose=True),
    ]
    caption = "N* grows as C to the power a, D* as C to the power b."
    return Table("Exponents, ours and published", caption, columns, ours + theirs)


def _ab(a: float, b: float | None, interval: str) -> tuple[Cell, Cell, Cell]:
    return number(a, formatting.fixed), words(interval), number(b, formatting.fixed)


def parameter_table(law: dict | None) -> Table | None:
    """Parameters of the surface with intervals; None without one."""
    parameters = (law or {}).get("parameters")
    if not parameters:
        return None
    intervals = law.get("intervals") or {}
    body = []
    for name, value in parameters.items():
        interval = formatting.interval(intervals.get(name), formatting.significant)
        body.append(Row([words(name), number(value, formatting.significant), words(interval)]))
    columns = [Column("Parameter"), Column("Value"), Column("", interval_level(law), text=True)]
    caption = (
        f"{law.get('n_points', DASH)} runs; "
        f"R\N{SUPERSCRIPT TWO} in log loss {formatting.fixed(law.get('r_squared_log_loss'), 4)}; "
        f"objective {formatting.significant(law.get('objective'))}; "
        f"intervals by {intervals.get('method', 'no method given')}. "
        "A and alpha, and B and beta, move together: judge the law by N*, D*, L* and the exponents."
    )
    return Table("Parameters of the fitted surface", caption, columns, body)


def _loss(name: str) -> Callable[[dict], Cell]:
    return lambda row: number(row.get(name), lambda value: formatting.fixed(value, 4))


def _shown(name: str, show: Callable[[Any], str]) -> Callable[[dict], Cell]:
    return lambda row: number(row.get(name), show)


_RESULTS: tuple[tuple[Column, Callable[[dict], Cell]], ...] = (
    (Column("Cell"), lambda row: words(row.get("cell") or row.get("run_id"))),
    (Column("Status", text=True), lambda row: words(row.get("status"))),
    (Column("N", "parameters"), _shown("params", formatting.count)),
    (Column("D", "tokens"), _shown("tokens", formatting.count)),
    (Column("D/N"), lambda row: number(_ratio(row.get("tokens"), row.get("params")), formatting.significant)),
    (Column("Loss", "nats per token"), _loss("loss")),
    (Column("\N{PLUS-MINUS SIGN}", "std. error"), _loss("loss_stderr")),
    (Column("Loss", "bits per byte"), _shown("bits_per_byte", formatting.fixed)),
    (Column("Time", "measured"), _shown("seconds", formatting.duration)),
    (Column("Time", "predicted"), _shown("predicted_seconds", formatting.duration)),
    (Column("Speed", "tokens/s"), _shown("tokens_per_second", formatting.count)),
    (Column("MFU", "causal FLOPs"), _shown("mfu_causal", formatting.percent)),
    (Column("Layers"), _shown("num_layers", formatting.whole)),
    (Column("Width", "hidden size"), _shown("hidden_size", formatting.whole)),
    (Column("N", "without embeddings"), _shown("params_non_embedding", formatting.count)),
    (Column("Steps"), _shown("train_steps", formatting.whole)),
    (Column("Batch", "sequences"), _shown("global_batch_size", formatting.whole)),
    (Column("Learning rate", "peak"), _shown("learning_rate", formatting.significant)),
    (Column("Budget", "FLOPs, 6ND"), _shown("flops_budget", formatting.power)),
    (Column("C", "FLOPs, 6ND"), _shown("flops", lambda value: formatting.power(value, 3))),
    (Column("C", "FLOPs, causal"), _shown("flops_causal", lambda value: formatting.power(value, 3))),
    (Column("run_id", text=True), lambda row: words(row.get("run_id"))),
)


def results_table(rows: Rows) -> Table | None:
    """Every cell, planned or run; None when there is none."""
    body = []
    for group in by_budget(rows).values():
        for row in group:
            values = [show(row) for _, show in _RESULTS]
            body.append(Row(values, "off" if row.get("status") in LOST else ""))
    columns = [column for column, _ in _RESULTS]
    caption = (
        "N counts embeddings unless it says otherwise; losses are those of the held-out text. "
        "A click on a column's head sorts by it; runs.csv beside this file holds every digit."
    )
    return Table("All runs", caption, columns, body) if body else None


def excluded_table(law: dict | None, rows: Rows) -> Table | None:
    """Runs that the fit left out, and why; None when it took all."""
    reasons = {item.get("run_id"): item.get("reason") for item in (law or {}).get("excluded") or []}
    for row in rows:
        if row.get("status") in LOST and row.get("reason"):
            reasons[row.get("run_id")] = f"{row['status']}: {row['reason']}"
    names = {row.get("run_id"): row.get("cell") for row in rows}
    body = [
        Row([words(names.get(run_id) or run_id), words(run_id), words(reason)]) for run_id, reason in reasons.items()
    ]
    columns = [Column("Cell"), Column("run_id", text=True), Column("Why", prose=True)]
    caption = "A run that diverged or failed is never fitted silently."
    return Table("Runs left out of the fit", caption, columns, body) if body else None


def facts_table(label: str, caption: str, facts: Iterable[tuple[str, str]]) -> Table:
    """Two columns: what, and its value in words."""
    columns = [Column("What"), Column("Value", prose=True)]
    return Table(label, caption, columns, [Row([words(name), words(value)]) for name, value in facts])


def _ratio(above: Any, below: Any) -> float | None:
    return above / below if is_number(above) and is_number(below) and below else None


def _spread(points: list, most: int) -> list:
    """At most `most` of the points, evenly spaced, first and last among them."""
    if len(points) <= most:
        return points
    return [points[round(index * (len(points) - 1) / (most - 1))] for index in range(most)]
