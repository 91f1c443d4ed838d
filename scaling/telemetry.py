"""What a run used: peak rate of the device, memory, power and energy, versions.

What cannot be measured here is None, and a reason beside it says why.
"""

import platform
import resource
import sys
import threading
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from analysis.cost.devices import find_device


def device_name(device: torch.device) -> str:
    """GPU name, or the CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measured_matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 768) -> float:
    """FLOP/s of the best of a few square products with the backend in use: the machine's own roofline."""
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    a @ b
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def peak_flops(dtype: str, device: torch.device) -> tuple[float, str]:
    """Peak FLOP/s that MFU is measured against, and where it comes from.

    For a GPU the published dense rate; where there is none, and for a CPU, a measured matrix product.
    """
    if device.type == "cuda" and dtype == "bfloat16":
        known = find_device(device_name(device))
        if known is not None:
            return known.bf16_flops, f"dense bf16 peak of {known.name}, {known.source}"
    rate = measured_matmul_rate(getattr(torch, dtype), device, 4096 if device.type == "cuda" else 768)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return rate, f"measured {dtype} matrix product on this machine{threads}"


def peak_memory_bytes(device: torch.device) -> int:
    """Highest allocated GPU memory, or the highest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_peak_memory_bytes()


def host_peak_memory_bytes() -> int:
    """Highest resident set of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def host_available_memory_bytes() -> int | None:
    """Memory that this machine could still give to processes without swapping; None where it does not say (macOS)."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


class Gpu:
    """Sensors of the NVIDIA GPU that a run uses, through NVML (nvidia-ml-py).

    `nvml` is "NVML", or the reason why there is nothing to read. A reading is None then, and where this GPU has no
    such sensor.
    """

    def __init__(self, device: torch.device):
        self._nvml, self._handle, self.nvml = None, None, f"no NVIDIA GPU: the run is on {device.type}"
        if device.type != "cuda":
            return
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.nvml = f"no NVIDIA driver: {error}"
            return
        try:  # by UUID, since CUDA and NVML number the GPUs differently
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            self.nvml = f"NVML does not know {uuid}: {error}"
            return
        self._nvml, self.nvml = pynvml, "NVML"

    @property
    def found(self) -> bool:
        """Whether there is anything to read."""
        return self._nvml is not None

    def _read(self, function: str) -> Any:
        if self._nvml is None:
            return None
        try:
            return getattr(self._nvml, function)(self._handle)
        except self._nvml.NVMLError:  # a sensor that this GPU lacks must not end a run
            return None

    def power_watts(self) -> float | None:
        """Power of the whole board; since Ampere the driver's mean over the last second."""
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        return None if milliwatts is None else milliwatts / 1000

    def energy_joules(self) -> float | None:
        """Since the driver was loaded."""
        millijoules = self._read("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def memory_used_bytes(self) -> int | None:
        """By all processes, with what torch has reserved, CUDA contexts and NCCL buffers."""
        memory = self._read("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.used)

    def utilization_percent(self) -> float | None:
        """Share of the last sampling period in which some kernel ran: it says nothing of how many cores were busy."""
        rates = self._read("nvmlDeviceGetUtilizationRates")
        return None if rates is None else float(rates.gpu)


class EnergyMeter:
    """Energy of a GPU between construction and `read`, from NVML's counter."""

    def __init__(self, device: torch.device):
        self._gpu = Gpu(device)
        self._start = self._gpu.energy_joules()
        if self._start is not None:
            self.source = "NVML total energy counter"
        else:
            self.source = f"no counter: {'not on this GPU' if self._gpu.found else self._gpu.nvml}"

    def read(self) -> float | None:
        """Joules so far; None without a counter."""
        now = None if self._start is None else self._gpu.energy_joules()
        return None if now is None else now - self._start


@dataclass
class _Series:
    """Mean and maximum of a sensor."""

    count: int = 0
    total: float = 0.0
    highest: float | None = None

    def add(self, value: float) -> None:
        self.count, self.total = self.count + 1, self.total + value
        self.highest = value if self.highest is None else max(value, self.highest)

    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


class GpuSampler:
    """Reads a GPU's sensors every second from a thread, until `close`. Without sensors there is no thread.

    From a thread, because the training loop could only look when it has just waited for the GPU, which is idle then.
    """

    def __init__(self, gpu: Gpu, seconds: float = 1.0):
        self.nvml = gpu.nvml
        self._sensors = {
            "power_watts": gpu.power_watts,
            "gpu_utilization_percent": gpu.utilization_percent,
            "gpu_memory_used_bytes": gpu.memory_used_bytes,
        }
        self._run = {name: _Series() for name in self._sensors}
        self._interval = {name: _Series() for name in self._sensors}
        self._lock, self._closed, self._seconds = threading.Lock(), threading.Event(), seconds
        self._thread = threading.Thread(target=self._watch, name="gpu-sampler", daemon=True)
        if gpu.found:
            self._sample()
            self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds):
            self._sample()

    def _sample(self) -> None:
        values = {name: read() for name, read in self._sensors.items()}
        with self._lock:
            for name, value in values.items():
                if value is not None:
                    self._run[name].add(value)
                    self._interval[name].add(value)

    def read(self) -> dict[str, float | None]:
        """Fields of a line of metrics.jsonl: means since the last call, None in an interval without a sample."""
        with self._lock:
            last, self._interval = self._interval, {name: _Series() for name in self._sensors}
        return {name: series.mean() for name, series in last.items()}

    def summary(self) -> dict[str, Any]:
        """Fields of a record's `speed`: means and maxima since construction, and where they come from."""
        with self._lock:
            power, utilization, memory = self._run.values()
            return {
                "power_watts_mean": power.mean(),
                "power_watts_max": power.highest,
                "gpu_utilization_percent": utilization.mean(),
                "gpu_memory_used_bytes": memory.highest,
                "nvml": self.nvml,
            }

    def close(self) -> None:
        """Ends the sampling; what was sampled stays."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "scaling-lab": metadata.version("scaling-lab"),
    }
