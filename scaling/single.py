"""Train one run by hand: what `scaling train` does around scaling.train, in one process or as a rank of torchrun."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from scaling.config import RunConfig, build_config, read_yaml
from scaling.data.corpus import QUICKLY_VERIFIED_BYTES, PreparedCorpus, verify_corpus
from scaling.data.prepare import prepare_corpus
from scaling.errors import UserError
from scaling.record import RESULT_FILE, RunRecord
from scaling.signals import stop_requests
from sweeps.attempts import end_attempt, start_attempt
from sweeps.locks import acquire_any, holder

T = TypeVar("T")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_LINE_SECONDS = 2.0
#: A collective waits this long for slow ranks; lost ones are noticed much earlier (parallel/watch.py).
_COLLECTIVE_SECONDS = 1800.0
#: In place of a launch's name in attempts.jsonl.
_BY_HAND = "scaling train"


def _ranks_started() -> int:
    """Number of processes that torchrun says it started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def connected() -> Iterator[bool]:
    """Join the ranks that torchrun started, if it did; yields whether this is the first one, which speaks for all."""
    if _ranks_started() == 1:
        yield True
        return
    import torch.distributed as dist

    from parallel.mesh import connect

    connect(_COLLECTIVE_SECONDS)
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def first_does(first: bool, action: Callable[[], T]) -> T | None:
    """What the first rank's `action` returns, there; None elsewhere. Its UserError is raised on all ranks.
    Collective.
    """
    if _ranks_started() == 1:
        return action()
    import torch.distributed as dist

    result, message = None, None
    if first:
        try:
            result = action()
        except UserError as error:
            message = str(error)
    box = [message]
    dist.broadcast_object_list(box, src=0)
    if box[0] is not None:
        raise UserError(box[0])
    return result


def configure(
    config: Path, overrides: tuple[str, ...], data: str | None, data_dir: Path
) -> tuple[RunConfig, PreparedCorpus]:
    """The run in a YAML file with its corpus, which is prepared unless it is there.

    What the file leaves out about the text (name, fingerprint, tokenizer, vocabulary) is the corpus'
    own. Raises UserError for a field, an override or a text that cannot be used.
    """
    values = read_yaml(config)
    if not isinstance(values, dict):
        raise UserError(f"{config}: must be a mapping of fields, not {type(values).__name__}: see docs/training.md")
    text = values.get("data") if isinstance(values.get("data"), dict) else {}
    named = data_dir / str(text.get("name", "python"))
    if data is not None or not named.is_dir():
        named = prepare_corpus(data or named.name, data_dir).path
    corpus = verify_corpus(named, QUICKLY_VERIFIED_BYTES)
    values["data"] = {
        "name": corpus.name,
        "fingerprint": corpus.fingerprint,
        "tokenizer": corpus.tokenizer,
        **text,
    }
    if isinstance(values.get("model"), dict):
        values["model"] = {"vocab_size": corpus.vocab_size, **values["model"]}
    return build_config(values, str(config), overrides), corpus


def _take(run_dir: Path) -> Callable[[], None]:
    """Lock the run directory as a sweep's workers do and note the attempt; returns what undoes the one and ends the
    other.

    A finished run, which is only read, needs neither. Raises UserError when another process trains there.
    """
    if (run_dir / RESULT_FILE).exists():
        return lambda: None
    path = run_dir / "lock"
    try:
        lock = acquire_any([path], {"pid": os.getpid(), "host": socket.gethostname()})
    except OSError as error:
        raise UserError(
            f"--run-dir {run_dir}: cannot be written to ({error.strerror}): choose another directory"
        ) from None
    if lock is None:
        other = holder(path) or {}
        raise UserError(
            f"--run-dir {run_dir}: pid {other.get('pid', '?')} on {other.get('host', '?')} trains this run: "
            "wait for it, or choose another directory"
        )
    attempt = start_attempt(run_dir, _BY_HAND, pid=os.getpid(), host=socket.gethostname())

    def give_back() -> None:
        end_attempt(run_dir, attempt, _BY_HAND, "finished" if (run_dir / RESULT_FILE).exists() else "interrupted")
        lock.release()

    return give_back


def train_one(
    config: RunConfig, corpus: PreparedCorpus, run_dir: Path, console: Any, first: bool = True
) -> RunRecord | None:
    """Train a run with a progress line now and then on a rich console; returns its record.

    Every rank of the run calls it, inside `connected`; the `first` one locks the directory and prints. None when
    Ctrl-C, SIGTERM or SIGUSR2 stopped it; it has then saved a checkpoint. Raises UserError when another process
    trains in `run_dir`.
    """
    from scaling.train import Interrupted, train

    next_line = 0.0

    def say(line: str) -> None:
        if first:
            console.print(line, soft_wrap=True)

    def show(entry: dict[str, Any]) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line and "loss" in entry:
            next_line = time.monotonic() + _LINE_SECONDS
            say(
                f"step {entry['step']}/{config.train_steps}, loss {entry['loss']:.4f} nats/token, "
                f"learning rate {entry['learning_rate']:.3g}, {entry['tokens_per_second']:,.0f} tokens/s"
            )

    give_back = first_does(first, lambda: _take(run_dir))
    try:
        with stop_requests(_STOPPING, insistent=True) as should_stop:
            record = train(config, run_dir, corpus.path, should_stop=should_stop, on_step=show)
    except Interrupted as stopped:
        say(str(stopped))
        return None
    finally:
        if give_back is not None:
            give_back()
    loss = "no loss" if record.evaluation is None else f"validation loss {record.evaluation.loss:.4f} nats/token"
    say(f"{record.status}: {loss}, {record.speed.seconds:.1f} s, in {run_dir}")
    if record.reason:
        say(record.reason)
    return record
