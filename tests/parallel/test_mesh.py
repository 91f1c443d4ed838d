"""The arrangement of ranks."""

from distributed import run_distributed

from parallel.layout import Layout


def _axes(layout: Layout) -> dict[str, tuple]:
    import torch
    import torch.distributed as dist

    from parallel.mesh import build_mesh

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
