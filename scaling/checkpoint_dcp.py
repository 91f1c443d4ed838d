"""Saving and loading by many ranks, through torch.distributed.checkpoint (DCP).

DCP plans who reads and writes which rectangles, carries the plans between the ranks, and raises the failure
of one rank on all. What is written is the format of checkpoint_format.py, by the storage classes below,
because DCP's own storage pickles its metadata.

Importing DCP takes most of a second, so this module is imported only where there are many ranks.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from scaling import checkpoint_format as disk
from scaling.checkpoint_format import Piece


class _HeldTensor:
    """The pieces of one global tensor on this rank, as DCP asks for them (torch.distributed._checkpointable)."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, piece.offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(piece.offset, piece.tensor.shape),
                    properties=TensorProperties(dtype=piece.tensor.dtype),
                    size=torch.Size(piece.global_shape),
                ),
            )
            for piece in self.pieces
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(piece.offset, piece.tensor.shape) for piece in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(piece.tensor for piece in self.pieces if torch.Size(piece.offset) == index.offset)


def _chunk(offset: tuple[int, ...], shape: tuple[int, ...]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(offset), sizes=torch.Size(shape))


def _held(pieces: list[Piece]) -> dict[str, _HeldTensor]:
    held: dict[str, _HeldTensor] = {}
    for piece in pieces:
        held.setdefault(piece.name, _HeldTensor()).pieces.append(piece)
    return held


class _SavePlanner(dcp.DefaultSavePlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def set_up_planner(self, state_dict: dict, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata = state_dict, metadata
        self.flatten_state_dict = False

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        # by place in the list: a rank may hold one rectangle twice
        return self.state_dict[index.fqn].pieces[index.index].tensor


class _Writer(dcp.StorageWriter):
    def __init__(self, directory: Path, step: int, state: dict[str, Any], keep: int, rank: int):
        self.directory, self.step, self.state, self.keep, self.rank = directory, step, state, keep, rank

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one save to the next."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool) -> None:
        if is_coordinator:
            disk.begin(self.directory, self.step)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's file, if it has anything to write: one result a file, whatever is in it."""
        pieces = [
            Piece(item.index.fqn, tuple(item.tensor_data.size), tuple(item.index.offset), planner.resolve_data(item))
            for item in plan.items
        ]
        results = []
        if pieces:
            file = disk.write_pieces(disk.scratch_path(self.directory, self.step), self.rank, pieces)
            results.append(WriteResult(MetadataIndex(file.name), file.fingerprint.bytes, file))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        files = [result.storage_data for of_rank in results for result in of_rank]
        disk.commit(self.directory, self.step, self.state, files, self.keep)


class _Reader(dcp.StorageReader):
    def __init__(self, path: Path, metadata: disk.Metadata):
        self.path, self.saved = path, metadata.tensors

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to the next."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def read_metadata(self) -> Metadata:
        tensors = {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
                size=torch.Size(tensor.shape),
                chunks=[_chunk(chunk.offset, chunk.shape) for chunk in tensor.chunks],
            )
            for name, tensor in self.saved.items()
        }
        return Metadata(tensors)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        """Everything needed is known from the start."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        disk.read_data(self.path, [self._read(item, planner) for item in plan.items])
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, item: ReadItem, planner: LoadPlanner) -> disk.Read:
        chunk = self.saved[item.storage_index.fqn].chunks[item.storage_index.index]
        slices = tuple(slice(start, start + size) for start, size in zip(item.storage_offsets, item.lengths))
        return disk.Read(chunk.file, chunk.key, slices, planner.resolve_tensor(item).detach())


def save(
    directory: Path, step: int, pieces: list[Piece], state: dict[str, Any], keep: int, group: dist.ProcessGroup
) -> None:
    """Write and commit the checkpoint of `step`. Collective over `group`; raises on all ranks what one rank raised."""
    writer = _Writer(directory, step, state, keep, dist.get_rank(group))
    try:
        dcp.save(_held(pieces), storage_writer=writer, planner=_SavePlanner(), process_group=group)
    except dcp.CheckpointException as error:
        raise _first(error) from error


def load(path: Path, metadata: disk.Metadata, pieces: list[Piece], group: dist.ProcessGroup) -> None:
    """Fill the pieces in place from a checkpoint that fits. Collective; raises on all ranks what one rank raised."""
    try:
        dcp.load(_held(pieces), storage_reader=_Reader(path, metadata), planner=_LoadPlanner(), process_group=group)
    except dcp.CheckpointException as error:
        raise _first(error) from error


def _first(error: dcp.CheckpointException) -> BaseException:
    """The failure of the lowest rank. DCP's own exception is none that `except Exception` would catch."""
    return error.failures[min(error.failures)][0]
