"""FSDP2 behind the interface of the flat buffers: who owns what, what the gradients are, what is kept."""

import numpy as np
import pytest
from distributed import run_distributed

from scaling.parity import Case, batch, sizes


def _engine(config):
    import torch

    from parallel.mesh import build_mesh
    from scaling.engine import Engine

    mesh = build_mesh(config.parallel, torch.device("cpu"))
    return Engine(config, mesh.device, config.execution.dtype, mesh)


def _gradients(config):
    """(name, offset, rectangle of the gradient, of the weights) of everything that this rank owns."""
    engine = _engine(config)
    engine.forward_backward(batch(0))
    weights, gradients = ([segment[i] for segment in engine.storage.segments()] for i in (0, 1))
    pairs = zip(engine.storage.owned_pieces(gradients), engine.storage.owned_pieces(weights))
    return [(name, offset, g.numpy().copy(), w.numpy().copy()) for (name, _, offset, g), (_, _, _, w) in pairs]


@pytest.mark.parametrize(
    ("parallel", "micro_batch_size"),
    [(sizes(dp=2), 2), (sizes(dp=4), 1), (sizes(cp=2), 8), (sizes(dp=2, tp=2), 4), (sizes(pp=2, dp=2), 1)],
    ids=str,
)
def test_the_ranks_own_every_gradient_and_weight_of_one_process_once(parallel, micro_batch_size):
    alone = {}
    for name, offset, gradient, weight in run_distributed(_gradients, 1, Case().config("float64"))[0]:
        found = alone.setdefault(name, {})
        found[offset] = gradient, weight
    whole = {name: pieces[(0,) * len(next(iter(pieces)))] for name, pieces in alone.items()}
    case = Case(parallel | {"data_parallel_method": "fsdp2"}, {"micro_batch_size": micro_batch_size})
    config = case.config("float64")
    counts = {name: np.zeros(gradient.shape, int) for name, (gradient, _) in whole.items()}
    by_rank = run_distributed(_gradients, config.parallel.world_size, config)
    for owned in by_rank:
        for name, offset, gradient, weight in owned:
            part = tuple(slice(start, start + size) for start, size in zip(offset, gradient.shape))
            expected_gradient, expected_weight = (tensor[part] for tensor in whole[name])
            np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-12, err_msg=name)
            np.testing.assert_array_equal(weight, expected_weight, err_msg=name)
            counts[name][part] += 1
    copies = config.parallel.tensor_parallel_size
    divided = {name for name, count in counts.items() if (count == 1).all()}
    assert all((count == 1).all() or (count == copies).all() for count in counts.values())
    assert {"embedding.weight", "layers.0.mlp.down.weight"} <= divided
    numbers = [sum(gradient.size for _, _, gradient, _ in owned) for owned in by_rank]
    if copies == 1 and config.parallel.pipeline_parallel_size == 1:
        assert max(numbers) < 1.1 * sum(numbers) / len(numbers), "the shards are not even"


def _between_steps(config):
    """Whether only shards are there between steps, and the loss before and after an update by hand."""
    engine = _engine(config)
    parameters = [p for module in engine.stages.values() for p in module.parameters()]
    before = float(engine.forward_backward(batch(0)))
    for weights, gradient, _ in engine.storage.segments():
        if weights.numel():
            weights.sub_(gradient, alpha=0.5)
    engine.storage.publish()
    sharded = all(hasattr(p, "to_local") and p.grad is None for p in parameters)
    return before, sharded, float(engine.forward_backward(batch(0)))


def test_an_update_is_seen_by_the_next_step_and_nothing_gathered_is_kept():
    parts = run_distributed(_between_steps, 2, Case(sizes(dp=2, data_parallel_method="fsdp2")).config("float32"))
    assert all(sharded for _, sharded, _ in parts)
    before, after = (sum(part[i] for part in parts) for i in (0, 2))
    ((alone_before, _, alone_after),) = run_distributed(_between_steps, 1, Case().config("float32"))
    assert after < before - 0.05
    assert (before, after) == pytest.approx((alone_before, alone_after), rel=1e-6)
