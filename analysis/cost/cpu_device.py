"""A core of this machine's CPU as a device: what its products and its memory reach, measured on the spot."""

import math
import os
import time
from datetime import date

from analysis.cost.cpu_matmul import core_matmul_rate
from analysis.cost.devices import CPU_CORE, Device

_COPY_BYTES = 2**26


def cpu_device() -> Device:
    """One core of this machine's CPU as a device, so that `num_gpus` counts cores: rate and bandwidth measured (0.4 s).

    Its peak is a float32 matrix product of numpy; it has no known power, so its energy is not estimated.
    """
    rate, bandwidth = core_matmul_rate(), _copy_bandwidth()
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        name=CPU_CORE,
        bf16_flops=rate,
        memory_bandwidth=bandwidth,
        source=f"float32 matrix product ({rate / 1e9:.0f} GFLOP/s) and copy measured on one core of this machine",
        peak_flops={"fp32": rate},
        memory_bytes=memory / cores,
        scale_up_size=cores,
        scale_up_bandwidth=bandwidth / 2,
        gpus_per_node=cores,
        date=date.today().isoformat(),
    )


def _copy_bandwidth() -> float:
    """Bytes/s that one core reads and writes when it copies more than its caches hold: the best of three."""
    import numpy as np

    source = np.ones(_COPY_BYTES // 8)
    target = np.empty_like(source)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * _COPY_BYTES / best
