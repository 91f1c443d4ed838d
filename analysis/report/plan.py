"""The plan beside what it took: time, compute and money, predicted and measured."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from analysis import formatting
from analysis.formatting import DASH, is_number
from analysis.report.tables import Column, Row, Table, number, words
from analysis.runs import Rows, by_budget, compute_of, finished_runs


def plan_text(plan: dict) -> list[str]:
    """What was planned, on what, at which price, and what the plan warned of: one paragraph each."""
    if not plan:
        return []
    workers, corpus = plan.get("workers") or {}, plan.get("corpus") or {}
    when = formatting.timestamp(plan.get("created_at"))
    parts = [f"Grid {plan.get('grid', DASH)}, profile {plan.get('profile', DASH)}, planned {when}."]
    if plan.get("description"):
        parts.append(f"{str(plan['description']).rstrip('.')}.")
    if is_number(workers.get("count")):
        plural = "s" if workers["count"] > 1 else ""
        parts.append(f"{workers['count']} worker{plural}: {workers.get('reason') or workers.get('executor', DASH)}.")
    if is_number(corpus.get("train_tokens")):
        size = formatting.count(corpus["train_tokens"])
        parts.append(f"The corpus {corpus.get('name', DASH)} holds {size} training tokens.")
    return [" ".join(parts), *[f"The plan warned: {warning}." for warning in plan.get("warnings") or []]]


def plan_facts(plan: dict, rows: Rows) -> Table | None:
    """Totals, planned and measured; None without a plan."""
    totals = plan.get("totals") or {}
    if not totals:
        return None
    runs = finished_runs(rows)
    trained = [row for row in rows if is_number(row.get("seconds"))]
    price = (plan.get("price") or {}).get("usd_per_device_hour") or {}
    hours = sum(row["device_hours"] for row in trained if is_number(row.get("device_hours")))
    device = "GPU-hours" if (plan.get("workers") or {}).get("device") == "cuda" else "CPU core-hours"
    spent = {name: value * hours for name, value in price.items() if is_number(value)}
    body = [
        _facts("Cells", formatting.whole(totals.get("cells")), f"{len(runs)} finished"),
        _facts(
            "Training tokens",
            formatting.count(totals.get("tokens")),
            formatting.count(sum(row["tokens"] for row in runs)),
        ),
        _facts(
            "Training FLOPs, 6ND",
            formatting.power(totals.get("flops"), 3),
            formatting.power(sum(map(compute_of, runs)), 3),
        ),
        _facts("Wall time", _ranged(totals.get("hours"), _hours), formatting.duration(_elapsed(rows))),
        _facts(device, _ranged(totals.get("device_hours"), _device_hours), _device_hours(hours if trained else None)),
        *_energy(totals, rows),
        _facts("Cost, US dollars", _ranged(totals.get("usd"), formatting.dollars), _money(spent) if trained else DASH),
    ]
    source = plan.get("price") or {}
    caption = (
        "In brackets 90 % intervals. Measured wall time runs from the first start to the last end, pauses included; "
        f"measured {device} are those of the training loop, planned ones hold each run's start and last evaluation."
    )
    if is_number(price.get("mid")):
        caption += (
            f" Dollars at {_money(price)} per {source.get('device', 'device')} hour, "
            f"prices of {source.get('date', 'no date')}, {source.get('source', 'no source')}."
        )
    columns = [Column(""), Column("Planned", prose=True), Column("Measured", prose=True)]
    return Table("The plan's totals and what they became", caption, columns, body)


def plan_table(rows: Rows) -> Table | None:
    """Each budget's cells with predicted and measured time; None without predictions or measurements."""
    body = []
    for budget, group in by_budget(rows).items():
        both = [
            row
            for row in finished_runs(group)
            if is_number(row.get("seconds")) and is_number(row.get("predicted_seconds"))
        ]
        predicted = sum(row["predicted_seconds"] for row in group if is_number(row.get("predicted_seconds")))
        foreseen, taken = sum(row["predicted_seconds"] for row in both), sum(row["seconds"] for row in both)
        body.append(
            Row(
                [
                    number(budget, formatting.power),
                    words(f"{len(finished_runs(group))} of {len(group)}"),
                    words(_range(group, "params")),
                    words(_range(group, "tokens")),
                    number(predicted or None, formatting.duration),
                    number(taken or None, formatting.duration),
                    number(taken / foreseen if foreseen else None, formatting.fixed),
                ]
            )
        )
    columns = [
        Column("Budget", "FLOPs, 6ND"),
        Column("Finished", "runs", text=True),
        Column("Sizes", "parameters, with embeddings", text=True),
        Column("Lengths", "training tokens", text=True),
        Column("Predicted", "sum over all runs"),
        Column("Measured", "sum over finished runs"),
        Column("Measured / predicted", "same runs"),
    ]
    useful = any(is_number(row.get("seconds")) or is_number(row.get("predicted_seconds")) for row in rows)
    caption = "Times are those of a worker in the training loop, summed over runs; workers train side by side."
    return Table("Time by budget", caption, columns, body) if useful else None


def _facts(name: str, planned: str, measured: str) -> Row:
    return Row([words(name), words(planned), words(measured)])


def _energy(totals: dict, rows: Rows) -> list[Row]:
    """Planned at the building's meter, measured by the GPUs' own counters; no row where neither is known."""
    joules = [row["energy_joules"] for row in rows if is_number(row.get("energy_joules"))]
    planned = _ranged(totals.get("energy_kwh"), _kwh)
    if planned == DASH and not joules:
        return []
    measured = f"{_kwh(sum(joules) / 3.6e6)} by the GPUs' own counters" if joules else DASH
    return [_facts("Energy", planned if planned == DASH else f"{planned} at the building's meter", measured)]


def _ranged(value: Any, show: Callable[[float], str]) -> str:
    """{value, low, high} as the value with its bounds in brackets."""
    if not isinstance(value, dict) or not is_number(value.get("value")):
        return DASH
    return f"{show(value['value'])} ({formatting.interval([value.get('low'), value.get('high')], show)})"


def _money(usd: dict[str, Any]) -> str:
    """The middle price, and its range."""
    if not is_number(usd.get("mid")):
        return DASH
    interval = formatting.interval([usd.get("low"), usd.get("high")], formatting.dollars)
    return formatting.dollars(usd["mid"]) + ("" if interval == DASH else f" ({interval})")


def _hours(hours: float | None) -> str:
    return formatting.duration(3600 * hours if is_number(hours) else None)


def _device_hours(hours: float | None) -> str:
    return f"{formatting.significant(hours)} h" if is_number(hours) else DASH


def _kwh(energy: float) -> str:
    return f"{formatting.significant(energy)} kWh"


def _range(group: Rows, column: str) -> str:
    values = [row[column] for row in group if is_number(row.get(column))]
    return f"{formatting.count(min(values))} to {formatting.count(max(values))}" if values else DASH


def _elapsed(rows: Rows) -> float | None:
    """Seconds from the first start to the last end."""
    try:
        starts = [datetime.fromisoformat(row["started_at"]) for row in rows if row.get("started_at")]
        ends = [datetime.fromisoformat(row["finished_at"]) for row in rows if row.get("finished_at")]
        return (max(ends) - min(starts)).total_seconds() if starts and ends else None
    except (TypeError, ValueError):  # a table from elsewhere may hold other dates
        return None
