"""The ranks of one run arranged by a Layout: who am I on every axis, and whom do I talk to.

Ranks are numbered as Megatron numbers them, tensor fastest: rank = ((pipeline * DP + data) * CP + context)
* TP + tensor. Neighbours on the tensor axis, who talk most, are then neighbours on a node.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.layout import Layout

# renamed in torch 2.13
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Axis:
    """The ranks that differ from this one on one axis alone, this one included.

    Attributes:
        rank: this rank's place, 0 .. size - 1.
        ranks: their global ranks, in order.
        group: their process group; None when this rank is alone, whose collectives then do nothing.
        blocked: makes a context that is open while this rank waits for the others, to be timed.
    """

    rank: int = 0
    size: int = 1
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = None
    blocked: Callable[[], Any] = contextlib.nullcontext

    def wait(self, work: dist.Work | None) -> None:
        """Until a collective that was started with `asynchronous` is done."""
        if work is not None:
            with self.blocked():
                work.wait()

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, asynchronous: bool = False):
        """x summed over the ranks, in place; returns the work to wait for when asynchronous."""
        if self.size > 1:
            return self._run(dist.all_reduce(x, op, group=self.group, async_op=True), asynchronous)

    def all_gather(self, out: Tensor, x: Tensor, asynchronous: bool = False):
        """out = the ranks' x, one after the other along the first axis."""
        if self.size > 1:
            return self._run(_all_gather(out, x, group=self.group, async_op=True), asynchronous)

    def reduce_scatter(self, out: Tensor, x: Tensor, asynchronous: bool = False):
        """out = this rank's part, along the first axis, of the sum of the ranks' x."""
        if self.size > 1:
            return self._run(_reduce_scatter(out, x, group=self.group, async_op=True), asynchronous)

    def _run(self, work: dist.Work, asynchronous: bool) -> dist.Work | None:
        if asynchronous:
            return work
        self.wait(work)


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
    _more: dict[str, Axis] = field(default_factory=dict, compare=False, repr=False)

    def close(self) -> None:
        """Leave the process groups, of which a process may have many runs' worth one after another."""
        axes = (self.pipeline, self.data, self.context, self.tensor, self.replica, self.world, *self._more.values())
        for axis in axes:
            if axis.group is not None:
                dist.destroy_process_group(axis.group)

    def tensor_neighbours(self, count: int) -> Axis:
        """The run of `count` tensor ranks that this rank belongs to: those that share key/value heads. Collective."""
        grid = _grid(self.layout).reshape(-1, count)
        return self._more.get("tensor") or self._make("tensor", grid, (1,))

    def ends_of_pipeline(self) -> Axis:
        """This rank and its partner at the other end of the pipeline, or this rank alone in between. Collective."""
        grid = _grid(self.layout)[[0, -1]].reshape(2, -1)
        return self._more.get("ends") or self._make("ends", grid, (0,))

    def _make(self, name: str, grid: np.ndarray, along: tuple[int, ...]) -> Axis:
        self._more[name] = _axis(grid, along, self.rank, self.world.blocked)
        return self._more[name]


def _grid(layout: Layout) -> np.ndarray:
    return np.arange(layout.world_size).reshape(
        layout.pipeline_parallel_size,
        layout.data_parallel_size,
        layout.context_parallel_size,
        layout.tensor_parallel_size,
    )


def _axis(grid: np.ndarray, along: tuple[int, ...], rank: int, blocked: Callable[[], Any]) -> Axis:
    """A process group for every line of `grid` along some of its axes; returns this rank's. Collective."""
    size = int(np.prod([grid.shape[axis] for axis in along]))
    mine = Axis(ranks=(rank,))
    if size == 1:
        return mine
    for line in np.moveaxis(grid, along, range(-len(along), 0)).reshape(-1, size).tolist():
        group = dist.new_group(line)
        if rank in line:
            mine = Axis(line.index(rank), size, tuple(line), group, blocked)
    return mine


def build_mesh(layout: Layout, device: torch.device, blocked: Callable[[], Any] = contextlib.nullcontext) -> Mesh:
    """This rank's mesh. Collective over the default process group, which must have `layout.world_size` ranks.

    Raises ValueError when it has another number.
    """
    found = dist.get_world_size() if dist.is_initialized() else 1
    if found != layout.world_size:
        raise ValueError(f"the layout {layout} needs {layout.world_size} ranks and {found} are running")
    if layout.world_size == 1:
        return Mesh(layout, device=device)
    rank, grid = dist.get_rank(), _grid(layout)
    axes = {"pipeline": (0,), "data": (1,), "context": (2,), "tensor": (3,), "replica": (1, 2), "world": (0, 1, 2, 3)}
    return Mesh(layout, rank, device, **{name: _axis(grid, along, rank, blocked) for name, along in axes.items()})


def connect(timeout_seconds: float) -> None:
    """Join the other ranks, as the launcher's RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say.

    Tensors on GPUs travel by NCCL, those of the CPU by gloo. A collective that takes longer than the timeout fails.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
