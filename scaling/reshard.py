"""Can a run stop under one layout and go on under another? Every pair of layouts, tried.

A run is trained for half its steps under one layout and saved; then loaded under another, saved again at once
(the tensors must be the same to the bit) and trained to its end (the losses must be those of one process that was
never interrupted). Model, data and ranks are those of scaling/parity.py.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from scaling.config import RunConfig
from scaling.parity import Case, batch, sizes, train_here

_HALF = 6
#: Largest relative difference of a loss from the uninterrupted one, float32.
TOLERANCE = 1e-5

_TIED = {"tie_word_embeddings": True}
LAYOUTS: tuple[Case, ...] = (
    Case(model=_TIED),
    Case(sizes(dp=2), model=_TIED),
    Case(sizes(dp=4, data_parallel_method="fsdp2"), model=_TIED),
    Case(sizes(tp=4), model=_TIED),
    Case(sizes(pp=2), model=_TIED),
    Case(sizes(pp=2, pipeline_schedule="zbv"), model=_TIED),
    Case(sizes(dp=2, tp=2), model=_TIED),
    Case(sizes(pp=2, dp=2), model=_TIED),
    Case(sizes(cp=2, tp=2), model=_TIED),
)


def _config(case: Case) -> RunConfig:
    return case.config("float32").model_copy(update={"train_steps": 2 * _HALF})


def _name(case: Case) -> str:
    layout = _config(case).parallel
    schedule = f" {layout.pipeline_schedule}" if layout.pipeline_parallel_size > 1 else ""
    return f"{layout}{schedule}" + (" fsdp2" if layout.data_parallel_method == "fsdp2" else "")


def _trained(config: RunConfig) -> tuple[Any, Any, Any]:
    import torch

    from parallel.mesh import build_mesh
    from scaling.engine import Engine
    from scaling.optimizer import AdamW

    mesh = build_mesh(config.parallel, torch.device("cpu"))
    engine = Engine(config, mesh.device, "float32", mesh)
    return mesh, engine, AdamW(engine.storage, config.optimizer, mesh.world)


def _steps(config: RunConfig, engine: Any, optimizer: Any, first: int, end: int) -> list[float]:
    from scaling.schedule import learning_rate

    losses = []
    for step in range(first, end):
        _, loss = optimizer.step(learning_rate(config, step), engine.forward_backward(batch(step)))
        losses.append(float(loss))
    return losses


def _first_half(config: RunConfig, directory: Path) -> None:
    from scaling.checkpoint import Checkpointer

    mesh, engine, optimizer = _trained(config)
    _steps(config, engine, optimizer, 0, _HALF)
    Checkpointer(directory, 2, mesh.world).save(_HALF, optimizer.pieces(), {})


def _second_halves(config: RunConfig, pairs: list[tuple[Path, Path]]) -> list[list[float]]:
    """Losses of the second half from each checkpoint, which is also saved again, as it was loaded."""
    from scaling.checkpoint import Checkpointer

    found = []
    for source, copy in pairs:
        mesh, engine, optimizer = _trained(config)
        loader, saver = (Checkpointer(directory, 2, mesh.world) for directory in (source, copy))
        state = loader.load_latest(optimizer.pieces(), print)
        optimizer.resume(state["step"])
        saver.save(state["step"], optimizer.pieces(), {})
        found.append(_steps(config, engine, optimizer, state["step"], config.train_steps))
        for held in (loader, saver, mesh):
            held.close()
    return found


def whole_tensors(directory: Path) -> dict[str, Any]:
    """Every tensor of the checkpoint that `_first_half` saved, put together: numpy arrays by name."""
    import torch

    from scaling import checkpoint_format as disk

    path = disk.step_path(directory, _HALF)
    saved = disk.read_metadata(path).tensors
    wholes = {name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)) for name, tensor in saved.items()}
    pieces = [disk.Piece(name, tuple(whole.shape), (0,) * whole.dim(), whole) for name, whole in wholes.items()]
    disk.read_data(path, disk.plan_reads(pieces, saved))
    return {name: whole.numpy() for name, whole in wholes.items()}


def reshard(
    layouts: tuple[Case, ...] = LAYOUTS, on_row: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Rows {saved_under, loaded_under, tensors, differing_tensors, max_relative_loss_difference, passed}: all pairs."""
    from parallel.local import run_distributed

    rows = []
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (whole,) = run_distributed(train_here, 1, _config(Case(model=_TIED)))
        expected = np.array(whole["losses"][_HALF:])
        for number, case in enumerate(layouts):
            run_distributed(_first_half, _config(case).parallel.world_size, _config(case), root / f"from-{number}")
        for target in layouts:
            pairs = [(root / f"from-{n}", root / f"copy-{n}-{layouts.index(target)}") for n in range(len(layouts))]
            found = run_distributed(_second_halves, _config(target).parallel.world_size, _config(target), pairs)[0]
            for source, (saved, copy), losses in zip(layouts, pairs, found):
                before, after = whole_tensors(saved), whole_tensors(copy)
                differing = sum(not np.array_equal(before[name], after.get(name)) for name in before)
                difference = float(np.max(np.abs(np.array(losses) / expected - 1.0)))
                rows.append(
                    {
                        "saved_under": _name(source),
                        "loaded_under": _name(target),
                        "tensors": len(before),
                        "differing_tensors": differing + len(after.keys() - before.keys()),
                        "max_relative_loss_difference": difference,
                        "passed": before.keys() == after.keys() and not differing and difference <= TOLERANCE,
                    }
                )
                if on_row is not None:
                    on_row(rows[-1])
    return rows


def reshard_line(row: dict[str, Any]) -> str:
    """A row for people."""
    where = f"{row['saved_under']:<14} to {row['loaded_under']:<14}"
    tensors = f"{row['differing_tensors']} of {row['tensors']} tensors differ, losses by"
    return f"{where} {tensors} {row['max_relative_loss_difference']:.1e}{'' if row['passed'] else ' DIFFERS'}"
