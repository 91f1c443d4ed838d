"""The rows of a sweep's table and its training curves, as the figures and the report read them."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from analysis.formatting import is_number
from analysis.isoflop import group_budgets
from analysis.laws import Law
from analysis.table import Table

POINTS_PER_CURVE = 48

Rows = list[dict[str, Any]]


def tidy_records(records: Any) -> Rows:
    """A list of plain dictionaries from such a list, a DataFrame or a Table; missing and NaN become None."""
    if isinstance(records, Table):
        records = _table_rows(records)
    rows = records.to_dict("records") if hasattr(records, "to_dict") else list(records)
    return [{str(key): _plain(value) for key, value in row.items()} for row in rows]


def _table_rows(table: Table) -> Rows:
    """The runs of a table, each with the IsoFLOP budget that the table names or its FLOPs show."""
    budget = np.full(len(table), np.nan)
    for flops, runs in group_budgets(table) or []:
        budget[runs] = flops
    columns = {**table.values, "flops_budget": budget}
    return [
        {"run_id": run_id, **{name: column[index] for name, column in columns.items()}}
        for index, run_id in enumerate(table.run_id)
    ]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def finished_runs(rows: Rows) -> Rows:
    """The rows that a law can be fitted to: finished, with a positive size, token count and loss."""
    return [
        row
        for row in rows
        if row.get("status", "finished") == "finished"
        and all(is_number(row.get(name)) and row[name] > 0 for name in ("params", "tokens", "loss"))
    ]


def budget_of(row: dict) -> float | None:
    """The IsoFLOP budget that a row was planned for, in FLOPs (6ND); None when it has none."""
    return float(row["flops_budget"]) if is_number(row.get("flops_budget")) else None


def compute_of(row: dict) -> float:
    """C = 6 x params x tokens of a finished row, in FLOPs."""
    return float(row["flops"]) if is_number(row.get("flops")) else 6.0 * row["params"] * row["tokens"]


def by_budget(rows: Iterable[dict]) -> dict[float | None, Rows]:
    """Rows grouped by budget, budgets ascending and sizes ascending within one; None, the last, holds those without."""
    groups: dict[float | None, Rows] = {}
    for row in rows:
        groups.setdefault(budget_of(row), []).append(row)
    ordered = sorted(groups, key=lambda budget: math.inf if budget is None else budget)
    return {budget: sorted(groups[budget], key=lambda row: row.get("params") or 0) for budget in ordered}


def predicted_losses(law: dict | Law, rows: Rows) -> list[float]:
    """Loss that the surface in law.json, or given itself, has at each row's params and tokens, nats per token."""
    surface = law if isinstance(law, Law) else Law.from_dict(law)
    return [float(loss) for loss in surface.loss([row["params"] for row in rows], [row["tokens"] for row in rows])]


def thinned_curve(lines: Iterable[dict], points: int = POINTS_PER_CURVE) -> list[tuple[float, float]]:
    """(tokens, training loss) averaged over at most `points` stretches of equal length in log tokens."""
    logged = [
        (float(line["tokens"]), float(line["loss"]))
        for line in lines
        if is_number(line.get("tokens")) and line["tokens"] > 0 and is_number(line.get("loss"))
    ]
    if len(logged) <= points:
        return logged
    low, high = math.log(logged[0][0]), math.log(logged[-1][0])
    stretches: dict[int, list[tuple[float, float]]] = {}
    for tokens, loss in logged:
        place = (math.log(tokens) - low) / max(high - low, 1e-12)
        stretches.setdefault(max(0, min(points - 1, int(points * place))), []).append((tokens, loss))
    return [
        (sum(tokens for tokens, _ in group) / len(group), sum(loss for _, loss in group) / len(group))
        for _, group in sorted(stretches.items())
    ]
