"""What to train next, and what another choice costs.

Every function draws into the Axes it is given, or into new ones, and returns them.
"""

from collections.abc import Mapping
from typing import Any

from analysis import figure_style, formatting
from analysis.axes import axes_for, axis_label, columns_of, legend, log_ticks
from analysis.formatting import is_number
from analysis.law_json import optimum_points
from analysis.proposal import Proposal
from analysis.runs import compute_of, finished_runs, tidy_records

#: Role of a proposed run -> marker, size, colour, name.
_ROLES = {
    "chosen": ("o", 5, figure_style.BLUE, "chosen for what it tells"),
    "top": ("D", 5, figure_style.GREEN, "IsoFLOP at the largest compute"),
    "held-out": ("*", 10, figure_style.VERMILLION, "to be held out and predicted"),
}


def next_runs(proposal: Proposal, runs: Any = (), law: dict | None = None, ax: Any = None) -> Any:
    """Size against compute of the runs there are and of those proposed, with N*(C) of `law` (law.json)."""
    ax = axes_for(ax, axis_label("flops", law), axis_label("params", law))
    known = [(compute_of(row), row["params"]) for row in finished_runs(tidy_records(runs))]
    ax.plot(*columns_of(known), "o", ms=3.5, color=figure_style.MUTED, mfc="none", label="trained")
    compute = 6.0 * proposal.params * proposal.tokens
    for role, (marker, size, color, name) in _ROLES.items():
        chosen = [index for index, found in enumerate(proposal.role) if found == role]
        if chosen:
            ax.plot(compute[chosen], proposal.params[chosen], marker, ms=size, color=color, label=name)
    best = optimum_points(law)
    if best:
        line = [(point["flops"], point["params"]["value"]) for point in best]
        ax.plot(*columns_of(line), color=figure_style.INK, lw=1.2, zorder=1, label="N*(C) of the fitted law")
    ax.set_xscale("log")
    ax.set_yscale("log")
    log_ticks(ax.xaxis, formatting.power)
    log_ticks(ax.yaxis, formatting.count)
    legend(ax)
    return ax


def what_it_buys(proposal: Proposal, unit: str = "US dollars", ax: Any = None) -> Any:
    """Standard deviations of N* and L* at the target against what is spent, in the unit of the proposal's cost."""
    ax = axes_for(ax, f"Spent ({unit})", "Standard deviation at the target (%)")
    spent = [0.0, *proposal.cost.cumsum().tolist()]
    looks = (("N*", figure_style.BLUE, "-"), ("L*", figure_style.VERMILLION, "--"))
    for (name, color, line), deviations in zip(looks, proposal.deviations.T):
        ax.plot(spent, 100 * deviations, line, drawstyle="steps-post", color=color, label=name)
    ax.set_yscale("log")
    log_ticks(ax.yaxis, lambda value, _: f"{value:g}")
    legend(ax)
    return ax


def price_of_sizes(decision: Mapping[str, Any], ax: Any = None) -> Any:
    """What it costs to reach the same loss with a smaller or a larger model than the loss-optimal one.

    decision: what `analysis.decide.decide` returns; give it more `sizes` for a smoother curve. Sizes that no number of
    tokens brings to that loss are left out.
    """
    ax = axes_for(ax, "Parameters, relative to N*", "FLOPs for the same loss, relative to those of N*")
    points = [(size["size"], size["flops_ratio"]) for size in decision["sizes"] if size["reachable"]]
    points = sorted([*points, (1.0, dict.fromkeys(("value", "low", "high"), 1.0))], key=lambda point: point[0])
    ax.plot([size for size, _ in points], [ratio["value"] for _, ratio in points], "o-", color=figure_style.INK, ms=4)
    bounded = [
        (size, ratio["low"], ratio["high"])
        for size, ratio in points
        if is_number(ratio["low"]) and is_number(ratio["high"])
    ]
    if len(bounded) > 1:
        label = "interval, from the noise of the runs"
        ax.fill_between(*zip(*bounded), color=figure_style.INK, alpha=0.16, zorder=1, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks([size for size, _ in points], [f"{size:g}" for size, _ in points])
    legend(ax)
    return ax
