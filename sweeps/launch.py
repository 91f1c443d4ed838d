"""Plan a grid, train its cells, fit the law, write the report: `python sweeps/launch.py`, or `scaling launch`."""

import sys

if __name__ == "__main__":  # run as a script: hand over to the command line before anything of the lab is imported
    sys.path.pop(0)  # this folder, whose modules must not pass for top-level ones
    try:
        from scaling.cli import main
    except ModuleNotFoundError as error:
        sys.exit(
            f"launch.py: {error.name} is not installed for {sys.executable}: "
            "run `make sweep`, or `pip install -e . -c constraints.txt`"
        )
    sys.exit(main(["launch", *sys.argv[1:]], command="python sweeps/launch.py"))

import os
import signal
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import submitit
from rich.console import Console

from scaling.data.corpus import QUICKLY_VERIFIED_BYTES, PreparedCorpus, verify_corpus
from scaling.data.dataset import validation_batch
from scaling.data.prepare import prepare_corpus
from scaling.errors import UserError
from scaling.record import write_json_atomically
from scaling.signals import stop_requests
from sweeps import display
from sweeps.continuation import Family, Pricing, Round, Wish, design_round, open_cells, read_rounds, write_rounds
from sweeps.executor import check_slurm, make_executor, parse_slurm_options
from sweeps.grid import Cell, Profile, load_grid, make_cells
from sweeps.ladder import lay_out
from sweeps.locks import FileLock, acquire_any, holder
from sweeps.machine import Machine, choose_profile, detect
from sweeps.plan import (
    PLAN_FILE,
    Plan,
    PlannedCell,
    PlannedCorpus,
    Prediction,
    check_budget,
    check_repetition,
    make_plan,
    plan_cell,
    read_plan,
)
from sweeps.prediction import make_predictor
from sweeps.pricing import find_price, training_device
from sweeps.records import CSV_FILE, PARQUET_FILE, collect
from sweeps.results import LAW_FILE, REPORT_FILE, fit_rows, report_rows
from sweeps.status import LAUNCHER_LOCK, read_workers
from sweeps.supervise import Outcome, supervise
from sweeps.worker import Assignment
from sweeps.workers import choose_workers, device_bytes, visible_devices

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class LaunchOptions:
    """What the user asked for; None leaves the choice to the machine or the grid."""

    grid: str = "chinchilla"
    profile: str | None = None
    data: str | None = None
    data_dir: Path = Path("data")
    sweep_dir: Path | None = None
    executor: Literal["auto", "local", "slurm"] = "auto"
    workers: int | None = None
    num_threads: int | None = None
    slurm: tuple[str, ...] = ()
    price: float | None = None  #: US dollars for one device-hour
    max_flops: float | None = None
    max_gpu_hours: float | None = None
    max_usd: float | None = None
    continue_design: Wish | None = None  #: add the runs that tell most about a target
    command: str = "scaling launch"  #: as typed, for the plan and for messages


@dataclass(frozen=True)
class PreparedLaunch:
    """A plan, and what carrying it out needs besides."""

    plan: Plan
    sweep_dir: Path
    machine: Machine
    slurm: dict[str, Any]
    rounds: list[Round]  #: cells that designs have added to the grid's
    obstacle: UserError | None  #: why the plan, though it can be priced, cannot be carried out


def prepare(options: LaunchOptions, console: Console) -> PreparedLaunch:
    """Make the plan: look at the machine, read the grid, prepare the corpus, price the cells.

    Starts no job and writes nothing but the corpus. Raises UserError for a mistake in the options or
    the grid, and for a plan above a budget.
    """
    machine = detect()
    console.print(machine.describe(), soft_wrap=True)
    default_profile, reason = choose_profile(machine)
    grid = load_grid(options.grid)
    name, profile = grid.profile(options.profile, default_profile)
    console.print(f"profile {name}: {'as asked' if options.profile else reason}", soft_wrap=True)
    corpus = prepare_corpus(options.data or profile.corpus, options.data_dir)
    verify_corpus(corpus.path, QUICKLY_VERIFIED_BYTES)
    console.print(
        f"corpus {corpus.name}: {corpus.train_tokens:,} training tokens ({corpus.tokenizer}), "
        f"fingerprint {corpus.fingerprint[:16]}, in {corpus.path}",
        soft_wrap=True,
    )
    sweep_dir = (options.sweep_dir or Path("runs") / grid.name).resolve()
    family = Family(name, profile, corpus, f"grid {options.grid}, profile {name}")
    grid_cells, rounds = make_cells(profile, corpus, family.source), read_rounds(sweep_dir)
    cells = family.with_rounds(grid_cells, rounds)
    slurm = {**profile.slurm, **parse_slurm_options(options.slurm)}
    ranks = max(profile.ranks_per_cell, *(cell.config.parallel.world_size for cell in cells))
    workers = choose_workers(
        machine,
        profile,
        len(cells),
        executor=options.executor,
        count=options.workers,
        num_threads=options.num_threads,
        slurm=slurm,
        ranks=ranks,
    )
    if workers.executor == "slurm":
        check_slurm(slurm)
    count = "1 worker" if workers.count == 1 else f"{workers.count} workers"
    console.print(f"{workers.executor} executor, {count}: {workers.reason}", soft_wrap=True)
    device = training_device(workers, machine, profile)
    memory = device_bytes(machine, profile, workers)
    price, warnings = find_price(workers, device, options.price)
    planned_corpus = PlannedCorpus(
        name=corpus.name,
        path=corpus.path.resolve(),
        source=corpus.source,
        fingerprint=corpus.fingerprint,
        train_tokens=corpus.train_tokens,
    )
    if options.continue_design is not None:
        predictor = make_predictor(workers, device, corpus.path, sweep_dir.parent, set())

        def planned(cell: Cell) -> PlannedCell:
            (laid_out,), _ = lay_out([cell], profile.ranks_per_cell, memory, workers, predictor.step_seconds)
            return plan_cell(laid_out, planned_corpus, workers, predictor.predict, {})

        pricing = Pricing(planned, workers.devices_each, price)
        rounds = _next_round(sweep_dir, family, cells, rounds, pricing, options.continue_design, console)
        cells = family.with_rounds(grid_cells, rounds)
    predictor = make_predictor(workers, device, corpus.path, sweep_dir.parent, {cell.config.run_id for cell in cells})
    cells, tight = lay_out(cells, profile.ranks_per_cell, memory, workers, predictor.step_seconds)
    plan = make_plan(
        grid=grid.name,
        profile_name=name,
        profile=profile,
        cells=cells,
        corpus=planned_corpus,
        machine=machine.describe(),
        command=options.command,
        workers=workers,
        price=price,
        warnings=[*warnings, *predictor.warnings, *tight],
        predict=predictor.predict,
        prediction=predictor.source,
        made_before=_predictions_of_begun(sweep_dir),
    )
    check_budget(plan, options.max_flops, options.max_gpu_hours, options.max_usd)
    return PreparedLaunch(plan, sweep_dir, machine, slurm, rounds, _obstacle(plan, profile, corpus, machine))


def _predictions_of_begun(sweep_dir: Path) -> dict[str, Prediction]:
    """run_id -> what an earlier plan predicted of a cell that has begun since: what is known later is no prediction."""
    try:
        earlier = read_plan(sweep_dir)
    except UserError:  # none, or one that this launch replaces
        return {}
    return {cell.run_id: cell.prediction for cell in earlier.cells if (sweep_dir / cell.run_id).is_dir()}


def _next_round(
    sweep_dir: Path,
    family: Family,
    cells: list[Cell],
    rounds: list[Round],
    pricing: Pricing,
    wish: Wish,
    console: Console,
) -> list[Round]:
    """The rounds with one more; as they are while cells of the latest are still to be trained."""
    from analysis.design_text import design_lines

    own = family.own(rounds)
    waiting = open_cells(sweep_dir, family.cells(own[-1], released=False)) if own else []
    if waiting:
        console.print(
            f"round {len(own)} of the design has {len(waiting)} of {len(own[-1].cells)} cells left to train: it goes "
            "on, and no further one is added",
            soft_wrap=True,
        )
        return rounds
    new = design_round(sweep_dir, family, cells, pricing, wish)
    console.print(f"round {len(own) + 1} of the design")
    for line in design_lines(new.design):
        console.print(line, soft_wrap=True)
    return [*rounds, new]


def launch(prepared: PreparedLaunch, options: LaunchOptions, console: Console) -> dict[str, Any]:
    """Train what the plan lacks, then collect, fit and report; a summary as plain data.

    Raises UserError when the plan cannot be carried out, and when another launcher works on the
    directory.
    """
    if prepared.obstacle is not None:
        raise prepared.obstacle
    plan, sweep_dir = prepared.plan, prepared.sweep_dir
    lock = _lock_sweep(sweep_dir, options.command)
    try:
        if prepared.rounds:
            write_rounds(sweep_dir, prepared.rounds)  # before the plan, which is made from them
        write_json_atomically(sweep_dir / PLAN_FILE, plan.model_dump(mode="json"))
        outcome = _train(prepared, console)
        summary = {"sweep_dir": str(sweep_dir), "cells": outcome.status.counts}
        summary |= _finish(sweep_dir, outcome, options, console)
        return summary
    finally:
        lock.release()


def _train(prepared: PreparedLaunch, console: Console) -> Outcome:
    plan, workers, sweep_dir = prepared.plan, prepared.plan.workers, prepared.sweep_dir
    left_behind = read_workers(sweep_dir)
    if left_behind:
        names = ", ".join(f"pid {worker.get('pid')} on {worker.get('host')}" for worker in left_behind)
        console.print(f"joining {len(left_behind)} workers of an earlier launch ({names})", soft_wrap=True)
    assignment = Assignment(
        sweep_dir=sweep_dir,
        corpus_dir=plan.corpus.path,
        launch=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        slots=workers.slots,
        num_threads=workers.num_threads,
        ranks_per_node=workers.ranks_per_node,
        devices=visible_devices(workers, prepared.machine),
    )

    def executor(ranks: int) -> submitit.AutoExecutor:
        return make_executor(
            workers.executor,
            sweep_dir,
            num_threads=workers.num_threads,
            num_gpus=len(assignment.devices),
            slurm=prepared.slurm,
            ranks=ranks,
            ranks_per_node=workers.ranks_per_node,
        )

    with (
        stop_requests(_STOPPING, insistent=True) as should_stop,
        display.ProgressDisplay(console, plan).running() as progress,
    ):
        return supervise(plan, assignment, executor, should_stop, progress.show)


def _finish(sweep_dir: Path, outcome: Outcome, options: LaunchOptions, console: Console) -> dict[str, Any]:
    """Collect, fit and report what there is, and say how the launch ended."""
    table = collect(sweep_dir)
    summary: dict[str, Any] = {
        "interrupted": outcome.interrupted,
        "trouble": outcome.trouble,
        "failed": [row for row in table.rows if row["status"] == "failed"],
        "law": None,
        "report": None,
    }
    if outcome.interrupted:
        counts = outcome.status.counts
        console.print(
            f"stopped: {counts['finished']} of {len(table.rows)} cells are finished, {counts['interrupted']} have "
            f"begun and keep their last checkpoint; to go on: {options.command}",
            soft_wrap=True,
        )
        return summary
    display.show_results(console, table.rows)
    display.show_predictions_held(console, outcome.status.predictions)
    if table.left_out:
        console.print(
            f"{table.left_out} finished runs in {sweep_dir} are not in this plan, and left out", soft_wrap=True
        )
    for problem in table.damaged:
        console.print(f"damaged: {problem}", style="red", soft_wrap=True)
    try:
        summary["law"] = fit_rows(sweep_dir, table)
        display.show_law(console, summary["law"])
    except UserError as error:
        console.print(f"no law was fitted: {error}", soft_wrap=True)
    summary["report"] = str(report_rows(sweep_dir, table))
    for name in (REPORT_FILE, LAW_FILE, CSV_FILE, PARQUET_FILE):
        if (sweep_dir / name).exists():
            console.print(f"wrote {os.path.relpath(sweep_dir / name)}", soft_wrap=True)
    display.show_failures(console, sweep_dir, outcome.status, outcome.trouble, options.command)
    return summary


def _lock_sweep(sweep_dir: Path, command: str) -> FileLock:
    """The launcher's lock on the directory, which is made unless it is there.

    Raises UserError naming the launcher that holds it, and for a directory that cannot be written to.
    """
    path = sweep_dir / LAUNCHER_LOCK
    me = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    try:
        lock = acquire_any([path], me)
    except OSError as error:
        raise UserError(
            f"--sweep-dir {sweep_dir}: cannot be written to ({error.strerror}): choose another directory"
        ) from None
    if lock is None:
        other = holder(path) or {}
        raise UserError(
            f"{sweep_dir}: another launcher is at work: pid {other.get('pid', '?')} on {other.get('host', '?')} "
            f"since {other.get('started_at', '?')} ({other.get('command', '?')}): "
            "wait for it, or stop it with Ctrl-C or SIGTERM"
        )
    return lock


def _obstacle(plan: Plan, profile: Profile, corpus: PreparedCorpus, machine: Machine) -> UserError | None:
    """Why the plan cannot be carried out with this corpus on this machine, None when it can."""
    if profile.gpu is not None and plan.workers.executor == "local" and not machine.gpus:
        return UserError(
            f"profile {plan.profile} needs a GPU, and there is none ({machine.gpu_reason}): "
            "choose --profile laptop, or --executor slurm"
        )
    try:
        check_repetition(plan, profile.max_epochs)
        for cell in plan.cells[:1]:
            validation_batch(corpus, cell.seq_length, cell.config.data.validation_sequences)
    except UserError as error:
        return error
    return None
