"""Checkpoints: saved by any number of ranks under any layout, loaded under any other.

Every rank names the pieces of the global tensors that it holds (weights, moments); what is written is described
in checkpoint_format.py. A save is committed by one rename, so that a checkpoint is there wholly or not at all;
a damaged one is named, set aside, and the one before it is used.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.mesh import Axis
from scaling import checkpoint_format as disk
from scaling.checkpoint_format import Piece, steps
from scaling.errors import UserError
from scaling.record import write_json_atomically

T = TypeVar("T")

#: Bytes between the starts of staged pieces: a multiple of every element's size.
_ALIGNMENT = 16


class Checkpointer:
    """Saves and loads the checkpoints of one run. All ranks of `world` must make the same calls in the same order.

    Args:
        directory: of this run's checkpoints; the same on every rank.
        keep: number of checkpoints kept.
        world: all ranks of the run. With more than one, making a Checkpointer is collective: it has a process
            group of its own, so that a save in the background cannot get between the collectives of training.
    """

    def __init__(self, directory: Path, keep: int, world: Axis):
        self.directory, self.keep, self.world = directory, keep, world
        self._group = dist.new_group(list(world.ranks), backend="gloo") if world.size > 1 else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._staging = torch.empty(0, dtype=torch.uint8)

    def save(self, step: int, pieces: list[Piece], state: dict[str, Any], asynchronous: bool = False) -> None:
        """Write the checkpoint of `step` and delete all but the newest `keep`. Collective.

        `state` is plain data, the same on all ranks; it is read back with `step` added. With `asynchronous` the
        pieces are copied, and written by a thread: later changes do not reach the file, and failures are raised
        by `wait` or the next call. Only one save is under way at a time.

        Raises UserError on all ranks when the disk refuses one; the checkpoints that were there stay. Raises
        ValueError when the pieces leave a hole in a tensor, or overlap.
        """
        self.wait()
        state = json.loads(json.dumps({**state, "step": step}, allow_nan=False))  # the caller's may change meanwhile
        pieces = [
            piece for piece in pieces if piece.primary and (piece.tensor.numel() or not math.prod(piece.global_shape))
        ]
        if asynchronous:
            self._pending = self._thread.submit(self._write, step, self._staged(pieces), state)
        else:
            self._write(step, pieces, state)

    def wait(self) -> None:
        """Until an asynchronous save is committed. Raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load_latest(self, pieces: list[Piece], warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Fill the pieces in place from the newest whole checkpoint and return its state; None when there is none.

        Collective. Every damaged checkpoint that is passed over is named through `warn` (on rank 0) and set aside.
        Raises UserError on all ranks, and changes no piece, when the checkpoint lacks tensors, has others, or has
        them in other shapes or dtypes or with holes.
        """
        self.wait()
        for step in reversed(self._on_first(lambda: steps(self.directory))):
            path = disk.step_path(self.directory, step)
            faults = self._gather(disk.fault(path, self.world.rank, self.world.size))
            found = next((fault for fault in faults if fault), None)
            if found is None:
                return self._load(path, pieces)
            aside = self._on_first(partial(disk.set_aside, path))
            if self.world.rank == 0:
                warn(f"checkpoint {path} is damaged ({found}): set aside as {aside.name}; using the one before it")
        return None

    def _write(self, step: int, pieces: list[Piece], state: dict[str, Any]) -> None:
        try:
            if self._group is None:
                disk.begin(self.directory, step)
                file = disk.write_pieces(disk.scratch_path(self.directory, step), 0, pieces)
                disk.commit(self.directory, step, state, [file], self.keep)
            else:
                from scaling import checkpoint_dcp  # slow to import, and not needed by one process

                checkpoint_dcp.save(self.directory, step, pieces, state, self.keep, self._group)
        except (OSError, SafetensorError) as error:
            path = disk.step_path(self.directory, step)
            raise UserError(
                f"{path}: checkpoint cannot be written ({error}): free some disk space and start again"
            ) from error
        finally:
            if self.world.rank == 0:
                shutil.rmtree(disk.scratch_path(self.directory, step), ignore_errors=True)

    def _load(self, path: Path, pieces: list[Piece]) -> dict[str, Any]:
        metadata = self._on_all(lambda: disk.read_metadata(path))
        wanted = self._gather([(piece.name, piece.dtype, tuple(piece.global_shape)) for piece in pieces])
        disk.check_fit(path, metadata.tensors, (tensor for of_rank in wanted for tensor in of_rank))
        try:
            if self._group is None:
                disk.read_data(path, disk.plan_reads(pieces, metadata.tensors))
            else:
                from scaling import checkpoint_dcp

                checkpoint_dcp.load(path, metadata, pieces, self._group)
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}): mend the disk, or rename the directory to use the one before"
            ) from error
        return metadata.state

    def _staged(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces, copied to one buffer in CPU memory that is reused from save to save."""
        starts, end = [], 0
        for piece in pieces:
            starts.append(end)
            end += -(-piece.tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._staging.numel() < end:
            on_gpu = any(piece.tensor.is_cuda for piece in pieces)
            self._staging = torch.empty(end, dtype=torch.uint8, pin_memory=on_gpu)
        staged = []
        for piece, start in zip(pieces, starts):
            room = self._staging[start : start + piece.tensor.nbytes]
            copy = room.view(piece.tensor.dtype).view(piece.tensor.shape)
            staged.append(replace(piece, tensor=copy.copy_(piece.tensor.detach())))
        return staged

    def _gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _on_all(self, work: Callable[[], T]) -> T:
        """`work()` of this rank; what fails on one rank is raised as a UserError on all."""
        result, error = None, None
        try:
            result = work()
        except (OSError, ValueError) as failure:
            error = f"{self.directory}: checkpoints cannot be read ({failure}): mend the disk or its permissions"
        for found in self._gather(error):
            if found is not None:
                raise UserError(found)
        return result

    def _on_first(self, work: Callable[[], T]) -> T:
        """The result of `work()` on rank 0, on all ranks; its failure is raised as a UserError on all."""
        return self._gather(self._on_all(lambda: work() if self.world.rank == 0 else None))[0]


_FILES = ("weights.safetensors", "moments.safetensors", "state.json")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(
    directory: Path, step: int, weights: dict[str, Tensor], moments: dict[str, Tensor], state: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` and delete all but the newest `keep`.

    Raises UserError when the disk refuses; the checkpoints that were there stay.
    """
    final = directory / f"step-{step:08d}"
    scratch = directory / f".writing-{step:08d}-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".writing-*"):
            shutil.rmtree(stale, ignore_errors=True)
        scratch.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, scratch / _FILES[0])
        save_file({name: tensor.contiguous() for name, tensor in moments.items()}, scratch / _FILES[1])
        write_json_atomically(scratch / _FILES[2], {"step": step, **state})
        manifest = {
            name: {"bytes": (scratch / name).stat().st_size, "sha256": _digest(scratch / name)} for name in _FILES
        }
        write_json_atomically(scratch / "manifest.json", manifest)
        for name in _FILES[:2]:
            _sync(scratch / name)
        if final.exists():
            shutil.rmtree(final)
        os.replace(scratch, final)
        _sync(directory)
    except Exception as error:  # safetensors raises its own type for a full disk
        shutil.rmtree(scratch, ignore_errors=True)
        raise UserError(
            f"{final}: checkpoint cannot be written ({error}): free some disk space and start again"
        ) from error
    for old in steps(directory)[:-keep]:
        shutil.rmtree(directory / f"step-{old:08d}", ignore_errors=True)
    return final


def _fault(path: Path) -> str | None:
    """What is wrong with the checkpoint at `path`, None when it is whole."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name in _FILES:
            if _digest(path / name) != manifest[name]["sha256"]:
                return f"{name} does not match its hash in manifest.json"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def load_latest(
    directory: Path, warn: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]] | None:
    """Weights, moments and state of the newest whole checkpoint; None when there is none.

    Every damaged checkpoint that is passed over is named through `warn`, and set aside so that it is
    neither counted nor overwritten.
    """
    for step in reversed(steps(directory)):
        path = directory / f"step-{step:08d}"
        fault = _fault(path)
        if fault is None:
            state = json.loads((path / "state.json").read_text())
            return load_file(path / _FILES[0]), load_file(path / _FILES[1]), state
        aside = directory / f"damaged-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        warn(f"checkpoint {path} is damaged ({fault}): set aside as {aside.name}; using the one before it")
    return None


def restore(named: dict[str, Tensor], saved: dict[str, Tensor], what: str) -> None:
    """Copy saved tensors into `named`, in place.

    Raises UserError naming missing, surplus or misshapen keys; then nothing was copied.
    """
    missing, surplus = sorted(named.keys() - saved.keys()), sorted(saved.keys() - named.keys())
    wrong = sorted(name for name in named.keys() & saved.keys() if named[name].shape != saved[name].shape)
    if missing or surplus or wrong:
        raise UserError(
            f"{what} of the checkpoint do not fit this model: missing {missing}, surplus {surplus}, "
            f"other shape {wrong}: the run directory belongs to another config"
        )
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(saved[name])
