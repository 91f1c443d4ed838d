"""A setup as people and JSON read it."""

from dataclasses import fields
from typing import Any

from analysis.cost.setup import Setup


def setup_dict(setup: Setup) -> dict[str, Any]:
    """Every field of a setup by name, with the names of its model and device, and what follows from them."""
    plain = {field.name: getattr(setup, field.name) for field in fields(setup)}
    return {
        **plain,
        "model": setup.model.name,
        "device": setup.device.name,
        "data_parallel_size": setup.data_parallel_size,
        "num_micro_batches": setup.num_micro_batches,
        "tokens_per_step": setup.tokens_per_step,
    }


def setup_line(setup: Setup) -> str:
    """The machine, the layout and the batch in one line; what is 1 is left out, except data ranks."""
    axes = {
        "tensor": setup.tensor_parallel_size,
        "pipeline": setup.pipeline_parallel_size,
        "context": setup.context_parallel_size,
    }
    layout = [f"{name} {size}" for name, size in axes.items() if size > 1]
    if setup.virtual_pipeline_parallel_size > 1:
        layout.append(f"virtual {setup.virtual_pipeline_parallel_size}")
    if setup.pipeline_parallel_size > 1 and setup.pipeline_schedule not in ("1f1b", "interleaved1f1b"):
        layout[-1] += f" ({setup.pipeline_schedule})"
    experts = f", expert {setup.expert_parallel_size}" if setup.expert_parallel_size > 1 else ""
    if setup.expert_tensor_parallel_size > 1:
        experts += f", expert tensor {setup.expert_tensor_parallel_size}"
    layout.append(f"data {setup.data_parallel_size}")
    micro = setup.micro_batch_size
    again = "no" if setup.recompute_granularity == "none" else setup.recompute_granularity
    share = f" of {100 * setup.recompute_share:.0f} % of the layers" if setup.recompute_share < 1 else ""
    return (
        f"{setup.num_gpus} x {setup.device.name}, {' x '.join(layout)}{experts}, {setup.sharding}, {setup.precision}, "
        f"{again} recomputation{share}, {setup.stack}; "
        f"{setup.global_batch_size} sequences of {setup.seq_length} tokens a step, {micro} a micro-batch"
    )
