"""A run as a folder that `transformers` loads, and such a folder as weights under our names.

A run is saved under this project's names, in pieces where several ranks trained it. `export_run` joins them
into one `model.safetensors` with its `config.json`; `import_weights` goes the other way. What the names and
the order of channels are is in scaling/huggingface.py.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaling import checkpoint_format as disk
from scaling.accounting import parameter_count, parameter_shapes
from scaling.checkpoint_format import Piece
from scaling.config import RunConfig, load_config
from scaling.data.tokenizer import ByteTokenizer
from scaling.errors import UserError
from scaling.huggingface import byte_tokenizer_files, from_huggingface, huggingface_config, model_config, to_huggingface
from scaling.record import write_json_atomically

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


def _newest_weights(run_dir: Path, config: RunConfig, warn: Callable[[str], None]) -> tuple[dict[str, Tensor], int]:
    """Whole weights and step of the newest whole checkpoint. Writes nothing: the run may be training."""
    directory = run_dir / "checkpoints"
    for step in reversed(disk.steps(directory)):
        path = disk.step_path(directory, step)
        fault = disk.fault(path, 0, 1)
        if fault is None:
            return _read_checkpoint(path, config), step
        warn(f"checkpoint {path} is damaged ({fault}): using the one before it")
    raise UserError(f"{directory}: holds no whole checkpoint: train the run first, or give another RUN_DIR")


def _read_checkpoint(path: Path, config: RunConfig) -> dict[str, Tensor]:
    """The weights of one checkpoint, joined from the pieces of the ranks that wrote it; moments are not read."""
    dtype = torch.float64 if config.execution.dtype == "float64" else torch.float32
    weights = {name: torch.empty(shape, dtype=dtype) for name, shape in parameter_shapes(config.model).items()}
    pieces = [Piece(f"weights/{k}", tuple(w.shape), (0,) * w.dim(), w) for k, w in weights.items()]
    try:
        metadata = disk.read_metadata(path)
        if (found := metadata.state.get("run_id")) != config.run_id:
            raise UserError(f"{path}: belongs to run {found}, not {config.run_id}: restore the config.yaml of the run")
        saved = {name: tensor for name, tensor in metadata.tensors.items() if name.startswith("weights/")}
        disk.check_fit(path, saved, ((piece.name, piece.dtype, piece.global_shape) for piece in pieces))
        disk.read_data(path, disk.plan_reads(pieces, saved))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): mend the disk or its permissions") from None
    return weights


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors raises its own type for a full disk
        raise UserError(f"{path}: cannot be written ({error}): make room or choose another place") from None


def export_run(run_dir: Path, out_dir: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Write the newest whole checkpoint of a run as a folder for `AutoModelForCausalLM.from_pretrained`.

    The folder holds model.safetensors (in the dtype of the weights, float32) and config.json, and for a run on bytes
    the tokenizer. It
    appears whole or not at all. Returns what was exported: run_id, step, architecture, parameters, files.

    Raises UserError for a folder without a run or checkpoint, a model that Llama cannot express, an
    out_dir that is there, and a full disk. `warn` is told of damaged checkpoints passed over.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"RUN_DIR {run_dir}: holds no config.yaml: give the directory of a run")
    if out_dir.exists():
        raise UserError(f"OUT_DIR {out_dir}: is there already: choose a new directory")
    config = load_config(run_dir / "config.yaml")
    longest = config.data.seq_length
    huggingface_config(config.model, longest)  # before gigabytes are read
    weights, step = _newest_weights(run_dir, config, warn)
    named, values = to_huggingface(weights, config.model, longest)
    files: dict[str, Any] = {"config.json": values}
    if config.data.tokenizer == ByteTokenizer.name:
        # what ends a document is also what stands before the next
        values["bos_token_id"] = values["eos_token_id"] = ByteTokenizer.end_of_document
        files |= byte_tokenizer_files(longest)
    scratch = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    origin = {"format": "pt", "run_id": config.run_id, "step": str(step)}
    try:
        with _writing(out_dir):
            scratch.mkdir(parents=True)
            for name, contents in files.items():
                write_json_atomically(scratch / name, contents)
            save_file({name: weight.contiguous() for name, weight in named.items()}, scratch / WEIGHTS_FILE, origin)
            shutil.copymode(scratch / "config.json", scratch / WEIGHTS_FILE)  # safetensors lets nobody else read
            os.replace(scratch, out_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "run_id": config.run_id,
        "step": step,
        "train_steps": config.train_steps,
        "architecture": values["architectures"][0],
        "parameters": parameter_count(config.model).total,
        "out_dir": str(out_dir),
        "files": sorted([*files, WEIGHTS_FILE]),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}): give a folder that save_pretrained wrote") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a mapping, not a {type(values).__name__}")
    return values


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the files that its index lists."""
    files = [WEIGHTS_FILE]
    if not (directory / WEIGHTS_FILE).exists() and (index := directory / INDEX_FILE).exists():
        placed = _read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise UserError(f"{index}: has no weight_map: give a folder that save_pretrained wrote")
        files = sorted({str(file) for file in placed.values()})
        if strange := [file for file in files if Path(file).name != file]:
            raise UserError(f"{index}: weight_map names {strange[0]!r}, which is not a file of this folder")
    elif not (directory / WEIGHTS_FILE).exists():
        raise UserError(
            f"{directory}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}: save the model as safetensors; "
            "pickled weights (.bin, .pt) are never read"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(directory / file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{directory / file}: cannot be read ({error}): fetch the file again") from None
    return weights


def _widened(weight: Tensor) -> Tensor:
    """At least float32, exactly."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def import_weights(hf_dir: Path, target: Path) -> dict[str, Any]:
    """Write the weights of a Hugging Face folder under our names, with their ModelConfig beside them.

    target: FILE.safetensors, under the names of `scaling.model.Transformer`, 16-bit floats widened to the
    float32 that this project trains; FILE.yaml is its `model:` section, the start of a RunConfig.
    Returns what was imported: model_type, parameters, weights, config.

    Raises UserError for a folder that cannot be read or holds a model this project cannot express, and for
    a target that is there.
    """
    config_file = target.with_suffix(".yaml")
    if target.suffix != ".safetensors":
        raise UserError(f"--to {target}: must end in .safetensors")
    for path in (target, config_file):
        if path.exists():
            raise UserError(f"--to {target}: {path} is there already: choose another name")
    if not hf_dir.is_dir():
        raise UserError(f"HF_DIR {hf_dir}: is not a directory: give one that save_pretrained or `hf download` filled")
    values = _read_json(hf_dir / "config.json")
    model_config(values, str(hf_dir / "config.json"))  # before gigabytes are read
    weights, config = from_huggingface(_read_weights(hf_dir), values, str(hf_dir))
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise UserError(
                f"{hf_dir}: the weight of {name} is {weight.dtype}: only unquantised floats can be imported"
            )
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    section = yaml.safe_dump({"model": config.model_dump(mode="json")}, sort_keys=False)
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: _widened(weight).contiguous() for name, weight in weights.items()}, scratch)
            config_file.write_text(section, encoding="utf-8")
            shutil.copymode(config_file, scratch)
            os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)
    return {
        "model_type": values["model_type"],
        "parameters": parameter_count(config).total,
        "weights": str(target),
        "config": str(config_file),
    }
