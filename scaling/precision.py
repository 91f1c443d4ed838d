"""Device, precision and matrix-product library of one run: what is possible, what is fast here, and why.

Both choices follow from rates that differ by factors, measured on one fixed matrix product: two runs
on one machine choose alike, so they agree to the bit. Timing the model itself would choose by luck
wherever the candidates are close.
"""

import os
from typing import Callable

import torch
from pydantic import BaseModel, ConfigDict

from parallel import kernels, matmul
from scaling.config import ExecutionConfig
from scaling.errors import UserError

#: bfloat16 products must be this much faster. At a ratio of 2 (AMD Zen 5) a whole step of a 1M-parameter
#: model gained 1.27x, which does not pay for the accuracy; tensor cores and AMX reach 8 to 16.
BFLOAT16_ADVANTAGE = 3.0
#: oneDNN must be this much faster than torch's BLAS (2.2 on AMD Zen 5, about 1 on Intel), and the model this
#: wide: below, its start-up cost per product exceeds the gain (equal at 32, 1.35x faster at 64, slower at 24).
ONEDNN_ADVANTAGE = 1.3
ONEDNN_HIDDEN_SIZE = 32


class Choice(BaseModel):
    """How a run computes. Kept in the run's `choice.json`, so that a resumed run goes on in the same way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    dtype: str
    matmul: str
    reason: str
    #: Operation -> backend, as parallel.kernels chose.
    kernels: dict[str, str] = {}


def pick_device(execution: ExecutionConfig) -> torch.device:
    """The device asked for, or CUDA when there is one: the GPU of this rank's place on its machine.

    Raises UserError when CUDA is demanded and absent.
    """
    available = torch.cuda.is_available()
    if execution.device == "cuda" and not available:
        raise UserError(
            "execution.device = cuda: torch sees no CUDA device; use cpu or auto, or install a CUDA build of torch"
        )
    if not available or execution.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def choose(execution: ExecutionConfig, device: torch.device, hidden_size: int, attention_fused: bool) -> Choice:
    """Precision and library for a model of `hidden_size`.

    `attention_fused` says whether parallel.functions.Attention runs: torch's own CPU attention is built
    on many tiny products, which oneDNN makes several times slower. Raises UserError for a precision that
    the device does not have.
    """
    if device.type == "cuda" and execution.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        raise UserError("execution.dtype = bfloat16: this GPU has none; use float32 or auto")
    rates = matmul.matmul_rates(device)
    float32 = {name: rate for name, rate in rates.items() if name != "bfloat16"}
    shown = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    dtype = execution.dtype
    if dtype == "auto":
        dtype = "bfloat16" if rates.get("bfloat16", 0.0) > BFLOAT16_ADVANTAGE * max(float32.values()) else "float32"
    library = "torch"
    wide = hidden_size >= ONEDNN_HIDDEN_SIZE and attention_fused
    if dtype == "float32" and wide and float32.get("onednn", 0.0) > ONEDNN_ADVANTAGE * float32["torch"]:
        library = "onednn"
    asked = "as set" if execution.dtype != "auto" else f"bfloat16 needs to be {BFLOAT16_ADVANTAGE:g}x as fast"
    return Choice(
        device=device.type,
        dtype=dtype,
        matmul=library,
        reason=f"{dtype} {asked}; matrix products in GFLOP/s here: {shown} (float32 unless named)",
    )


def choose_kernels(
    execution: ExecutionConfig, device: torch.device, dtype: str, kept: dict[str, str], warn: Callable[[str], None]
) -> kernels.Kernels:
    """What computes norms, attention and so on: as `kept` from the start of the run, or chosen now.

    Raises UserError for a demanded backend that is absent or wrong.
    """
    precision = getattr(torch, dtype)
    if kept:
        try:
            return kernels.choose(device, precision, kept, warn=warn)
        except ValueError as error:
            warn(f"{error}: choosing anew, so the run goes on to rounding, not to the bit")
    try:
        return kernels.choose(device, precision, execution.kernels, warn=warn)
    except ValueError as error:
        raise UserError(f"execution.{error}") from None


def still_possible(choice: Choice, execution: ExecutionConfig, device: torch.device) -> bool:
    """Whether a choice made earlier, perhaps on another machine or under other settings, holds here."""
    if choice.device != device.type or execution.dtype not in ("auto", choice.dtype):
        return False
    return choice.matmul == "torch" or choice.matmul in matmul.accurate_matmul_backends()


def apply(choice: Choice, execution: ExecutionConfig) -> None:
    """Set this process up for the choice: matrix products and deterministic kernels."""
    matmul.use_matmul_backend(choice.matmul)
    if choice.device == "cuda":
        # cuBLAS reads it when it starts; without it its products are not repeatable
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(execution.deterministic, warn_only=True)
    else:
        matmul.keep_freed_memory()
