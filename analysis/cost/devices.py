"""GPUs and their dense bf16 peaks, by the name the driver reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

_TABLE = Path(__file__).with_name("devices.yaml")


@dataclass(frozen=True)
class Device:
    """One kind of GPU, with vendor figures."""

    name: str
    #: Dense bf16 matrix products with fp32 accumulation, FLOP/s; never the figure with sparsity.
    bf16_flops: float
    #: Bytes/s to and from the device's own memory.
    memory_bandwidth: float
    source: str
    #: Dense peaks by precision, FLOP/s: "fp32" (TF32 matrix products where there are any), "fp16", "bf16", "fp8", "fp4".
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


def find_device(device_name: str) -> Device | None:
    """The device of that name, as NVML or torch report it or by its short name (`H100`).

    None for a device that is not in the table: a peak is never guessed from a similar name, since
    variants of one chip differ by a third.
    """
    wanted = _key(device_name)
    for entry in yaml.safe_load(_TABLE.read_text(encoding="utf-8")):
        if wanted in (_key(name) for name in entry["names"]):
            return Device(
                name=entry["device"],
                bf16_flops=entry["bf16_tflops"] * 1e12,
                memory_bandwidth=entry["memory_gbytes_per_second"] * 1e9,
                source=entry["source"],
            )
    return None


def _key(name: str) -> str:
    """Letters and digits only, without the vendor: `NVIDIA A100-SXM4-80GB` is `a100sxm480gb`."""
    return "".join(character for character in name.lower() if character.isalnum()).removeprefix("nvidia")
