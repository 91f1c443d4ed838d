"""A proposal: how a budget is split over a held-out run, an IsoFLOP at the top, and the runs that tell most."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.design import Belief, after_run, choose, joint_covariance, optimum_targets, relative_gain
from analysis.noise import Noise
from scaling.errors import UserError

#: cost_of(params [n], tokens [n]) -> [n] in the unit of the budget; infinite for a cell that cannot be trained.
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]

HELD_OUT, TOP, CHOSEN = "held-out", "top", "chosen"
_HELD_OUT_SHARE = 0.1
_TOP_SHARE = 0.2
_SIZES_ON_TOP = 5
_SPAN_ON_TOP = 4.0
#: No run is bought that lowers the variances of ln N* and ln L* by a smaller share, summed.
_LEAST_GAIN = 1e-4
#: Candidates: compute levels, and sizes at each.
_LEVELS = 13
_SIZES = 17
#: The search for the largest compute: steps in ln C, and how far it looks for one that can be trained at all.
_RISE, _LEAST_RANGE = 0.1, 5.0
#: Runs of three sizes whose 6ND lie within this factor make an IsoFLOP.
_ONE_BUDGET = 1.12
#: Steps in which people read what the budget buys.
_STEPS = 8


@dataclass(frozen=True)
class Space:
    """Where new runs may lie.

    smallest_flops: least compute (6ND) of a run. sizes [s]: params of the models there are; None: any. levels [b]:
    compute at which cells are chosen, beside that of the top IsoFLOP; None: spaced evenly in the logarithm. span: by
    which factor a size may miss N*.
    """

    smallest_flops: float
    sizes: np.ndarray | None = None
    levels: np.ndarray | None = None
    span: float = 16.0

    def around(self, optimum: float, span: float, count: int) -> np.ndarray:
        """Up to `count` sizes from optimum / span to optimum x span, evenly in the logarithm."""
        wanted = optimum * (np.geomspace(1 / span, span, count) if count > 1 else np.ones(1))
        if self.sizes is None:
            return wanted
        nearest = np.abs(np.log(self.sizes[None, :] / wanted[:, None])).argmin(1)
        return self.sizes[np.unique(nearest)]


@dataclass(frozen=True)
class Proposal:
    """Cells to run next, m of them, in order; `deviations` [m + 1, 2]: of ln N* and ln L* before and after each.

    role: HELD_OUT (to be predicted by the law of the others), TOP (an IsoFLOP larger than any of the runs) or CHOSEN.
    notes: what a reader should know of the split.
    """

    params: np.ndarray
    tokens: np.ndarray
    cost: np.ndarray
    role: tuple[str, ...]
    deviations: np.ndarray
    notes: tuple[str, ...]


def propose(
    belief: Belief,
    target_flops: float,
    budget: float,
    space: Space,
    cost_of: Cost,
    planned: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0)),
) -> Proposal:
    """The next cells for a budget, in the unit of `cost_of`.

    A tenth of the budget is a held-out run at its compute-optimal size. A fifth is an IsoFLOP of five sizes at the
    largest compute that this pays, unless the runs have a larger one: the form's error shows on these two and nowhere
    else. The rest goes to the cells that shrink the variances of ln N* and ln L* at `target_flops` by the largest share
    for their cost; a cell may come again, as another seed. planned: params and tokens of runs that will be trained in
    any case. Raises UserError when the budget pays for nothing.
    """
    if not (0 < budget < np.inf and 0 < target_flops < np.inf):
        raise UserError(f"budget = {budget:g}, target = {target_flops:g} FLOPs: both must be above zero and finite")
    held = _isoflop(belief, _HELD_OUT_SHARE * budget, 1, space, cost_of)
    if held is None:
        raise UserError(
            f"budget = {budget:g}: a tenth of it, for the held-out run, is less than a run of "
            f"{space.smallest_flops:.2e} FLOPs costs: raise it"
        )
    top, notes = _top(belief, budget, space, cost_of)
    notes += _edge_notes(belief, held, space)
    first = tuple(np.concatenate(pair) for pair in zip(held, top))
    cells = _candidates(belief, space, held, top)
    cost, first_cost = cost_of(*cells), cost_of(*first)
    targets = optimum_targets(belief, target_flops)
    covariance = joint_covariance(belief, *(np.concatenate(three) for three in zip(cells, first, planned)), targets)
    count, begin = len(cost), len(cost) + len(first_cost)
    for index in range(begin, begin + len(planned[0])):
        covariance = after_run(covariance, index, belief.noise)
    variances = [np.diag(covariance)[-2:]] * 2  # the held-out run is not learned from
    for index in range(count + 1, begin):
        covariance = after_run(covariance, index, belief.noise)
        variances.append(np.diag(covariance)[-2:])
    keep = np.r_[:count, len(covariance) - 2 : len(covariance)]
    covariance = covariance[np.ix_(keep, keep)]
    rest = float(budget - first_cost.sum())
    order = choose(covariance, cost, rest, belief.noise, gain=relative_gain, least=_LEAST_GAIN)
    left = rest - cost[order].sum()
    if left > _HELD_OUT_SHARE * budget:
        notes.append(
            f"{left / budget:.0%} of the budget is not spent: no further run lowers a variance by {_LEAST_GAIN:.2%}"
        )
    for index in order:
        covariance = after_run(covariance, index, belief.noise)
        variances.append(np.diag(covariance)[-2:])
    return Proposal(
        params=np.concatenate([first[0], cells[0][order]]),
        tokens=np.concatenate([first[1], cells[1][order]]),
        cost=np.concatenate([first_cost, cost[order]]),
        role=(HELD_OUT,) + (TOP,) * len(top[0]) + (CHOSEN,) * len(order),
        deviations=np.sqrt(np.maximum(variances, 0.0)),
        notes=tuple(notes),
    )


def _top(belief: Belief, budget: float, space: Space, cost_of: Cost) -> tuple[tuple[np.ndarray, np.ndarray], list[str]]:
    """The IsoFLOP at the largest compute that its share pays, and a note when the runs have a larger one."""
    top, known = _isoflop(belief, _TOP_SHARE * budget, _SIZES_ON_TOP, space, cost_of), _largest_isoflop(belief)
    reached = 0.0 if top is None else float(6 * top[0][0] * top[1][0])
    if top is not None and reached > known * _ONE_BUDGET:
        return top, []
    if known == 0:
        raise UserError(
            f"budget = {budget:g}: a fifth of it, for an IsoFLOP of {_SIZES_ON_TOP} sizes, is less than one of "
            f"{space.smallest_flops:.2e} FLOPs costs: too little: raise it"
        )
    pays = f"only pays for {reached:.2e}" if top is not None else "pays for none"
    note = f"no new IsoFLOP: the runs have one at {known:.2e} FLOPs, and a fifth of the budget {pays}"
    return (np.empty(0), np.empty(0)), [note]


def _edge_notes(belief: Belief, held: tuple[np.ndarray, np.ndarray], space: Space) -> list[str]:
    """Where the held-out run tells less than it should."""
    notes, flops = [], float(6 * held[0][0] * held[1][0])
    best = float(belief.law.optimum(flops).params)
    if space.sizes is not None and not space.sizes.min() <= best <= space.sizes.max():
        notes.append(
            f"the best size at {flops:.2e} FLOPs is {best:.3g} parameters, and there are models of "
            f"{space.sizes.min():.3g} to {space.sizes.max():.3g}: add sizes"
        )
    if belief.x.shape[1]:
        largest = float(6 * np.exp(belief.x.sum(0).max() + belief.centre.sum()))
        if flops < largest / _ONE_BUDGET:
            notes.append(
                f"the held-out run, of {flops:.2e} FLOPs, lies inside the data ({largest:.2e}): a larger budget would "
                "test how the law extrapolates"
            )
    return notes


def _largest_isoflop(belief: Belief) -> float:
    """Compute (6ND) of the largest group of runs of at least three sizes; 0 without any."""
    log_flops = np.log(6.0) + belief.x.sum(0) + belief.centre.sum()
    for value in np.sort(log_flops)[::-1]:
        alike = np.abs(log_flops - value) < np.log(_ONE_BUDGET)
        if len(np.unique(belief.x[0, alike].round(3))) >= 3:
            return float(np.exp(np.median(log_flops[alike])))
    return 0.0


def _candidates(
    belief: Belief, space: Space, held: tuple[np.ndarray, np.ndarray], top: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Cells to choose from: sizes around N* at each compute level up to the largest IsoFLOP, never the held-out one.

    So the held-out run, where it lies beyond, is predicted by extrapolation alone.
    """
    largest = float(6 * top[0][0] * top[1][0]) if len(top[0]) else _largest_isoflop(belief)
    largest = max(min(largest, float(6 * held[0][0] * held[1][0])), space.smallest_flops)
    levels = np.geomspace(space.smallest_flops, largest, _LEVELS)
    if space.levels is not None:
        own = space.levels[space.levels <= largest * _ONE_BUDGET]
        levels = np.unique(np.append(own, largest if len(top[0]) else []))
    sizes = [space.around(belief.law.optimum(level).params, space.span, _SIZES) for level in levels]
    params = np.concatenate([np.empty(0), *sizes])
    tokens = np.repeat(levels, [len(some) for some in sizes]) / 6 / params
    held_out = np.isclose(params, held[0][0], rtol=1e-3) & (np.abs(np.log(tokens / held[1][0])) < np.log(_ONE_BUDGET))
    return params[~held_out], tokens[~held_out]


def _isoflop(
    belief: Belief, budget: float, count: int, space: Space, cost_of: Cost
) -> tuple[np.ndarray, np.ndarray] | None:
    """Sizes around N* at one compute, the largest that the budget pays for all of them; None when it pays for none.

    Compute rises by tenths while it is paid, since a cell may be impossible for being too short or too long; then by
    bisection.
    """

    def cells(log_flops: float) -> tuple[np.ndarray, np.ndarray, bool]:
        flops = np.exp(log_flops)
        params = space.around(belief.law.optimum(flops).params, _SPAN_ON_TOP, count)
        cost = cost_of(params, flops / 6 / params)
        able = np.isfinite(cost)
        return params[able], flops / 6 / params[able], bool(able.any() and cost[able].sum() <= budget)

    low, high = None, np.log(space.smallest_flops)
    while (paid := cells(high)[2]) or (low is None and high < np.log(space.smallest_flops) + _LEAST_RANGE):
        low, high = high if paid else None, high + _RISE
    if low is None:
        return None
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if cells(middle)[2] else (low, middle)
    return cells(low)[:2]


def describe(
    belief: Belief,
    found: Proposal,
    *,
    target_flops: float,
    budget: dict[str, Any],
    noise: Noise,
    runs_known: int,
    source: str,
    price: dict[str, Any] | None,
) -> dict[str, Any]:
    """The proposal and what it rests on, as plain data.

    budget: {"kind", "amount", "source"}. runs_known, source: of the runs or the law behind the belief. price:
    {"usd_per_device_hour", "device", "date", "provider"} or None. Adds `cells`, each once with its number of `seeds`,
    `buys` (spending, and the deviations that it leaves) and `notes`.
    """
    return {
        "target_flops": target_flops,
        "budget": {**budget, "spent": float(found.cost.sum())},
        "form": belief.form.form,
        "source": source,
        "runs_known": runs_known,
        "assumed": {
            "noise": belief.noise,
            "noise_source": noise.source,
            "form_error": belief.form_error,
            "correlation_length": belief.correlation_length,
        },
        "cells": _cells(belief, found),
        "buys": _buys(found),
        "notes": list(found.notes),
        "price": price,
        "conventions": {
            "params": "as in the table that the law was fitted to",
            "flops": "6 x params x tokens",
            "cost": "in the unit of the budget",
            "sd": "standard deviation of ln N* and ln L* at target_flops, error of the form included",
        },
    }


def _cells(belief: Belief, found: Proposal) -> list[dict[str, Any]]:
    """Every cell once, with its number of runs and the loss that is expected of it."""
    expected = belief.predict(found.params, found.tokens)
    columns = zip(found.role, *(c.tolist() for c in (found.params, found.tokens, found.cost, expected)))
    cells: dict[tuple, dict[str, Any]] = {}
    for role, params, tokens, cost, loss in columns:
        cell = {"role": role, "params": params, "tokens": tokens, "flops": 6.0 * params * tokens, "seeds": 0}
        cells.setdefault((role, params, tokens), {**cell, "cost_each": cost, "expected_loss": loss})["seeds"] += 1
    return list(cells.values())


def _buys(found: Proposal) -> list[dict[str, float]]:
    """In steps of about an eighth of the budget."""
    spent = [0.0, *found.cost.cumsum().tolist()]
    steps, last = [], -np.inf
    for index, amount in enumerate(spent):
        if amount - last >= spent[-1] / _STEPS or index == len(spent) - 1:
            sd_params, sd_loss = found.deviations[index].tolist()
            steps.append({"spent": amount, "runs": index, "sd_ln_params": sd_params, "sd_ln_loss": sd_loss})
            last = amount
    return steps
