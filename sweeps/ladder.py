"""Which layout trains a cell: data parallelism first, the rest only where memory demands it.

The *ladder* of a cell on n ranks lists its settings from the fastest to the roomiest: for every layout, by pipeline and
then by tensor ranks, smaller and smaller micro-batches, then selective, then full recomputation. A cell gets the first
rung that fits its devices; one that runs out of memory all the same goes on from its checkpoint on a roomier rung of
the same ladder. Memory is estimated by scaling.memory. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scaling.config import RunConfig
from scaling.layouts import layout_problems, possible_layouts
from scaling.memory import memory_estimate
from sweeps.attempts import OUT_OF_MEMORY, lost_attempts
from sweeps.grid import Cell
from sweeps.plan import Workers

#: The estimate may fill this share of a device; the rest is for what it leaves out.
_FILL = 0.85
#: A rung that helps after memory ran out needs at most this share of what the one before needed.
_ROOMIER = 0.75
_LOST_FOR_MEMORY = 2
_GIB = 2**30
_RECOMPUTATION = ("none", "selective", "full")


def settings(config: RunConfig) -> str:
    """A short name for what decides memory, such as `dp2 tp2 mb4 full`: sizes, micro-batch, recomputation."""
    recompute = config.execution.recompute_granularity
    return f"{config.parallel} mb{config.micro_batch_size}" + ("" if recompute == "none" else f" {recompute}")


def lay_out(cells: list[Cell], ranks: int, device_bytes: int | None, workers: Workers) -> tuple[list[Cell], list[str]]:
    """Give every cell its layout, on at most `ranks` ranks with `device_bytes` of memory each (None: unknown).

    Cells whose layout the grid gives keep it. Returns the cells, and a warning for each that may not fit.
    """
    done, warnings = [], []
    for cell in cells:
        config = _with(cell.config, device=workers.device)
        if not cell.layout_given:
            config = choose(config, ranks, device_bytes, workers.ranks_per_node)
        done.append(replace(cell, config=config))
        need = memory_estimate(config).total
        if device_bytes is not None and need > device_bytes:
            warnings.append(
                f"cell {cell.cell} may not fit: {settings(config)} needs about {need / _GIB:.3g} GiB on each device, "
                f"which has {device_bytes / _GIB:.3g} GiB: raise the profile's ranks_per_cell"
            )
    return done, warnings


def choose(config: RunConfig, ranks: int, device_bytes: int | None, ranks_per_node: int) -> RunConfig:
    """The config with the fastest settings on at most `ranks` ranks that fit, or else the roomiest.

    As many data-parallel ranks as divide the batch; where those do not suffice, all ranks that any layout can use.
    """
    data = max(size for size in range(1, ranks + 1) if config.global_batch_size % size == 0)
    alone = [rung for rung in _ladder(config, data, ranks_per_node) if rung.parallel.data_parallel_size == data]
    most = next(size for size in range(ranks, 0, -1) if size == data or possible_layouts(config, size))
    rungs = [*alone, *_ladder(config, most, ranks_per_node)]
    limit = float("inf") if device_bytes is None else _FILL * device_bytes
    fitting = (rung for rung in rungs if memory_estimate(rung).total <= limit)
    return next(fitting, None) or min(rungs, key=lambda rung: memory_estimate(rung).total)


def roomier(config: RunConfig, ranks_per_node: int) -> RunConfig | None:
    """The config with settings that need clearly less memory on the same ranks; None when there are none."""
    need, layout = memory_estimate(config).total, config.parallel
    rungs = [
        rung
        for rung in _ladder(config, layout.world_size, ranks_per_node)
        if rung.parallel.tensor_parallel_size >= layout.tensor_parallel_size
        and rung.parallel.pipeline_parallel_size >= layout.pipeline_parallel_size
        and memory_estimate(rung).total < need
    ]
    clearly = (rung for rung in rungs if memory_estimate(rung).total <= _ROOMIER * need)
    return next(clearly, None) or min(rungs, key=lambda rung: memory_estimate(rung).total, default=None)


def layout_to_try(
    config: RunConfig, attempts: list[dict[str, Any]], launch: str, ranks_per_node: int
) -> tuple[RunConfig, str | None]:
    """The planned config, or the first roomier one that has not run out of memory yet; and why, None for the planned.

    A worker that died twice under one layout in this launch counts as out of memory: the kernel kills without a word.
    """
    because = None
    while (failure := _memory_failure(attempts, settings(config), launch)) is not None:
        other = roomier(config, ranks_per_node)
        if other is None:
            break
        config, because = other, failure
    return config, because


def _memory_failure(attempts: list[dict[str, Any]], layout: str, launch: str) -> str | None:
    for line in attempts:
        if line.get("outcome") == OUT_OF_MEMORY and line.get("layout") == layout:
            return f"{OUT_OF_MEMORY} under {layout}"
    if lost_attempts(attempts, launch, layout) >= _LOST_FOR_MEMORY:
        return f"the worker died {_LOST_FOR_MEMORY} times under {layout}: killed for its memory?"
    return None


def _ladder(config: RunConfig, ranks: int, ranks_per_node: int) -> Iterator[RunConfig]:
    """The config under all settings on exactly `ranks` ranks, the fastest first.

    Tensor ranks stay within a node; context parallelism stays as it is.
    """
    asked, least = config.execution.micro_batch_size, config.execution.recompute_granularity
    unset = _with(config, micro_batch_size=None)
    for layout in possible_layouts(unset, ranks):
        within = ranks_per_node % layout.tensor_parallel_size == 0
        if not within or layout.context_parallel_size != config.parallel.context_parallel_size:
            continue
        laid_out = unset.model_copy(update={"parallel": layout})
        largest = min(asked or config.global_batch_size, laid_out.micro_batch_size)
        if asked is None:
            yield laid_out
        smaller = [_with(laid_out, micro_batch_size=size) for size in range(largest, 0, -1)]
        smaller = [rung for rung in smaller if not layout_problems(rung)]
        yield from smaller
        for granularity in _RECOMPUTATION[_RECOMPUTATION.index(least) + 1 :]:
            yield _with(smaller[-1], recompute_granularity=granularity)


def _with(config: RunConfig, **execution: Any) -> RunConfig:
    return config.model_copy(update={"execution": config.execution.model_copy(update=execution)})
