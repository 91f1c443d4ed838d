"""The arrangement of ranks."""

from itertools import product

import pytest
from distributed import run_distributed

from parallel.layout import Layout
from parallel.mesh import Axis, build_mesh


def _axes(layout: Layout) -> dict[str, tuple]:
    import torch
    import torch.distributed as dist

    mesh = build_mesh(layout, torch.device("cpu"))
    summed = {}
    for name in ("pipeline", "data", "context", "tensor", "replica", "world"):
        axis = getattr(mesh, name)
        value = torch.tensor([mesh.rank])
        if axis.size > 1:
            dist.all_reduce(value, group=axis.group)
        summed[name] = (axis.rank, axis.ranks, int(value))
    return summed


def test_tensor_neighbours_are_neighbours_and_every_group_talks():
    layout = Layout(pipeline_parallel_size=2, context_parallel_size=2, tensor_parallel_size=2)
    found = run_distributed(_axes, 8, layout)
    assert found[5]["tensor"] == (1, (4, 5), 9)
    assert found[5]["context"] == (0, (5, 7), 12)
    assert found[5]["replica"] == (0, (5, 7), 12)
    assert found[5]["pipeline"] == (1, (1, 5), 6)
    assert found[5]["data"] == (0, (5,), 5)
    assert found[5]["world"] == (5, tuple(range(8)), 28)


def _places(layouts: list[Layout]) -> list[tuple]:
    """For each layout this rank's place on (pipeline, data, context, tensor), and those who share data with it."""
    import torch

    found = []
    for layout in layouts:
        mesh = build_mesh(layout, torch.device("cpu"))
        axes = (mesh.pipeline, mesh.data, mesh.context, mesh.tensor)
        found.append((tuple(axis.rank for axis in axes), mesh.tensor.ranks, mesh.replica.ranks))
        mesh.close()
    return found


def test_ranks_are_numbered_tensor_first_under_any_layout_one_after_another():
    names = ("pipeline", "data", "context", "tensor")
    shapes = [shape for shape in product((1, 2, 4), repeat=4) if shape[0] * shape[1] * shape[2] * shape[3] == 4]
    layouts = [Layout(**{f"{name}_parallel_size": size for name, size in zip(names, shape)}) for shape in shapes]
    by_rank = run_distributed(_places, 4, layouts)
    for at, shape in enumerate(shapes):
        places = [found[at][0] for found in by_rank]
        assert places == list(product(*map(range, shape)))
        for rank, found in enumerate(by_rank):
            _, tensor_ranks, replicas = found[at]
            assert tensor_ranks == tuple(r for r in range(4) if places[r][:3] == places[rank][:3])
            assert replicas == tuple(r for r in range(4) if places[r][::3] == places[rank][::3])


def _shared() -> tuple:
    import torch

    mesh = build_mesh(Layout(pipeline_parallel_size=2, tensor_parallel_size=4), torch.device("cpu"))
    pairs, ends = mesh.tensor_neighbours(2), mesh.ends_of_pipeline()
    x = torch.tensor([float(mesh.rank)])
    pairs.all_reduce(x)
    mesh.close()
    return pairs.ranks, ends.ranks, float(x)


def test_neighbours_share_key_value_heads_and_the_ends_of_the_pipeline_an_embedding():
    found = run_distributed(_shared, 8)
    assert [ranks for ranks, _, _ in found] == [(0, 1)] * 2 + [(2, 3)] * 2 + [(4, 5)] * 2 + [(6, 7)] * 2
    assert [total for _, _, total in found] == [1.0] * 2 + [5.0] * 2 + [9.0] * 2 + [13.0] * 2
    assert [ranks for _, ranks, _ in found] == [(0, 4), (1, 5), (2, 6), (3, 7)] * 2


def _collectives() -> tuple:
    import torch

    mesh = build_mesh(Layout(data_parallel_size=3), torch.device("cpu"))
    mine = torch.arange(6.0) + 10 * mesh.rank
    summed, gathered, part = mine.clone(), torch.empty(18), torch.empty(2)
    mesh.data.all_reduce(summed)
    mesh.data.all_gather(gathered, mine)
    work = mesh.data.reduce_scatter(part, mine.clone(), asynchronous=True)
    mesh.data.wait(work)
    return summed.tolist(), gathered.tolist(), part.tolist()


def test_sums_gathers_and_parts_of_sums():
    for rank, (summed, gathered, part) in enumerate(run_distributed(_collectives, 3)):
        assert summed == [30 + 3.0 * i for i in range(6)]
        assert gathered == [10.0 * other + i for other in range(3) for i in range(6)]
        assert part == summed[2 * rank : 2 * rank + 2]


def test_alone_nothing_is_sent():
    import torch

    axis, x = Axis(), torch.ones(2)
    assert axis.all_reduce(x, asynchronous=True) is None and x.tolist() == [1, 1]
    axis.wait(None)


def test_a_layout_of_another_number_of_ranks_is_refused():
    import torch

    with pytest.raises(ValueError, match="the layout tp2 needs 2 ranks and 1 are running"):
        build_mesh(Layout(tensor_parallel_size=2), torch.device("cpu"))
