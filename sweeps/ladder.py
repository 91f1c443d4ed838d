"""Which layout trains a cell: the fastest by prediction of those that fit its devices.

The *ladder* of a cell on n ranks lists its settings, data parallelism first: for every layout, by pipeline and then
by tensor ranks, smaller and smaller micro-batches, then selective, then full recomputation. A cell gets the rung with
the shortest predicted step that fits; one that runs out of memory all the same goes on from its checkpoint on a roomier
rung of the same ladder. Memory is estimated by scaling.memory. Imports no torch.
"""

from collections.abc import Callable, Iterator
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
#: Predicted steps that differ by less are taken for equal: the first of the ladder then wins.
_EQUAL = 0.03
#: A rung that helps after memory ran out needs at most this share of what the one before needed.
_ROOMIER = 0.75
_LOST_FOR_MEMORY = 2
_GIB = 2**30
_RECOMPUTATION = ("none", "selective", "full")


def settings(config: RunConfig) -> str:
    """A short name for what decides memory, such as `dp2 tp2 mb4 full`: sizes, micro-batch, recomputation."""
    recompute = config.execution.recompute_granularity
    return f"{config.parallel} mb{config.micro_batch_size}" + ("" if recompute == "none" else f" {recompute}")


def lay_out(
    cells: list[Cell],
    ranks: int,
    device_bytes: int | None,
    workers: Workers,
    step_seconds: Callable[[RunConfig], float],
) -> tuple[list[Cell], list[str]]:
    """Give every cell its layout, on at most `ranks` ranks with `device_bytes` of memory each (None: unknown).

    Cells whose layout the grid gives keep it. `step_seconds` predicts a step of a config. Returns the cells, and a
    warning for each that may not fit.
    """
    done, warnings = [], []
    for cell in cells:
        config, reason = _with(cell.config, device=workers.device, num_threads=workers.num_threads), "given by the grid"
        if not cell.layout_given:
            config, reason = choose(config, ranks, device_bytes, workers.ranks_per_node, step_seconds)
        done.append(replace(cell, config=config, layout_reason=reason))
        need = memory_estimate(config).total
        if device_bytes is not None and need > device_bytes:
            warnings.append(
                f"cell {cell.cell} may not fit: {settings(config)} needs about {need / _GIB:.3g} GiB on each device, "
                f"which has {device_bytes / _GIB:.3g} GiB: raise the profile's ranks_per_cell"
            )
    return done, warnings


def choose(
    config: RunConfig,
    ranks: int,
    device_bytes: int | None,
    ranks_per_node: int,
    step_seconds: Callable[[RunConfig], float],
) -> tuple[RunConfig, str]:
    """The config with the settings of the shortest predicted step that fit, or else the roomiest; and why, in a phrase.

    On at most `ranks` ranks; of settings within 3 % those with the fewest, and of these data parallelism comes first.
    """
    rungs = [rung for size in range(1, ranks + 1) for rung in _ladder(config, size, ranks_per_node)]
    timed = [(step_seconds(rung), rung) for rung in rungs]
    by_time = sorted(timed, key=lambda pair: pair[0])  # stable: of equals the first of the ladder
    limit = float("inf") if device_bytes is None else _FILL * device_bytes

    def fits(rung: RunConfig) -> bool:
        return memory_estimate(rung).total <= limit

    fastest = next((pair for pair in by_time if fits(pair[1])), None)
    if fastest is None:
        return min(rungs, key=lambda rung: memory_estimate(rung).total), "the least memory; nothing is estimated to fit"
    seconds, chosen = next(pair for pair in timed if pair[0] <= (1 + _EQUAL) * fastest[0] and fits(pair[1]))
    return chosen, _why(chosen, seconds, by_time, fits)


def _why(
    chosen: RunConfig, seconds: float, by_time: list[tuple[float, RunConfig]], fits: Callable[[RunConfig], bool]
) -> str:
    """The chosen layout against the best of the others, and whether a faster one does not fit."""
    others = [pair for pair in by_time if pair[1].parallel != chosen.parallel]
    if not others:
        return "one process"
    parts = []
    if by_time[0][1].parallel != chosen.parallel and not fits(by_time[0][1]):
        parts.append(f"{by_time[0][1].parallel} is faster and does not fit")
    next_best = next((pair for pair in others if fits(pair[1])), None)
    if next_best is None:
        return "; ".join([*parts, "no other layout fits"])
    percent = 100 * (next_best[0] / seconds - 1)
    slower = f"fastest that fits; {settings(next_best[1])} is {percent:.0f} % slower"
    return "; ".join([*parts, slower if percent >= 0 else f"{settings(next_best[1])} is only {-percent:.1f} % faster"])


def roomier(config: RunConfig, ranks_per_node: int) -> RunConfig | None:
    """The config with settings that need clearly less memory on the same ranks; None when there are none."""
    need, layout = memory_estimate(config).total, config.parallel
    rungs = [
        rung
        for rung in _ladder(config, layout.world_size, ranks_per_node)
        if rung.parallel.context_parallel_size == layout.context_parallel_size
        and rung.parallel.tensor_parallel_size >= layout.tensor_parallel_size
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
    """The config under all settings on exactly `ranks` ranks; tensor ranks stay within a node."""
    asked, least = config.execution.micro_batch_size, config.execution.recompute_granularity
    unset = _with(config, micro_batch_size=None)
    for layout in possible_layouts(unset, ranks):
        if ranks_per_node % layout.tensor_parallel_size:
            continue
        laid_out = unset.model_copy(update={"parallel": layout})
        whole = config.global_batch_size // layout.data_parallel_size
        largest = min(asked or config.global_batch_size, laid_out.micro_batch_size)
        sizes = [size for size in range(largest, 0, -1) if whole % size == 0]
        rungs = [rung for size in sizes if not layout_problems(rung := _with(laid_out, micro_batch_size=size))]
        if asked is None and rungs[0].micro_batch_size == laid_out.micro_batch_size:
            rungs[0] = laid_out  # says the same without a number
        yield from rungs
        for granularity in _RECOMPUTATION[_RECOMPUTATION.index(least) + 1 :]:
            yield _with(rungs[-1], recompute_granularity=granularity)


def _with(config: RunConfig, **execution: Any) -> RunConfig:
    return config.model_copy(update={"execution": config.execution.model_copy(update=execution)})
