"""The training loop: from a RunConfig and a corpus to a RunRecord, resumable at any step and under any layout.

Every rank of a run calls `train`. Rank 0 writes the run directory; what all must agree on (norm, loss, whether
somebody asked to stop, whether it is time for a checkpoint) travels in the one message that a step needs anyway.
"""

import math
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, TypeVar

import torch
import torch.distributed as dist

from parallel.kernels import Kernels
from parallel.mesh import Mesh, build_mesh
from parallel.timing import StepTimer
from parallel.watch import Watch
from scaling import precision, telemetry
from scaling.accounting import flops_per_token
from scaling.checkpoint import Checkpointer
from scaling.config import RunConfig, load_config
from scaling.data.corpus import PreparedCorpus, load_corpus
from scaling.data.dataset import TrainBatches, validation_batch
from scaling.engine import Engine, fusing
from scaling.errors import UserError
from scaling.evaluate import evaluate
from scaling.layouts import check_layout
from scaling.metrics import MetricsLog
from scaling.model import attention_fusable
from scaling.optimizer import AdamW
from scaling.record import RESULT_FILE, Evaluation, RunRecord, read_record, write_json_atomically, write_record
from scaling.schedule import learning_rate
from scaling.summary import summarise

T = TypeVar("T")

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
    if corpus.fingerprint != config.data.fingerprint:
        raise UserError(
            f"data.fingerprint = {config.data.fingerprint[:16]}...: the corpus at {corpus.path} is "
            f"{corpus.fingerprint[:16]}...; "
            "point to the corpus of that fingerprint, or make a new run for this one"
        )
    if config.model.vocab_size < corpus.vocab_size:
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}: the corpus has {corpus.vocab_size} token ids; raise "
            f"vocab_size"
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


def _threads(asked: int | None, ranks_here: int) -> int:
    """CPU threads of one rank: as asked, or its share of the cores that this process may use."""
    # macOS cannot say which cores a process may use
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is not None and asked > cores:
        raise UserError(
            f"execution.num_threads = {asked}: this process may use {cores} cores, and more threads only wait for "
            f"each other; set it to at most {cores}, or leave it out"
        )
    return asked or max(1, cores // ranks_here)


def _from_first(mesh: Mesh, value: T) -> T:
    """Rank 0's value, on every rank. Collective."""
    if mesh.world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=mesh.world.ranks[0], group=mesh.world.group)
    return box[0]


def train(
    config: RunConfig,
    run_dir: Path,
    corpus_dir: Path,
    *,
    should_stop: Callable[[], bool] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> RunRecord:
    """Train one run to its end and return its record; resume from the last whole checkpoint.

    Called by every rank of the run's layout, whose process group is connected. A run whose `result.json` is there
    is not trained again. `should_stop` is asked once a step on every rank; `on_step` is given, on rank 0, every
    line that goes to metrics.jsonl.

    Raises Interrupted after saving a checkpoint when some rank's `should_stop` says so, and UserError for a config,
    layout, corpus, directory or disk that cannot work. A loss or gradient that is not finite ends the run with
    the status `diverged`.
    """
    connected = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)
    check_layout(config, ranks)
    ended = (run_dir / RESULT_FILE).exists()
    with Watch(
        config.train_steps,
        rank=rank,
        world_size=ranks,
        store=dist.distributed_c10d._get_default_store() if ranks > 1 else None,
        file=None if ended else run_dir / "heartbeat.json",
        orderly=(Interrupted,),
    ) as watch:
        device = precision.pick_device(config.execution)
        timer = StepTimer(device)
        mesh = build_mesh(config.parallel, device, timer.communication)
        try:
            finished = _from_first(mesh, read_record(run_dir) if rank == 0 else None)
            if finished is not None:
                if finished.run_id != config.run_id:
                    raise UserError(f"{run_dir}: holds the result of run {finished.run_id}, not {config.run_id}")
                return finished
            corpus = load_corpus(corpus_dir)
            _check(config, corpus)
            if rank == 0:
                _open_run(config, run_dir)
            trainer = _Trainer(config, run_dir, corpus, mesh, watch, timer)
            record = trainer.run(should_stop or (lambda: False), on_step or (lambda entry: None))
            if rank == 0:
                write_record(run_dir, record)
            return record
        except OSError as error:
            raise UserError(
                f"{error.filename or run_dir}: cannot be written ({error.strerror}): "
                "free disk space or choose another directory, then start again; the last checkpoint is kept"
            ) from error
        finally:
            mesh.close()


class _Trainer:
    def __init__(
        self, config: RunConfig, run_dir: Path, corpus: PreparedCorpus, mesh: Mesh, watch: Watch, timer: StepTimer
    ):
        self.config, self.run_dir, self.corpus, self.mesh = config, run_dir, corpus, mesh
        self.device, self.watch, self.timer = mesh.device, watch, timer
        self.threads = _threads(config.execution.num_threads, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(self.threads)
        self.batches = TrainBatches(corpus, config.data.seq_length, config.seed, config.global_batch_size)
        self.validation = validation_batch(corpus, config.data.seq_length, config.data.validation_sequences)
        self.progress = Progress()
        self.checkpointer = Checkpointer(run_dir / "checkpoints", config.execution.keep_checkpoints, mesh.world)
        first = mesh.rank == 0
        self.choice = _from_first(mesh, (self._kept_choice() or self._new_choice()) if first else None)
        precision.apply(self.choice, config.execution)
        self.kernels = self._choose_kernels()
        self.engine = Engine(config, self.device, self.choice.dtype, mesh, self.kernels)
        self.optimizer = AdamW(self.engine.storage, config.optimizer, mesh.world, self.kernels)
        self.peak, self.peak_source = _from_first(mesh, telemetry.peak_flops(self.choice.dtype, self.device))
        self.peak_of_all = self.peak * mesh.world.size
        model, length = config.model, config.data.seq_length
        self.flops_per_token = {name: flops_per_token(model, length, name) for name in ("causal", "full")}
        self.sampler = telemetry.GpuSampler(telemetry.Gpu(self.device))
        saved = self.checkpointer.load_latest(self.optimizer.pieces(), _warn)
        if saved is not None:
            self._restore(saved)

    def _kept_choice(self) -> precision.Choice | None:
        """The choice that the run began with, None at its start and where it is no longer possible."""
        path = self.run_dir / "choice.json"
        try:
            kept = precision.Choice.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            _warn(
                f"{path} cannot be read ({type(error).__name__}): choosing anew, so the run goes on to rounding, not "
                f"to the bit"
            )
            return None
        if precision.still_possible(kept, self.config.execution, self.device):
            return kept
        _warn(
            f"{path}: {kept.dtype} with {kept.matmul} on {kept.device} is not possible here: the run goes on to "
            f"rounding, not to the bit"
        )
        return None

    def _new_choice(self) -> precision.Choice:
        config = self.config
        fused = fusing(config, self.device) and attention_fusable(config.model, self.mesh)
        return precision.choose(config.execution, self.device, config.model.hidden_size, fused)

    def _choose_kernels(self) -> Kernels:
        """Rank 0 chooses, as at the start of the run if it can; the others do as it does."""
        execution, kept = self.config.execution, self.choice.kernels
        chosen = None
        if self.mesh.rank == 0:
            chosen = precision.choose_kernels(execution, self.device, self.choice.dtype, kept, _warn)
            self.choice = self.choice.model_copy(update={"kernels": chosen.backends()})
            write_json_atomically(self.run_dir / "choice.json", self.choice.model_dump())
        self.choice = _from_first(self.mesh, self.choice)
        return chosen or precision.choose_kernels(execution, self.device, self.choice.dtype, self.choice.kernels, _warn)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["run_id"] != self.config.run_id:
            raise UserError(
                f"{self.checkpointer.directory}: checkpoints belong to run {state['run_id']}, not {self.config.run_id}"
            )
        self.progress = Progress(**state["progress"])
        self.optimizer.resume(self.progress.step)

    def _save(self, asynchronous: bool = False) -> None:
        state = {"run_id": self.config.run_id, "layout": str(self.config.parallel), "progress": vars(self.progress)}
        self.checkpointer.save(self.progress.step, self.optimizer.pieces(), state, asynchronous)

    def run(self, should_stop: Callable[[], bool], on_step: Callable[[dict[str, Any]], None]) -> RunRecord:
        """The loop; returns the record."""
        metrics = MetricsLog(self.run_dir / "metrics.jsonl", _warn) if self.mesh.rank == 0 else None
        energy = telemetry.EnergyMeter(self.device)
        reason = None
        try:
            self._loop(metrics, energy, should_stop, on_step)
        except _Diverged as error:
            reason = str(error)
        evaluation = None if reason else self._evaluate(metrics)
        if evaluation is not None and not math.isfinite(evaluation.loss):
            evaluation, reason = None, f"validation loss {evaluation.loss} after the last step"
        self.checkpointer.close()
        self.sampler.close()
        if metrics is not None:
            metrics.close()
        record = summarise(self, evaluation, reason, energy)
        return _from_first(self.mesh, record)

    def _loop(self, metrics: MetricsLog | None, energy: telemetry.EnergyMeter, should_stop, on_step) -> None:
        config, progress, engine = self.config, self.progress, self.engine
        before, before_energy = progress.seconds, progress.energy_joules
        start = saved = logged = time.perf_counter()
        logged_step = progress.step
        tail_from = min(math.ceil(config.train_steps * (1 - _TAIL)), config.train_steps - 1)
        interval = config.execution.checkpoint_interval_seconds

        def mark() -> None:
            progress.seconds = before + time.perf_counter() - start
            progress.energy_joules = before_energy + (energy.read() or 0.0)

        def save(asynchronous: bool = False) -> None:
            mark()
            if metrics is not None:
                metrics.sync()
            self._save(asynchronous)

        if progress.step == config.train_steps:
            return  # killed between the last step and the result
        wishes = self._wishes(should_stop(), False)
        self.mesh.world.all_reduce(wishes)
        while progress.step < config.train_steps:
            if wishes[0]:
                save()
                self.checkpointer.close()
                raise Interrupted(f"stopped after step {progress.step} of {config.train_steps}; start again to go on")
            if wishes[1]:
                save(asynchronous=True)
                saved = time.perf_counter()
            self.timer.begin_step()
            rate = learning_rate(config, progress.step)
            loss = engine.forward_backward(self.batches.batch(progress.step))
            due = bool(interval) and self.mesh.rank == 0 and time.perf_counter() - saved > interval
            norm, loss, *wishes = self.optimizer.step(rate, loss, *self._wishes(should_stop(), due))
            self.timer.end_step()
            progress.step += 1
            step = self.watch.step = progress.step
            if step > tail_from:
                progress.tail_loss_sum += float(loss)
                progress.tail_steps += 1
            now = time.perf_counter()
            if step % config.execution.log_interval == 0 or step == config.train_steps:
                per_second = (step - logged_step) * config.tokens_per_step / (now - logged)
                entry = {
                    "step": step,
                    "tokens": step * config.tokens_per_step,
                    "loss": float(loss),
                    "grad_norm": float(norm),
                    "learning_rate": rate,
                    "tokens_per_second": per_second,
                    "mfu_causal": per_second * self.flops_per_token["causal"] / self.peak_of_all,
                    "mfu_full": per_second * self.flops_per_token["full"] / self.peak_of_all,
                    "seconds": before + now - start,
                }
                if self.device.type == "cuda":
                    entry |= self.sampler.read()
                logged, logged_step = now, step
                if not (math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"])):
                    mark()
                    raise _Diverged(
                        f"loss {entry['loss']}, gradient norm {entry['grad_norm']} at step {step}, learning rate "
                        f"{rate:.4g}"
                    )
                if metrics is not None:
                    metrics.write(entry)
                    on_step(entry)
            every = config.execution.evaluation_interval
            if every and step % every == 0 and step < config.train_steps:
                self._evaluate(metrics)
        save()

    def _wishes(self, stop: bool, checkpoint: bool) -> torch.Tensor:
        """[2]: whether this rank wants to stop, and whether it is time for a checkpoint; summed over the ranks."""
        return torch.tensor([stop, checkpoint], dtype=torch.float64, device=self.device)

    def _evaluate(self, metrics: MetricsLog | None) -> Evaluation:
        result = evaluate(self.engine, self.validation, self.corpus.bytes_per_token)
        if math.isfinite(result.loss) and metrics is not None:
            metrics.write(
                {
                    "step": self.progress.step,
                    "tokens": self.progress.step * self.config.tokens_per_step,
                    "validation_loss": result.loss,
                    "validation_loss_stderr": result.loss_stderr,
                }
            )
        return result


if __name__ == "__main__":  # torchrun --nproc-per-node 4 -m scaling.train --config FILE
    from scaling.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
