"""Checkpoints of many ranks: written under one cut of the tensors, read under another; failures reach every rank."""

import math
import os
import resource
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from distributed import run_distributed
from torch import Tensor

from parallel.mesh import Axis
from scaling import checkpoint_format
from scaling.checkpoint import Checkpointer, Piece, steps
from scaling.errors import UserError

RANKS = 4
#: Odd sizes, so that equal cuts are uneven; `short` has fewer rows than there are ranks.
SHAPES = {
    "weights/layers.0.up": (10, 7),
    "weights/layers.0.norm": (7,),
    "weights/layers.1.up": (10, 7),
    "exp_avg/layers.1.up": (10, 7),
    "weights/short": (3, 5),
    "scalar": (),
}


def model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["exp_avg/layers.1.up"] = tensors["exp_avg/layers.1.up"].double()
    tensors["weights/short"] = tensors["weights/short"].bfloat16()
    return tensors


# ---- cuts: the pieces of `tensors` that rank `rank` of 4 holds


def whole(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    """One process, or replicas: all but the first have copies."""
    return [Piece(name, tuple(t.shape), (0,) * t.dim(), t, primary=rank == 0) for name, t in tensors.items()]


def _along(tensors: dict[str, Tensor], dim: int, index: int, count: int, primary: bool) -> list[Piece]:
    """Part `index` of `count` along a dimension, as torch.chunk cuts; what lacks it is a replica."""
    pieces = []
    for name, tensor in tensors.items():
        if tensor.dim() <= dim:
            pieces.append(Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor, primary and index == 0))
            continue
        size = tensor.shape[dim]
        step = math.ceil(size / count)
        start, end = min(index * step, size), min((index + 1) * step, size)
        offset = tuple(start if d == dim else 0 for d in range(tensor.dim()))
        pieces.append(Piece(name, tuple(tensor.shape), offset, tensor.narrow(dim, start, end - start), primary))
    return pieces


def rows_over_4(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    return _along(tensors, 0, rank, 4, True)


def rows_over_2_replicated(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    return _along(tensors, 0, rank % 2, 2, rank < 2)


def columns_over_2_replicated(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    return _along(tensors, 1, rank // 2, 2, rank % 2 == 0)


def layers_and_columns(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    """Pipeline over 2: a rank has some of the names only; and columns over 2."""
    first = {name: t for name, t in tensors.items() if "layers.1" not in name}
    last = {name: t for name, t in tensors.items() if name not in first}
    return _along(first if rank < 2 else last, 1, rank % 2, 2, True)


def flat_slices_of_columns(tensors: dict[str, Tensor], rank: int) -> list[Piece]:
    """ZeRO-1: columns over 2, of which each of 2 replicas owns a run of elements: up to three rectangles."""
    pieces = []
    for piece in _along(tensors, 1, rank % 2, 2, True):
        tensor, owner = piece.tensor, rank // 2
        if tensor.dim() < 2:
            pieces.append(Piece(piece.name, piece.global_shape, piece.offset, tensor, rank == 0))
            continue
        cut = tensor.numel() // 2 + 1  # within a row
        width = tensor.shape[1]
        start, end = (0, cut) if owner == 0 else (cut, tensor.numel())
        while start < end:
            row, column = divmod(start, width)
            rows = (end - start) // width if column == 0 else 0
            part = (
                tensor[row : row + rows] if rows else tensor[row : row + 1, column : min(width, column + end - start)]
            )
            offset = (piece.offset[0] + row, piece.offset[1] + column)
            pieces.append(Piece(piece.name, piece.global_shape, offset, part))
            start += part.numel()
    return pieces


CUTS = [
    whole,
    rows_over_4,
    rows_over_2_replicated,
    columns_over_2_replicated,
    layers_and_columns,
    flat_slices_of_columns,
]


# ---- what runs on the ranks


def world() -> Axis:
    return Axis(dist.get_rank(), dist.get_world_size(), tuple(range(dist.get_world_size())), dist.group.WORLD)


def _differing(pieces: list[Piece], expected: list[Piece]) -> list[str]:
    return [p.name for p, e in zip(pieces, expected, strict=True) if not torch.equal(p.tensor, e.tensor)]


def _save_under_every_cut(folder: Path) -> None:
    for cut in CUTS:
        saver = Checkpointer(folder / cut.__name__, 2, world())
        saver.save(3, cut(model(1), dist.get_rank()), {"run_id": cut.__name__})


def _load_under_every_cut(folder: Path) -> list[tuple[str, str, list[str]]]:
    """(written under, read under, names of the pieces that differ), and a one-process save among the written."""
    rows = []
    for source in sorted(folder.iterdir()):
        saver = Checkpointer(source, 2, world())
        for cut in CUTS:
            pieces = cut({name: torch.full_like(t, -1) for name, t in model(0).items()}, dist.get_rank())
            state = saver.load_latest(pieces, pytest.fail)
            assert state == {"run_id": source.name, "step": 3}
            rows.append((source.name, cut.__name__, _differing(pieces, cut(model(1), dist.get_rank()))))
    return rows


def _reshard(folder: Path) -> list[tuple[str, str, list[str]]]:
    _save_under_every_cut(folder)
    return _load_under_every_cut(folder)


def test_what_any_cut_wrote_every_other_reads_to_the_bit(tmp_path):
    Checkpointer(tmp_path / "one_process", 2, Axis()).save(3, whole(model(1), 0), {"run_id": "one_process"})
    tables = run_distributed(_reshard, RANKS, tmp_path)
    assert len(tables) == RANKS and all(len(table) == 7 * 6 for table in tables)
    assert [row for table in tables for row in table if row[2]] == []
    for source in tmp_path.iterdir():  # and one process reads them all
        pieces = whole({name: torch.full_like(t, -1) for name, t in model(0).items()}, 0)
        Checkpointer(source, 2, Axis()).load_latest(pieces, pytest.fail)
        assert not _differing(pieces, whole(model(1), 0)), source.name
    files = {path.name for path in (tmp_path / "rows_over_2_replicated" / "step-00000003").iterdir()}
    assert files == {"tensors-00000.safetensors", "tensors-00001.safetensors", "metadata.json", "manifest.json"}, (
        "a replica writes nothing"
    )


def _save_while_training(directory: Path) -> list[str]:
    """An asynchronous save beside the collectives of training, which change the weights."""
    saver, pieces = Checkpointer(directory, 2, world()), rows_over_2_replicated(model(1), dist.get_rank())
    for step in range(1, 4):
        expected = [replace(piece, tensor=piece.tensor.clone()) for piece in pieces]
        saver.save(step, pieces, {}, asynchronous=True)
        for piece in pieces:
            gradient = piece.tensor.new_ones(())
            dist.all_reduce(gradient)
            piece.tensor.add_(gradient)
    saver.wait()
    found = rows_over_2_replicated(model(0), dist.get_rank())
    assert saver.load_latest(found, pytest.fail)["step"] == 3
    return _differing(found, expected)


def test_an_asynchronous_save_does_not_meet_the_collectives_of_training(tmp_path):
    assert run_distributed(_save_while_training, 2, tmp_path) == [[], []]
    assert steps(tmp_path) == [2, 3]


def _message(work) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return ""


def _failures(folder: Path) -> dict[str, object]:
    """What this rank hears of failures that only one rank meets itself."""
    rank, heard = dist.get_rank(), {}
    saver = Checkpointer(folder / "run", 2, world())
    for step in (1, 2):
        saver.save(step, rows_over_4(model(step), rank), {})

    more = rows_over_4(model(0), rank) + ([Piece("more", (2,), (0,), torch.zeros(2))] if rank == 2 else [])
    heard["other names on one rank"] = _message(lambda: saver.load_latest(more, pytest.fail))
    blocked = Checkpointer(folder / "file" / "checkpoints", 2, world())
    heard["unwritable"] = _message(lambda: blocked.save(1, rows_over_4(model(1), rank), {}))
    heard["nothing there"] = blocked.load_latest(rows_over_4(model(1), rank), pytest.fail)
    hole = rows_over_4(model(1), rank) if rank != 1 else rows_over_4(model(1), rank)[1:]
    try:
        saver.save(3, hole, {})
    except ValueError as error:
        heard["hole"] = str(error)

    for function in ("read_metadata", "read_data"):
        broken = patch.object(checkpoint_format, function, side_effect=OSError("input/output error"))
        with broken if rank == 2 else nullcontext():
            heard[function] = _message(lambda: saver.load_latest(rows_over_4(model(0), rank), pytest.fail))

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 2:  # the same OSError from write() as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    large = [Piece("large", (4, 10_000), (rank, 0), torch.zeros(1, 10_000))]
    heard["full disk"] = _message(lambda: saver.save(4, large, {}))
    saver.save(5, large, {}, asynchronous=True)
    heard["full disk, asynchronous"] = _message(saver.wait)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    heard["steps"] = steps(folder / "run")

    if rank == 0:
        os.truncate(folder / "run" / "step-00000002" / "tensors-00003.safetensors", 50)
    dist.barrier()
    warnings, pieces = [], rows_over_4(model(0), rank)
    heard["used"] = saver.load_latest(pieces, warnings.append)["step"]
    heard["differing"] = _differing(pieces, rows_over_4(model(1), rank))
    heard["warnings"] = warnings
    return heard


def test_a_failure_of_one_rank_is_raised_on_all(tmp_path):
    (tmp_path / "file").touch()
    ranks = run_distributed(_failures, RANKS, tmp_path)
    for heard in ranks:
        assert "missing more:" in heard["other names on one rank"]
        assert "checkpoint cannot be written" in heard["unwritable"]
        assert heard["nothing there"] is None
        assert "weights/layers.0.up" in heard["hole"]
        assert all("cannot be read (input/output error)" in heard[name] for name in ("read_metadata", "read_data"))
        for message in (heard["full disk"], heard["full disk, asynchronous"]):
            assert "checkpoint cannot be written" in message and "free some disk space" in message
        assert heard["steps"] == [1, 2], "the checkpoints that were there stay"
        assert heard["used"] == 1 and heard["differing"] == []
    assert [len(heard["warnings"]) for heard in ranks] == [1, 0, 0, 0]
    assert "step-00000002 is damaged (tensors-00003.safetensors" in ranks[0]["warnings"][0]
