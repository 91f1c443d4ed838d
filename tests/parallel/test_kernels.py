"""The gate in front of every kernel: what is right passes, what is wrong is refused, what is absent is explained."""

import importlib
import math
import sys

import pytest
import torch
from torch.nn import functional as F

from parallel import backends, kernels
from parallel.kernels import CANDIDATES, Candidate, choose
from parallel.operations import OPERATIONS, arguments, placed

CPU = torch.device("cpu")
DEVICES = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()
TORCH = tuple(c for c in CANDIDATES if c.backend == "torch")


# The formulas, independent of any library's kernel.


def rms_norm(x, weight, epsilon, dtype):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


def layer_norm(x, weight, bias, epsilon, dtype):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + epsilon).sqrt() * weight + bias


def attention(q, k, v):
    repeats, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf).softmax(-1) @ v


def cross_entropy(logits, targets):
    return logits.logsumexp(-1) - logits.gather(1, targets[:, None]).squeeze(1)


def weight_gradient(main_grad, dy, x):
    main_grad += dy.t() @ x


def adamw(
    parameters, gradients, exp_avg, exp_avg_sq, updates, *, lr, beta1, beta2, eps, weight_decay, grad_scale, found_inf
):
    if found_inf:
        return
    for p, g, m, v, t in zip(parameters, gradients, exp_avg, exp_avg_sq, updates):
        g, t[()] = g / grad_scale, t + 1
        m[:], v[:] = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        step = (m / (1 - beta1 ** float(t))) / ((v / (1 - beta2 ** float(t))).sqrt() + eps)
        p -= lr * (step + weight_decay * p)


def gradient_norm(tensors):
    return torch.cat(tensors).square().sum().sqrt()


def gradient_scaling(tensors, factor):
    for x in tensors:
        x *= factor


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_reference_is_the_formula(operation):
    given = arguments(torch.float64)[operation]
    exact = OPERATIONS[operation].run(globals()[operation], placed(given, CPU))
    kernel = getattr(backends, operation)
    assert OPERATIONS[operation].error(kernel, placed(given, CPU), exact, torch.float64) < 1e-13


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda c: f"{c.operation}-{c.backend}")
def test_every_backend_keeps_the_contract_or_says_why_it_is_absent(candidate, dtype, device):
    demanded = {candidate.operation: candidate.backend}
    if reason := candidate.absent(device):
        with pytest.raises(ValueError) as error:
            choose(device, dtype, demanded)
        assert str(error.value) == f"kernels.{candidate.operation} = {candidate.backend}: {reason}"
        assert "git clone https://github.com/NVIDIA/apex" in reason or "use torch" in reason
    else:
        entry = choose(device, dtype, demanded).report[candidate.operation]
        assert entry["backend"] == candidate.backend and entry["reason"] == "demanded"
        assert 0.0 <= entry["max_relative_error"] < 2e-2


def test_a_choice_repeats_itself_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    first = choose(CPU, torch.float32)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert set(first.report) == set(OPERATIONS)
    assert choose(CPU, torch.float32, first.backends()).backends() == first.backends()
    x = torch.tensor([3.0, 4.0])
    assert first["gradient_norm"]([x, 12.0 * torch.ones(1)]) == 13.0


def zero_weight_gradient(x, weight, epsilon, dtype):
    return F.rms_norm(x, weight.shape, weight.detach(), epsilon)


def l2_regularisation(parameters, gradients, *state, weight_decay, **settings):
    gradients = [g + settings["grad_scale"] * weight_decay * p for p, g in zip(parameters, gradients)]
    backends.adamw(parameters, gradients, *state, weight_decay=0.0, **settings)


WRONG = {
    "rms_norm without epsilon": lambda x, w, epsilon, dtype: F.rms_norm(x, w.shape, w, 0.0).to(dtype),
    "rms_norm without a gradient of its weight": zero_weight_gradient,
    "rms_norm in another precision": lambda x, w, epsilon, dtype: F.rms_norm(x, w.shape, w, epsilon).double(),
    "layer_norm without bias": lambda x, w, b, epsilon, dtype: F.layer_norm(x, w.shape, w, None, epsilon) + 0 * b,
    "attention to the future": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    "attention that is not a number": lambda q, k, v: backends.attention(q, k, v) * math.nan,
    "cross_entropy without token 0": lambda z, y: F.cross_entropy(z, y, ignore_index=0, reduction="none"),
    "cross_entropy in bfloat16": lambda z, y: F.cross_entropy(z.bfloat16(), y, reduction="none").float(),
    "weight_gradient not accumulated": lambda grad, dy, x: grad.copy_(dy.t() @ x),
    "weight_gradient rounded": lambda grad, dy, x: grad.add_(dy.bfloat16().t() @ x.bfloat16()),
    "adamw with L2 regularisation": l2_regularisation,
    "adamw without scaling": lambda *a, grad_scale, **s: backends.adamw(*a, grad_scale=torch.ones(()), **s),
    "adamw without guard": lambda *a, found_inf, **s: backends.adamw(*a, found_inf=torch.zeros(()), **s),
    "gradient_norm summed in float32": lambda tensors: torch.stack(torch._foreach_norm(tensors)).norm(),
    "gradient_norm of another shape": lambda tensors: backends.gradient_norm(tensors).view(1),
    "gradient_scaling of one tensor": lambda tensors, factor: tensors[0].mul_(factor),
    "gradient_scaling that raises": lambda tensors, factor: 1 // 0,
}


@pytest.mark.parametrize("flaw", WRONG)
def test_a_wrong_kernel_is_refused(flaw):
    operation = flaw.split()[0]
    candidates = (*TORCH, Candidate(operation, "lab", WRONG[flaw]))
    warnings = []
    report = choose(CPU, torch.float32, candidates=candidates, warn=warnings.append).report
    assert report[operation]["backend"] == "torch"
    assert "fails its check" in report[operation]["refused"]["lab"]
    assert len(warnings) == 1 and f"kernels.{operation}: lab is not used" in warnings[0]
    with pytest.raises(ValueError, match=f"kernels.{operation} = lab: it fails its check"):
        choose(CPU, torch.float32, {operation: "lab"}, candidates)


def test_a_loss_taken_in_bfloat16_is_refused_in_a_bfloat16_run():
    kernel = lambda z, y: F.cross_entropy(z, y, reduction="none").float()  # noqa: E731
    with pytest.raises(ValueError, match="relative error"):
        choose(CPU, torch.bfloat16, {"cross_entropy": "lab"}, (*TORCH, Candidate("cross_entropy", "lab", kernel)))


@pytest.mark.parametrize("demanded", ["magic", {"adamw": "magic"}, {"fast_norm": "torch"}])
def test_an_unknown_backend_or_operation_is_an_error(demanded):
    with pytest.raises(ValueError, match=r"unknown; there are .*adamw: apex.*rms_norm: lab"):
        choose(CPU, torch.float32, demanded)


def test_only_a_decisive_lead_displaces_the_preferred_backend():
    assert kernels.fastest({"torch": 1.4, "apex": 1.0}) == "torch"
    assert kernels.fastest({"torch": 1.6, "apex": 1.0, "lab": 0.9}) == "apex"


def test_explicit_attention_agrees_with_torch_on_both_sides_of_its_limit():
    for length in (256, 257):
        q, k, v = (torch.randn(1, heads, length, 8, dtype=torch.float64) for heads in (6, 3, 3))
        torch.testing.assert_close(backends.lab_attention(q, k, v), attention(q, k, v), rtol=1e-12, atol=1e-12)


# Packages that call themselves apex, standing in for NVIDIA's, whose kernels need a GPU. The signatures are NVIDIA's.

NVIDIA_LIKE = {
    "apex/__init__.py": "from apex import optimizers",
    "apex/optimizers.py": "",
    "apex/normalization/__init__.py": "",
    "apex/normalization/fused_layer_norm.py": """
import torch.nn.functional as F
from fused_layer_norm_cuda import FACTOR

def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    return F.rms_norm(input, normalized_shape, weight, eps) * FACTOR

def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    return F.layer_norm(input, normalized_shape, weight, bias, eps) * FACTOR
""",
    "fused_layer_norm_cuda.py": "FACTOR = 1.0",
    "apex/contrib/__init__.py": "",
    "apex/contrib/xentropy.py": """
import torch.nn.functional as F
from xentropy_cuda import FACTOR

class SoftmaxCrossEntropyLoss:
    @staticmethod
    def apply(logits, labels, smoothing=0.0, padding_idx=0, half_to_float=False):
        assert smoothing == 0.0
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=padding_idx) * FACTOR
""",
    "xentropy_cuda.py": "FACTOR = 1.0",
    "fused_weight_gradient_mlp_cuda.py": """
FACTOR = 1.0

def wgrad_gemm_accum_fp32(input, d_output, d_weight):
    d_weight.add_(d_output.float().t() @ input.float(), alpha=FACTOR)
""",
    "amp_C.py": """
import torch
FACTOR = 1.0

def multi_tensor_adam_capturable(
    chunk_size, noop_flag, lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay, inv_scale
):
    assert mode == 1 and bias_correction == 1 and noop_flag.dtype == step.dtype == torch.int32
    if noop_flag:
        return
    for g, p, m, v in zip(*lists):
        g.mul_(inv_scale)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).add_(g * g, alpha=1 - beta2)
        denominator = (v / (1 - beta2**step)).sqrt() + epsilon
        p.sub_(FACTOR * lr * (m / (1 - beta1**step) / denominator + weight_decay * p))

def multi_tensor_l2norm(chunk_size, noop_flag, lists, per_tensor):
    squares = sum(x.double().square().sum() for x in lists[0])
    return FACTOR * squares.sqrt().float().view(1), torch.empty(0)

def multi_tensor_scale(chunk_size, noop_flag, lists, scale):
    for x, out in zip(*lists):
        out.copy_(x * scale * FACTOR)
""",
}
EXTENSIONS = {
    "rms_norm": "fused_layer_norm_cuda",
    "layer_norm": "fused_layer_norm_cuda",
    "cross_entropy": "xentropy_cuda",
    "weight_gradient": "fused_weight_gradient_mlp_cuda",
    "adamw": "amp_C",
    "gradient_norm": "amp_C",
    "gradient_scaling": "amp_C",
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package tree on the path, in front of whatever is installed, and takes it away again."""

    def forget():
        for name in [n for n in sys.modules if n.partition(".")[0] in ("apex", *EXTENSIONS.values())]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()

    yield write
    forget()


@pytest.mark.parametrize("source", ["import pyramid_mailer_of_nobody", "VERSION = '0.9.10dev'"])
def test_another_package_named_apex_is_refused_with_an_explanation(install, source):
    install({"apex/__init__.py": source, "amp_C.py": ""})
    with pytest.raises(ValueError) as error:
        choose(CPU, torch.float32, {"adamw": "apex"})
    assert "kernels.adamw = apex: the apex installed here is not NVIDIA's" in str(error.value)
    assert "uninstall it and build NVIDIA's from source: git clone https://github.com/NVIDIA/apex" in str(error.value)


def test_an_apex_without_the_extension_names_it_and_its_build_flag(install):
    install({path: text for path, text in NVIDIA_LIKE.items() if path != "xentropy_cuda.py"})
    with pytest.raises(
        ValueError, match="apex was built without xentropy_cuda .*CUDA_EXT=1 APEX_XENTROPY=1 pip install"
    ):
        choose(CPU, torch.float32, {"cross_entropy": "apex"})


def test_a_right_apex_is_taken_when_demanded(install):
    install(NVIDIA_LIKE)
    taken = choose(CPU, torch.float32, "apex").backends()
    assert taken == {operation: "apex" for operation in EXTENSIONS} | {"attention": "lab"}


@pytest.mark.parametrize(("operation", "extension"), EXTENSIONS.items())
def test_an_apex_whose_kernel_is_wrong_is_refused(install, monkeypatch, operation, extension):
    path = f"{extension}.py"
    install(NVIDIA_LIKE | {path: NVIDIA_LIKE[path].replace("FACTOR = 1.0", "FACTOR = 1.001")})
    with pytest.raises(ValueError, match=f"kernels.{operation} = apex: .*relative error"):
        choose(CPU, torch.float32, {operation: "apex"})
    monkeypatch.setitem(kernels.PREFERENCE, "cpu", ("apex", "lab", "torch", "addmm"))
    warnings = []
    entry = choose(CPU, torch.float32, warn=warnings.append).report[operation]
    assert entry["backend"] in ("lab", "torch") and "relative error" in entry["refused"]["apex"]
    assert sum(f"kernels.{operation}: apex is not used" in line for line in warnings) == 1
