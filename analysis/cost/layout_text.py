"""A search for layouts in words and JSON: each layout with its intervals, why the first one wins, what was tried."""

from collections.abc import Collection
from typing import Any

from analysis.cost.calibration import Calibration
from analysis.cost.estimate import Assumptions, estimate
from analysis.cost.estimate_text import described
from analysis.cost.layout_reasons import compare
from analysis.cost.layouts import Candidate, LayoutSearch, on_more_gpus
from analysis.cost.memory_remedies import remedies
from analysis.cost.setup_text import setup_line

_GIB = 2.0**30
_MOST_REMEDIES = 3
#: Of an estimate, what tells layouts apart.
_TOLD = ("setup", "step_time_s", "tokens_per_second_per_gpu", "mfu", "memory_gib", "gpu_hours")


def search_dict(
    found: LayoutSearch, tokens: float, open_fields: Collection[str], calibration: Calibration | None
) -> dict[str, Any]:
    """The list, fastest first, each with why the first is faster; what was looked at; what would fit, if nothing does.

    tokens: of the run, for its GPU-hours. saved_s and cost_s of a layout: seconds a step by part that the first one
    saves against it, and that it costs.
    """
    return {
        "layouts": [_layout(each, found.candidates[0], tokens, calibration) for each in found.candidates],
        "searched": {
            "divisions": found.space.size,
            "impossible": found.space.impossible,
            "too_large": found.too_large,
            "too_slow": found.too_slow,
            "priced": found.num_priced,
        },
        "nothing_fits": None if found.nearest is None else _nothing_fits(found.nearest, open_fields, calibration),
        "memory_margin": f"estimate + {100 * found.margin:.0f} %",
    }


def counts_line(found: LayoutSearch) -> str:
    """What was looked at, in one line."""
    impossible = ", ".join(f"{number} since {reason}" for reason, number in found.space.impossible.items())
    rest = len(found.space.divisions) - found.too_large - found.too_slow
    return (
        f"{found.space.size} {'way' if found.space.size == 1 else 'ways'} to divide the GPUs: "
        f"{sum(found.space.impossible.values())} impossible"
        f"{f' ({impossible})' if impossible else ''}, {found.too_large} too large for the memory, {found.too_slow} "
        f"slower than the list whatever else is chosen; of the other {rest}, {found.num_priced} layouts fit"
    )


def _layout(each: Candidate, best: Candidate, tokens: float, calibration: Calibration | None) -> dict[str, Any]:
    answer = described(estimate(each.setup, tokens, Assumptions(calibration=calibration)), (), ())
    told = {name: answer[name] for name in _TOLD}
    if each is best:
        return {**told, "slower": 0.0, "why": "the fastest predicted of those that fit", "saved_s": {}, "cost_s": {}}
    compared = compare(best, each)
    return {
        **told,
        "slower": each.seconds / best.seconds - 1,
        "why": str(compared),
        "saved_s": compared.saved,
        "cost_s": compared.cost,
    }


def _nothing_fits(nearest: Candidate, open_fields: Collection[str], calibration: Calibration | None) -> dict[str, Any]:
    changes = [each for each in remedies(nearest.setup) if each.setup.num_gpus == nearest.setup.num_gpus]
    more = on_more_gpus(nearest.setup, open_fields, calibration)
    return {
        "layout": setup_line(nearest.setup),
        "memory_gib": nearest.memory.device / _GIB,
        "changes": [str(each) for each in changes[:_MOST_REMEDIES]],
        "on_more_gpus": None if more is None else setup_line(more.setup),
    }
