"""Studies drawn from a known law, to try an analysis where the answer is known."""

from collections.abc import Sequence

import numpy as np

from analysis.surface import Surface


def simulate_isoflops(
    law: Surface,
    flops: Sequence[float],
    *,
    sizes: int = 9,
    span: float = 4.0,
    noise: float = 0.003,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Columns of an IsoFLOP study, [budgets x sizes]: params, tokens, loss and flops_budget.

    flops: the budgets, C = 6ND. sizes: of each budget, log-spaced from N*/span to N* x span, N* being the law's own.
    noise: standard deviation of log loss, normal and independent from run to run; 0.003 is what seeds of one
    configuration often differ by. The same seed draws the same study.
    """
    budget = np.repeat(np.asarray(flops, np.float64), sizes)
    params = law.optimum(budget).params * np.tile(np.geomspace(1 / span, span, sizes), len(flops))
    tokens = budget / 6.0 / params
    error = noise * np.random.default_rng(seed).standard_normal(len(budget))
    return {
        "params": params,
        "tokens": tokens,
        "loss": law.loss(params, tokens) * np.exp(error),
        "flops_budget": budget,
    }
