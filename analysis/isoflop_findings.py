"""What the IsoFLOP curves of a table show about themselves, and about the surface beside them."""

import numpy as np

from analysis.findings import Code, Finding
from analysis.isoflop import Budget

#: A line through fewer minima leaves next to nothing to judge it by.
_FEW_BUDGETS = 4
#: A parabola through fewer sizes leaves next to nothing to judge it by.
_FEW_SIZES = 5
#: Distance of a minimum from the middle of its sizes, as a share of half their range (in ln N), from which on it is
#: off centre. Simulated with Epoch's law (Besiroglu et al. 2024) and 9 sizes within a factor w of the middle: at 0.5
#: the standard error of ln N* is twice that of a centred grid for every w, and N* is 1, 3 and 6 % too near to the
#: middle for w = 4, 8, 16; at 0.75 it is three times, and 4, 13 and 27 %.
_OFF_CENTRE = 0.5


def budget_findings(budgets: list[Budget] | None, skipped: list[float]) -> list[Finding]:
    """What the IsoFLOP curves show. `skipped`: FLOPs of the budgets with fewer than three sizes; None: no budgets."""
    if budgets is None:
        return [
            Finding(
                Code.NO_BUDGETS,
                "the runs do not fall into budgets of equal FLOPs, so Approach 2 is left out",
                "name the column of planned budgets (budget=COL), or train at least 3 sizes at the same FLOPs",
            )
        ]
    found = [finding for budget in budgets if (finding := _minimum_finding(budget)) is not None]
    found += _off_centre(budgets)
    thin = [budget.flops for budget in budgets if len(budget.rows) < _FEW_SIZES]
    if thin or skipped:
        shown = ", ".join(f"{flops:.2e}" for flops in sorted(thin + skipped))
        found.append(
            Finding(
                Code.TOO_FEW_POINTS,
                f"fewer than {_FEW_SIZES} runs at {shown} FLOPs: a parabola through them has little or nothing to be "
                f"judged by ({len(skipped)} with fewer than 3 sizes left out)",
                "train more sizes there",
                {"budgets": sorted(thin + skipped), "budgets_left_out": skipped, "recommended": _FEW_SIZES},
            )
        )
    interior = sum(budget.interior for budget in budgets)
    if interior < _FEW_BUDGETS:
        without = "there are no exponents of Approach 2" if interior < 2 else "its exponents have little behind them"
        found.append(
            Finding(
                Code.TOO_FEW_BUDGETS,
                f"Approach 2 has {interior} budget(s) with a minimum inside the sampled sizes, so {without}",
                f"use at least {_FEW_BUDGETS}, over 1.5 decades or more",
                {"n_budgets": interior, "recommended": _FEW_BUDGETS},
            )
        )
    return found


def _minimum_finding(budget: Budget) -> Finding | None:
    """Why the minimum of this budget cannot be trusted; None when it can."""
    if budget.interior:
        return None
    low, high = budget.params_range
    if budget.coefficients[0] <= 0:
        return Finding(
            Code.NON_POSITIVE_CURVATURE,
            f"budget {budget.flops:.2e} FLOPs: loss against ln params curves down, so it has no minimum and is left "
            "out of the exponents",
            f"widen the sizes beyond {low:.3g} to {high:.3g}, or repeat the noisy runs",
            {"flops": budget.flops, "curvature": budget.coefficients[0]},
        )
    small_end = budget.params_opt <= low if not low < budget.params_opt < high else budget.lowest <= low
    end, beyond = ("smallest", f"below {low:.3g}") if small_end else ("largest", f"above {high:.3g}")
    return Finding(
        Code.AT_EDGE,
        f"budget {budget.flops:.2e} FLOPs: the minimum lies at the {end} size or beyond it (parabola: "
        f"{budget.params_opt:.3g} params, sampled {low:.3g} to {high:.3g}), so it is left out of the exponents",
        f"add sizes {beyond}",
        {"flops": budget.flops, "params_opt": budget.params_opt, "params_min": low, "params_max": high, "edge": end},
    )


def _off_centre(budgets: list[Budget]) -> list[Finding]:
    """Budgets whose minimum lies inside the sizes, yet far from the middle of them."""
    off = []
    for budget in filter(lambda budget: budget.interior, budgets):
        low, high = np.log(budget.params_range)
        share = float((np.log(budget.params_opt) - (low + high) / 2) / ((high - low) / 2))
        if abs(share) > _OFF_CENTRE:
            sizes = {"params_opt": budget.params_opt, "params_middle": float(np.exp((low + high) / 2))}
            off.append({"flops": budget.flops, **sizes, "share": share})
    if not off:
        return []
    larger = sum(item["share"] < 0 for item in off)
    side = {0: "smaller", len(off): "larger"}.get(larger, "smaller in some, larger in others,")
    more = {0: "larger", len(off): "smaller"}.get(larger, "smaller or larger")
    shown = ", ".join(f"{item['flops']:.2e} ({item['params_middle'] / item['params_opt']:.2g} x N*)" for item in off)
    return [
        Finding(
            Code.OFF_CENTRE,
            f"the middle of the sizes is much {side} than the minimum at {shown} FLOPs: Approach 2 then puts N* too "
            "near to the middle, and is twice as uncertain",
            f"add {more} sizes there, so that the minimum is in the middle of them",
            {"budgets": off, "threshold": _OFF_CENTRE},
        )
    ]


def agreement_findings(surface: tuple[float, float], isoflop: tuple[float, float]) -> list[Finding]:
    """Whether the intervals of a from the surface and from Approach 2 overlap."""
    if surface[0] <= isoflop[1] and isoflop[0] <= surface[1] or not np.isfinite([*surface, *isoflop]).all():
        return []
    return [
        Finding(
            Code.APPROACHES_DISAGREE,
            f"the exponent a is {surface[0]:.3f} to {surface[1]:.3f} from the surface and {isoflop[0]:.3f} to "
            f"{isoflop[1]:.3f} from Approach 2: the form does not fit the minima",
            "trust Approach 2 inside the data and neither far outside; --form auto weighs both by backtest",
            {"surface": list(surface), "isoflop": list(isoflop)},
        )
    ]
