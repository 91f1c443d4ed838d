"""A grid: which cells a sweep trains. YAML in, RunConfigs out; imports no torch.

A grid file holds named profiles, one for each kind of machine. A profile is an IsoFLOP design
(budgets x sizes) and rules that give the hyperparameters of a cell from its size and horizon.
"""

import fnmatch
import math
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from scaling.accounting import parameter_count
from scaling.config import ModelConfig, RunConfig, build_config, explain, read_yaml
from scaling.errors import UserError
from scaling.layouts import check_layout
from scaling.presets import PRESETS, get_preset

GRIDS = Path(__file__).parent / "grids"

#: The FLOPs of a cell may miss its budget by this fraction, because a run has whole steps.
BUDGET_TOLERANCE = 0.05


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rule(_Section):
    """coefficient x params^params_exponent x tokens^tokens_exponent, kept within [minimum, maximum].

    `params` counts embeddings; `tokens` is the training horizon of the cell.
    """

    coefficient: PositiveFloat
    params_exponent: float = 0.0
    tokens_exponent: float = 0.0
    minimum: PositiveFloat
    maximum: PositiveFloat
    source: str = Field(min_length=1, description="where the rule comes from")

    @model_validator(mode="after")
    def _consistent(self) -> "Rule":
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum:g} is above maximum = {self.maximum:g}: swap them")
        return self

    def __call__(self, params: float, tokens: float) -> float:
        """The rule's value for one cell."""
        try:
            value = self.coefficient * params**self.params_exponent * tokens**self.tokens_exponent
        except OverflowError:
            value = math.inf
        return min(max(value, self.minimum), self.maximum)


class StepsRule(_Section):
    """A stretch of the schedule: a fraction of the steps, at least `minimum_steps`, at most what is left."""

    fraction: float = Field(ge=0, le=1)
    minimum_steps: int = Field(0, ge=0)
    source: str = Field(min_length=1)

    def __call__(self, train_steps: int, left: int) -> int:
        """Steps, for a run of `train_steps` of which `left` are to be had."""
        return min(max(round(self.fraction * train_steps), self.minimum_steps), left)


class Rules(_Section):
    """Hyperparameters of a cell as functions of its size and horizon."""

    learning_rate: Rule
    global_batch_size: Rule = Field(description="sequences per step; rounded to a power of two")
    warmup: StepsRule
    decay: StepsRule | None = Field(None, description="the final decay, for the wsd schedule")


class Optimum(_Section):
    """The expected compute-optimal size: params = coefficient x FLOPs^exponent (6ND, with embeddings)."""

    coefficient: PositiveFloat
    exponent: PositiveFloat
    source: str = Field(min_length=1)


class IsoFlop(_Section):
    """Budgets, and for each the sizes nearest to a log-spaced ladder around the expected optimum."""

    kind: Literal["isoflop"] = "isoflop"
    flops_budgets: list[PositiveFloat] = Field(description="training FLOPs: 6 x params with embeddings x tokens")
    sizes: list[dict[str, Any]] = Field(default=[], description="model fields of each candidate size")
    presets: list[str] = Field(default=[], description="candidate sizes by preset name; * matches any text")
    sizes_per_budget: PositiveInt
    span: float = Field(gt=1, description="the ladder runs from optimum / span to optimum x span")
    expected_optimum: Optimum

    @model_validator(mode="after")
    def _not_empty(self) -> "IsoFlop":
        if not self.flops_budgets:
            raise ValueError("flops_budgets is empty, so the grid has no cells: list at least one budget")
        if not self.sizes and not self.presets:
            raise ValueError("sizes and presets are empty, so the grid has no cells: list candidate sizes")
        return self


class Profile(_Section):
    """A grid for one kind of machine."""

    description: str = ""
    corpus: str = Field("python", description="what is trained on: python, synthetic, a file or a folder")
    gpu: str | None = Field(None, description="trains on GPUs; priced on this one where the machine at hand has none")
    max_epochs: PositiveFloat = Field(
        4.0,
        description="refuse cells that repeat the text more often; up to 4 epochs, repeated text is nearly as good as "
        "new text (Muennighoff et al. 2023, arXiv:2305.16264)",
    )
    model: dict[str, Any] = Field(default={}, description="model fields shared by all sizes")
    data: dict[str, Any] = Field(description="seq_length, validation_sequences")
    optimizer: dict[str, Any] = Field(default={}, description="optimizer fields but for the learning rate")
    schedule: dict[str, Any] = Field(default={}, description="schedule fields but for the lengths")
    execution: dict[str, Any] = Field(default={}, description="execution fields; the launcher sets device and threads")
    seed: int = Field(1234, ge=0)
    slurm: dict[str, Any] = Field(
        default={}, description="parameters of Submitit's slurm executor, for a job of one rank (one GPU)"
    )
    ranks_per_cell: PositiveInt = Field(
        1, description="processes (GPUs, or CPU threads) that train one cell; fewer where its batch cannot be divided"
    )
    ranks_per_node: PositiveInt = Field(8, description="on a cluster: processes of one node, where tensor ranks stay")
    device_memory_gib: PositiveFloat | None = Field(None, description="of each GPU; default what this machine's have")
    parallel: dict[str, dict[str, Any]] = Field(
        default={}, description="cell name (* matches any text) -> its layout, instead of a chosen one; the first wins"
    )
    design: IsoFlop
    rules: Rules

    @model_validator(mode="after")
    def _rules_alone(self) -> "Profile":
        ruled = [("optimizer", "learning_rate", "learning_rate"), ("schedule", "warmup_steps", "warmup")]
        ruled += [("schedule", "decay_steps", "decay")] if self.rules.decay else []
        for section, name, rule in ruled:
            if name in (fields := getattr(self, section)):
                raise ValueError(f"{section}.{name} = {fields[name]!r}: rules.{rule} gives it: remove it here")
        return self


class Grid(_Section):
    """A grid file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the sweep's directory")
    description: str = ""
    profiles: dict[str, Profile]

    @model_validator(mode="after")
    def _not_empty(self) -> "Grid":
        if not self.profiles:
            raise ValueError("profiles is empty, so the grid has no cells: add a profile")
        return self

    def profile(self, name: str | None, default: str) -> tuple[str, Profile]:
        """The profile called `name`; without a name `default`, or the only one there is.

        Raises UserError for a name that the grid lacks.
        """
        if name is None and default not in self.profiles and len(self.profiles) == 1:
            name = next(iter(self.profiles))
        chosen = name or default
        if chosen not in self.profiles:
            raise UserError(unknown("--profile", chosen, self.profiles, f"grid {self.name} has"))
        return chosen, self.profiles[chosen]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    cell: str  #: a short name for people, such as 4e+11-L2-h32
    flops_budget: float
    config: RunConfig
    layout_given: bool = False  #: by the grid; otherwise the launcher chooses one
    layout_reason: str = ""  #: why the launcher chose it
    role: str = "grid"  #: or why a design added it, see sweeps.continuation


def unknown(option: str, value: str, choices: Any, having: str) -> str:
    """One line for a name that does not exist, with the nearest that do."""
    close = get_close_matches(value, list(choices), n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{option} {value}: there is none of that name; {meant}{having} {', '.join(sorted(choices))}"


def builtin_grids() -> dict[str, Path]:
    """The grids that come with the lab, by name."""
    return {path.stem: path for path in sorted(GRIDS.glob("*.yaml"))}


def load_grid(name_or_path: str) -> Grid:
    """A grid by its name or by the path of its YAML file.

    Raises UserError naming the file, the field and the remedy.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        grids = builtin_grids()
        if name_or_path not in grids:
            raise UserError(unknown("--grid", name_or_path, grids, "a FILE.yaml or one of"))
        path = grids[name_or_path]
    values = read_yaml(path)
    if not isinstance(values, dict):
        found = "empty" if values is None else f"a {type(values).__name__}"
        raise UserError(
            f"{path}: must be a mapping with name and profiles, and is {found}: see {GRIDS}/chinchilla.yaml"
        )
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, str(path))) from None


def make_cells(profile: Profile, corpus: Any, source: str) -> list[Cell]:
    """The cells of a profile on a corpus, by budget and then by size.

    `corpus` is a scaling.data PreparedCorpus (name, fingerprint, tokenizer and vocab_size are used);
    `source` names the grid and profile in error messages. Raises UserError for a field that makes no
    valid run, for a size that no budget can pay, and for too few candidate sizes.
    """
    family = candidates(profile, corpus, source)
    cells: dict[str, Cell] = {}
    for budget in sorted(profile.design.flops_budgets):
        for params, model in _nearest(profile.design, budget, family, source):
            cell = make_cell(profile, corpus, budget, params, model, source)
            same = cells.setdefault(cell.config.run_id, cell)
            if same is not cell:
                raise UserError(
                    f"{source}: cells {same.cell} and {cell.cell} are the same run: space the budgets wider"
                )
    for pattern in profile.parallel:
        names = [cell.cell for cell in cells.values()]
        if not fnmatch.filter(names, pattern):
            raise UserError(unknown(f"{source}: parallel", pattern, names, "cells are"))
    return list(cells.values())


def candidates(profile: Profile, corpus: Any, source: str) -> list[tuple[int, dict[str, Any]]]:
    """(params with embeddings, model fields) of each candidate size, the smallest first; errors as in `make_cells`."""
    design = profile.design
    models = [{"vocab_size": corpus.vocab_size, **profile.model, **size} for size in design.sizes]
    for pattern in design.presets:
        names = fnmatch.filter(PRESETS, pattern) if "*" in pattern else [pattern]
        if not names:
            raise UserError(unknown(f"{source}: design.presets", pattern, PRESETS, "presets are"))
        models += [{**get_preset(name).model_dump(), **profile.model} for name in names]
    pairs = []
    for fields in models:
        try:
            model = ModelConfig.model_validate(fields)
        except ValidationError as error:
            raise UserError(explain(error, f"{source}: size {fields}")) from None
        if model.vocab_size < corpus.vocab_size:
            raise UserError(
                f"{source}: model.vocab_size = {model.vocab_size} is smaller than the {corpus.vocab_size} tokens of "
                f"corpus {corpus.name}: raise it or leave it out"
            )
        pairs.append((parameter_count(model).total, fields))
    return sorted(pairs, key=lambda pair: pair[0])


def _nearest(
    design: IsoFlop, budget: float, candidates: list[tuple[int, dict[str, Any]]], source: str
) -> list[tuple[int, dict[str, Any]]]:
    """For each rung of the budget's ladder the nearest candidate, in log params, that is not taken yet.

    A candidate further away than the next rung would leave a hole in the ladder, which is an error.
    """
    expected = design.expected_optimum
    try:
        optimum = expected.coefficient * budget**expected.exponent
    except OverflowError:
        raise UserError(
            f"{source}: design.expected_optimum.exponent = {expected.exponent:g} makes the optimum at budget "
            f"{budget:.3g} infinite: lower it; about 0.5 is usual"
        ) from None
    count = design.sizes_per_budget
    spacing = 2 * math.log(design.span) / max(count - 1, 1)
    rungs = [math.log(optimum / design.span) + spacing * rung for rung in range(count)]
    free = dict(enumerate(math.log(params) for params, _ in candidates))
    chosen = []
    for rung in rungs if count > 1 else [math.log(optimum)]:
        nearest = min(free, key=lambda i: abs(free[i] - rung), default=None)
        if nearest is None or abs(free[nearest] - rung) > spacing:
            raise UserError(
                f"{source}: design has no candidate size near {math.exp(rung):.3g} parameters, where budget "
                f"{budget:.3g} with sizes_per_budget = {count} needs one: add a size, or lower sizes_per_budget"
            )
        chosen.append(nearest)
        del free[nearest]
    return [candidates[i] for i in sorted(chosen)]


def make_cell(
    profile: Profile,
    corpus: Any,
    budget: float,
    params: int,
    model: dict[str, Any],
    source: str,
    *,
    seed: int | None = None,
    role: str = "grid",
) -> Cell:
    """The run of one size at one budget by the profile's rules, with the profile's seed unless another is given.

    Raises UserError when whole steps miss the budget, and for a field that makes no valid run.
    """
    tokens = budget / (6 * params)
    rules, seq_length = profile.rules, profile.data.get("seq_length")
    if not isinstance(seq_length, int) or seq_length < 1:
        raise UserError(f"{source}: data.seq_length = {seq_length!r}: must be a whole number of tokens, such as 128")
    batch = _power_of_two(rules.global_batch_size(params, tokens), rules.global_batch_size)
    train_steps = max(1, round(tokens / (batch * seq_length)))
    name = f"{budget:.3g}-L{model.get('num_layers')}-h{model.get('hidden_size')}"
    if seed not in (None, profile.seed):
        name += f"-seed{seed}"
    reached = 6 * params * train_steps * batch * seq_length
    if abs(reached / budget - 1) > BUDGET_TOLERANCE:
        raise UserError(
            f"{source}: cell {name} cannot meet its budget: {train_steps} steps of {batch} x {seq_length} tokens make "
            f"{reached:.3g} FLOPs: raise the budget, or lower rules.global_batch_size.minimum or data.seq_length"
        )
    warmup_steps = rules.warmup(train_steps, train_steps // 2)
    schedule = {**profile.schedule, "warmup_steps": warmup_steps}
    if rules.decay is not None:
        schedule["decay_steps"] = rules.decay(train_steps, train_steps - warmup_steps)
    parallel = next((sizes for pattern, sizes in profile.parallel.items() if fnmatch.fnmatch(name, pattern)), None)
    values = {
        "model": model,
        "data": {
            **profile.data,
            "name": corpus.name,
            "fingerprint": corpus.fingerprint,
            "tokenizer": corpus.tokenizer,
        },
        "optimizer": {**profile.optimizer, "learning_rate": _round(rules.learning_rate(params, tokens))},
        "schedule": schedule,
        "execution": profile.execution,
        "parallel": parallel or {},
        "global_batch_size": batch,
        "train_steps": train_steps,
        "seed": profile.seed if seed is None else seed,
    }
    config = build_config(values, f"{source}: cell {name}")
    try:
        check_layout(config)
    except UserError as error:
        raise UserError(f"{source}: cell {name}: {error}") from None
    return Cell(name, budget, config, layout_given=parallel is not None, role=role)


def _power_of_two(value: float, rule: Rule) -> int:
    """The power of two nearest to `value` in log, within the rule's bounds as far as there is one."""
    exponent = round(math.log2(value))
    if 2**exponent > rule.maximum:
        exponent -= 1
    return 2 ** max(exponent, 0)


def _round(value: float) -> float:
    """Four significant digits, so that a rule's value (and with it the run_id) survives another machine's rounding."""
    return float(f"{value:.4g}")
