"""Activation recomputation (Chen et al., 2016): forget what a function computed, compute it anew for its backward pass.

`full` wraps a whole layer: only its input is kept. `selective` wraps what is large and cheap, the attention between
its projections and the activation between the MLP's (Korthikanti et al., 2022, section 5).
"""

from collections.abc import Callable
from typing import Any


def recompute(enabled: bool) -> Callable[..., Any]:
    """A caller: `caller(function, *arguments)` computes function(*arguments), forgetting and repeating if enabled."""
    if not enabled:
        return lambda function, *arguments: function(*arguments)
    from torch.utils.checkpoint import checkpoint  # imports torch's compiler

    # no dropout anywhere, so there is no random state to restore
    return lambda function, *arguments: checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
