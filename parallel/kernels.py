"""Which backend computes each operation of a run: looked for, checked against float64, chosen, and reported.

Two runs on one machine must choose alike, or they would not agree to the bit. So each kind of device has a fixed
order of candidates, and the first that passes is taken. A CPU's order is that of measured speed (the norm by hand is
1.0 to 2.8 times as fast as torch's, attention up to 256 positions 1 to 10 times), and nothing is timed. On a GPU a
later candidate displaces an earlier one if it is `DECISIVE` times as fast, more than noise makes of the best of turns.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from parallel import backends
from parallel.operations import OPERATIONS, arguments, placed

PREFERENCE = {"cpu": ("lab", "torch", "apex", "addmm"), "cuda": ("addmm", "torch", "apex", "lab")}
DECISIVE = 1.5
_TIMED_SCALE = 16


@dataclass(frozen=True)
class Candidate:
    """A backend of one operation. `absent(device)` says why it cannot be used and how to get it, or None."""

    operation: str
    backend: str
    kernel: Callable
    absent: Callable[[torch.device], str | None] = lambda device: None


@dataclass(frozen=True)
class Kernels:
    """The kernels of a run: `kernels["rms_norm"]` has the signature of parallel.backends.rms_norm, and so on.

    Attributes:
        report: for the run record: operation -> {backend, max_relative_error, reason, refused: {backend: why}}.
    """

    chosen: Mapping[str, Callable]
    report: Mapping[str, dict[str, Any]]

    def __getitem__(self, operation: str) -> Callable:
        return self.chosen[operation]

    def backends(self) -> dict[str, str]:
        """Operation -> backend: what to demand on other ranks and after a restart, to compute in the same way."""
        return {operation: entry["backend"] for operation, entry in self.report.items()}


#: torch's own, for models outside a run, where nothing is chosen or reported.
UNCHECKED = Kernels({operation: getattr(backends, operation) for operation in OPERATIONS}, {})


def _apex(extension: str, flag: str = "") -> Callable[[torch.device], str | None]:
    """Looks for one of apex's compiled modules; `flag` is what its build needs besides the usual ones."""
    build = (
        "build NVIDIA's from source: git clone https://github.com/NVIDIA/apex && cd apex && "
        f"APEX_CPP_EXT=1 APEX_CUDA_EXT=1 {flag}pip install -v --no-build-isolation . (PyPI's apex is another package)"
    )

    def absent(device: torch.device) -> str | None:
        if find_spec("apex") is None:
            return f"apex is not installed; {build}"
        try:
            problem = "" if hasattr(import_module("apex"), "optimizers") else "it has no `optimizers`"
        except Exception as error:  # whatever an unknown package may raise
            problem = f"{type(error).__name__}: {error}"
        if problem:
            return f"the apex installed here is not NVIDIA's ({problem}); uninstall it and {build}"
        try:
            import_module(extension)
        except ImportError as error:
            return f"apex was built without {extension} ({error}); {build}"
        return None

    return absent


def _not_cuda(device: torch.device) -> str | None:
    return None if device.type == "cuda" else f"torch has it for CUDA alone, not for {device.type}; use torch"


CANDIDATES = (
    *(Candidate(operation, "torch", getattr(backends, operation)) for operation in OPERATIONS),
    Candidate("rms_norm", "lab", backends.lab_rms_norm),
    Candidate("attention", "lab", backends.lab_attention),
    Candidate("weight_gradient", "addmm", backends.addmm_weight_gradient, _not_cuda),
    Candidate("rms_norm", "apex", backends.apex_rms_norm, _apex("fused_layer_norm_cuda")),
    Candidate("layer_norm", "apex", backends.apex_layer_norm, _apex("fused_layer_norm_cuda")),
    Candidate("cross_entropy", "apex", backends.apex_cross_entropy, _apex("xentropy_cuda", "APEX_XENTROPY=1 ")),
    Candidate("weight_gradient", "apex", backends.apex_weight_gradient, _apex("fused_weight_gradient_mlp_cuda")),
    Candidate("adamw", "apex", backends.apex_adamw, _apex("amp_C")),
    Candidate("gradient_norm", "apex", backends.apex_gradient_norm, _apex("amp_C")),
    Candidate("gradient_scaling", "apex", backends.apex_gradient_scaling, _apex("amp_C")),
)


def _examine(
    name: str, candidates: Sequence[Candidate], given: tuple, device: torch.device, dtype: torch.dtype
) -> tuple[dict[Candidate, float], dict[str, str], dict[str, str]]:
    """Errors of the candidates that pass, on a CPU of the first alone; why some are absent; how others fail."""
    operation, errors, absent, failed = OPERATIONS[name], {}, {}, {}
    exact = operation.run(getattr(backends, name), placed(given, "cpu", exact=True))
    for candidate in candidates:
        if errors and device.type == "cpu":
            break
        if reason := candidate.absent(device):
            absent[candidate.backend] = reason
            continue
        try:
            errors[candidate] = operation.error(candidate.kernel, placed(given, device), exact, dtype)
        except Exception as error:  # whatever somebody else's kernel may raise
            failed[candidate.backend] = f"it fails its check: {str(error).partition(chr(10))[0]}"
    return errors, absent, failed


def _seconds(candidate: Candidate, given: tuple, device: torch.device) -> float:
    """Best of several turns on a CUDA device, the first of which loads or compiles the kernel."""
    inputs, turns = placed(given, device), []
    for _ in range(6):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        OPERATIONS[candidate.operation].run(candidate.kernel, inputs)
        torch.cuda.synchronize(device)
        turns.append(time.perf_counter() - start)
    return min(turns[1:])


def fastest(seconds: Mapping[Any, float]) -> Any:
    """The first, unless a later one is decisively faster than it; then that one, unless a still later one is."""
    best, *rest = seconds
    for other in rest:
        best = other if seconds[other] * DECISIVE < seconds[best] else best
    return best


def choose(
    device: torch.device,
    dtype: torch.dtype,
    demanded: Mapping[str, str] | str = "auto",
    candidates: Sequence[Candidate] = CANDIDATES,
    warn: Callable[[str], None] = warnings.warn,
) -> Kernels:
    """The kernels of a run whose matrix products are in `dtype`.

    `demanded` names a backend for some operations, or one for all operations that have it. `auto` takes the fastest
    that passes, with a line to `warn` for each that fails. Raises ValueError for a demanded backend that is unknown,
    absent or wrong.
    """
    known = {(c.operation, c.backend) for c in candidates} | {(name, "auto") for name in OPERATIONS}
    wanted = demanded
    if isinstance(demanded, str):
        wanted = {operation: backend for operation, backend in known if backend == demanded}
    if not known.issuperset(wanted.items()) or demanded and not wanted:
        raise ValueError(f"kernels = {demanded}: unknown; there are {', '.join(f'{o}: {b}' for o, b in sorted(known))}")
    small, large = arguments(dtype), {} if device.type == "cpu" else arguments(dtype, _TIMED_SCALE)
    chosen, report, threads = {}, {}, torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other on inputs this small: 20 ms an operation on a busy machine
    try:
        for name in OPERATIONS:
            asked = wanted.get(name, "auto")
            ranked = [c for c in candidates if c.operation == name and asked in ("auto", c.backend)]
            ranked.sort(key=lambda c: PREFERENCE[device.type].index(c.backend))
            errors, absent, failed = _examine(name, ranked, small[name], device, dtype)
            refused = absent | failed
            if not errors:
                raise ValueError(f"kernels.{name} = {asked}: {'; '.join(refused.values())}")
            for backend, reason in failed.items():
                warn(f"kernels.{name}: {backend} is not used, {reason}")
            best, reason = next(iter(errors)), f"first to pass of {', '.join(c.backend for c in ranked)}"
            if len(errors) > 1:
                seconds = {candidate: _seconds(candidate, large[name], device) for candidate in errors}
                best, reason = fastest(seconds), ", ".join(f"{c.backend} {1e6 * s:.0f} us" for c, s in seconds.items())
            chosen[name] = best.kernel
            entry = {"backend": best.backend, "max_relative_error": errors[best], "reason": reason, "refused": refused}
            report[name] = entry if asked == "auto" else entry | {"reason": "demanded"}
    finally:
        torch.set_num_threads(threads)
    return Kernels(chosen, report)
