"""The words of the report: the answer, the numbers people quote, what every number means."""

import math
from collections.abc import Callable

from analysis import formatting
from analysis.formatting import DASH, is_number
from analysis.law_json import answered, interval_level, optimum_at, optimum_points, tokens_per_parameter
from analysis.report.tables import Table, facts_table
from analysis.runs import Rows, budget_of, by_budget, compute_of, finished_runs

_FLOP_COUNTS = {
    "flops_causal": ("Causal FLOPs", "matrix products of the modules + causal (half) attention"),
    "flops_full": ("Full FLOPs", "matrix products of the modules + full attention"),
    "flops_hardware": ("Hardware FLOPs", "full, plus what activation recomputation did again"),
}


def answer(rows: Rows, law: dict | None) -> dict[str, str] | None:
    """What to train at the largest budget that was trained; None without a surface.

    Keys: flops, params, tokens, loss (printed numbers) and detail (sentences).
    """
    points = optimum_points(law)
    if not points:
        return None
    trained = [compute_of(row) for row in finished_runs(rows)]
    budgets = [budget_of(row) or compute_of(row) for row in finished_runs(rows)]
    point = answered(optimum_at(law, max(budgets, default=math.inf)) or points[-1])
    params, tokens, loss = (point[name] for name in ("params", "tokens", "loss"))
    ratio = tokens_per_parameter(point)
    sizes = f"{_range(params, formatting.count)} parameters, {_range(tokens, formatting.count)} tokens"
    detail = [
        f"{interval_level(law).capitalize()}s: {sizes}, {_range(loss, formatting.fixed)} nats per token.",
        f"That is {_two(ratio['value'])} tokens per parameter ({_range(ratio, _two)}).",
        "Parameters count embeddings; FLOPs are 6ND; the loss is that of the held-out text at the end of the schedule.",
    ]
    if "average" in point:
        detail.append("Sizes and loss are the average over forms, and the intervals hold what a form gets wrong.")
    if trained:
        span = f"{formatting.power(min(trained))} to {formatting.power(max(trained))}"
        detail.append(f"The runs behind it span {span} FLOPs.")
    return {
        "flops": formatting.power(point["flops"]),
        "params": formatting.count(params["value"]),
        "tokens": formatting.count(tokens["value"]),
        "loss": formatting.fixed(loss["value"]),
        "detail": " ".join(detail),
    }


def no_answer(rows: Rows) -> str:
    """The first sentence of a report without a law."""
    done = len(finished_runs(rows))
    if not rows:
        return "There are no runs yet, so there is no law."
    if not done:
        return f"None of the {len(rows)} runs has finished, so there is no law yet."
    return f"{done} of {len(rows)} runs have finished, and no law was fitted to them."


def tiles(law: dict | None) -> list[dict[str, str]]:
    """The law's numbers that people quote: {"label", "value", "detail"} of each; empty without a surface."""
    points = optimum_points(law)
    if not points:
        return []
    intervals, exponents = law.get("intervals") or {}, law.get("exponents") or {}
    minima = (law.get("isoflop") or {}).get("exponents") or {}
    result = []
    for name, key in (("N*", "a"), ("D*", "b")):
        interval = formatting.interval(intervals.get(key), formatting.fixed)
        detail = f"{interval} ({interval_level(law)}); IsoFLOP minima {formatting.fixed(minima.get(key))}"
        value = formatting.fixed(exponents.get(key))
        result.append({"label": f"{name} grows as C to the power", "value": value, "detail": detail})
    last = answered(points[-1])
    params, tokens = formatting.count(last["params"]["value"], 2), formatting.count(last["tokens"]["value"], 2)
    sizes, loss = (
        _range(last["params"], lambda value: formatting.count(value, 2)),
        formatting.fixed(last["loss"]["value"]),
    )
    ratio = _two(tokens_per_parameter(last)["value"])
    result.append(
        {
            "label": f"Extrapolated to {formatting.power(last['flops'])} FLOPs",
            "value": f"{params} on {tokens}",
            "detail": f"{sizes} parameters; {loss} nats per token; {ratio} tokens per parameter",
        }
    )
    result.append(
        {
            "label": "R\N{SUPERSCRIPT TWO} of the surface",
            "value": formatting.fixed(law.get("r_squared_log_loss"), 4),
            "detail": f"in log loss, over {law.get('n_points', DASH)} runs",
        }
    )
    return result


def byline(rows: Rows, machine: str | None) -> str:
    """How many runs ended how, over which budgets, on what, and when."""
    states: dict[str, int] = {}
    for row in rows:
        state = row.get("status") or "finished"
        states[state] = states.get(state, 0) + 1
    breakdown = ", ".join(f"{number} {state}" for state, number in states.items())
    parts = [f"{len(rows)} runs ({breakdown})" if rows else "no runs"]
    budgets = [budget for budget in by_budget(rows) if budget]
    if len(budgets) > 1:
        span = f"{formatting.power(budgets[0])} to {formatting.power(budgets[-1])}"
        parts.append(f"{len(budgets)} compute budgets from {span} FLOPs")
    elif budgets:
        parts.append(f"one compute budget of {formatting.power(budgets[0])} FLOPs")
    if machine and machine.strip():
        parts.append(machine.strip().splitlines()[0])
    ends = [str(row["finished_at"]) for row in rows if row.get("finished_at")]
    if ends:
        parts.append(f"last run ended {formatting.timestamp(max(ends))}")
    return " \N{MIDDLE DOT} ".join(parts)


def conventions_table(rows: Rows, law: dict | None, machine: str | None, versions: dict[str, str]) -> Table:
    """What every number on the page means, and what it was measured on."""
    meaning, settings = (law or {}).get("conventions") or {}, (law or {}).get("settings") or {}
    plain_settings = {name: value for name, value in settings.items() if isinstance(value, (int, float, str))}
    facts = [
        ("Parameters N", meaning.get("params") or "all parameters, embeddings included, tied weights counted once"),
        ("Tokens D", "training tokens seen, repeats included"),
        ("Compute C", meaning.get("flops") or "6 x params x tokens"),
        *_flop_ratios(rows),
        ("Loss", meaning.get("loss") or "validation, nats per token"),
        ("Held-out text", "fixed sequences that training never sees; the loss is the mean over all their tokens"),
        ("MFU", "causal training FLOPs per second over the peak of the device; the run records name the peak"),
        ("Fit", "; ".join(f"{name} = {value}" for name, value in plain_settings.items())),
        ("Corpus", _distinct(rows, "corpus")),
        ("Corpus fingerprint", _distinct(rows, "corpus_fingerprint")),
        ("Sequence length", _distinct(rows, "seq_length")),
        ("Device", _distinct(rows, "device")),
        ("Matrix products in", _distinct(rows, "dtype")),
        ("Machine", machine),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    caption = "Every count, unit and source used above."
    return facts_table("Conventions", caption, [(name, value) for name, value in facts if value])


def _flop_ratios(rows: Rows) -> list[tuple[str, str]]:
    """The other FLOP counts of the finished runs, as multiples of 6ND."""
    result = []
    for column, (name, meaning) in _FLOP_COUNTS.items():
        ratios = [row[column] / compute_of(row) for row in finished_runs(rows) if is_number(row.get(column))]
        if ratios:
            low, high = formatting.significant(min(ratios)), formatting.significant(max(ratios))
            result.append((name, f"{meaning}; {low if low == high else f'{low} to {high}'} times 6ND in these runs"))
    return result


def _range(value: dict, show: Callable[[float], str]) -> str:
    return formatting.interval([value.get("low"), value.get("high")], show)


def _two(value: float | None) -> str:
    return formatting.significant(value, 2)


def _distinct(rows: Rows, column: str) -> str:
    return ", ".join(dict.fromkeys(str(row[column]) for row in rows if row.get(column) is not None))
