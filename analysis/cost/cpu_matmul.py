"""How many FLOP/s one core of this CPU reaches in a float32 matrix product; measured on the spot.

Run as a script, it prints the number.
"""

import os
import subprocess
import sys
import time

#: Shape of the product: 512 tokens through the first matrix of an MLP, at the laptop profile's larger widths.
_TOKENS, _HIDDEN, _FFN = 512, 128, 512
_SECONDS = 0.1
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def core_matmul_rate() -> float:
    """FLOP/s of one core, from a fresh process with one thread: numpy fixes its threads when it is imported.

    Takes about 0.3 seconds, most of it start-up.
    """
    command = [sys.executable, __file__]
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(answer.stdout)


def measure() -> float:
    """FLOP/s of numpy's float32 matrix product with its threads as they are: the best of many short tries.

    The best, because whatever else runs on the machine can only slow a try down.
    """
    import numpy as np

    random = np.random.default_rng(0)
    left = random.standard_normal((_TOKENS, _HIDDEN), dtype=np.float32)
    right = random.standard_normal((_HIDDEN, _FFN), dtype=np.float32)
    result = left @ right
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(left, right, out=result)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _TOKENS * _HIDDEN * _FFN / best


if __name__ == "__main__":
    print(measure())
