"""Checkpoints: saved by any number of ranks under any layout, loaded under any other.

Every rank names the pieces of the global tensors that it holds (weights, moments); what is written is described
in checkpoint_format.py. A save is committed by one rename, so that a checkpoint is there wholly or not at all;
a damaged one is named, set aside, and the one before it is used.
"""

import json
import math
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

from parallel.mesh import Axis
from scaling import checkpoint_format as disk
from scaling.checkpoint_format import Piece, steps
from scaling.errors import UserError

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

    def close(self) -> None:
        """Wait for a pending save and leave the process group. Raises what the save raised."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._group is not None:
                dist.destroy_process_group(self._group)

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
