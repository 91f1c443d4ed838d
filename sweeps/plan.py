"""A plan: a grid's cells with what each costs in parameters, tokens, FLOPs, time and money.

`plan.json` in the sweep's directory is the plan that was launched; workers take their cells from
it, status and collect hold the directory against it. Imports no torch.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.cost.energy import TYPICAL_PUE
from analysis.cost.interval import Interval, product
from scaling.accounting import parameter_count, training_flops
from scaling.config import ExecutionConfig, RunConfig, explain
from scaling.errors import UserError
from sweeps.grid import Cell, Profile

PLAN_FILE = "plan.json"
PLAN_VERSION = 2


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prediction(_Section):
    """What a run will need, predicted before it began; 90 % intervals."""

    training_seconds: Interval = Field(description="in the training loop: what a record's speed.seconds measures")
    seconds: Interval = Field(description="wall time, with start and last evaluation")
    peak_memory_bytes: Interval = Field(description="of the rank that needs most: tensors of a GPU, a CPU's process")
    energy_kwh: Interval | None = Field(None, description="at the building's meter; null where power is not known")
    energy_joules: Interval | None = Field(None, description="what the GPUs' own counters show while it trains")


class PlannedCell(_Section):
    """One cell, priced."""

    cell: str
    run_id: str
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    params: int = Field(description="with embeddings")
    params_non_embedding: int
    tokens: int = Field(description="training tokens, repeats included")
    epochs: float = Field(description="tokens / training tokens of the corpus")
    train_steps: int
    global_batch_size: int = Field(description="sequences per step")
    seq_length: int
    learning_rate: float
    flops_budget: float
    role: str = Field("grid", description="grid, or why a design added it: held-out, top, chosen, or released")
    flops: float = Field(description="6 x params x tokens")
    flops_causal: float
    flops_full: float
    flops_hardware: float
    prediction: Prediction = Field(description="under the layout in config.parallel")
    layout_reason: str = Field(description="why it is trained under that layout")
    config: RunConfig

    @property
    def seconds(self) -> float:
        """Predicted wall time."""
        return self.prediction.seconds.value

    @property
    def ranks(self) -> int:
        """Processes that train it."""
        return self.config.parallel.world_size


class Dollars(_Section):
    """The price of something, between the lowest and the highest quote."""

    low: float
    mid: float
    high: float


class DevicePrice(_Section):
    """What one device costs for an hour."""

    device: str = Field(description="what is priced: a GPU, or one CPU core")
    usd_per_device_hour: Dollars
    date: str
    provider: str
    source: str


class PlannedCorpus(_Section):
    """The text that all cells train on."""

    name: str
    path: Path
    source: str
    fingerprint: str
    train_tokens: int


class Workers(_Section):
    """How the cells are spread over the machine."""

    executor: Literal["local", "slurm"]
    count: int
    num_threads: int = Field(description="CPU threads of each process")
    device: Literal["cpu", "cuda"]
    reason: str
    ranks_per_cell: int = Field(1, description="processes that train the widest cell")
    ranks_per_node: int = Field(1, description="processes that one node has room for")

    @property
    def slots(self) -> int:
        """Processes at once: a worker on a cell of n ranks takes n slots."""
        return self.count * self.ranks_per_cell

    @property
    def devices_each(self) -> int:
        """Priced devices that one process keeps busy: its GPU, or its CPU cores."""
        return 1 if self.device == "cuda" else self.num_threads


class Totals(_Section):
    """Sums over all cells, finished or not.

    Intervals are sums of the cells' bounds, since what the prediction gets wrong it mostly gets wrong for all of them;
    that of dollars holds the range of prices as well.
    """

    cells: int
    tokens: int
    flops: float
    flops_causal: float
    flops_full: float
    flops_hardware: float
    hours: Interval = Field(description="predicted wall time on all workers, 0 to the last cell")
    device_hours: Interval = Field(description="predicted hours of GPUs, or of CPU cores on a CPU")
    energy_kwh: Interval | None = Field(description="at the building's meter; null where power is not known")
    usd: Interval | None


class Plan(_Section):
    """The cells of a sweep and what they cost."""

    plan_version: Literal[2] = PLAN_VERSION
    grid: str
    profile: str
    description: str
    created_at: str = Field(description="ISO 8601, UTC")
    command: str = Field(description="what started it, and starts it again")
    machine: str
    workers: Workers
    corpus: PlannedCorpus
    price: DevicePrice | None = Field(description="null when no price of the device is known")
    prediction: str = Field(description="what the predicted times rest on")
    conventions: dict[str, str]
    warnings: list[str]
    cells: list[PlannedCell]
    totals: Totals

    @property
    def device_name(self) -> str:
        """What a device-hour counts, for people."""
        return "GPU" if self.workers.device == "cuda" else "CPU core"


_CONVENTIONS = {
    "params": "all parameters, embeddings included, tied weights counted once",
    "params_non_embedding": "without token and position embeddings and an untied output layer",
    "flops": "6 x params x tokens",
    "flops_causal": "matrix products, with the causal half of attention; forward and backward",
    "flops_full": "matrix products, with full attention; forward and backward",
    "flops_hardware": "full, plus recomputation",
    "device_hours": "hours of GPUs, or of CPU cores where there is no GPU",
    "energy_kwh": "GPUs with their share of the node, x PUE "
    f"{TYPICAL_PUE.value} ({TYPICAL_PUE.low} to {TYPICAL_PUE.high})",
    "usd": "US dollars: device-hours x price; no storage, no idle time, no failures",
    "intervals": "low to high holds 90 % of measurements; of a total, if all cells err alike",
}


def make_plan(
    *,
    grid: str,
    profile_name: str,
    profile: Profile,
    cells: list[Cell],
    corpus: PlannedCorpus,
    machine: str,
    command: str,
    workers: Workers,
    price: DevicePrice | None,
    warnings: list[str],
    predict: Callable[[RunConfig], Prediction],
    prediction: str,
    made_before: Mapping[str, Prediction],
) -> Plan:
    """Price a grid's cells. `predict` tells what a run needs, and `prediction` what that rests on.

    The cells' execution section gets the workers' device and threads. made_before: run_id -> prediction of cells that
    have begun, which is kept.
    """
    planned = [plan_cell(cell, corpus, workers, predict, made_before) for cell in cells]
    device_hours = _total([cell.prediction.seconds.scaled(cell.ranks) for cell in planned])
    device_hours = device_hours.scaled(workers.devices_each / 3600)
    energies = [cell.prediction.energy_kwh for cell in planned]
    return Plan(
        grid=grid,
        profile=profile_name,
        description=profile.description,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=machine,
        workers=workers,
        corpus=corpus,
        price=price,
        prediction=prediction,
        conventions=_CONVENTIONS,
        warnings=[*warnings, *_repetition(planned, corpus)],
        cells=planned,
        totals=Totals(
            cells=len(planned),
            tokens=sum(cell.tokens for cell in planned),
            flops=sum(cell.flops for cell in planned),
            flops_causal=sum(cell.flops_causal for cell in planned),
            flops_full=sum(cell.flops_full for cell in planned),
            flops_hardware=sum(cell.flops_hardware for cell in planned),
            hours=_span(planned, workers.slots),
            device_hours=device_hours,
            energy_kwh=None if None in energies else _total(energies),
            usd=_dollars(device_hours, price),
        ),
    )


def plan_cell(
    cell: Cell,
    corpus: PlannedCorpus,
    workers: Workers,
    predict: Callable[[RunConfig], Prediction],
    made_before: Mapping[str, Prediction],
) -> PlannedCell:
    """One cell, priced; its execution section gets the workers' device and threads."""
    config = cell.config
    execution = {"device": workers.device, "num_threads": workers.num_threads}
    execution = ExecutionConfig.model_validate({**config.execution.model_dump(), **execution})
    config = config.model_copy(update={"execution": execution})
    count, flops = parameter_count(config.model), training_flops(config)
    return PlannedCell(
        cell=cell.cell,
        run_id=config.run_id,
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        num_attention_heads=config.model.num_attention_heads,
        params=count.total,
        params_non_embedding=count.non_embedding,
        tokens=config.tokens,
        epochs=config.tokens / corpus.train_tokens,
        train_steps=config.train_steps,
        global_batch_size=config.global_batch_size,
        seq_length=config.data.seq_length,
        learning_rate=config.optimizer.learning_rate,
        flops_budget=cell.flops_budget,
        role=cell.role,
        flops=flops.c_6nd,
        flops_causal=flops.causal,
        flops_full=flops.full,
        flops_hardware=flops.hardware,
        prediction=made_before.get(config.run_id) or predict(config),
        layout_reason=cell.layout_reason,
        config=config,
    )


def _total(parts: list[Interval]) -> Interval:
    return Interval(*(math.fsum(getattr(part, end) for part in parts) for end in ("value", "low", "high")))


def _span(cells: list[PlannedCell], slots: int) -> Interval:
    """Hours from the first start to the last end."""

    def hours(end: str) -> float:
        return makespan([(getattr(cell.prediction.seconds, end), cell.ranks) for cell in cells], slots) / 3600

    return Interval(hours("value"), hours("low"), hours("high"))


def _dollars(device_hours: Interval, price: DevicePrice | None) -> Interval | None:
    if price is None:
        return None
    each = price.usd_per_device_hour
    return product(device_hours, Interval(each.mid, each.low, each.high))


def makespan(tasks: Iterable[tuple[float, int]], slots: int) -> float:
    """Wall time of (length, slots needed) tasks, the longest first, each on the slots that are free first.

    In the unit of the lengths. A task that needs more slots than there are takes all.
    """
    busy = [0.0] * max(slots, 1)
    for length, width in sorted(tasks, reverse=True):
        taken = [heapq.heappop(busy) for _ in range(min(width, len(busy)))]
        for _ in taken:
            heapq.heappush(busy, taken[-1] + length)
    return max(busy)


def _repetition(cells: list[PlannedCell], corpus: PlannedCorpus) -> list[str]:
    repeated = [cell for cell in cells if cell.epochs > 1]
    if not repeated:
        return []
    most = max(repeated, key=lambda cell: cell.epochs)
    return [
        f"{len(repeated)} of {len(cells)} cells see the text more than once: cell {most.cell} needs {most.tokens:,} "
        f"tokens, {most.epochs:.3g} epochs of the {corpus.train_tokens:,} in corpus {corpus.name}; repeated text is "
        "worth less than new text, so give a larger corpus with --data"
    ]


def check_repetition(plan: Plan, max_epochs: float) -> None:
    """Raise UserError when a cell repeats the text more often than the profile allows."""
    most = max(plan.cells, key=lambda cell: cell.epochs)
    if most.epochs > max_epochs:
        raise UserError(
            f"cell {most.cell} needs {most.tokens:,} tokens, {most.epochs:.3g} epochs of the "
            f"{plan.corpus.train_tokens:,} in corpus {plan.corpus.name}, and profile {plan.profile} allows "
            f"max_epochs = {max_epochs:g}: give a larger corpus with --data, lower the budgets, or raise max_epochs"
        )


def check_budget(
    plan: Plan, max_flops: float | None = None, max_gpu_hours: float | None = None, max_usd: float | None = None
) -> None:
    """Raise UserError when the whole plan costs more than a limit, naming both numbers.

    FLOPs are 6ND; GPU hours are hours of CPU cores on a CPU; what counts is the predicted value, not its bounds, and
    dollars are at the mid price.
    """
    totals = plan.totals
    if max_usd is not None and (plan.price is None or totals.usd is None):
        raise UserError(f"--max-usd {max_usd:g}: no price of a {plan.device_name} hour is known: give one with --price")
    limits = (
        ("--max-flops", max_flops, totals.flops, "FLOPs (6ND)"),
        ("--max-gpu-hours", max_gpu_hours, totals.device_hours.value, f"predicted {plan.device_name} hours"),
        (
            "--max-usd",
            max_usd,
            totals.usd and totals.usd.value,
            f"US dollars at the mid price of {plan.price and plan.price.date}",
        ),
    )
    for option, limit, cost, unit in limits:
        if limit is not None and cost > limit:
            raise UserError(
                f"{option} {limit:g}: the plan's {len(plan.cells)} cells cost {cost:.4g} {unit}, "
                "so nothing was started: raise the limit or choose a smaller grid or profile"
            )


def read_plan(sweep_dir: Path) -> Plan:
    """The plan that was launched in a sweep's directory.

    Raises UserError when there is none, or none that can be read.
    """
    path = sweep_dir / PLAN_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{sweep_dir}: holds no sweep ({PLAN_FILE} is missing): give the directory of a launch"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it, or launch the grid again") from None
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        if any(item["loc"] == ("plan_version",) for item in error.errors()):
            raise UserError(f"{path}: was written by another version: launch the grid again to rewrite it") from None
        raise UserError(f"{explain(error, str(path))}; launch the grid again to rewrite it") from None
