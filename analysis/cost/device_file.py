"""A device that is not in the table: the user's own, from a file."""

import json
import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from analysis.cost.devices import Device, device_from_entry, find_variants
from scaling.errors import UserError

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "fp4")
#: The fields of a file with the fields inside them; all but the last two are needed. Units are in the names.
_FIELDS: dict[str, tuple[str, ...]] = {
    "device": (),
    "tflops": PRECISIONS,
    "memory": ("gib", "gbytes_per_second"),
    "scale_up": ("gpus", "gbytes_per_second"),
    "node": ("gpus", "gbits_per_second_per_gpu"),
    "tdp_watts": (),
    "source": (),
    "date": (),
}
_OPTIONAL = ("source", "date")
#: A peak within this share of twice a dense one is that chip's figure with sparsity: vendors round, and sources of one
#: chip's dense peak lie up to 2 % apart (2450 and 2500 TFLOP/s of a GB200).
_SPARSE_TOLERANCE = 0.03
#: Above it a number is in another unit than its field's.
_LARGEST = 1e7


def load_device(path: Path) -> Device:
    """A device from a YAML or JSON file with the fields of an entry of devices.yaml, except `words` and `driver`.

    Raises UserError, with the field, its value and the remedy, when the file cannot be read, lacks a field or has a
    field that is not known, when a number is not positive, when the source is no text or the date no day, and when a
    peak is a known chip's figure with sparsity.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        entry = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # of UTF-8, JSON and YAML
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a device ({reason}): give a YAML or JSON file") from None
    if not isinstance(entry, Mapping):
        raise UserError(f"{path}: holds no fields: give {', '.join(_FIELDS)}")
    _check_fields(path, "", entry, _FIELDS, [name for name in _FIELDS if name not in _OPTIONAL])
    for name, inner in _FIELDS.items():
        if inner:
            if not isinstance(entry[name], Mapping):
                raise UserError(f"{path}: {name} = {entry[name]}: must hold {', '.join(inner)}")
            _check_fields(path, f"{name}.", entry[name], inner, () if name == "tflops" else inner)
            for key, value in entry[name].items():
                _check_number(path, f"{name}.{key}", value, whole=key == "gpus")
    _check_number(path, "tdp_watts", entry["tdp_watts"])
    if not isinstance(entry["device"], str) or not entry["device"].strip():
        raise UserError(f"{path}: device = {entry['device']}: must be a name")
    _check_origin(path, entry)
    if not {"bf16", "fp16", "fp32"} & set(entry["tflops"]):
        raise UserError(f"{path}: tflops: needs the dense peak in bf16, fp16 or fp32")
    for precision, value in entry["tflops"].items():
        refuse_sparse_peak(entry["device"], precision, value * 1e12)
    return device_from_entry({"source": str(path), "date": date.today().isoformat()} | dict(entry))


def refuse_sparse_peak(device_name: str, precision: str, peak_flops: float) -> None:
    """Raises UserError when a peak in FLOP/s is the figure with 2:4 sparsity of the chip that the name names."""
    variants = [variant for variant in find_variants(device_name) if precision in variant.peak_flops]
    peaks = [variant.peak_flops[precision] for variant in variants]
    if any(math.isclose(peak_flops, dense, rel_tol=_SPARSE_TOLERANCE) for dense in peaks):
        return  # such as a whole MI250X, whose peak is twice that of its half
    for variant, dense in zip(variants, peaks, strict=True):
        if math.isclose(peak_flops, 2 * dense, rel_tol=_SPARSE_TOLERANCE):
            raise UserError(
                f"{precision} peak = {peak_flops / 1e12:g} TFLOP/s: that is {variant.name} with sparsity, which "
                f"training has not: give the dense {dense / 1e12:g}"
            )


def _check_fields(path: Path, prefix: str, given: Mapping[str, Any], known: Any, needed: Any) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{path}: {prefix}{name}: is not a field: choose from {', '.join(known)}")
    for name in needed:
        if name not in given:
            raise UserError(f"{path}: {prefix}{name}: is missing: give it as in analysis/cost/devices.yaml")


def _check_origin(path: Path, entry: Mapping[str, Any]) -> None:
    source, day = entry.get("source", "-"), entry.get("date", date.today())
    if not isinstance(source, str) or not source.strip():
        raise UserError(f"{path}: source = {source}: must be text, such as the name of a datasheet, or left out")
    try:
        if type(day) is not date:  # a datetime is a date too
            date.fromisoformat(day)
    except (TypeError, ValueError):
        raise UserError(f"{path}: date = {day}: must be the day of the figures, such as 2026-10-01") from None


def _check_number(path: Path, field: str, value: Any, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= _LARGEST:
        what = f"a {'whole ' if whole else ''}number greater than 0, at most {_LARGEST:g}"
        raise UserError(f"{path}: {field} = {value}: must be {what}")
