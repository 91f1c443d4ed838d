"""The candidates of every operation: torch's kernels, our own (`lab`), and those of NVIDIA's apex.

torch's come first and state the contract that the others keep. Shapes: M tokens, D hidden, N outputs, V vocabulary,
B sequences, H query heads, G key/value heads, T positions, K channels a head. apex (as of its
commit 6424da3b, July 2026) is imported where it is used.
"""

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adamw import adamw as torch_adamw

from parallel import functions

#: Beyond it [T, T] scores cost more than torch's blocked kernel. Below, on a CPU, that kernel's many tiny products cost
#: as much with MKL, and five to ten times as much with oneDNN (AMD Zen 5, T = 128).
_LONGEST_EXPLICIT_SCORES = 256
#: apex indexes with 32-bit integers, and works through each tensor in chunks of this size.
_APEX_LONGEST, _APEX_CHUNK = 1 << 30, 1 << 16


def rms_norm(x_MD: Tensor, weight_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """y = x / sqrt(mean(x^2) + epsilon) * weight, in `dtype` (Zhang & Sennrich, 2019)."""
    return F.rms_norm(x_MD, weight_D.shape, weight_D, epsilon).to(dtype)


def layer_norm(x_MD: Tensor, weight_D: Tensor, bias_D: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * weight + bias, in `dtype` (Ba et al., 2016)."""
    return F.layer_norm(x_MD, weight_D.shape, weight_D, bias_D, epsilon).to(dtype)


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + causal mask) v; each key/value head serves H / G query heads (Ainslie et al., 2023)."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)


def cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """[M]: -log softmax(logits)[target], in float32 whatever the logits' precision (float64 for float64)."""
    wide = torch.promote_types(logits_MV.dtype, torch.float32)
    return F.cross_entropy(logits_MV.to(wide), targets_M, reduction="none")


def wide_product(x_MD: Tensor, matrix_ND: Tensor) -> Tensor:
    """x W^T in float32 at least: the logits, whose rounding to bfloat16 would bias a loss that laws are fitted to."""
    if x_MD.dtype in (torch.float32, torch.float64):
        return torch.mm(x_MD, matrix_ND.t())
    if x_MD.is_cuda:
        return torch.mm(x_MD, matrix_ND.t(), out_dtype=torch.float32)
    return torch.mm(x_MD.float(), matrix_ND.float().t())


def weight_gradient(main_grad_ND: Tensor, dy_MN: Tensor, x_MD: Tensor) -> None:
    """main_grad += dy^T x in main_grad's precision; here, a bfloat16 product is rounded once before it is added."""
    if dy_MN.dtype == main_grad_ND.dtype:
        main_grad_ND.addmm_(dy_MN.t(), x_MD)
    else:
        main_grad_ND.add_(dy_MN.t() @ x_MD)


def adamw(parameters: list, gradients: list, exp_avg: list, exp_avg_sq: list, updates: list, **settings: Any) -> None:
    """One update of flat tensors in place (Loshchilov & Hutter, 2019, algorithm 2).

    `settings`: lr, beta1, beta2, eps, weight_decay, and two float32 scalars on the device, grad_scale, by which
    gradients are divided first, and found_inf: where it is 1 nothing changes. `updates` counts the updates made, a
    float32 scalar per tensor, all equal. Gradients may be overwritten.
    """
    fixed = {"fused": True, "amsgrad": False, "maximize": False}
    torch_adamw(parameters, gradients, exp_avg, exp_avg_sq, [], updates, **fixed, **settings)


def gradient_norm(tensors: list[Tensor]) -> Tensor:
    """sqrt(sum of all squares): a float64 scalar, here summed in float64."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in tensors]))


def gradient_scaling(tensors: list[Tensor], factor: Tensor) -> None:
    """g *= factor, a scalar on the device, in place."""
    torch._foreach_mul_(tensors, factor)


def lab_rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """Adds the gradient straight to `weight.grad` where there is one; FSDP2 has none at first, or a weight that is
    cast.
    """
    return functions.RMSNorm.apply(x, weight, weight.grad if weight.is_leaf else None, epsilon, dtype)


def lab_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The query heads of a group are stacked along the sequence, so that keys and values are never repeated."""
    (batch, heads, length, size), groups = q.shape, k.shape[1]
    if length > _LONGEST_EXPLICIT_SCORES:
        return attention(q, k, v)
    wide = torch.promote_types(q.dtype, torch.float32)
    mask = torch.full((length, length), -math.inf, dtype=wide, device=q.device).triu(1).repeat(heads // groups, 1)
    stacked_q, stacked_k, stacked_v = (x.to(wide).reshape(batch * groups, -1, size) for x in (q, k, v))
    p = torch.softmax(torch.baddbmm(mask, stacked_q, stacked_k.transpose(1, 2), alpha=size**-0.5), -1)
    return torch.bmm(p, stacked_v).view(q.shape).to(q.dtype)


def addmm_weight_gradient(main_grad: Tensor, dy: Tensor, x: Tensor) -> None:
    """A product of bfloat16 factors summed in float32, without rounding between; torch has it for CUDA alone."""
    if dy.dtype == main_grad.dtype:
        return weight_gradient(main_grad, dy, x)
    torch.addmm(main_grad, dy.t(), x, out_dtype=main_grad.dtype, out=main_grad)


def apex_rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    norms = import_module("apex.normalization.fused_layer_norm")
    return norms.fused_rms_norm_affine(x, weight, weight.shape, epsilon).to(dtype)


def apex_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    norms = import_module("apex.normalization.fused_layer_norm")
    return norms.fused_layer_norm_affine(x, weight, bias, weight.shape, epsilon).to(dtype)


def apex_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    loss = import_module("apex.contrib.xentropy").SoftmaxCrossEntropyLoss
    smoothing, padding = 0.0, -1  # its default padding, 0, would drop every token 0 from the loss
    return loss.apply(logits.float(), targets, smoothing, padding)


def apex_weight_gradient(main_grad: Tensor, dy: Tensor, x: Tensor) -> None:
    import_module("fused_weight_gradient_mlp_cuda").wgrad_gemm_accum_fp32(x.contiguous(), dy.contiguous(), main_grad)


def _apex_lists(*lists: list[Tensor]) -> tuple[int, Tensor, list[list[Tensor]]]:
    """Chunk size, the flag that a kernel sets or obeys, and the tensors in pieces that it can index."""
    flag = torch.zeros(1, dtype=torch.int32, device=lists[0][0].device)
    return _APEX_CHUNK, flag, [[piece for x in tensors for piece in x.split(_APEX_LONGEST)] for tensors in lists]


def apex_adamw(parameters, gradients, exp_avg, exp_avg_sq, updates, *, lr, grad_scale, found_inf, **settings) -> None:
    chunk, flag, lists = _apex_lists(gradients, parameters, exp_avg, exp_avg_sq)
    flag.copy_(found_inf)
    torch._foreach_add_(updates, 1.0 - found_inf)
    beta1, beta2, epsilon, decay = (settings[name] for name in ("beta1", "beta2", "eps", "weight_decay"))
    rate, inverse, update = torch.full_like(grad_scale, lr), grad_scale.reciprocal(), updates[0].int()
    decoupled, bias_correction = 1, 1
    import_module("amp_C").multi_tensor_adam_capturable(
        chunk, flag, lists, rate, beta1, beta2, epsilon, update, decoupled, bias_correction, decay, inverse
    )


def apex_gradient_norm(tensors: list[Tensor]) -> Tensor:
    return import_module("amp_C").multi_tensor_l2norm(*_apex_lists(tensors), False)[0].double().squeeze()


def apex_gradient_scaling(tensors: list[Tensor], factor: Tensor) -> None:
    import_module("amp_C").multi_tensor_scale(*_apex_lists(tensors, tensors), float(factor))
