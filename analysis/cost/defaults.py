"""What a user leaves open about a run, chosen by stated rules; every choice comes back with its reason."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from analysis.cost.architecture import Architecture
from analysis.cost.counts import flops_per_token, parameters
from analysis.cost.devices import Device
from analysis.cost.feasibility import check_setup, check_sizes, is_possible, precisions_of
from analysis.cost.layout_choice import LAYOUT_RULE, NONE_FITS, choose_layout
from analysis.cost.layout_space import LAYOUT_FIELDS
from analysis.cost.memory import fits, memory
from analysis.cost.setup import Setup
from analysis.cost.step import step_time
from analysis.formatting import count
from scaling.errors import UserError

_SEQ_LENGTH = 4096
_TOKENS_PER_PARAMETER = 20
_MOST_DAYS = 30
_MOST_GPUS = 2**15
#: What a user who has a layout says of it.
_DIVISION = ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size", "sharding")
#: A thousand times all text that there is; more would overflow somewhere.
_MOST_TOKENS = 1e18
#: Share of the peak, with causal attention, that no published step passes.
_BEST_UTILISATION = 0.7
#: Weights and Adam's state of one parameter, at the least, under any sharding: bytes (bf16 and float32).
_STATE_BYTES = 14


@dataclass(frozen=True)
class Choice:
    """A field that the user left open, what it was set to, and why."""

    field: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{self.field} = {count(self.value) if isinstance(self.value, float) else self.value}"


@dataclass(frozen=True)
class Completed:
    """A setup with nothing open, the tokens of the run, and the choices made."""

    setup: Setup
    tokens: float
    choices: tuple[Choice, ...]

    @property
    def chosen(self) -> frozenset[str]:
        """Fields that were open."""
        return frozenset(choice.field for choice in self.choices)

    @property
    def layout_is_guessed(self) -> bool:
        """Whether the user has left open how the model is divided over the GPUs."""
        return self.chosen >= {*_DIVISION}


def complete_setup(model: Architecture, device: Device, tokens: float | None, given: Mapping[str, Any]) -> Completed:
    """The setup of a run of which `given` says some fields of Setup, by name.

    Raises UserError when what is given is impossible together (analysis.cost.feasibility), or not positive.
    """
    if tokens is not None and not 0 < tokens <= _MOST_TOKENS:
        raise UserError(f"tokens = {tokens:g}: must be above zero and at most {_MOST_TOKENS:g}, such as 300B")
    check_sizes(given)
    choices: list[Choice] = []
    if tokens is None:
        tokens = float(_TOKENS_PER_PARAMETER * parameters(model).active)
        why = f"{_TOKENS_PER_PARAMETER} per (active) parameter (Hoffmann et al. 2022, arXiv:2203.15556)"
        choices.append(Choice("tokens", tokens, why))

    fields = dict(given)
    for choice in _plain_choices(model, device, fields, tokens):
        fields[choice.field] = choice.value
        choices.append(choice)
    if "loss" in given and not str(fields["stack"]).startswith("fsdp"):
        raise UserError(
            f"loss = {given['loss']}: {fields['stack']} has its own: leave it out, or choose stack fsdp_compiled or "
            "fsdp_eager"
        )
    open_fields = {name for name in (*LAYOUT_FIELDS, "num_gpus") if name not in given}
    batch_wish = next((choice for choice in choices if choice.field == "global_batch_size"), None)
    if batch_wish is not None:
        open_fields.add("global_batch_size")
        choices.remove(batch_wish)

    setup = _template(model, device, fields)
    check_setup(_with_any_batch(setup))
    if "num_gpus" in open_fields:
        setup, choice = _with_gpus(setup, open_fields, tokens)
        choices.append(choice)
    else:
        setup = choose_layout(setup, open_fields)
    check_setup(setup)
    if batch_wish is not None:
        choices.append(replace(batch_wish, value=setup.global_batch_size))
    searched = [name for name in LAYOUT_FIELDS if name in open_fields]
    if not model.is_moe:
        searched = [name for name in searched if not name.startswith("expert")]
    choices = [choice for choice in choices if choice.field not in searched]
    rule = LAYOUT_RULE if fits(memory(setup), device) else NONE_FITS
    choices += [Choice(name, getattr(setup, name), rule) for name in searched]
    return Completed(setup, tokens, tuple(choices))


def step_law_batch(tokens: float) -> float:
    """Tokens of a batch: 0.58 D^0.571 (Li et al. 2025, arXiv:2503.04715, table 1)."""
    return 0.58 * tokens**0.571


def _plain_choices(model: Architecture, device: Device, given: Mapping[str, Any], tokens: float) -> list[Choice]:
    """What does not depend on memory or time."""
    made: dict[str, Choice] = {}

    def value(field: str) -> Any:
        return given[field] if field in given else made[field].value

    def choose(field: str, value: Any, why: str) -> None:
        if field not in given:
            made[field] = Choice(field, value, why)

    length = min(_SEQ_LENGTH, model.learned_positions or _SEQ_LENGTH)
    why = "as Llama 2 and DeepSeek-V3" if length == _SEQ_LENGTH else f"positions that {model.name} has"
    choose("seq_length", length, why)
    choose("precision", precisions_of(device)[0], f"what {device.name} multiplies fastest in 16 bits, else 32")
    if device.is_cpu_core:
        choose("stack", "fsdp_eager", "torch without compilation, as on a CPU")
    else:
        choose("stack", "megatron", "tuned software such as Megatron-Core; see analysis/cost/stacks.yaml for others")
    flash = value("stack") != "megatron_2021"
    choose("flash_attention", flash, "as the stack does")
    if str(value("stack")).startswith("fsdp"):
        choose("loss", "compiled" if value("stack") == "fsdp_compiled" else "whole", "as the stack does")
    sharding = "zero3" if str(value("stack")).startswith("fsdp") else "zero1"
    choose("sharding", sharding, "as the stack does")
    if given.get("virtual_pipeline_parallel_size", 1) > 1:
        choose("pipeline_schedule", "interleaved1f1b", "what virtual pipeline stages are for")
    wish = step_law_batch(tokens)
    choose(
        "global_batch_size",
        2 ** round(math.log2(max(1.0, wish / value("seq_length")))),
        f"0.58 D^0.571 = {count(wish)} tokens (Li et al. 2025, arXiv:2503.04715), to a power of two of sequences "
        "that the data ranks divide",
    )
    return list(made.values())


def _template(model: Architecture, device: Device, fields: Mapping[str, Any]) -> Setup:
    """A setup with the given fields, and in open ones the least that these need."""
    least: dict[str, Any] = {"tensor_parallel_size": fields.get("expert_tensor_parallel_size", 1)}
    if fields.get("pipeline_schedule") == "interleaved1f1b":
        least["virtual_pipeline_parallel_size"] = 2
    virtual = fields.get("virtual_pipeline_parallel_size", least.get("virtual_pipeline_parallel_size", 1))
    least["pipeline_parallel_size"] = 2 if virtual > 1 else 1
    fields = {**least, **fields}
    return Setup(model=model, device=device, **{"num_gpus": _replica(fields), **fields})


def _replica(fields: Mapping[str, Any]) -> int:
    """GPUs of one copy of the model, as far as they are given."""
    return math.prod(fields.get(f"{axis}_parallel_size", 1) for axis in ("tensor", "pipeline", "context"))


def _with_any_batch(setup: Setup) -> Setup:
    """`setup` with a batch that its data ranks divide: what is checked before anything is chosen.

    A given batch is left to the check after the choice, since tensor and pipeline ranks leave fewer data ranks.
    """
    ranks = max(1, setup.data_parallel_size) * setup.pipeline_parallel_size
    return replace(setup, global_batch_size=ranks * setup.micro_batch_size)


def _with_gpus(setup: Setup, open_fields: set[str], tokens: float) -> tuple[Setup, Choice]:
    """`setup` on the fewest GPUs, in powers of two times a replica, on which it fits and ends in time."""
    if setup.device.is_cpu_core:
        return choose_layout(replace(setup, num_gpus=setup.device.gpus_per_node), open_fields), Choice(
            "num_gpus", setup.device.gpus_per_node, "cores of this machine"
        )
    best: Setup | None = None
    for num_gpus in _counts(setup, tokens):
        trial = choose_layout(replace(setup, num_gpus=num_gpus), open_fields)
        if best is not None and (not is_possible(trial) or trial.global_batch_size > 2 * setup.global_batch_size):
            break  # more data ranks than the batch has sequences
        if fits(memory(trial), trial.device):
            best = trial
            if _days(trial, tokens) <= _MOST_DAYS:
                why = f"the fewest, doubling, on which it fits and all steps take at most {_MOST_DAYS} days"
                return trial, Choice("num_gpus", num_gpus, why)
    if best is None:
        trials = (choose_layout(replace(setup, num_gpus=size), open_fields) for size in _counts(setup, tokens)[::-1])
        trial = next(filter(is_possible, trials), choose_layout(setup, open_fields))
        return trial, Choice("num_gpus", trial.num_gpus, "it fits on no number of these GPUs")
    why = f"the most that the batch keeps busy; {_MOST_DAYS} days are out of reach with it"
    return best, Choice("num_gpus", best.num_gpus, why)


def _counts(setup: Setup, tokens: float) -> list[int]:
    """Numbers of GPUs worth trying: those that could hold the model, and end in time at the best utilisation known."""
    model, device = setup.model, setup.device
    work = flops_per_token(model, setup.seq_length, "causal") * tokens
    least = work / (_BEST_UTILISATION * device.dense_peak(setup.precision) * _MOST_DAYS * 86400)
    least = max(least, _STATE_BYTES * parameters(model).total / device.memory_bytes)
    sizes = [setup.num_gpus * 2**exponent for exponent in range(20)]
    sizes = [size for size in sizes if size <= _MOST_GPUS] or sizes[:1]
    return [size for size in sizes if size >= least] or sizes[-1:]


def _days(setup: Setup, tokens: float) -> float:
    return step_time(setup).total * tokens / setup.tokens_per_step / 86400
