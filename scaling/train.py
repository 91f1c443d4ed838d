"""The training loop: from a RunConfig and a corpus to a RunRecord, resumable at any step."""

import math
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable

import torch

from parallel import matmul
from scaling import checkpoint, precision, telemetry
from scaling.accounting import parameter_count, training_flops
from scaling.config import RunConfig, load_config
from scaling.data.dataset import TrainBatches, validation_batch
from scaling.data.corpus import PreparedCorpus, load_corpus
from scaling.engine import Engine, fusing
from scaling.errors import UserError
from scaling.evaluate import evaluate
from scaling.metrics import MetricsLog
from scaling.model import attention_fusable
from scaling.optimizer import AdamW
from scaling.record import Evaluation, RunRecord, Speed, read_record, write_json_atomically, write_record
from scaling.schedule import learning_rate

#: The recorded training loss is the mean over this last part of the run.
_TAIL = 0.05


class Interrupted(Exception):
    """The run was asked to stop; it saved a checkpoint and can go on from there."""


class _Diverged(Exception):
    pass


@dataclass
class Progress:
    """What a resumed run must know besides weights and moments. The data position is the step."""

    step: int = 0
    seconds: float = 0.0
    energy_joules: float = 0.0
    tail_loss_sum: float = 0.0
    tail_steps: int = 0
    started_at: str = field(default_factory=lambda: _now())


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _check(config: RunConfig, corpus: PreparedCorpus) -> None:
    if config.parallel.world_size != 1:
        raise UserError(
            f"parallel = {config.parallel.model_dump()}: a run uses one process so far; set every size to 1 "
            "(a sweep runs its cells side by side)"
        )
    if corpus.fingerprint != config.data.fingerprint:
        raise UserError(
            f"data.fingerprint = {config.data.fingerprint[:16]}...: the corpus at {corpus.path} is {corpus.fingerprint[:16]}...; "
            "point to the corpus of that fingerprint, or make a new run for this one"
        )
    if config.model.vocab_size < corpus.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}: the corpus has {corpus.vocab_size} token ids; raise vocab_size"
        )


def _open_run(config: RunConfig, run_dir: Path) -> None:
    """Create the run directory with its config, or check that it belongs to this run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.yaml"
    if not path.exists():
        scratch = path.with_name(f".config.{os.getpid()}.tmp")
        scratch.write_text(config.to_yaml(), encoding="utf-8")
        os.replace(scratch, path)
    elif (found := load_config(path).run_id) != config.run_id:
        raise UserError(f"{run_dir}: belongs to run {found}, not {config.run_id}: choose another run directory")


def _threads(asked: int | None) -> int:
    """CPU threads to compute with: as asked, or one for each core that this process may use."""
    # macOS cannot say which cores a process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is not None and asked > cores:
        raise UserError(
            f"execution.num_threads = {asked}: this process may use {cores} cores, and more threads only wait for "
            f"each other; set it to at most {cores}, or leave it out"
        )
    return asked or cores


def _attempts(run_dir: Path) -> int:
    path = run_dir / "attempts.jsonl"
    return max(1, path.read_text(errors="replace").count('"event": "start"')) if path.exists() else 1


def train(
    config: RunConfig,
    run_dir: Path,
    corpus_dir: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> RunRecord:
    """Train one run to its end and return its record; resume from the last whole checkpoint.

    A run whose `result.json` is there is not trained again. `should_stop` is asked before every step;
    `on_step` is given every line that goes to metrics.jsonl.

    Raises Interrupted after saving a checkpoint when `should_stop` says so, and UserError for a config,
    corpus, directory or disk that cannot work. A loss or gradient that is not finite ends the run with
    the status `diverged`.
    """
    finished = read_record(run_dir)
    if finished is not None:
        if finished.run_id != config.run_id:
            raise UserError(f"{run_dir}: holds the result of run {finished.run_id}, not {config.run_id}")
        return finished
    corpus = load_corpus(corpus_dir)
    _check(config, corpus)
    try:
        _open_run(config, run_dir)
        record = _Trainer(config, run_dir, corpus).run(should_stop or (lambda: False), on_step or (lambda entry: None))
        write_record(run_dir, record)
    except OSError as error:
        raise UserError(
            f"{error.filename or run_dir}: cannot be written ({error.strerror}): "
            "free disk space or choose another directory, then start again; the last checkpoint is kept"
        ) from error
    return record


class _Trainer:
    def __init__(self, config: RunConfig, run_dir: Path, corpus: PreparedCorpus):
        self.config, self.run_dir, self.corpus = config, run_dir, corpus
        self.threads = _threads(config.execution.num_threads)
        torch.set_num_threads(self.threads)
        self.device = precision.pick_device(config.execution)
        self.batches = TrainBatches(corpus, config.data.seq_length, config.seed, config.global_batch_size)
        self.validation = validation_batch(corpus, config.data.seq_length, config.data.validation_sequences)
        self.progress = Progress()
        self.directory = run_dir / "checkpoints"
        saved = checkpoint.load_latest(self.directory, _warn)
        self.choice = self._kept_choice() or self._new_choice()
        precision.apply(self.choice, config.execution)
        self.engine = Engine(config, self.device, self.choice.dtype)
        self.optimizer = AdamW(self.engine.flat, config.optimizer)
        if saved is not None:
            self._restore(*saved)

    def _kept_choice(self) -> precision.Choice | None:
        """The choice that the run began with, None at its start and where it is no longer possible."""
        path = self.run_dir / "choice.json"
        try:
            kept = precision.Choice.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            _warn(f"{path} cannot be read ({type(error).__name__}): choosing anew, so the run goes on to rounding, not to the bit")
            return None
        if precision.still_possible(kept, self.config.execution, self.device):
            return kept
        _warn(f"{path}: {kept.dtype} with {kept.matmul} on {kept.device} is not possible here: the run goes on to rounding, not to the bit")
        return None

    def _new_choice(self) -> precision.Choice:
        config = self.config
        fused = fusing(config, self.device) and attention_fusable(config.model)
        choice = precision.choose(config.execution, self.device, config.model.hidden_size, fused)
        write_json_atomically(self.run_dir / "choice.json", choice.model_dump())
        return choice

    def _restore(self, weights: dict, moments: dict, state: dict[str, Any]) -> None:
        if state["run_id"] != self.config.run_id:
            raise UserError(f"{self.directory}: checkpoints belong to run {state['run_id']}, not {self.config.run_id}")
        checkpoint.restore(self.engine.named(self.engine.flat.data), weights, "weights")
        checkpoint.restore(self._moments(), moments, "moments")
        self.progress = Progress(**state["progress"])
        self.optimizer.set_updates(self.progress.step)
        self.engine.flat.refresh()

    def _moments(self) -> dict[str, torch.Tensor]:
        first, second = self.engine.named(self.optimizer.exp_avg), self.engine.named(self.optimizer.exp_avg_sq)
        return {f"exp_avg.{k}": v for k, v in first.items()} | {f"exp_avg_sq.{k}": v for k, v in second.items()}

    def _save(self) -> None:
        state = {"run_id": self.config.run_id, "progress": vars(self.progress)}
        weights = self.engine.named(self.engine.flat.data)
        keep = self.config.execution.keep_checkpoints
        checkpoint.save(self.directory, self.progress.step, weights, self._moments(), state, keep)

    def run(self, should_stop: Callable[[], bool], on_step: Callable[[dict[str, Any]], None]) -> RunRecord:
        """The loop; returns the record."""
        metrics = MetricsLog(self.run_dir / "metrics.jsonl", _warn)
        energy = telemetry.EnergyMeter(self.device)
        reason = None
        try:
            self._loop(metrics, energy, should_stop, on_step)
        except _Diverged as error:
            reason = str(error)
        evaluation = None if reason else self._evaluate(metrics)
        if evaluation is not None and not math.isfinite(evaluation.loss):
            evaluation, reason = None, f"validation loss {evaluation.loss} after the last step"
        metrics.close()
        return self._record(evaluation, reason, energy)

    def _loop(self, metrics: MetricsLog, energy: telemetry.EnergyMeter, should_stop, on_step) -> None:
        config, progress, engine = self.config, self.progress, self.engine
        before, before_energy = progress.seconds, progress.energy_joules
        start = saved = logged = time.perf_counter()
        logged_step = progress.step
        tail_from = math.ceil(config.train_steps * (1 - _TAIL))
        interval = config.execution.checkpoint_interval_seconds

        def mark() -> None:
            progress.seconds = before + time.perf_counter() - start
            progress.energy_joules = before_energy + (energy.read() or 0.0)

        if progress.step == config.train_steps:
            return  # killed between the last step and the result
        while progress.step < config.train_steps:
            if should_stop():
                mark()
                metrics.sync()
                self._save()
                raise Interrupted(f"stopped after step {progress.step} of {config.train_steps}; start again to go on")
            rate = learning_rate(config, progress.step)
            loss = engine.forward_backward(self.batches.batch(progress.step))
            norm = self.optimizer.step(rate)
            progress.step += 1
            step = progress.step
            if step > tail_from:
                progress.tail_loss_sum += float(loss)
                progress.tail_steps += 1
            now = time.perf_counter()
            if step % config.execution.log_interval == 0 or step == config.train_steps:
                entry = {
                    "step": step,
                    "tokens": step * config.tokens_per_step,
                    "loss": float(loss),
                    "grad_norm": float(norm),
                    "learning_rate": rate,
                    "tokens_per_second": (step - logged_step) * config.tokens_per_step / (now - logged),
                    "seconds": before + now - start,
                }
                logged, logged_step = now, step
                if not (math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"])):
                    mark()
                    raise _Diverged(
                        f"loss {entry['loss']}, gradient norm {entry['grad_norm']} at step {step}, learning rate {rate:.4g}"
                    )
                metrics.write(entry)
                on_step(entry)
            every = config.execution.evaluation_interval
            if every and step % every == 0 and step < config.train_steps:
                self._evaluate(metrics)
            if interval and now - saved > interval:
                mark()
                metrics.sync()
                self._save()
                saved = time.perf_counter()
        mark()
        metrics.sync()
        self._save()

    def _evaluate(self, metrics: MetricsLog) -> Evaluation:
        result = evaluate(self.engine.model, self.validation, self.corpus.bytes_per_token, self.engine.autocast)
        if math.isfinite(result.loss):
            metrics.write(
                {
                    "step": self.progress.step,
                    "tokens": self.progress.step * self.config.tokens_per_step,
                    "validation_loss": result.loss,
                    "validation_loss_stderr": result.loss_stderr,
                }
            )
        return result

    def _record(self, evaluation: Evaluation | None, reason: str | None, energy: telemetry.EnergyMeter) -> RunRecord:
        config, progress = self.config, self.progress
        tokens = progress.step * config.tokens_per_step
        flops = training_flops(config)
        done = progress.step / config.train_steps
        flops = flops.model_copy(update={name: value * done for name, value in flops.model_dump().items()})
        peak, peak_source = telemetry.peak_flops(self.choice.dtype, self.device)
        devices = self.threads if self.device.type == "cpu" else 1
        count = parameter_count(config.model)
        per_second = progress.seconds or math.nan
        speed = Speed(
            device=telemetry.device_name(self.device),
            dtype=self.choice.dtype,
            dtype_reason=self.choice.reason,
            num_threads=self.threads if self.device.type == "cpu" else None,
            seconds=progress.seconds,
            tokens_per_second=tokens / per_second,
            mfu_causal=flops.causal / per_second / peak,
            mfu_full=flops.full / per_second / peak,
            peak_flops=peak,
            peak_flops_source=peak_source,
            peak_memory_bytes=telemetry.peak_memory_bytes(self.device),
            energy_joules=progress.energy_joules or None,
            energy_source=energy.source,
            device_hours=progress.seconds * devices / 3600,
        )
        backends = {"matmul": self.choice.matmul} | {name: "scaling-lab" for name in self.engine.fused}
        if self.device.type == "cpu" and self.choice.dtype == "float32":
            backends["matmul_max_relative_error"] = f"{matmul.matmul_error():.2e}"
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
            kernels=backends,
            versions=telemetry.versions(),
            host=platform.node(),
            attempts=_attempts(self.run_dir),
            started_at=progress.started_at,
            finished_at=_now(),
        )
