"""What a checkpoint looks like on disk, whichever ranks wrote it.

`checkpoints/step-00001200/` holds one `tensors-<rank>.safetensors` for each rank that had something to write,
`metadata.json` (the run's state, and for every tensor which rectangles of it lie in which file), and
`manifest.json` (size and sha256 of each of these). A tensor is known by its name and global shape, so that
it can be read back under another cut. Nothing in these files is ever executed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scaling.errors import UserError

#: Anything of another name (a copy that somebody keeps, say) is no checkpoint.
_NAME = re.compile(r"step-([0-9]{8,})")
_METADATA, _MANIFEST = "metadata.json", "manifest.json"
#: Names shown in a message; a model has thousands.
_SHOWN = 4


@dataclass(frozen=True)
class Piece:
    """One rectangle of one named global tensor that this rank holds.

    Attributes:
        name: of the global tensor, as `weights/layers.0.attention.query.weight`.
        global_shape: of the global tensor.
        offset: of the rectangle in the global tensor.
        tensor: view of this rank's storage: read when saving, written in place when loading.
        primary: False when another rank writes the same rectangle (a replica); it is still loaded here.
    """

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor
    primary: bool = True

    def __post_init__(self) -> None:
        ends = [start + size for start, size in zip(self.offset, self.tensor.shape)]
        same_rank = len(self.offset) == self.tensor.dim() == len(self.global_shape)
        if not same_rank or any(s < 0 or e > g for s, e, g in zip(self.offset, ends, self.global_shape)):
            raise ValueError(
                f"{self.name}: {list(self.tensor.shape)} at {self.offset} is no part of {self.global_shape}"
            )

    @property
    def dtype(self) -> str:
        """Element type as it is written: `float32`, `bfloat16`, ..."""
        return str(self.tensor.dtype).removeprefix("torch.")


class Chunk(BaseModel):
    """A rectangle of a tensor, and the entry of the data file that holds it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    key: str


class SavedTensor(BaseModel):
    """A global tensor and the rectangles that it was written in."""

    dtype: str
    shape: tuple[int, ...]
    chunks: list[Chunk]


class Metadata(BaseModel):
    """The contents of `metadata.json`."""

    format_version: Literal[1] = 1
    state: dict[str, Any]
    tensors: dict[str, SavedTensor]


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    files: dict[str, _File]


@dataclass(frozen=True)
class DataFile:
    """What one rank wrote: the file's fingerprint, and the tensors with the chunks that lie in it."""

    name: str
    fingerprint: _File
    tensors: dict[str, SavedTensor]


@dataclass(frozen=True)
class Read:
    """One copy from a data file: the part `slices` of the entry `key` goes to `target`, of the same shape."""

    file: str
    key: str
    slices: tuple[slice, ...]
    target: Tensor


def step_path(directory: Path, step: int) -> Path:
    """Where the committed checkpoint of `step` lies."""
    return directory / f"step-{step:08d}"


def steps(directory: Path) -> list[int]:
    """Steps of the committed checkpoints in `directory`, oldest first."""
    named = ((_NAME.fullmatch(path.name), path) for path in directory.glob("step-*"))
    return sorted(int(match[1]) for match, path in named if match and path.is_dir())


# ---- writing


def scratch_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written before it counts; the same on every rank."""
    return directory / f".writing-{step:08d}"


def begin(directory: Path, step: int) -> None:
    """Make the scratch directory of a save. Remains of saves that were killed go. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob(".writing-*"):
        shutil.rmtree(stale)
    scratch_path(directory, step).mkdir()


def write_pieces(scratch: Path, rank: int, pieces: list[Piece]) -> DataFile:
    """Write the pieces of one rank and flush them to disk. Raises OSError or SafetensorError."""
    name = f"tensors-{rank:05d}.safetensors"
    entries: dict[str, Tensor] = {}
    tensors: dict[str, SavedTensor] = {}
    for piece in pieces:
        shape = tuple(piece.tensor.shape)
        key = piece.name
        if shape != tuple(piece.global_shape):
            key += "[" + ",".join(f"{start}:{start + size}" for start, size in zip(piece.offset, shape)) + "]"
        entries[key] = piece.tensor.detach().cpu().contiguous()
        saved = tensors.setdefault(piece.name, SavedTensor(dtype=piece.dtype, shape=piece.global_shape, chunks=[]))
        saved.chunks.append(Chunk(offset=piece.offset, shape=shape, file=name, key=key))
    save_file(entries, scratch / name)
    _sync(scratch / name)
    return DataFile(name, _fingerprint(scratch / name), tensors)


def commit(directory: Path, step: int, state: dict[str, Any], files: list[DataFile], keep: int) -> None:
    """Make what lies in the scratch directory the checkpoint of `step`, and delete all but the newest `keep`.

    Raises ValueError when the files do not hold every element of every tensor exactly once, and OSError.
    """
    scratch, final = scratch_path(directory, step), step_path(directory, step)
    tensors: dict[str, SavedTensor] = {}
    for file in files:
        for name, part in file.tensors.items():
            tensors.setdefault(name, SavedTensor(dtype=part.dtype, shape=part.shape, chunks=[])).chunks.extend(
                part.chunks
            )
    torn = [name for name, tensor in tensors.items() if not is_tiled(tensor.shape, tensor.chunks)]
    if torn:
        raise ValueError(f"the ranks' pieces leave holes or overlap in {_listed(torn)}")
    _write_json(scratch / _METADATA, Metadata(state=state, tensors=tensors))
    fingerprints = {file.name: file.fingerprint for file in files}
    _write_json(scratch / _MANIFEST, _Manifest(files=fingerprints | {_METADATA: _fingerprint(scratch / _METADATA)}))
    _sync(scratch)
    replaced = scratch.with_suffix(".replaced")
    if final.exists():
        os.replace(final, replaced)
    os.replace(scratch, final)
    _sync(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in steps(directory)[:-keep]:
        shutil.rmtree(step_path(directory, old), ignore_errors=True)


def _write_json(path: Path, value: BaseModel) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(value.model_dump_json())
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(path: Path) -> _File:
    with open(path, "rb") as file:
        return _File(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


# ---- reading


def fault(path: Path, rank: int, size: int) -> str | None:
    """What is wrong with the checkpoint at `path`, None when nothing is; rank `rank` of `size` hashes its share."""
    try:
        manifest = _Manifest.model_validate(json.loads((path / _MANIFEST).read_bytes()))
        if _METADATA not in manifest.files:
            return f"{_MANIFEST} does not name {_METADATA}"
        for name in sorted(manifest.files)[rank::size]:
            if _fingerprint(path / name) != manifest.files[name]:
                return f"{name} does not match its hash in {_MANIFEST}"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except ValueError as error:
        return f"{_MANIFEST}: {type(error).__name__}"
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither counted nor overwritten; its new path. Raises OSError."""
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def read_metadata(path: Path) -> Metadata:
    """The metadata of the checkpoint at `path`. Raises OSError, and ValueError when it has another form."""
    return Metadata.model_validate(json.loads((path / _METADATA).read_bytes()))


def check_fit(path: Path, saved: dict[str, SavedTensor], wanted: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    """Raise UserError unless the checkpoint holds exactly the wanted tensors, whole.

    Args:
        wanted: (name, dtype, global shape) of every piece of every rank.
    """
    wanted = set(wanted)
    names = {name for name, _, _ in wanted}
    known = {(name, tensor.dtype, tensor.shape) for name, tensor in saved.items()}
    differing = {name for name, _, _ in wanted - known if name in saved}
    torn = {name for name in names & saved.keys() if not is_tiled(saved[name].shape, saved[name].chunks)}
    problems = {
        "missing": names - saved.keys(),
        "surplus": saved.keys() - names,
        "other shape or dtype": differing,
        "not written completely": torn,
    }
    found = [f"{problem} {_listed(names)}" for problem, names in problems.items() if names]
    if found:
        raise UserError(
            f"{path}: does not fit this model: {'; '.join(found)}: the run directory belongs to another config"
        )


def is_tiled(shape: tuple[int, ...], chunks: list[Chunk]) -> bool:
    """Whether the chunks hold every element of a tensor of that shape exactly once."""
    if len(chunks) == 1 and chunks[0].shape == shape and not any(chunks[0].offset):
        return True
    if any(not len(chunk.offset) == len(chunk.shape) == len(shape) for chunk in chunks):
        return False
    # The chunks' borders cut the tensor into a grid whose cells lie wholly inside or outside of each chunk.
    spans = [[(c.offset[dim], c.offset[dim] + c.shape[dim]) for c in chunks] for dim in range(len(shape))]
    borders = [np.unique([0, size, *sum(span, ())]) for size, span in zip(shape, spans)]
    if any(border[0] < 0 or border[-1] > size for border, size in zip(borders, shape)):
        return False
    times_held = np.zeros([len(border) - 1 for border in borders], dtype=int)
    for index in range(len(chunks)):
        times_held[tuple(slice(*np.searchsorted(b, span[index])) for b, span in zip(borders, spans))] += 1
    return bool((times_held == 1).all())


def plan_reads(pieces: list[Piece], saved: dict[str, SavedTensor]) -> list[Read]:
    """The copies that fill the pieces: one for every chunk that a piece overlaps."""
    reads = []
    for piece in pieces:
        for chunk in saved[piece.name].chunks:
            starts = [max(pair) for pair in zip(piece.offset, chunk.offset)]
            ends = [
                min(a + m, b + n) for a, m, b, n in zip(piece.offset, piece.tensor.shape, chunk.offset, chunk.shape)
            ]
            if all(start < end for start, end in zip(starts, ends)):
                source = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, chunk.offset))
                target = tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, piece.offset))
                reads.append(Read(chunk.file, chunk.key, source, piece.tensor.detach()[target]))
    return reads


def read_data(path: Path, reads: list[Read]) -> None:
    """Carry out the copies. Raises OSError, SafetensorError, and ValueError when a file contradicts the metadata."""
    by_file: dict[str, list[Read]] = {}
    for read in reads:
        by_file.setdefault(read.file, []).append(read)
    for file, group in by_file.items():
        with safe_open(path / file, framework="pt") as data:
            for read in group:
                found = data.get_slice(read.key)[read.slices]
                if (found.shape, found.dtype) != (read.target.shape, read.target.dtype):
                    raise ValueError(f"{file}: {read.key} is not what {_METADATA} says")
                read.target.copy_(found)


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
