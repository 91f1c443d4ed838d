"""`law.json` as the figures and the report read it: tolerant of what is missing, in a fixed order."""

import math
from typing import Any

from analysis.formatting import is_number, percent

QUANTITIES = ("params", "tokens", "loss")
_PARTS = ("value", "low", "high")


def isoflop_budgets(law: dict | None) -> list[dict]:
    """The law's IsoFLOP curves, ascending in compute; empty when there are none."""
    return sorted(((law or {}).get("isoflop") or {}).get("budgets") or [], key=lambda fit: fit["flops"])


def optimum_points(law: dict | None) -> list[dict]:
    """The surface's optimum against compute, ascending; empty without a surface."""
    points = (law or {}).get("optimum") or []
    usable = [point for point in points if all(is_number(point[name]["value"]) for name in QUANTITIES)]
    return sorted(usable, key=lambda point: point["flops"])


def optimum_at(law: dict | None, flops: float) -> dict | None:
    """One such point at `flops`, between its neighbours on log scales, where N* and D* are straight lines.

    None without a surface, or further than a tenth outside of what law.json covers.
    """
    points = optimum_points(law)
    if len(points) < 2 or not points[0]["flops"] / 1.1 <= flops <= points[-1]["flops"] * 1.1:
        return None
    right = next((index for index, point in enumerate(points) if point["flops"] >= flops), len(points) - 1)
    before, after = points[max(0, right - 1)], points[max(1, right)]
    share = math.log(flops / before["flops"]) / math.log(after["flops"] / before["flops"])

    def between(first: dict, second: dict) -> dict[str, Any]:
        return {
            name: {part: _between(first[name].get(part), second[name].get(part), share) for part in _PARTS}
            for name in QUANTITIES
        }

    at = {"flops": flops, **between(before, after)}
    if before.get("average") and after.get("average"):
        at["average"] = between(before["average"], after["average"])
    return at


def answered(point: dict) -> dict:
    """What to act on at one point of the optimum: the average over forms where there is one, else the surface."""
    return {**point, **point["average"]} if point.get("average") else point


def form_errors(law: dict | None) -> list[dict]:
    """The backtest table by form, best loss first: what each got wrong at the next budget, over all left out in turn.

    Keys: form; n; log_params_error, loss_error: root mean squares (None where nothing was measured);
    params_weight, loss_weight: of the average, None without one.
    """
    forms: dict[str, list[dict]] = {}
    for score in (law or {}).get("forms") or []:
        if score["steps"] == 1:
            forms.setdefault(score["form"], []).append(score)
    choice = (law or {}).get("choice") or {}
    rows = [
        {
            "form": form,
            "n": len(scores),
            "log_params_error": _root_mean_square(score["log_params_error"] for score in scores),
            "loss_error": _root_mean_square(score["loss_error"] for score in scores),
            "params_weight": (choice.get("params_weights") or {}).get(form),
            "loss_weight": (choice.get("loss_weights") or {}).get(form),
        }
        for form, scores in forms.items()
    ]
    return sorted(rows, key=lambda row: (row["loss_error"] is None, row["loss_error"]))


def _root_mean_square(values: Any) -> float | None:
    squares = [value**2 for value in values if is_number(value)]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def _between(first: float | None, second: float | None, share: float) -> float | None:
    if not (is_number(first) and is_number(second) and first > 0 and second > 0):
        return None
    return first * (second / first) ** share


def tokens_per_parameter(point: dict) -> dict:
    """D/N at one point of the optimum; its interval follows from that of N, because C = 6ND is given."""
    flops, params = point["flops"], point["params"]
    ratio = {"value": point["tokens"]["value"] / params["value"], "low": None, "high": None}
    if is_number(params.get("low")) and is_number(params.get("high")) and params["low"] > 0:
        ratio |= {"low": flops / 6 / params["high"] ** 2, "high": flops / 6 / params["low"] ** 2}
    return ratio


def interval_level(law: dict | None) -> str:
    """What the law's intervals are called: `90 % interval`."""
    level = ((law or {}).get("intervals") or {}).get("level")
    return f"{percent(level)} interval" if is_number(level) else "interval"
