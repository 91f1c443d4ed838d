"""The check that every backend of an operation must pass: fixed inputs, and how far from float64 it may be.

A kernel runs on small fixed pseudo-random inputs, and torch's kernel of the operation (parallel/backends.py) on the
same numbers in float64 on the CPU. The error of a result, output or gradient, is max|result - exact| / max|exact|.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Of a result that is stored in bfloat16, whatever its operation.
_BFLOAT16_ROUNDING = 1e-2


def arguments(dtype: torch.dtype, scale: int = 1) -> dict[str, tuple]:
    """Fixed inputs of every operation, on the CPU; `scale` multiplies the sizes: 1 to check, more to time.

    The output's gradient comes last where there is one. `dtype` is that of the matrix products; weights, main gradients
    and losses are float32, or float64 with it. Sizes are not multiples of a vector register's.
    """
    wide, generator = torch.promote_types(dtype, torch.float32), torch.Generator().manual_seed(0)
    rows, hidden, outputs, vocabulary, parameters = 33 * scale, 48 * scale, 24 * scale, 509 * scale, 1003 * scale**2

    def normal(dtype: torch.dtype, *shape: int, leaf: bool = False) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_(leaf)

    def flat() -> list[Tensor]:
        return [normal(wide, parameters), normal(wide, 77)]

    x, weight, bias = (normal(wide, *shape, leaf=True) for shape in ((rows, hidden), (hidden,), (hidden,)))
    norm = 0.01, dtype, normal(dtype, rows, hidden)  # an epsilon large enough to be missed
    q, k, v = (normal(dtype, 2, heads, rows, 16, leaf=True) for heads in (4, 2, 2))
    logits = normal(dtype, rows, vocabulary, leaf=True)
    # a long run of equal terms is where float32 sums drift: by 1e-5 and more in torch._foreach_norm on a CPU
    long_run = torch.full(((1 << 15) * scale,), 0.1, dtype=wide)
    return {
        "rms_norm": (x, weight, *norm),
        "layer_norm": (x, weight, bias, *norm),
        "attention": (q, k, v, normal(dtype, *q.shape)),
        "cross_entropy": (logits, torch.arange(rows) * 7 % vocabulary, normal(wide, rows)),
        "weight_gradient": (normal(wide, outputs, hidden), normal(dtype, rows, outputs), normal(dtype, rows, hidden)),
        "adamw": (flat(), flat(), flat(), [x.square() for x in flat()], [torch.tensor(2.0), torch.tensor(2.0)]),
        "gradient_norm": ([long_run, normal(wide, 77)],),
        "gradient_scaling": (flat(), torch.tensor(0.375)),
    }


def placed(value: Any, device: torch.device | str, exact: bool = False) -> Any:
    """A fresh copy of arguments on the device, in float64 if `exact`; leaves get a zero gradient to add to."""
    if isinstance(value, list | tuple):
        return type(value)(placed(item, device, exact) for item in value)
    if isinstance(value, torch.dtype):
        return torch.float64 if exact else value
    if not isinstance(value, Tensor):
        return value
    widen = exact and value.is_floating_point() and value.dim() > 0  # AdamW's scalars are float32 everywhere
    x = value.detach().to(device, torch.float64 if widen else value.dtype, copy=True)
    if value.requires_grad:
        x.requires_grad_().grad = torch.zeros_like(x)
    return x


def _differentiate(kernel: Callable, inputs: tuple) -> tuple[Tensor, ...]:
    """The output, and the gradients of all leaves."""
    *given, dy = inputs
    y = kernel(*given)
    if y.dtype != dy.dtype:
        raise TypeError(f"its result is {y.dtype} instead of {dy.dtype}")
    (y * dy).sum().backward()  # y.backward(dy) would import torch's symbolic shapes: half a second
    return y.detach(), *(x.grad for x in given if isinstance(x, Tensor) and x.requires_grad)


def _call(kernel: Callable, inputs: tuple) -> tuple[Tensor, ...]:
    """What the kernel returns or, when that is nothing, its first argument, which it changes in place."""
    result = kernel(*inputs)
    result = inputs[0] if result is None else result
    return tuple(result) if isinstance(result, list) else (result,)


def _update(kernel: Callable, inputs: tuple) -> tuple[Tensor, ...]:
    """The third and fourth update by AdamW, and one that the non-finite guard must suppress."""
    parameters, gradients, *state = inputs
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    settings["grad_scale"] = torch.full_like(state[-1][0], 3.0)
    for found_inf in (0.0, 0.0, 1.0):
        given = [g * math.inf if found_inf else g.clone() for g in gradients]
        kernel(parameters, given, *state, found_inf=torch.full_like(state[-1][0], found_inf), **settings)
    return *parameters, *(x for tensors in state for x in tensors)


@dataclass(frozen=True)
class Operation:
    """How to run a kernel of one operation on its `arguments`, and its tolerance by the matrix products' precision."""

    run: Callable[[Callable, tuple], tuple[Tensor, ...]]
    float32: float = 1e-5
    bfloat16: float = 1e-5
    float64: float = 1e-12

    def error(self, kernel: Callable, inputs: tuple, exact: tuple[Tensor, ...], dtype: torch.dtype) -> float:
        """Largest relative error of `kernel` against the results `exact`.

        Raises ArithmeticError when it is too large or not a number, TypeError for a result of another precision
        or shape than the contract's, and whatever the kernel raises.
        """
        worst, tolerance = 0.0, getattr(self, str(dtype).removeprefix("torch."))
        for result, truth in zip(self.run(kernel, inputs), exact, strict=True):
            if result.shape != truth.shape:
                raise TypeError(f"a result of it has shape {tuple(result.shape)} instead of {tuple(truth.shape)}")
            error = float((result.detach().double().cpu() - truth).abs().max() / truth.abs().max())
            limit = max(tolerance, _BFLOAT16_ROUNDING if result.dtype == torch.bfloat16 else 0.0)
            if not error <= limit:  # so written that NaN fails
                raise ArithmeticError(f"its relative error against float64 is {error:.1e}, more than {limit:g}")
            worst = max(worst, error)
        return worst


OPERATIONS = {
    "rms_norm": Operation(_differentiate),
    "layer_norm": Operation(_differentiate),
    "attention": Operation(_differentiate, bfloat16=2e-2),
    "cross_entropy": Operation(_differentiate),
    "weight_gradient": Operation(_call, bfloat16=1e-2),
    "adamw": Operation(_update),
    "gradient_norm": Operation(_call, float32=1e-6, bfloat16=1e-6),
    "gradient_scaling": Operation(_call, float32=1e-6, bfloat16=1e-6),
}
