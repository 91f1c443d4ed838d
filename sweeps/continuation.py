"""Continue a sweep: the next cells, by design from its records, as real cells of the grid's family.

`design.json` in the sweep's directory holds every round of added cells, in order, and is only ever appended to. A plan
is the grid's cells and those of the rounds, so that every launch finds them again. The held-out run of the latest round
is kept from the fit; the next round learns from it (its role is then "released") and holds out another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from analysis.proposal import CHOSEN, HELD_OUT
from scaling.accounting import parameter_count
from scaling.config import ModelConfig, explain
from scaling.errors import UserError
from scaling.record import RunRecord, write_json_atomically
from sweeps.attempts import last_error, read_attempts
from sweeps.grid import Cell, Profile, candidates, make_cell
from sweeps.plan import DevicePrice, PlannedCell
from sweeps.results import LAW_FILE, read_law
from sweeps.status import read_cell_record

if TYPE_CHECKING:
    from analysis.sampled import SampledLaw

DESIGN_FILE = "design.json"
#: Unless they are given: the target is this many times the largest compute trained, the budget this many times what the
#: sweep has spent.
TARGET_FACTOR = 10.0
BUDGET_FACTOR = 1.0
_FORM_ERROR = 1e-2
#: The fit behind a design wants a few resamples and uses none.
_RESAMPLES = 10


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AddedCell(_Section):
    """One cell of a round: what the grid's rules need to make it."""

    role: Literal["held-out", "top", "chosen"]
    flops_budget: PositiveFloat
    model: dict[str, Any] = Field(description="model fields of one of the grid's sizes")
    seed: int = Field(ge=0)


class Round(_Section):
    """The cells that one call added, and why."""

    created_at: str = Field(description="ISO 8601, UTC")
    profile: str
    corpus_fingerprint: str
    cells: list[AddedCell] = Field(min_length=1)
    design: dict[str, Any] = Field(description="as `scaling design --json` says it")


class _Rounds(_Section):
    rounds: list[Round]


@dataclass(frozen=True)
class Wish:
    """What a round is for: the target in FLOPs (6ND), and a budget in one of "flops", "gpu_hours" or "usd"."""

    target: float | None = None
    kind: Literal["flops", "gpu_hours", "usd"] = "gpu_hours"
    budget: float | None = None


@dataclass(frozen=True)
class Family:
    """What the cells of a sweep have in common: a profile's models and rules, on a corpus."""

    profile_name: str
    profile: Profile
    corpus: Any  #: a scaling.data PreparedCorpus
    source: str  #: names the grid and profile in error messages

    def cell(self, added: AddedCell, role: str) -> Cell:
        """The run of an added cell. Raises UserError as `make_cell`, and for fields that make no model."""
        try:
            params = parameter_count(ModelConfig.model_validate(added.model)).total
        except ValidationError as error:
            raise UserError(explain(error, f"{DESIGN_FILE}: model {added.model}")) from None
        seed = added.seed
        return make_cell(
            self.profile, self.corpus, added.flops_budget, params, added.model, self.source, seed=seed, role=role
        )

    def cells(self, done: Round, released: bool) -> list[Cell]:
        """The runs of a round; released: whether its held-out run has become one to learn from."""
        return [self.cell(a, "released" if released and a.role == HELD_OUT else a.role) for a in done.cells]

    def own(self, rounds: list[Round]) -> list[Round]:
        """The rounds made for this profile and corpus: those of others are left alone."""
        ours = self.profile_name, self.corpus.fingerprint
        return [done for done in rounds if (done.profile, done.corpus_fingerprint) == ours]

    def with_rounds(self, grid_cells: list[Cell], rounds: list[Round]) -> list[Cell]:
        """The grid's cells, and of the rounds' those that the grid does not have."""
        own = self.own(rounds)
        cells = {cell.config.run_id: cell for cell in grid_cells}
        for done in own:
            for cell in self.cells(done, released=done is not own[-1]):
                cells.setdefault(cell.config.run_id, cell)
        return list(cells.values())


@dataclass(frozen=True)
class Pricing:
    """planned: a cell with its predicted time; devices_each: priced devices of each of its ranks; price: of an hour."""

    planned: Callable[[Cell], PlannedCell]
    devices_each: int
    price: DevicePrice | None

    def cost(self, cell: Cell, kind: str) -> float:
        """What a cell will cost, in the unit of a budget."""
        planned = self.planned(cell)
        if kind == "flops":
            return planned.flops
        hours = planned.seconds * planned.ranks * self.devices_each / 3600
        return hours * self.price.usd_per_device_hour.mid if kind == "usd" else hours


def read_rounds(sweep_dir: Path) -> list[Round]:
    """The rounds of a sweep so far. Raises UserError when design.json cannot be read."""
    path = sweep_dir / DESIGN_FILE
    try:
        return _Rounds.model_validate_json(path.read_text(encoding="utf-8")).rounds
    except (FileNotFoundError, NotADirectoryError):  # the launcher's lock says what is wrong with such a directory
        return []
    except ValidationError as error:
        raise UserError(f"{explain(error, str(path))}; restore the file: it says which cells were added") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it: it says which cells were added") from None


def write_rounds(sweep_dir: Path, rounds: list[Round]) -> None:
    """Write design.json, atomically."""
    write_json_atomically(sweep_dir / DESIGN_FILE, _Rounds(rounds=rounds).model_dump(mode="json"))


def open_cells(sweep_dir: Path, cells: list[Cell]) -> list[Cell]:
    """Those that are still to be trained: without a result, and without an error that ended them."""
    return [
        cell
        for cell in cells
        if read_cell_record(sweep_dir, cell.config.run_id) is None
        and last_error(read_attempts(sweep_dir / cell.config.run_id)) is None
    ]


def design_round(sweep_dir: Path, family: Family, cells: list[Cell], pricing: Pricing, wish: Wish) -> Round:
    """The next round of a sweep whose plan has these cells.

    Raises UserError when there are too few finished runs, for a wish that cannot be fulfilled, and when dollars are
    asked for and no price is known.
    """
    from analysis.design import ignorance
    from analysis.proposal import Space, describe, propose

    if wish.kind == "usd" and pricing.price is None:
        raise UserError("--usd: no price of this device is known: give one with --price")
    records = [read_cell_record(sweep_dir, cell.config.run_id) for cell in cells]
    states = ["open" if record is None else record.status for record in records]
    law = _law(sweep_dir, cells, records)
    noise, runs = law.noise(), law.runs
    start = ignorance(type(law.law), runs.params, runs.tokens, noise=noise.value, form_error=_FORM_ERROR)
    belief = start.learn(runs.params, runs.tokens, runs.loss)
    compute = 6.0 * runs.params * runs.tokens
    target = wish.target or TARGET_FACTOR * float(compute.max())
    if target < compute.min():
        raise UserError(f"--target {target:g}: below the smallest run, of {compute.min():.3g} FLOPs: give a larger one")
    finished = [cell for cell, state in zip(cells, states) if state == "finished"]
    budget, why = wish.budget, ""
    if budget is None:
        budget = BUDGET_FACTOR * sum(pricing.cost(cell, wish.kind) for cell in finished)
        why = f" ({BUDGET_FACTOR:g} x what the {len(finished)} finished cells cost)"
    offers = _Offers(family, pricing, wish.kind, [cell for cell, state in zip(cells, states) if state == "diverged"])
    levels = np.unique([cell.flops_budget for cell in cells])
    # no further off N* than the grid goes, where its rules are meant for
    space = Space(float(compute.min()), offers.sizes, levels, family.profile.design.span)
    waiting = [cell for cell, state in zip(cells, states) if state == "open"]
    found = propose(
        *(belief, target, budget, space, offers.costs),
        (np.array([_params(cell) for cell in waiting]), np.array([float(cell.config.tokens) for cell in waiting])),
    )
    seeds: dict[str, int] = {}
    for cell in cells:
        seeds[_seedless(cell)] = max(cell.config.seed, seeds.get(_seedless(cell), 0))
    added = []
    for role, params, tokens in zip(found.role, found.params, found.tokens):
        cell = offers.cell(params, tokens)
        seed = seeds[_seedless(cell)] = seeds.get(_seedless(cell), cell.config.seed - 1) + 1
        added.append(AddedCell(role=role, flops_budget=cell.flops_budget, model=offers.models[int(params)], seed=seed))
    tokens = [family.cell(one, one.role).config.tokens for one in added]
    usd = pricing.price
    design = describe(
        belief,
        replace(found, tokens=np.array(tokens, np.float64)),  # whole steps
        target_flops=target,
        budget={"kind": wish.kind, "amount": budget, "source": why},
        noise=noise,
        runs_known=len(runs),
        source=str(sweep_dir),
        price=None
        if usd is None
        else {
            "usd_per_device_hour": usd.usd_per_device_hour.mid,
            "device": usd.device,
            "date": usd.date,
            "provider": usd.provider,
        },
    )
    return Round(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        profile=family.profile_name,
        corpus_fingerprint=family.corpus.fingerprint,
        cells=added,
        design=design,
    )


class _Offers:
    """The family's models at any compute, and what each costs."""

    def __init__(self, family: Family, pricing: Pricing, kind: str, diverged: list[Cell]) -> None:
        self._family, self._pricing, self._kind = family, pricing, kind
        self._diverged = {_seedless(cell) for cell in diverged}
        self._known: dict[tuple[int, float], float] = {}
        self.models = dict(candidates(family.profile, family.corpus, family.source))
        self.sizes = np.array(list(self.models), np.float64)

    def cell(self, params: float, tokens: float) -> Cell:
        """The first run of that size at that compute, rounded to three digits so that it has a name."""
        flops = float(f"{6 * params * tokens:.3g}")
        model = self.models[int(params)]
        added = AddedCell(role=CHOSEN, flops_budget=flops, model=model, seed=self._family.profile.seed)
        return self._family.cell(added, added.role)

    def costs(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of cells [n]; infinite where whole steps miss the compute, the text does not last, or one diverged."""
        return np.array([self._cost(*cell) for cell in zip(params.tolist(), tokens.tolist())], np.float64)

    def _cost(self, params: float, tokens: float) -> float:
        key = int(params), float(f"{6 * params * tokens:.3g}")
        if key not in self._known:
            try:
                cell = self.cell(params, tokens)
            except UserError:
                self._known[key] = np.inf
            else:
                epochs = cell.config.tokens / self._family.corpus.train_tokens
                able = epochs <= self._family.profile.max_epochs and _seedless(cell) not in self._diverged
                self._known[key] = self._pricing.cost(cell, self._kind) if able else np.inf
        return self._known[key]


def _law(sweep_dir: Path, cells: list[Cell], records: list[RunRecord | None]) -> "SampledLaw":
    """The law of all runs there are, those that were held out among them, as the sweep's law.json was fitted."""
    from analysis.sampled import sample_law, settings_of

    known = [(cell, record) for cell, record in zip(cells, records) if record is not None]
    if not any(record.status == "finished" for _, record in known):
        raise UserError(
            f"--continue-design: {sweep_dir} has no finished runs to design from: launch the grid without it first"
        )
    columns = {
        "run_id": [cell.config.run_id for cell, _ in known],
        "params": [record.parameters for _, record in known],
        "tokens": [record.tokens for _, record in known],
        "loss": [record.evaluation.loss if record.evaluation else None for _, record in known],
        "flops_budget": [cell.flops_budget for cell, _ in known],
        "status": [record.status for _, record in known],
        "reason": [record.reason for _, record in known],
        "schedule_finished": [record.schedule_finished for _, record in known],
    }
    settings = settings_of(read_law(sweep_dir) or {}, str(sweep_dir / LAW_FILE))
    return sample_law(columns, None, settings, _RESAMPLES, 0)


def _params(cell: Cell) -> float:
    return float(parameter_count(cell.config.model).total)


def _seedless(cell: Cell) -> str:
    """What a cell is but for its seed."""
    return cell.config.model_copy(update={"seed": 0}).run_id
