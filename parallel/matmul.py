"""Which library does the float32 matrix products: probed, checked against float64, measured.

On a CPU torch has two: the BLAS it was built with (`torch`, usually MKL) and oneDNN (`onednn`). On AMD
processors oneDNN's AVX-512 kernels ran 2.2 times as fast as MKL (benchmarks/README.md). torch reaches
oneDNN through its switch for reduced float32 precision, so the switch is only used where the products
prove to keep full float32 accuracy; on processors whose oneDNN would round to bfloat16 it is refused.
"""

import ctypes
import time

import torch

#: Largest error, relative to the largest entry, of a float32 product of inner size up to 512.
#: float32 rounding gives about 1e-6, bfloat16 rounding about 1e-2.
FLOAT32_TOLERANCE = 2e-5
_SHAPES = ((64, 16, 48), (512, 64, 256), (128, 512, 384))


def use_matmul_backend(name: str) -> None:
    """Route float32 matrix products of this process through `torch` or `onednn` (CPU)."""
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if name == "onednn" else "ieee"


def matmul_error() -> float:
    """Largest relative error of the backend in use against float64, over a few fixed shapes.

    Checks x W^T, dy W and dy^T x, the three products of a linear layer.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for rows, inner, columns in _SHAPES:
        x = torch.randn(rows, inner, generator=generator)
        w = torch.randn(columns, inner, generator=generator)
        dy = torch.randn(rows, columns, generator=generator)
        for left, right in ((x, w.t()), (dy, w), (dy.t(), x)):
            exact = left.double() @ right.double()
            worst = max(worst, float(((left @ right).double() - exact).abs().max() / exact.abs().max()))
    return worst


def accurate_matmul_backends() -> dict[str, float]:
    """The float32 backends of this CPU that pass the check, with their errors; `torch` first."""
    passed = {}
    for name in ("torch", "onednn"):
        if name == "onednn" and not torch.backends.mkldnn.is_available():
            continue
        use_matmul_backend(name)
        error = matmul_error()
        if error <= FLOAT32_TOLERANCE:
            passed[name] = error
    use_matmul_backend("torch")
    return passed


def matmul_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of one fixed matrix product: `torch` and `onednn` in float32, and `bfloat16`.

    Only what exists here and, for float32, passes the accuracy check. The best of several turns, so that a
    busy machine slows all candidates alike; a few milliseconds in all.
    """
    rows, inner, columns = (512, 128, 384) if device.type == "cpu" else (4096, 4096, 4096)
    x = torch.ones(rows, inner, device=device)
    w = torch.ones(inner, columns, device=device)
    operands = {"torch": (x, w)}
    if device.type == "cpu":
        operands = {name: (x, w) for name in accurate_matmul_backends()}
    if device.type == "cpu" or torch.cuda.is_bf16_supported():
        operands["bfloat16"] = (x.bfloat16(), w.bfloat16())
    best = {name: float("inf") for name in operands}
    for turn in range(8):
        for name, (left, right) in operands.items():
            use_matmul_backend("onednn" if name == "onednn" else "torch")
            start = time.perf_counter()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first of each kind compiles or loads its kernel
                best[name] = min(best[name], time.perf_counter() - start)
    use_matmul_backend("torch")
    return {name: 2.0 * rows * inner * columns / seconds for name, seconds in best.items()}


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of returning them to the system at once.

    A training step frees and asks again for the same tensors; without this, large ones are unmapped,
    mapped and cleared every time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)
