"""Stages: where they are cut, where they lie, and what the schedules compute and when."""

import random
from functools import cache
from itertools import combinations

import pytest
from distributed import run_distributed

from parallel.layout import Layout
from parallel.pipeline import split_layers, stage_ranges, stages_of

HIDDEN, VOCABULARY = 4, 7
SCHEDULES = ["gpipe", "1f1b", "interleaved1f1b", "zbv", "dualpipev"]


def _costliest(counts, layer, first, last) -> float:
    costs = [count * layer for count in counts]
    costs[0] += first
    costs[-1] += last
    return max(costs)


def _all_splits(layers: int, stages: int):
    for cuts in combinations(range(1, layers), stages - 1):
        yield [end - start for start, end in zip((0, *cuts), (*cuts, layers))]


def test_the_costliest_stage_costs_as_little_as_in_any_split():
    dice = random.Random(4)
    for _ in range(300):
        layers = dice.randint(1, 11)
        stages = dice.randint(1, min(layers, 5))
        costs = (
            dice.choice([1.0, dice.random()]),
            dice.choice([0.0, 6 * dice.random()]),
            dice.choice([0.0, 6 * dice.random()]),
        )
        counts = split_layers(costs[0], layers, costs[1], costs[2], stages)
        assert len(counts) == stages and sum(counts) == layers and min(counts) >= 1
        best = min(_costliest(other, *costs) for other in _all_splits(layers, stages))
        assert _costliest(counts, *costs) == pytest.approx(best, rel=1e-12), (layers, stages, costs, counts)


def test_stages_with_embedding_and_logits_have_fewer_layers():
    assert split_layers(1.0, 8, 0.0, 0.0, 4) == [2, 2, 2, 2]
    assert split_layers(1.0, 8, 0.0, 2.0, 2) == [5, 3]
    assert split_layers(1.0, 7, 1.0, 3.0, 3) == [2, 4, 1]
    assert split_layers(1.0, 6, 0.5, 0.5, 4) == [1, 2, 2, 1], (
        "equally good: the ends, with the largest matrices, are lighter"
    )


def test_more_stages_than_layers_are_refused():
    with pytest.raises(ValueError, match="num_layers = 3 cannot fill 4 pipeline stages"):
        split_layers(1.0, 3, 0.0, 0.0, 4)


def test_ranges_follow_the_counts():
    assert stage_ranges([2, 1, 4]) == [(0, 2), (2, 3), (3, 7)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("1f1b", {0: [0], 1: [1], 2: [2]}),
        ("gpipe", {0: [0], 1: [1], 2: [2]}),
        ("interleaved1f1b", {0: [0, 3], 1: [1, 4], 2: [2, 5]}),
        ("zbv", {0: [0, 5], 1: [1, 4], 2: [2, 3]}),
        ("dualpipev", {0: [0, 5], 1: [1, 4], 2: [2, 3]}),
    ],
)
def test_a_rank_holds_one_stage_every_third_or_both_arms_of_a_v(schedule, expected):
    layout = Layout(pipeline_parallel_size=3, pipeline_schedule=schedule)
    assert {rank: stages_of(layout, rank) for rank in range(3)} == expected


def _matrix(stage: int):
    import torch

    return torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(stage))


def _batch():
    import torch

    generator = torch.Generator().manual_seed(99)
    table = torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64, generator=generator)
    return table, torch.randint(0, VOCABULARY, (8, 3), generator=generator)


def _stage(stage: int, events: list):
    """tanh(x W^T) with a hand-written gradient of W; the first stage looks ids up before."""
    import torch
    from torch import nn

    from parallel.data import FlatParameters, Ready
    from parallel.kernels import UNCHECKED
    from parallel.tensor import Linear, Region, Weights, column

    def weight_gradient(gradient, dy, x):
        events.append(("weights", stage))
        UNCHECKED["weight_gradient"](gradient, dy, x)

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.region = Region(kernels={"weight_gradient": weight_gradient})
            self.linear = Linear(HIDDEN, HIDDEN, None, 0, HIDDEN, self.region)
            self.linear.weight.data = _matrix(stage)
            self.weights = Weights([self.linear], self.region)
            self.flat = FlatParameters([self])
            self.weights.bind(self.flat, ["linear.weight"])

        def forward(self, x):
            if stage == 0:
                x = _batch()[0][x.reshape(-1)]
            else:
                x = Ready.apply(x, lambda unit: events.append(("input", stage)), "stage")
            return torch.tanh(column(x, self.weights))

    return Stage()


def _loss(hidden, targets):
    return (hidden * targets.reshape(-1, 1)).square().sum()


def _run(schedule: str, size: int, micro_batches: int):
    """(events of rank, loss, {stage: gradient of its matrix}, output of the forward pass alone, of one micro-batch)."""
    import torch

    from parallel.mesh import build_mesh
    from parallel.pipeline import Pipeline

    layout = Layout(pipeline_parallel_size=size, pipeline_schedule=schedule)
    mesh = build_mesh(layout, torch.device("cpu"))
    events: list = []
    stages = {stage: _stage(stage, events) for stage in stages_of(layout, mesh.pipeline.rank)}
    _, ids = _batch()
    rows = len(ids) // micro_batches
    hidden = torch.empty(rows * 3, HIDDEN, dtype=torch.float64, requires_grad=True)
    pipeline = Pipeline(mesh, stages, _loss, micro_batches, ids[:rows], hidden)
    found = [pipeline.forward_backward(ids, ids.double()) for _ in range(2)]
    assert found[0] == found[1]
    gradients = {stage: module.flat.grad.view(HIDDEN, HIDDEN) / 2 for stage, module in stages.items()}
    order = list(events)
    return order, float(found[0]), gradients, pipeline.forward(ids[:2], (6, HIDDEN))


def _alone(num_stages: int):
    import torch

    table, ids = _batch()
    matrices = [_matrix(stage).requires_grad_() for stage in range(num_stages)]
    x = table[ids.reshape(-1)]
    for matrix in matrices:
        x = torch.tanh(x @ matrix.t())
    loss = _loss(x, ids.double())
    loss.backward()
    return loss.item(), [matrix.grad for matrix in matrices], x[:6].detach()


@cache
def _ran(schedule: str, size: int, micro_batches: int) -> list:
    return run_distributed(_run, size, schedule, size, micro_batches)


@pytest.mark.parametrize(
    ("schedule", "size", "micro_batches"),
    [*((schedule, 2, 4) for schedule in SCHEDULES), ("interleaved1f1b", 4, 8), ("dualpipev", 4, 8)],
)
def test_every_schedule_computes_what_one_process_does(schedule, size, micro_batches):
    layout = Layout(pipeline_parallel_size=size, pipeline_schedule=schedule)
    loss, gradients, output = _alone(layout.num_stages)
    found = _ran(schedule, size, micro_batches)
    last = layout.rank_of_stage(layout.num_stages - 1)
    for rank, (_, part, own, forward) in enumerate(found):
        assert part == pytest.approx(loss if rank == last else 0.0, rel=1e-12)
        assert (forward is not None) == (rank == last)
        for stage, gradient in own.items():
            assert (gradient - gradients[stage]).abs().max() < 1e-12, (rank, stage)
    assert (found[last][3] - output).abs().max() < 1e-14
    assert sorted(stage for _, _, own, _ in found for stage in own) == list(range(layout.num_stages))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weight_gradients_are_put_off_by_the_zero_bubble_schedules_alone(schedule):
    events = _ran(schedule, 2, 4)[1][0]
    put_off = schedule in ("zbv", "dualpipev")
    for stage in stages_of(Layout(pipeline_parallel_size=2, pipeline_schedule=schedule), 1):
        kinds = [kind for kind, where in events if where == stage]
        assert kinds.count("weights") == kinds.count("input") == 8
        # done meanwhile, a weight gradient comes before the input gradient it travels with
        waiting = [kinds[: at + 1].count("input") - kinds[: at + 1].count("weights") for at in range(len(kinds))]
        assert (max(waiting) > 0) == put_off, kinds
