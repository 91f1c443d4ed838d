"""RunConfig: everything that decides one run, validated, frozen, and hashed.

The *science* part (model, data, objective, optimizer, schedule, batch, steps, seed) decides what is
learned; its hash is the `run_id`. The *execution* part (device, precision, threads, layout,
checkpoint interval) decides how; it is left out of the hash, so that a finished cell is never
trained again because it ran elsewhere.

Names are Megatron's where it has one. This module imports neither torch nor numpy.
"""

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from parallel.layout import Layout
from scaling.errors import UserError

#: Part of the hash. Raised when a change of code changes what a given config learns.
SCIENCE_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Frozen):
    """A decoder-only transformer.

    The defaults are Llama's: RMSNorm, rotary positions, SwiGLU, no biases. Fields left out are
    filled in before validation, so a config always shows (and hashes) the numbers it runs with.
    """

    num_layers: PositiveInt
    hidden_size: PositiveInt
    num_attention_heads: PositiveInt
    num_query_groups: PositiveInt = Field(description="key/value heads; default num_attention_heads")
    kv_channels: PositiveInt = Field(description="size of one head; default hidden_size / num_attention_heads")
    ffn_hidden_size: PositiveInt = Field(description="default 4h, or 8h/3 rounded up to 8 for swiglu")
    vocab_size: PositiveInt = 256
    max_position_embeddings: PositiveInt | None = Field(None, description="length of the table of learned positions")
    normalization: Literal["rmsnorm", "layernorm", "layernorm_no_affine"] = "rmsnorm"
    position_embedding: Literal["rope", "learned", "relative", "none"] = "rope"
    activation: Literal["swiglu", "gelu"] = "swiglu"
    add_bias_linear: bool = False
    qk_norm: bool = False
    parallel_residual: bool = Field(False, description="attention and MLP read the same input (GPT-J, Pythia)")
    tie_word_embeddings: bool = True
    rotary_base: PositiveFloat = 10000.0
    rotary_percent: float = Field(1.0, gt=0, le=1)
    norm_epsilon: PositiveFloat = 1e-5
    init_method_std: PositiveFloat | None = Field(
        None, description="standard deviation of the initial weights; None: 1/sqrt(fan-in) for each matrix"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = dict(values)
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
            if values.get("num_query_groups") is None:
                values["num_query_groups"] = heads
            if values.get("kv_channels") is None and hidden > 0:
                if hidden % heads:
                    raise ValueError(
                        f"hidden_size = {hidden} is no multiple of num_attention_heads = {heads}: "
                        "change one of them, or set kv_channels, the size of one head"
                    )
                values["kv_channels"] = hidden // heads
        if isinstance(hidden, int) and values.get("ffn_hidden_size") is None:
            gated = values.get("activation", "swiglu") == "swiglu"
            values["ffn_hidden_size"] = math.ceil(hidden / 3) * 8 if gated else 4 * hidden
        return values

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.num_attention_heads % self.num_query_groups:
            raise ValueError(
                f"num_query_groups = {self.num_query_groups} must divide "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.position_embedding == "learned" and self.max_position_embeddings is None:
            raise ValueError("position_embedding = learned needs max_position_embeddings, the longest sequence")
        if self.position_embedding == "rope" and self.rotary_dim % 2:
            raise ValueError(
                f"rope needs an even number of rotated channels, not {self.rotary_dim} "
                f"(kv_channels = {self.kv_channels}): change num_attention_heads or rotary_percent"
            )
        return self

    @property
    def rotary_dim(self) -> int:
        """Channels of each head that are rotated."""
        return int(self.kv_channels * self.rotary_percent)


class DataConfig(_Frozen):
    """Which text, how it is cut, and which part is held out.

    `fingerprint` is the sha256 of the tokens (train and validation), so two runs with one
    fingerprint saw the same text, wherever the files lie.
    """

    name: str = Field(description="name of the prepared corpus, for people")
    fingerprint: str = Field(description="sha256 of the prepared tokens, from its manifest")
    tokenizer: str = "byte"
    seq_length: PositiveInt = Field(description="tokens predicted per sequence")
    validation_sequences: PositiveInt = Field(512, description="fixed held-out sequences; all are always used")


class OptimizerConfig(_Frozen):
    """AdamW; weight decay is decoupled and acts on matrices only (embeddings included)."""

    name: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    epsilon: PositiveFloat = 1e-8
    weight_decay: float = Field(0.1, ge=0)
    clip_grad: float = Field(1.0, ge=0, description="global gradient norm at most this; 0 = off")


class ScheduleConfig(_Frozen):
    """Learning rate against step; see scaling/schedule.py for the equations."""

    name: Literal["cosine", "wsd"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    decay_steps: int | None = Field(None, ge=0, description="wsd only: length of the final linear decay")
    min_learning_rate_ratio: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ScheduleConfig":
        if (self.name == "wsd") != (self.decay_steps is not None):
            raise ValueError(f"decay_steps = {self.decay_steps} with name = {self.name}: wsd needs it, cosine has none")
        return self


class ExecutionConfig(_Frozen):
    """How a run is carried out on this machine. Not part of its identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        "auto",
        description="of the matrix products; weights, loss and optimizer stay float32 (float64: all of it, for proofs)",
    )
    micro_batch_size: PositiveInt | None = Field(
        None, description="sequences per forward pass; default all of a rank's batch, cut to fill a pipeline"
    )
    recompute_granularity: Literal["none", "selective", "full"] = Field(
        "none", description="activations computed anew in the backward pass: attention and MLP cores, or whole layers"
    )
    num_threads: PositiveInt | None = Field(None, description="CPU threads of one run; default all cores allowed")
    checkpoint_interval_seconds: float = Field(20.0, ge=0, description="0 = only at the end")
    keep_checkpoints: int = Field(2, ge=2, description="older ones are deleted; two, so that one may be damaged")
    log_interval: PositiveInt = Field(1, description="steps between lines of metrics.jsonl")
    evaluation_interval: PositiveInt | None = Field(
        None, description="steps between evaluations; default only at the end"
    )
    kernels: Literal["auto", "torch", "lab", "apex", "addmm"] | dict[str, str] = Field(
        "auto", description="backend of the operations that have it, or of each by name; auto: the fastest that passes"
    )
    deterministic: bool = Field(True, description="use deterministic kernels, so that resume is bit-exact")


_SCIENCE = ("model", "data", "objective", "optimizer", "schedule", "global_batch_size", "train_steps", "seed")


class RunConfig(_Frozen):
    """One run: what is learned (hashed into `run_id`), and how it is carried out (not hashed)."""

    model: ModelConfig
    data: DataConfig
    objective: Literal["causal_lm"] = "causal_lm"
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    global_batch_size: PositiveInt = Field(description="sequences per optimizer step")
    train_steps: PositiveInt
    seed: int = Field(1234, ge=0)

    execution: ExecutionConfig = ExecutionConfig()
    parallel: Layout = Layout()

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        micro = self.execution.micro_batch_size
        if micro is not None and self.global_batch_size % (micro * self.parallel.data_parallel_size):
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} must be a multiple of execution.micro_batch_size x "
                f"parallel.data_parallel_size = {micro} x {self.parallel.data_parallel_size}"
            )
        longest = self.model.max_position_embeddings
        if self.model.position_embedding == "learned" and self.data.seq_length > (longest or 0):
            raise ValueError(
                f"data.seq_length = {self.data.seq_length} is longer than "
                f"model.max_position_embeddings = {longest}: raise the one or lower the other"
            )
        used = self.schedule.warmup_steps + (self.schedule.decay_steps or 0)
        if used > self.train_steps:
            raise ValueError(
                f"schedule.warmup_steps + schedule.decay_steps = {used} is more than "
                f"train_steps = {self.train_steps}: shorten them"
            )
        return self

    def science(self) -> dict[str, Any]:
        """The part that decides what is learned, as plain data."""
        dumped = self.model_dump(mode="json")
        del dumped["data"]["name"]  # the fingerprint says what the text is, whatever it is called
        return {name: dumped[name] for name in _SCIENCE}

    @property
    def run_id(self) -> str:
        """16 hex digits of the sha256 of the canonical JSON of `science()`."""
        payload = {"science_version": SCIENCE_VERSION, **self.science()}
        text = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one forward pass of one rank: as set, or what fills a pipeline twice, or all of its batch."""
        if self.execution.micro_batch_size is not None:
            return self.execution.micro_batch_size
        rows = self.global_batch_size // self.parallel.data_parallel_size
        if self.parallel.pipeline_parallel_size == 1:
            return rows
        wanted = 2 * self.parallel.num_stages
        return max((size for size in range(1, rows + 1) if rows % size == 0 and rows // size >= wanted), default=1)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one optimizer step."""
        return self.global_batch_size * self.data.seq_length

    @property
    def tokens(self) -> int:
        """Training tokens of the whole run, repeats included."""
        return self.train_steps * self.tokens_per_step

    def to_yaml(self) -> str:
        """The config as YAML that `load_config` reads back to an equal object."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def explain(error: ValidationError, source: str) -> str:
    """One line for a failed validation: where, which value, what is wrong.

    `source` names the file or command that the values came from.
    """
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such field; the config.yaml of any run has them all, docs/training.md names the sections"
        value = item.get("input")
        shown = "" if isinstance(value, dict) or item["type"] == "missing" else f" = {value!r}"
        problems.append(f"{where}{shown}: {message}" if where else message)
    return f"{source}: " + "; ".join(problems)


def read_yaml(path: str | Path) -> Any:
    """Contents of a YAML file, by `yaml.safe_load`.

    Raises UserError naming the file when it is missing, unreadable or not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text: give the path of a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise UserError(f"{path}: not valid YAML{where} ({problem}): mend the file") from None


def build_config(values: Any, source: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """A RunConfig from plain data, with `a.b=value` overrides (values read as YAML).

    `model` may be the name of a preset instead of a section. Raises UserError naming the field, its
    value and the remedy.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: must be a mapping of fields, not {type(values).__name__}: see docs/training.md")
    values = copy.deepcopy(values)
    _spell_out_model(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: must look like optimizer.learning_rate=0.003")
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"--set {override}: {parent} is a value, not a section")
        try:
            node[leaf] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {override}: {text!r} is not a YAML value") from None
        _spell_out_model(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, source)) from None


def _spell_out_model(values: dict[str, Any]) -> None:
    """Replace the name of a preset by its fields, in place."""
    if isinstance(values.get("model"), str):
        from scaling.presets import get_preset  # presets are ModelConfigs, so they import this module

        values["model"] = get_preset(values["model"]).model_dump(mode="json")


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The RunConfig in a YAML file; see `build_config` for overrides and errors."""
    return build_config(read_yaml(path), str(path), overrides)
