"""Proposals: they keep their budget, their held-out run and their IsoFLOP, and take models that exist."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.design import ignorance
from analysis.laws import ChinchillaLaw
from analysis.proposal import CHOSEN, HELD_OUT, TOP, Space, propose
from scaling.errors import UserError

LAW = ChinchillaLaw(E=1.8172, A=477.8, B=2143.4, alpha=0.3473, beta=0.3672)
ANY = Space(1e18)


def flops(params, tokens):
    return 6 * params * tokens


def grid(budgets, sizes=5):
    compute = np.repeat(budgets, sizes)
    params = LAW.optimum(compute).params * np.tile(np.geomspace(0.25, 4, sizes), len(budgets))
    return params, compute / 6 / params


def knowing(budgets=(), **settings):
    """A belief whose mean is the truth, before any run or after an IsoFLOP at each budget."""
    cells = grid(budgets or (1e18, 1e20))
    start = ignorance(ChinchillaLaw, *cells, **settings)
    if budgets:
        return start.learn(*cells, LAW.loss(*cells))
    return replace(start, mean=LAW.coordinates(start.centre))


def of_role(found, role):
    return np.array(found.role) == role


def test_a_proposal_keeps_a_top_isoflop_a_held_out_run_and_its_budget():
    found = propose(knowing(), 1e23, 1e21, ANY, flops)
    assert 0.9e21 < found.cost.sum() <= 1e21 * (1 + 1e-9)
    assert [of_role(found, role).sum() for role in (HELD_OUT, TOP)] == [1, 5] and of_role(found, CHOSEN).sum() > 3
    top = flops(found.params, found.tokens)[of_role(found, TOP)]
    assert np.ptp(top) < 1e-6 * top[0] and found.cost[0] > top[0]
    assert len(found.deviations) == len(found.role) + 1
    assert (np.diff(found.deviations, axis=0) <= 1e-12).all()
    assert (found.deviations[-1] < 0.5 * found.deviations[0]).all()
    assert (found.deviations[0] == found.deviations[1]).all(), "the held-out run teaches nothing"


def test_more_money_buys_more_certainty_and_none_is_refused():
    last = [propose(knowing(), 1e23, budget, ANY, flops).deviations[-1] for budget in (1e20, 1e21, 1e22)]
    assert (np.diff(last, axis=0) < 0).all()
    for budget, said in ((1e18, "raise it"), (2e19, "raise it"), (0.0, "above zero"), (np.inf, "finite")):
        with pytest.raises(UserError, match=said):
            propose(knowing(), 1e23, budget, ANY, flops)


def test_only_models_that_exist_are_proposed_each_at_its_nearest():
    sizes = np.geomspace(1e7, 1e10, 40)
    levels = np.array([1e18, 3e18, 1e19, 1e25])
    found = propose(knowing(), 1e23, 1e21, Space(1e18, sizes, levels), flops)
    assert np.isin(found.params, sizes).all() and found.cost.sum() <= 1e21 * (1 + 1e-9)
    top = of_role(found, TOP)
    assert top.sum() == 5 and len(np.unique(found.params[top])) == 5
    best = LAW.optimum(flops(found.params[0], found.tokens[0])).params
    assert found.params[0] == sizes[np.abs(np.log(sizes / best)).argmin()]
    chosen = of_role(found, CHOSEN)
    compute = flops(found.params, found.tokens)
    known = np.append(levels, compute[top][0])
    assert np.isclose(compute[chosen][:, None], known[None, :]).any(1).all()
    others = list(zip(found.params[1:].tolist(), found.tokens[1:].tolist()))
    assert (found.params[0], found.tokens[0]) not in others, "the held-out cell is not trained with another seed"
    assert len(set(others)) < len(others), "others are"
    assert not found.notes


def test_cells_that_cannot_be_trained_are_not_proposed():
    def cost(params, tokens):
        return np.where(tokens < 5 * params, np.inf, flops(params, tokens))

    found = propose(knowing(), 1e23, 1e21, ANY, cost)
    assert np.isfinite(found.cost).all() and (found.tokens >= 5 * found.params).all()


def test_runs_that_have_a_larger_isoflop_need_no_new_one():
    found = propose(knowing((1e18, 1e19, 1e20)), 1e23, 3e20, ANY, flops)
    assert not of_role(found, TOP).any()
    assert "the runs have one at 1.00e+20" in found.notes[0] and "lies inside the data" in found.notes[1]
    beyond = propose(knowing((1e18, 1e19, 1e20)), 1e23, 1e22, ANY, flops)
    assert of_role(beyond, TOP).sum() == 5 and not beyond.notes


def test_sizes_stay_within_the_span():
    found = propose(knowing(), 1e23, 1e21, Space(1e18, span=3.0), flops)
    chosen = of_role(found, CHOSEN)
    best = LAW.optimum(flops(found.params, found.tokens)).params
    assert (np.abs(np.log(found.params / best))[chosen] <= np.log(3.0) + 1e-9).all()


def test_a_family_that_ends_too_early_is_named():
    found = propose(knowing(), 1e23, 1e21, Space(1e18, np.geomspace(1e7, 1e8, 10)), flops)
    assert "1e+07 to 1e+08: add sizes" in found.notes[0]


def test_what_is_planned_already_counts_as_known():
    planned = grid((1e18, 1e19, 1e20), 9)
    blind, aware = (propose(knowing(), 1e23, 1e21, ANY, flops, *more) for more in ((), (planned,)))
    assert (aware.deviations[0] < 0.5 * blind.deviations[0]).all()
    assert set(zip(blind.params, blind.tokens)) != set(zip(aware.params, aware.tokens))
