"""An estimate with its conventions, sources and warnings, as JSON and people get it."""

import math
from collections.abc import Iterable
from typing import Any

from analysis.cost.calibration import applies, calibration_warnings
from analysis.cost.defaults import Choice
from analysis.cost.estimate import Estimate
from analysis.cost.interval import Interval
from analysis.cost.layout_space import stages_alike
from analysis.cost.prices import Price
from analysis.cost.setup_text import setup_dict
from analysis.formatting import count

_GIB = 2.0**30

CONVENTIONS = {
    "parameters": "total and active count embeddings, tied ones once; multi-token prediction is in mtp alone",
    "flops.c_6nd": "6 x active parameters (embeddings included) x tokens",
    "flops.causal": "matrix products + attention over the keys that the mask leaves; no recomputation",
    "flops.full": "matrix products + attention over all keys; no recomputation",
    "flops.hardware": "full, plus what activation recomputation does again",
    "memory_gib": "of the GPU that needs most; peak: what tensors take at once (torch's max_memory_allocated), the sum "
    "of the tensors listed; reserved: with the allocator's gaps; device: as nvidia-smi shows, with CUDA's context, "
    "which decides whether it fits",
    "step_time_s": "of one optimizer step, on the slowest rank",
    "tokens_per_second_per_gpu": "while it trains",
    "mfu": "model FLOPs of a step / step time / dense peak of the GPUs (16-bit peak also for 8- and 4-bit precisions)",
    "gpu_hours": "of the whole run, restarts, evaluation and lost steps included (core-hours on a CPU)",
    "energy_kwh": "at the building's meter: GPU, its share of the node, times PUE; no switches, no embodied carbon",
    "usd": "GPU-hours x price; value, low and high price of dated on-demand quotes",
    "interval": "90 %: low and high bounds hold the measured value in nine of ten runs",
}


def described(found: Estimate, choices: Iterable[Choice], warnings: Iterable[str]) -> dict[str, Any]:
    """The estimate as plain data: every estimated quantity is {value, low, high, unit}."""
    held = found.memory
    price = found.assumptions.price
    return {
        "setup": setup_dict(found.setup),
        "tokens": found.tokens,
        "train_steps": found.train_steps,
        "parameters": vars(found.parameters).copy(),
        "flops": dict(found.flops),
        "memory_gib": {
            **{name: size / _GIB for name, size in held.tensors.items()},
            "peak": _ranged(held.interval("allocated").scaled(1 / _GIB), "GiB"),
            "reserved": _ranged(held.interval("reserved").scaled(1 / _GIB), "GiB"),
            "device": _ranged(held.interval("device").scaled(1 / _GIB), "GiB"),
            "fits": found.fits,
        },
        "step_time_s": _ranged(found.step_seconds, "s"),
        "tokens_per_second_per_gpu": _ranged(found.tokens_per_second_per_gpu, "tokens/s per GPU"),
        "mfu": {
            **{name: _ranged(found.mfu(name), "share of the dense peak") for name in ("causal", "full")},
            "peak_flops": found.peak_flops,
        },
        "goodput": _ranged(found.goodput, "share of the GPU-hours"),
        "gpu_hours": _ranged(found.gpu_hours, "GPU-hours"),
        "wall_hours": _ranged(found.wall_hours, "hours"),
        "energy_kwh": _ranged(found.energy_kwh, "kWh"),
        "co2_kg": _ranged(found.co2_kg, "kg CO2e"),
        "usd": _ranged(found.usd, "USD"),
        "price": None if price is None else _price(price),
        "conventions": CONVENTIONS,
        "choices": [vars(choice).copy() for choice in choices],
        "sources": _sources(found),
        "warnings": [*_warnings(found), *warnings],
    }


def _ranged(interval: Interval | None, unit: str) -> dict[str, Any] | None:
    return None if interval is None else {**vars(interval), "unit": unit}


def _price(price: Price) -> dict[str, Any]:
    return {
        "value": price.mid,
        "low": price.low,
        "high": price.high,
        "unit": price.unit,
        "date": price.date.isoformat(),
        "provider": price.provider,
    }


def _sources(found: Estimate) -> dict[str, str]:
    """Where each number comes from, in one line each."""
    device, calibration, price = found.setup.device, found.assumptions.calibration, found.assumptions.price
    stack = f"operator by operator (analysis/cost/step.py), constants of the stack {found.setup.stack}"
    refitted = f"refitted to {calibration.runs}" if applies(calibration, found.setup) else ""
    stack += f" {refitted}" if refitted else ""
    constants = f" (constants {refitted})" if refitted else ""
    if device.is_cpu_core:
        stack = "launch floor and matrix products of a core (analysis/cost/cpu_step.py)"
    hours = (
        "published runs, by N and GPU (analysis/cost/run_utilisation.py), since the layout is left open"
        if found.from_published_runs
        else f"step time{constants} / goodput of {found.goodput.value:.2f} (analysis/cost/goodput.py)"
    )
    if found.assumptions.goodput is not None:
        hours = f"step time{constants} / your goodput of {found.goodput.value:g}"
    if found.gpu_hours_published is not None and not found.from_published_runs:
        hours += f"; published runs of that size on that GPU took {_counted(found.gpu_hours_published)}"
    sources = {
        "device": f"{device.name}: {device.source} ({device.date})",
        "step_time_s": stack,
        "memory_gib": "tensor by tensor (analysis/cost/memory.py)",
        "gpu_hours": hours,
    }
    if found.energy_kwh is not None:
        pue = "yours" if found.assumptions.pue is not None else "typical"
        sources["energy_kwh"] = (
            f"{device.tdp_watts:g} W TDP, node power as in MLPerf logs, GPUs busy {found.busy.value:.2f} of the time, "
            f"PUE {found.pue.value:g} ({pue}) (analysis/cost/energy.py)"
        )
    if price is not None:
        sources["usd"] = f"{price.provider}, {price.date.isoformat()}: {price.source}"
    return sources


def _counted(hours: Interval) -> str:
    return f"{count(hours.value)} ({count(hours.low)} to {count(hours.high)})"


def _warnings(found: Estimate) -> list[str]:
    setup, price = found.setup, found.assumptions.price
    warnings = []
    if not found.fits:
        warnings.append(memory_warning(found))
    if found.from_published_runs:
        warnings.append(
            f"gpu_hours are those of published runs; the step time of the layout chosen here gives "
            f"{_counted(found.gpu_hours_from_step)}, goodput included: give --tensor-parallel-size, --sharding or "
            "--goodput to have that used"
        )
        warnings += found.unlike_published
    warnings += calibration_warnings(found.assumptions.calibration, setup)
    if setup.num_gpus > 4096:
        warnings.append(f"{setup.num_gpus} GPUs: above 4096 published step times are up to 15 % longer than predicted")
    nodes = setup.device.scale_up_size
    if setup.tensor_parallel_size > nodes:
        warnings.append(
            f"tensor_parallel_size = {setup.tensor_parallel_size}: leaves the {nodes} GPUs that fast links join; times "
            "measured on clusters that nobody tuned are two to three times these"
        )
    layers, stages = setup.model.num_layers, setup.pipeline_parallel_size * setup.virtual_pipeline_parallel_size
    if stages > 1 and not stages_alike(setup, stages):
        warnings.append(
            f"{layers} layers on {stages} pipeline stages: the fullest has {math.ceil(layers / stages)}, and the step "
            f"is priced by the mean of {layers / stages:.3g}: choose sizes that divide the layers"
        )
    if setup.model.is_moe:
        warnings.append(f"{setup.model.name} has experts: tokens are taken to be spread evenly over them")
    if price is None:
        warnings.append(f"no dated price of {setup.device.name}: give yours with --price to have dollars")
    elif price.warning():
        warnings.append(price.warning())
    if found.energy_kwh is None:
        warnings.append(f"{setup.device.name} has no known power: no energy is given")
    return warnings


def memory_warning(found: Estimate) -> str:
    """That it does not fit, and what would help."""
    setup = found.setup
    helps = "; ".join(map(str, found.remedies)) or "no single change that was tried is enough"
    if found.enough_gpus is not None:
        helps += f"; {found.enough_gpus} GPUs are enough, with a layout of their own: "
        helps += f"scaling cost layouts --num-gpus {found.enough_gpus}"
    return (
        f"out of memory: needs {found.memory.device / _GIB:.3g} GiB on a {setup.device.name} of "
        f"{setup.device.memory_bytes / _GIB:.3g}: {helps}"
    )
