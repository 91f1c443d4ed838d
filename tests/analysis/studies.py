"""Simulated IsoFLOP studies with a known truth, at the scale of the laptop profile."""

import numpy as np

from analysis.laws import ChinchillaLaw

TRUTH = ChinchillaLaw(E=1.2, A=30.0, B=60.0, alpha=0.38, beta=0.33)


def isoflop_study(noise=0.0, seed=0, law=TRUTH, budgets=6, sizes=7, width=5.0, shift=1.0):
    """Columns of a study: `budgets` from 5e10 to 3e12 FLOPs, `sizes` within a factor `width` of `shift` x N*(C)."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(5e10, 3e12, budgets), sizes)
    around = np.tile(np.geomspace(1 / width, width, sizes), budgets)
    params = law.optimum(flops).params * around * shift
    tokens = flops / 6 / params
    loss = law.loss(params, tokens) * np.exp(noise * rng.standard_normal(len(flops)))
    return {"params": params, "tokens": tokens, "loss": loss, "flops_budget": flops}


def ladder_study(noise, seed=0, sizes=4, ratios=4):
    """Columns of `sizes` sizes trained on `ratios` multiples of 10 to 100 tokens a parameter, with a few bad runs."""
    rng = np.random.default_rng(seed)
    params = np.repeat(np.geomspace(1e4, 1e5, sizes), ratios)
    tokens = params * np.tile(np.geomspace(10, 100, ratios), sizes)
    loss = TRUTH.loss(params, tokens) * np.exp(noise * rng.standard_t(2.0, len(params)))
    return {"params": params, "tokens": tokens, "loss": loss}
