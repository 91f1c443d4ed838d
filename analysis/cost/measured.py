"""Tables of measured runs: one CSV row to the Setup that it describes, or to the reason why there is none.

Only what was set before a run is read here: the model, the machine, layout, batch, precision, software. Measured speed,
utilisation and memory of a row are read by `measurements` alone, which the prediction never sees.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.cost.architecture import Architecture
from analysis.cost.choices import complete
from analysis.cost.devices import Device, find_device
from analysis.cost.models import find_model
from analysis.cost.network import parse_network
from analysis.cost.setup import Precision, Recompute, Setup, Sharding, Stack
from analysis.cost.stacks import stack_of
from scaling.errors import UserError

#: Runs that others measured and published, each with its source: what the shipped constants were fitted to.
PUBLISHED = Path(__file__).with_name("published_steps.csv")

#: Columns without which a table says nothing.
_NEEDED = ("model", "gpu", "n_gpus")
#: GPT-2's vocabulary, padded to a multiple of 128 x 8: what Megatron trains with when nothing is said.
_VOCABULARY = 51200

Row = Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What a row says was measured; None where it does not."""

    step_seconds: float | None
    peak_gib: float | None
    #: Which of memory.MemoryEstimate's sizes that is.
    memory_metric: str
    gpu_hours: float | None


@dataclass(frozen=True)
class Described:
    """The setup of a row and what was assumed where the row says nothing."""

    setup: Setup
    assumptions: tuple[str, ...]


class NotExpressible(Exception):
    """A row that the model cannot express; the message says why."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of measured runs. Raises UserError when it cannot be read or lacks the columns."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [{name: (value or "").strip() for name, value in row.items() if name} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): give a table of measured runs") from None
    if not rows:
        raise UserError(f"{path}: has no rows: give one row for each measured run")
    missing = [name for name in _NEEDED if name not in rows[0]]
    if missing:
        raise UserError(f"{path}: lacks the column(s) {', '.join(missing)}: name them as in a table of measured runs")
    return rows


def number(row: Row, name: str) -> float | None:
    """A positive number of a row; None when it is empty or not one."""
    try:
        value = float(row.get(name) or "nan")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def whole(row: Row, name: str) -> int | None:
    """A whole number of a row, at least 1; None when it is empty or not one."""
    value = number(row, name)
    return None if value is None or value != int(value) else int(value)


def measurements(row: Row) -> Measured:
    """What was measured: seconds of a step (or from tokens/s of one GPU), peak memory and GPU-hours."""
    step = number(row, "step_time_s")
    speed = number(row, "tokens_per_s_per_gpu") or number(row, "derived_tokens_per_s_per_gpu")
    length, gpus = number(row, "seq_len"), number(row, "n_gpus")
    batch = number(row, "global_batch") or _batch_of_layout(row)
    if step is None and speed and length and gpus and batch:
        step = batch * length / (speed * gpus)
    return Measured(step, number(row, "peak_mem_GiB"), _memory_metric(row), number(row, "gpu_hours"))


def _memory_metric(row: Row) -> str:
    text = (row.get("mem_metric") or "").lower()
    if "nvidia-smi" in text or "gpu memory" in text or "device" in text:
        return "device"
    return "reserved" if "reserved" in text or "active" in text else "allocated"


def describe(row: Row) -> Described:
    """The setup of a row. Raises NotExpressible, which says what is missing or beyond the model."""
    assumed: list[str] = []
    device = _device(row, assumed)
    model = _model(row, assumed)
    gpus, length = whole(row, "n_gpus"), whole(row, "seq_len")
    if gpus is None:
        raise NotExpressible("n_gpus is not given")
    if length is None:
        raise NotExpressible("seq_len is not given")
    sizes = {name: whole(row, name) for name in ("tp", "pp", "cp", "ep", "vpp")}
    if sizes["tp"] is None and sizes["pp"] is None and number(row, "dp") is None:
        raise NotExpressible("the layout (tp, pp, dp) is not given")
    tensor, pipeline, context = (sizes[name] or 1 for name in ("tp", "pp", "cp"))
    if gpus % (tensor * pipeline * context):
        raise NotExpressible(f"tp x pp x cp = {tensor} x {pipeline} x {context} does not divide n_gpus = {gpus}")
    if pipeline > model.num_layers:
        raise NotExpressible(f"pp = {pipeline} is more than the model's {model.num_layers} layers")
    data = gpus // (tensor * pipeline * context)
    batch = whole(row, "global_batch") or _batch_of_layout(row)
    if batch is None:
        raise NotExpressible("neither global_batch nor micro_batch with dp is given")
    stack = _stack(row, assumed)
    setup = Setup(
        model=model,
        device=device,
        num_gpus=gpus,
        seq_length=length,
        global_batch_size=int(batch),
        micro_batch_size=whole(row, "micro_batch") or 1,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        virtual_pipeline_parallel_size=sizes["vpp"] or 1,
        context_parallel_size=context,
        expert_parallel_size=_expert_size(model, sizes["ep"], data * context * tensor),
        sequence_parallel=_flag(row, "seq_parallel", stack != "megatron_2021"),
        pipeline_schedule="interleaved1f1b" if (sizes["vpp"] or 1) > 1 else "1f1b",
        sharding=_sharding(row, stack),
        sharding_size=_node(device, data * context) if "hsdp" in (row.get("zero_or_fsdp") or "").lower() else None,
        recompute=_recompute(row) or "none",
        precision=_precision(row),
        flash_attention=stack != "megatron_2021",
        stack=stack,
    )
    open_fields = set()
    if whole(row, "micro_batch") is None:
        open_fields.add("micro_batch_size")
    if sizes["vpp"] is None and pipeline > 1 and stack == "megatron":
        open_fields.add("virtual_pipeline_parallel_size")
    if _recompute(row) is None:
        open_fields.add("recompute")
    setup, choices = complete(setup, open_fields)
    return Described(setup, (*assumed, *choices))


def _batch_of_layout(row: Row) -> float | None:
    micro, data = number(row, "micro_batch"), number(row, "dp")
    return micro * data if micro and data else None


def _device(row: Row, assumed: list[str]) -> Device:
    device = find_device(row["gpu"])
    if device is None:
        raise NotExpressible(f"gpu = {row['gpu'] or 'nothing'}: not in the table of devices")
    if device.note:
        assumed.append(device.note)
    network = parse_network(row["gpu"], device.gpus_per_node)
    return device if network is None else replace(device, scale_out_bandwidth=network)


def _model(row: Row, assumed: list[str]) -> Architecture:
    """From the columns of a dense model; by name where these are empty or the model has experts."""
    layers, hidden, heads = (whole(row, name) for name in ("layers", "hidden", "heads"))
    total, active = number(row, "params_total_B"), number(row, "params_active_B")
    experts = (whole(row, "ep") or 1) > 1 or bool(total and active and active < 0.95 * total)
    if not experts and layers and hidden and heads:
        vocabulary = whole(row, "vocab")
        if vocabulary is None:
            assumed.append(f"vocabulary taken as {_VOCABULARY}")
        gated = _flag(row, "gated", False)
        return Architecture(
            name=row["model"],
            num_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            num_query_groups=whole(row, "kv_heads") or heads,
            kv_channels=hidden // heads,
            ffn_hidden_size=whole(row, "ffn") or 4 * hidden,
            vocab_size=vocabulary or _VOCABULARY,
            gated=gated,
            tie_word_embeddings=not gated,
        )
    try:
        return find_model(row["model"])
    except UserError as error:
        missing = [name for name in ("layers", "hidden", "heads") if whole(row, name) is None]
        reason = f"{', '.join(missing)} not given" if missing else "experts, whose sizes are not given"
        raise NotExpressible(f"{reason}; {error}") from None


def _stack(row: Row, assumed: list[str]) -> Stack:
    framework = row.get("framework") or ""
    stack = stack_of(framework)
    if stack is None:
        divided = any((whole(row, name) or 1) > 1 for name in ("tp", "pp", "cp", "ep"))
        stack = "megatron" if divided or _precision(row) not in ("bf16", "fp16", "fp32") else "fsdp_eager"
        assumed.append(f"software {framework or 'not given'}: taken for the stack {stack}, by its layout")
    return stack


def _expert_size(model: Architecture, stated: int | None, ranks: int) -> int:
    """Expert parallel ranks that the model and the layout allow."""
    size = (stated or 1) if model.is_moe else 1
    while size > 1 and (model.num_experts % size or ranks % size):
        size //= 2
    return size


def _flag(row: Row, name: str, default: bool) -> bool:
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(
        (row.get(name) or "").lower(), default
    )


def _sharding(row: Row, stack: Stack) -> Sharding:
    text = (row.get("zero_or_fsdp") or "").lower()
    for words, sharding in (
        (("zero3", "zero-3", "full_shard"), "zero3"),
        (("zero2", "zero-2", "shard_grad_op"), "zero2"),
        (("zero1", "zero-1", "distributed"), "zero1"),
        (("fsdp", "hsdp"), "zero3"),
    ):
        if any(word in text for word in words):
            return sharding  # type: ignore[return-value]
    if text in ("none", "ddp", "zero0"):
        return "none"
    return {"megatron": "zero1", "megatron_2021": "none"}.get(stack, "zero3")  # type: ignore[return-value]


def _node(device: Device, ranks: int) -> int | None:
    """Ranks that share one copy of the weights under HSDP: a node's, where these divide all ranks."""
    return device.gpus_per_node if ranks % device.gpus_per_node == 0 else None


def _recompute(row: Row) -> Recompute | None:
    """None when the row does not say."""
    text = (row.get("recompute") or "").lower()
    if not text:
        return None
    if text.startswith(("none", "no", "false")):
        return "none"
    return "selective" if "select" in text or "op" in text else "full"


def _precision(row: Row) -> Precision:
    text = (row.get("precision") or "").lower()
    for words, precision in (("nvfp4", "nvfp4"), ("mxfp8", "mxfp8"), ("fp8", "fp8"), ("bf16", "bf16"), ("fp16", "fp16")):
        if words in text:
            return precision  # type: ignore[return-value]
    return "fp32" if "32" in text else "bf16"
