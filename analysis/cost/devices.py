"""GPUs and their vendors' figures, found by the names that drivers, clouds and papers give them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from typing import Any

from analysis.cost.tables import read_table
from scaling.errors import UserError

#: Words of a name that say nothing about which device it is.
_NOISE = frozenset(
    {"nvidia", "amd", "instinct", "tesla", "quadro", "gpu", "gpus", "tensor", "core", "of", "per", "cts"}
    | {"ampere", "hopper", "blackwell"}
)
#: Written together with what stands before or after them: A100-SXM4-80GB, RTX4090, H100SXM.
_JOINED = re.compile(r"(sxm\d?|pcie|nvl\d*|geforce|rtx)")
#: What stands in brackets about the nodes: "(4x100Gb RoCE/node)".
_NODE_NOTE = re.compile(r"\([^)]*(?:node|gb/s|gbps)[^)]*\)", re.IGNORECASE)
#: The name of a core of a CPU, which is measured on the spot (cpu_device.py), not in the table; prices.yaml knows it.
CPU_CORE = "CPU core"
#: Any remark beside a name.
_BRACKETS = re.compile(r"\([^)]*\)")


@dataclass(frozen=True)
class Device:
    """One kind of GPU with its vendor's figures, or a core of a CPU with measured ones."""

    name: str
    #: Dense bf16 matrix products with fp32 accumulation, FLOP/s (fp16 where the chip has no bf16); never with sparsity.
    bf16_flops: float
    #: Bytes/s to and from the device's own memory.
    memory_bandwidth: float
    source: str
    #: Dense peaks by precision, FLOP/s: fp32 (TF32 matrix products where there are any), fp16, bf16, fp8, fp4.
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    #: Bytes of its own memory.
    memory_bytes: float = 0.0
    #: GPUs that fast links join, and the bytes/s of one of them over these, in one direction.
    scale_up_size: int = 1
    scale_up_bandwidth: float = 0.0
    #: GPUs of one node, and the bytes/s of one of them to other nodes, in one direction.
    gpus_per_node: int = 8
    scale_out_bandwidth: float = 0.0
    #: Thermal design power, watts.
    tdp_watts: float = 0.0
    #: Day the figures were read, ISO.
    date: str = ""
    #: What was taken where the name left it open, one line; empty when it did not.
    note: str = ""

    @property
    def is_cpu_core(self) -> bool:
        """Whether GPUs of a setup are cores of a CPU."""
        return self.name == CPU_CORE

    def dense_peak(self, precision: str) -> float:
        """FLOP/s of matrix products in a precision of training; where the chip has none of its own, of bf16."""
        units = {"mxfp8": "fp8", "nvfp4": "fp4"}
        return self.peak_flops.get(units.get(precision, precision), self.bf16_flops)


def find_device(device_name: str) -> Device | None:
    """The device of that name, as a driver reports it or as people write it (`H100`, `DGX-H100`, `A100-SXM-80GB`).

    None for a device that is not in the table: a peak is never guessed from a similar name, since variants of one chip
    differ by a third. Where a name fits several variants, the first in the table is taken and `Device.note` says so.
    """
    devices = _devices()
    for device, _, drivers, _ in devices:
        if device_name.strip() in drivers:
            return device
    wanted = _words(device_name)
    fits = [
        device
        for device, words, _, needed in devices
        if words[0] in wanted and wanted <= set(words) and needed <= wanted
    ]
    if not fits:
        bare = _BRACKETS.sub(" ", device_name).strip()
        found = find_device(bare) if bare and bare != device_name.strip() else None
        return found and replace(found, note=found.note or f"{device_name} is read as {found.name}")
    if len(fits) == 1:
        return fits[0]
    others = ", ".join(device.name for device in fits[1:])
    return replace(fits[0], note=f"{device_name} is read as {fits[0].name}; it could also be {others}")


def require_device(device_name: str) -> Device:
    """As `find_device`; raises UserError with the nearest names when there is none."""
    device = find_device(device_name)
    if device is None:
        near = ", ".join(nearest_names(device_name))
        raise UserError(f"gpu = {device_name}: not in the table: choose {near}, or give your own device in a file")
    return device


def find_variants(device_name: str) -> list[Device]:
    """Devices of the table whose chip the name names, whatever else it says; empty for other names."""
    wanted = _words(device_name)
    return [device for device, words, _, _ in _devices() if words[0] in wanted]


def device_names() -> list[str]:
    """Names of all devices of the table, in its order."""
    return [device.name for device, *_ in _devices()]


def nearest_names(device_name: str) -> list[str]:
    """Up to four devices whose names are most like it: variants of its chip first."""
    chips: dict[str, list[str]] = {}
    for device, words, _, _ in _devices():
        chips.setdefault(words[0], []).append(device.name)
    wanted = sorted(_words(device_name), key=lambda word: (-len(word), word))
    named = [name for word in wanted for name in chips.get(word, ())]
    similar = [chips[chip][0] for word in wanted for chip in get_close_matches(word, chips, n=4)]
    return list(dict.fromkeys([*named, *similar, chips["h100"][0], chips["a100"][0]]))[:4]


def device_from_entry(entry: Mapping[str, Any]) -> Device:
    """The device that an entry of devices.yaml describes, in SI units."""
    tflops = entry["tflops"]
    return Device(
        name=entry["device"],
        bf16_flops=tflops.get("bf16", tflops.get("fp16", tflops.get("fp32"))) * 1e12,
        memory_bandwidth=entry["memory"]["gbytes_per_second"] * 1e9,
        source=entry["source"],
        peak_flops={precision: value * 1e12 for precision, value in tflops.items()},
        memory_bytes=entry["memory"]["gib"] * 2.0**30,
        scale_up_size=entry["scale_up"]["gpus"],
        scale_up_bandwidth=entry["scale_up"]["gbytes_per_second"] * 1e9,
        gpus_per_node=entry["node"]["gpus"],
        scale_out_bandwidth=entry["node"]["gbits_per_second_per_gpu"] * 1e9 / 8,
        tdp_watts=entry["tdp_watts"],
        date=str(entry["date"]),
    )


@cache
def _devices() -> tuple[tuple[Device, tuple[str, ...], frozenset[str], frozenset[str]], ...]:
    """Each device with its words, the chip first, the whole names that mean it alone, and the words a name needs."""
    return tuple(
        (
            device_from_entry(entry),
            tuple(entry["words"]),
            frozenset(entry.get("driver", ())),
            frozenset(entry.get("needed", ())),
        )
        for entry in read_table("devices.yaml")
    )


def _words(name: str) -> set[str]:
    """The words of a name that tell devices apart: "NVIDIA H100 SXM5 80 GB" gives h100, sxm5, 80gb."""
    spaced = _JOINED.sub(r" \1 ", re.sub(r"(?<![a-z\d])(\d+)\s*gi?b?\b", r" \1gb ", _NODE_NOTE.sub(" ", name).lower()))
    return set(re.findall(r"[a-z0-9]+", spaced)) - _NOISE
