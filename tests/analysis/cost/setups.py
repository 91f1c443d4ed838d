"""A setup to start from, for tests of the cost model."""

from dataclasses import replace
from typing import Any

from analysis.cost.devices import require_device
from analysis.cost.models import find_model
from analysis.cost.setup import Setup


def setup(model: str = "llama3-70b", gpu: str = "H100 SXM 80GB", **changes: Any) -> Setup:
    """Llama 3 70B on 64 H100s, tensor 4 and pipeline 4, unless changed."""
    base = Setup(
        model=find_model(model),
        device=require_device(gpu),
        num_gpus=64,
        seq_length=8192,
        global_batch_size=256,
        tensor_parallel_size=4,
        pipeline_parallel_size=4,
    )
    return replace(base, **changes)
