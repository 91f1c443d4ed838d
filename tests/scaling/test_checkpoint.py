"""Checkpoints of one process: what comes back, what is refused, and what a crash leaves behind."""

import itertools
import json
import os
import resource
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from distributed import run_distributed
from safetensors.torch import load_file
from torch import Tensor

from parallel.mesh import Axis
from scaling import checkpoint_format
from scaling.checkpoint import Checkpointer, Piece, steps
from scaling.errors import UserError


def model(seed: int) -> dict[str, Tensor]:
    """Tensors of every kind that a run has, with values that depend on the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights/embedding": torch.randn(7, 5, generator=generator),
        "weights/bias": torch.randn(10, generator=generator),
        "exp_avg/embedding": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "compute/embedding": torch.randn(7, 5, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 3),
    }


def whole(tensors: dict[str, Tensor]) -> list[Piece]:
    """Every tensor in one piece."""
    return [Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor) for name, tensor in tensors.items()]


def checkpointer(directory: Path, keep: int = 2) -> Checkpointer:
    return Checkpointer(directory, keep, Axis())


def loaded(directory: Path) -> tuple[dict | None, dict[str, Tensor], list[str]]:
    """State, tensors and warnings of the latest checkpoint."""
    tensors, warnings = {name: torch.full_like(t, -1) for name, t in model(0).items()}, []
    return checkpointer(directory).load_latest(whole(tensors), warnings.append), tensors, warnings


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_was_saved_comes_back_to_the_bit(tmp_path, monkeypatch):
    """And one process needs no torch.distributed.checkpoint, which takes long to import."""
    monkeypatch.setitem(sys.modules, "torch.distributed.checkpoint", None)
    monkeypatch.setitem(sys.modules, "scaling.checkpoint_dcp", None)
    state = {"run_id": "abc", "progress": {"seconds": 0.1 + 0.2, "tail": [1e-300, 7]}}
    checkpointer(tmp_path).save(12, whole(model(1)), state)
    found, tensors, warnings = loaded(tmp_path)
    assert found == state | {"step": 12} and same(tensors, model(1)) and not warnings


def test_without_a_checkpoint_nothing_is_loaded(tmp_path):
    state, tensors, _ = loaded(tmp_path / "none")
    assert state is None and all((tensor == -1).all() for tensor in tensors.values())


def test_the_files_can_be_read_with_safetensors_alone(tmp_path):
    checkpointer(tmp_path).save(1, whole(model(1)), {})
    assert same(load_file(tmp_path / "step-00000001" / "tensors-00000.safetensors"), model(1))


def test_a_column_of_a_matrix_and_the_rest_are_put_together(tmp_path):
    """Pieces that are no contiguous memory, saved and loaded."""
    matrix, back = torch.randn(6, 4), torch.zeros(6, 4)
    columns = [Piece("m", (6, 4), (0, 0), matrix[:, :1]), Piece("m", (6, 4), (0, 1), matrix[:, 1:])]
    checkpointer(tmp_path).save(1, columns, {})
    rows = [Piece("m", (6, 4), (0, 0), back[:5]), Piece("m", (6, 4), (5, 0), back[5:])]
    checkpointer(tmp_path).load_latest(rows, pytest.fail)
    assert torch.equal(matrix, back)


def test_only_the_newest_are_kept_and_strangers_are_left_alone(tmp_path):
    (tmp_path / "step-00000002-copy").mkdir()
    saver = checkpointer(tmp_path, keep=2)
    for step in (1, 2, 3, 3, 10):
        saver.save(step, whole(model(step)), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002-copy", "step-00000003", "step-00000010"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit in the tensors": lambda path: _flip(path / "tensors-00000.safetensors"),
    "flipped bit in the metadata": lambda path: _flip(path / "metadata.json"),
    "file cut short": lambda path: os.truncate(path / "tensors-00000.safetensors", 100),
    "tensors gone": lambda path: (path / "tensors-00000.safetensors").unlink(),
    "metadata gone": lambda path: (path / "metadata.json").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "manifest cut short": lambda path: os.truncate(path / "manifest.json", 30),
    "manifest of something else": lambda path: (path / "manifest.json").write_text('{"files": {}}'),
    "manifest of no form": lambda path: (path / "manifest.json").write_text("[1, null]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_one_before_it_used(tmp_path, damage):
    saver = checkpointer(tmp_path)
    saver.save(1, whole(model(1)), {})
    saver.save(2, whole(model(2)), {})
    DAMAGE[damage](tmp_path / "step-00000002")
    state, tensors, warnings = loaded(tmp_path)
    assert state["step"] == 1 and same(tensors, model(1))
    assert len(warnings) == 1 and "step-00000002 is damaged" in warnings[0] and "\n" not in warnings[0]
    assert any(name in warnings[0] for name in ("tensors-00000.safetensors", "metadata.json", "manifest.json"))
    assert steps(tmp_path) == [1] and (tmp_path / "damaged-step-00000002").is_dir()


def _hole(metadata: dict) -> None:
    metadata["tensors"]["weights/bias"]["chunks"][0]["shape"] = [9]


def _overlap(metadata: dict) -> None:
    metadata["tensors"]["weights/bias"]["chunks"] *= 2


def _rewrite_metadata(path: Path, change) -> None:
    """Change the metadata and give it its right hash: not damage, but the work of another program."""
    metadata, manifest = (
        json.loads((path / "metadata.json").read_text()),
        json.loads((path / "manifest.json").read_text()),
    )
    change(metadata)
    (path / "metadata.json").write_text(json.dumps(metadata))
    manifest["files"]["metadata.json"] = checkpoint_format._fingerprint(path / "metadata.json").model_dump()
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"), [(_hole, "not written completely weights/bias"), (_overlap, "weights/bias")]
)
def test_a_tensor_that_is_not_there_wholly_is_refused(tmp_path, change, words):
    checkpointer(tmp_path).save(1, whole(model(1)), {})
    _rewrite_metadata(tmp_path / "step-00000001", change)
    with pytest.raises(UserError, match=words):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda wanted: wanted | {"more": torch.zeros(2)}, "missing more:"),
        (lambda wanted: {n: t for n, t in wanted.items() if n != "scalar"}, "surplus scalar:"),
        (lambda wanted: wanted | {"weights/bias": torch.zeros(11)}, "other shape or dtype weights/bias:"),
        (lambda wanted: wanted | {"weights/bias": torch.zeros(10).double()}, "other shape or dtype weights/bias:"),
        (lambda wanted: {f"x{n}": t for n, t in wanted.items()}, "missing .* and 2 more; surplus .* and 2 more:"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_copied(tmp_path, change, words):
    checkpointer(tmp_path).save(1, whole(model(1)), {})
    wanted = change({name: torch.full_like(tensor, -1) for name, tensor in model(0).items()})
    before = {name: tensor.clone() for name, tensor in wanted.items()}
    with pytest.raises(UserError, match=words):
        checkpointer(tmp_path).load_latest(whole(wanted), pytest.fail)
    assert same(wanted, before)
    assert steps(tmp_path) == [1], "it is not damaged: it stays"


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_pieces_that_leave_a_hole_or_overlap_are_not_saved(tmp_path, offset):
    pieces = [Piece("w", (6,), (0,), torch.zeros(2)), Piece("w", (6,), (offset,), torch.zeros(3))]
    with pytest.raises(ValueError, match="holes or overlap in w"):
        checkpointer(tmp_path).save(1, pieces, {})
    assert steps(tmp_path) == []


def test_a_piece_outside_of_its_tensor_is_refused():
    with pytest.raises(ValueError, match="is no part of"):
        Piece("w", (4, 4), (2, 0), torch.zeros(3, 4))


# ---- asynchronous


class HeldDisk:
    """Stands in for a slow disk: every write waits until it is let go."""

    def __init__(self, monkeypatch):
        self.write, self.gate = checkpoint_format.save_file, threading.Event()
        monkeypatch.setattr(checkpoint_format, "save_file", self._save_file)

    def _save_file(self, *arguments) -> None:
        assert self.gate.wait(timeout=30)
        self.write(*arguments)


def test_an_asynchronous_save_holds_the_values_of_its_moment(tmp_path, monkeypatch):
    disk, saver, tensors, progress = HeldDisk(monkeypatch), checkpointer(tmp_path), model(1), {"seconds": 1}
    saver.save(1, whole(tensors), {"progress": progress}, asynchronous=True)
    for tensor in tensors.values():
        tensor.add_(1)
    progress["seconds"] = 2
    assert steps(tmp_path) == []
    disk.gate.set()
    saver.wait()
    state, found, _ = loaded(tmp_path)
    assert same(found, model(1)) and state["progress"] == {"seconds": 1}


def test_the_snapshot_is_one_buffer_used_again(tmp_path):
    saver, buffers = checkpointer(tmp_path), set()
    for step in range(1, 5):
        saver.save(step, whole(model(step)), {}, asynchronous=True)
        buffers.add(saver._staging.data_ptr())
    saver.wait()
    assert len(buffers) == 1
    assert same(loaded(tmp_path)[1], model(4))


def test_a_save_waits_for_the_one_before_it(tmp_path, monkeypatch):
    """It would overwrite the snapshot that is being written."""
    write, second_returned = checkpoint_format.save_file, threading.Event()

    def save_file(*arguments) -> None:
        second_returned.wait(timeout=0.3)
        write(*arguments)

    monkeypatch.setattr(checkpoint_format, "save_file", save_file)
    saver = checkpointer(tmp_path)
    saver.save(1, whole(model(1)), {}, asynchronous=True)
    saver.save(2, whole(model(2)), {}, asynchronous=True)
    second_returned.set()
    saver.wait()
    assert same(loaded(tmp_path)[1], model(2))
    shutil.rmtree(tmp_path / "step-00000002")
    assert same(loaded(tmp_path)[1], model(1))


@pytest.mark.parametrize("next_call", ["wait", "save", "load_latest"])
def test_a_failure_of_the_thread_is_raised_by_the_next_call(tmp_path, next_call):
    (tmp_path / "file").touch()
    saver = checkpointer(tmp_path / "file" / "checkpoints")
    saver.save(1, whole(model(1)), {}, asynchronous=True)
    arguments = {"wait": (), "save": (2, [], {}), "load_latest": ([], print)}[next_call]
    with pytest.raises(UserError, match="checkpoint cannot be written"):
        getattr(saver, next_call)(*arguments)
    saver.wait()


# ---- crashes and full disks, in processes of their own


def _save_and_die(directory: Path, deadly: int) -> None:
    """Save steps 1 and 2; SIGKILL at the `deadly`-th time that the second asks the disk to keep something."""
    saver = checkpointer(directory)
    saver.save(1, whole(model(1)), {})
    calls, fsync = itertools.count(1), os.fsync

    def deadly_fsync(descriptor: int) -> None:
        if next(calls) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly_fsync
    saver.save(2, whole(model(2)), {})


def _die_at_every_moment(folder: Path) -> int:
    """A child for every such moment, each in a directory named by its number; returns the number of the survivor."""
    for deadly in itertools.count(1):
        child = os.fork()
        if child == 0:
            try:
                _save_and_die(folder / str(deadly), deadly)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return deadly
        assert code == -signal.SIGKILL


def test_killed_in_the_middle_of_a_save_the_checkpoint_before_it_is_used(tmp_path):
    [survivor] = run_distributed(_die_at_every_moment, 1, tmp_path)
    left = []
    for deadly in range(1, survivor + 1):
        directory = tmp_path / str(deadly)
        state, tensors, warnings = loaded(directory)
        assert same(tensors, model(state["step"])) and not warnings
        left.append(state["step"])
        checkpointer(directory).save(3, whole(model(3)), {})
        assert loaded(directory)[0]["step"] == 3 and not list(directory.glob(".writing-*"))
    assert left == [1] * (survivor - 2) + [2, 2] and survivor > 4, "it counts from the rename on, not before"


def _save_on_a_full_disk(directory: Path, asynchronous: bool) -> None:
    saver = checkpointer(directory)
    saver.save(1, whole(model(1)), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the same OSError from write() as a full disk
    with pytest.raises(UserError, match="step-00000002: checkpoint cannot be written .*: free some disk space"):
        saver.save(2, whole({"large": torch.zeros(10_000)}), {}, asynchronous)
        saver.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_full_disk_is_a_clear_message_and_the_checkpoints_stay(tmp_path, asynchronous):
    run_distributed(_save_on_a_full_disk, 1, tmp_path, asynchronous)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    state, tensors, _ = loaded(tmp_path)
    assert state["step"] == 1 and same(tensors, model(1))
