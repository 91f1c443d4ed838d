"""The ranks of one run arranged by a Layout: who am I on every axis, and whom do I talk to.

Ranks are numbered as Megatron numbers them, tensor fastest: rank = ((pipeline * DP + data) * CP + context)
* TP + tensor. Neighbours on the tensor axis, who talk most, are then neighbours on a node.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from parallel.layout import Layout


@dataclass(frozen=True)
class Axis:
    """The ranks that differ from this one on one axis alone, this one included.

    Attributes:
        rank: this rank's place, 0 .. size - 1.
        ranks: their global ranks, in order.
        group: their process group; None when this rank is alone.
    """

    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = None

    def __reduce__(self):
        raise TypeError("an Axis belongs to its process")


@dataclass(frozen=True)
class Mesh:
    """One rank's view of the layout.

    `replica` joins data and context: the ranks that hold the same weights and see other tokens, over which
    gradients are summed and optimizer state is sharded. `world` is all ranks.
    """

    layout: Layout = Layout()
    rank: int = 0
    device: torch.device = torch.device("cpu")
    pipeline: Axis = Axis()
    data: Axis = Axis()
    context: Axis = Axis()
    tensor: Axis = Axis()
    replica: Axis = Axis()
    world: Axis = Axis()

    def subset(self, axis: Axis, count: int) -> Axis:
        """The run of `count` neighbours on `axis` that this rank belongs to. Every rank of the mesh must ask alike.

        Used for key/value heads that `count` tensor ranks share.
        """
        if count == 1:
            return Axis(ranks=(self.rank,))
        start = axis.rank // count * count
        mine = axis.ranks[start : start + count]
        grid = _grid(self.layout)
        moved = np.moveaxis(grid, 3, -1).reshape(-1, count)
        return Axis(mine.index(self.rank), count, mine, _group(moved, self.rank))


def _grid(layout: Layout) -> np.ndarray:
    return np.arange(layout.world_size).reshape(
        layout.pipeline_parallel_size, layout.data_parallel_size, layout.context_parallel_size, layout.tensor_parallel_size
    )


def _group(rows: np.ndarray, rank: int) -> dist.ProcessGroup | None:
    """A process group for every row; returns the one that `rank` is in. Collective."""
    mine = None
    for row in rows.tolist():
        group = dist.new_group(row)
        if rank in row:
            mine = group
    return mine


def _axis(grid: np.ndarray, axes: tuple[int, ...], rank: int) -> Axis:
    size = int(np.prod([grid.shape[axis] for axis in axes]))
    if size == 1:
        return Axis(ranks=(rank,))
    rows = np.moveaxis(grid, axes, range(-len(axes), 0)).reshape(-1, size)
    mine = tuple(next(row for row in rows.tolist() if rank in row))
    return Axis(mine.index(rank), size, mine, _group(rows, rank))


def build_mesh(layout: Layout, device: torch.device) -> Mesh:
    """This rank's mesh. Collective over the default process group, which must have `layout.world_size` ranks.

    Raises ValueError when it has another number.
    """
    if layout.world_size == 1:
        return Mesh(layout, device=device)
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != layout.world_size:
        raise ValueError(f"the layout needs {layout.world_size} ranks and {found} are running")
    rank, grid = dist.get_rank(), _grid(layout)
    return Mesh(
        layout,
        rank,
        device,
        pipeline=_axis(grid, (0,), rank),
        data=_axis(grid, (1,), rank),
        context=_axis(grid, (2,), rank),
        tensor=_axis(grid, (3,), rank),
        replica=_axis(grid, (1, 2), rank),
        world=_axis(grid, (0, 1, 2, 3), rank),
    )


def ranks_started() -> int:
    """Number of ranks that the launcher (torchrun, or a sweep's job) says it started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def connect(device: torch.device, timeout_seconds: float) -> None:
    """Join the other ranks, as the launcher's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say: NCCL on GPUs, else gloo."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
