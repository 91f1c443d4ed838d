"""What a run amounts to: the RunRecord made from a trainer that has ended."""

import math
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from parallel import matmul
from scaling import telemetry
from scaling.accounting import parameter_count, training_flops
from scaling.record import Evaluation, RunRecord, Speed

if TYPE_CHECKING:
    from scaling.train import _Trainer


def _attempts(run_dir: Path) -> int:
    path = run_dir / "attempts.jsonl"
    return max(1, path.read_text(errors="replace").count('"event": "start"')) if path.exists() else 1


def summarise(
    trainer: "_Trainer", evaluation: Evaluation | None, reason: str | None, energy: telemetry.EnergyMeter
) -> RunRecord:
    """The record of the run; `reason` says why it diverged, None if it did not. Collective over its ranks."""
    config, progress, device, mesh = trainer.config, trainer.progress, trainer.device, trainer.mesh
    tokens = progress.step * config.tokens_per_step
    flops = training_flops(config)
    done = progress.step / config.train_steps
    flops = flops.model_copy(update={name: value * done for name, value in flops.model_dump().items()})
    ranks = config.parallel.world_size
    devices = ranks * (trainer.threads if device.type == "cpu" else 1)
    count = parameter_count(config.model)
    per_second = progress.seconds or math.nan
    memory = torch.tensor(telemetry.peak_memory_bytes(device), dtype=torch.float64, device=device)
    mesh.world.all_reduce(memory, torch.distributed.ReduceOp.MAX)
    joules = torch.tensor(progress.energy_joules, dtype=torch.float64, device=device)
    mesh.world.all_reduce(joules)
    speed = Speed(
        device=telemetry.device_name(device),
        dtype=trainer.choice.dtype,
        dtype_reason=trainer.choice.reason,
        num_threads=trainer.threads if device.type == "cpu" else None,
        seconds=progress.seconds,
        tokens_per_second=tokens / per_second,
        mfu_causal=flops.causal / per_second / trainer.peak_of_all,
        mfu_full=flops.full / per_second / trainer.peak_of_all,
        peak_flops=trainer.peak_of_all,
        peak_flops_source=trainer.peak_source + (f", times {ranks} ranks" if ranks > 1 else ""),
        peak_memory_bytes=int(memory),
        energy_joules=float(joules) or None,
        energy_source=energy.source,
        device_hours=progress.seconds * devices / 3600,
        host_peak_memory_bytes=telemetry.host_peak_memory_bytes(),
        host_available_memory_bytes=telemetry.host_available_memory_bytes(),
        step_split=trainer.timer.reason,
        **trainer.timer.split(mesh.world),
        **trainer.sampler.summary(),
    )
    used: dict[str, Any] = {"matmul": {"backend": trainer.choice.matmul}}
    if device.type == "cpu" and trainer.choice.dtype == "float32":
        used["matmul"]["max_relative_error"] = matmul.matmul_error()
    # an operation that a hand-written function has swallowed is not computed by its own backend
    swallowed = {"attention": "attention", "linear_cross_entropy": "cross_entropy"}
    for name in trainer.engine.fused:
        used[swallowed.get(name, name)] = {"backend": "lab", "reason": f"hand-written {name} (parallel/functions.py)"}
    used |= {name: entry for name, entry in trainer.kernels.report.items() if name not in used}
    return RunRecord(
        run_id=config.run_id,
        status="diverged" if reason else "finished",
        reason=reason,
        schedule_finished=progress.step == config.train_steps,
        config=config,
        parameters=count.total,
        parameters_non_embedding=count.non_embedding,
        parameters_active=count.active,
        tokens=tokens,
        flops=flops,
        train_loss=progress.tail_loss_sum / progress.tail_steps if progress.tail_steps and not reason else None,
        evaluation=evaluation,
        speed=speed,
        kernels=used,
        versions=telemetry.versions(),
        host=platform.node(),
        attempts=_attempts(trainer.run_dir),
        started_at=progress.started_at,
        finished_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
