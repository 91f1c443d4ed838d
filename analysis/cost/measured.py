"""Tables of measured runs: one CSV row to the Setup that it describes, or to the reason why there is none.

Only what was set before a run is read here: the model, the machine, layout, batch, precision, software. Measured speed,
utilisation and memory of a row are read by `measurements` alone, which the prediction never sees.
"""

import csv
import re
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from analysis.cost.architecture import Architecture
from analysis.cost.devices import Device, find_device
from analysis.cost.feasibility import precisions_of
from analysis.cost.measured_cells import (
    NotExpressible,
    Row,
    flag,
    number,
    precision,
    recompute,
    schedule,
    sharding,
    text_of,
    whole,
)
from analysis.cost.measured_gaps import complete
from analysis.cost.measured_model import model_of
from analysis.cost.measured_network import parse_network
from analysis.cost.setup import Precision, Setup, Sharding, Stack
from analysis.cost.stacks import stack_of
from scaling.errors import UserError

#: Runs that others measured and published, each with its source: what the shipped constants were fitted to, and what
#: they were not.
PUBLISHED = Path(__file__).with_name("published_steps.csv")
UNSEEN = Path(__file__).with_name("unseen_steps.csv")

#: Options of `scaling cost` by which a column may be called as well.
_OPTIONS = {
    "num_gpus": "n_gpus",
    "num_layers": "layers",
    "hidden_size": "hidden",
    "num_attention_heads": "heads",
    "num_query_groups": "kv_heads",
    "ffn_hidden_size": "ffn",
    "vocab_size": "vocab",
    "seq_length": "seq_len",
    "micro_batch_size": "micro_batch",
    "global_batch_size": "global_batch",
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "virtual_pipeline_parallel_size": "vpp",
    "data_parallel_size": "dp",
    "context_parallel_size": "cp",
    "expert_parallel_size": "ep",
    "expert_tensor_parallel_size": "etp",
    "sharding": "zero_or_fsdp",
    "sequence_parallel": "seq_parallel",
    "recompute_granularity": "recompute",
    "stack": "framework",
}
#: Columns without which a table says nothing.
_NEEDED = ("model", "gpu", "n_gpus")
#: Sequences of a step, above which a batch is written in tokens.
_MOST_SEQUENCES = 10**5
#: How many GPUs there were, beside the name of one: "8x H100".
_HOW_MANY = re.compile(r"^\s*\d+\s*x\s*(?=[a-z])|\bx\s*\d+\s*$", re.IGNORECASE)


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


@dataclass(frozen=True)
class _Layout:
    """How a row divides the model over its GPUs; sequences of a batch as far as it says."""

    num_gpus: int
    tensor: int
    pipeline: int
    context: int
    data: int
    batch: int | None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of measured runs, by the short names of its columns.

    Raises UserError when it cannot be read or lacks the columns.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [
                {_OPTIONS.get(name.strip(), name.strip()): (value or "").strip() for name, value in row.items() if name}
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file: give a table of measured runs") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}): give a table of measured runs") from None
    if not rows:
        raise UserError(f"{path}: has no rows: give one row for each measured run")
    missing = [name for name in _NEEDED if name not in rows[0]]
    if missing:
        raise UserError(f"{path}: lacks the column(s) {', '.join(missing)}: name columns as {PUBLISHED.name} does")
    return rows


def measurements(row: Row) -> Measured:
    """What was measured: seconds of a step (or from tokens/s of one GPU), peak memory and GPU-hours."""
    step = number(row, "step_time_s")
    speed = number(row, "tokens_per_s_per_gpu") or number(row, "derived_tokens_per_s_per_gpu")
    if step is None and speed:
        try:
            layout, length = _layout(row, []), whole(row, "seq_len")
        except NotExpressible:
            layout, length = None, None
        if layout is not None and layout.batch and length:
            step = layout.batch * length / (speed * layout.num_gpus)
    return Measured(step, number(row, "peak_mem_GiB"), _memory_metric(row), number(row, "gpu_hours"))


def _memory_metric(row: Row) -> str:
    text = text_of(row, "mem_metric")
    for words, metric in (
        (("nvidia-smi", "rocm-smi"), "device"),
        (("reserved", "active"), "reserved"),
        (("allocated",), "allocated"),
        (("gpu memory", "device"), "device"),
    ):
        if any(word in text for word in words):
            return metric
    # torchtitan's log gives what the allocator has reserved
    return "reserved" if "torchtitan" in text_of(row, "framework") else "allocated"


def describe(row: Row) -> Described:
    """The setup of a row. Raises NotExpressible, which says what is missing or beyond the model."""
    assumed: list[str] = []
    device = device_of(row, assumed)
    model = model_of(row, assumed)
    length = whole(row, "seq_len")
    if length is None:
        raise NotExpressible("seq_len is not given")
    layout = _layout(row, assumed)
    if layout.pipeline > model.num_layers:
        raise NotExpressible(f"pp = {layout.pipeline} is more than the model's {model.num_layers} layers")
    micro_batch = _open_size(row, "micro_batch", assumed)
    if layout.batch is None:
        raise NotExpressible("neither global_batch nor micro_batch with dp is given")
    if layout.batch > _MOST_SEQUENCES:
        raise NotExpressible(f"global_batch = {layout.batch}: more sequences than a step has: are these tokens?")
    if layout.batch < layout.data * (micro_batch or 1):
        raise NotExpressible(
            f"global_batch = {layout.batch} is less than dp x micro_batch = {layout.data} x {micro_batch or 1}"
        )
    chunks = _chunks(row, model, layout, assumed)
    experts = _expert_sizes(row, model, layout, assumed)
    order = schedule(row)
    if order not in (None, "interleaved1f1b"):
        chunks = 1
    kind, stack = _precision(row, device, assumed), _stack(row, assumed)
    again, apart, flash = recompute(row), flag(row, "seq_parallel"), flag(row, "flash_attention")
    if again is None and text_of(row, "recompute"):
        assumed.append(f"recompute = {row['recompute']} does not say how much")
    setup = Setup(
        model=model,
        device=device,
        num_gpus=layout.num_gpus,
        seq_length=length,
        global_batch_size=layout.batch,
        micro_batch_size=micro_batch or 1,
        tensor_parallel_size=layout.tensor,
        pipeline_parallel_size=layout.pipeline,
        virtual_pipeline_parallel_size=chunks or 1,
        context_parallel_size=layout.context,
        expert_parallel_size=experts[0],
        expert_tensor_parallel_size=experts[1],
        sequence_parallel=stack != "megatron_2021" if apart is None else apart,
        pipeline_schedule="interleaved1f1b" if (chunks or 1) > 1 else order or "1f1b",
        sharding=_sharding(row, stack, assumed),
        sharding_size=_node(row, device, layout.data * layout.context),
        recompute_granularity=again or "none",
        precision=kind,
        flash_attention=stack != "megatron_2021" if flash is None else flash,
        stack=stack,
    )
    open_fields = set()
    if micro_batch is None:
        open_fields.add("micro_batch_size")
    if chunks is None and layout.pipeline > 1 and stack == "megatron":
        open_fields.add("virtual_pipeline_parallel_size")
    if again is None:
        open_fields.add("recompute_granularity")
    setup, choices = complete(setup, open_fields)
    return Described(setup, (*assumed, *choices))


def _layout(row: Row, assumed: list[str]) -> _Layout:
    """Ranks of each kind. One of n_gpus, tp, pp and dp may be missing where the others give it."""
    gpus, stated = whole(row, "n_gpus"), whole(row, "dp")
    tensor, pipeline, context = (whole(row, name) for name in ("tp", "pp", "cp"))
    if tensor is None and pipeline is None and stated is None and gpus != 1:
        if not text_of(row, "zero_or_fsdp"):
            raise NotExpressible("the layout (tp, pp, dp) is not given")
        assumed.append("tp = pp = 1, since only a sharding is given")
    replica = (tensor or 1) * (pipeline or 1) * (context or 1)
    if gpus is None:
        if stated is None:
            raise NotExpressible("n_gpus is not given")
        gpus = replica * stated
        assumed.append(f"n_gpus = {gpus}, the product of tp, pp, cp and dp")
    if gpus % replica:
        raise NotExpressible(
            f"tp x pp x cp = {tensor or 1} x {pipeline or 1} x {context or 1} does not divide n_gpus = {gpus}"
        )
    data = gpus // replica
    if stated is not None and stated != data:
        if tensor is None or pipeline is None:
            raise NotExpressible(f"dp = {stated} leaves {data / stated:g} GPUs of each rank to a tp or pp not given")
        assumed.append(f"dp = {stated} does not make up n_gpus = {gpus} with tp, pp and cp: taken as {data}")
    batch = whole(row, "global_batch")
    if batch is None and (micro_batch := number(row, "micro_batch")):
        batch = int(micro_batch * data)
        assumed.append(f"global_batch = {batch}, one micro-batch of each data rank")
    return _Layout(gpus, tensor or 1, pipeline or 1, context or 1, data, batch)


def _open_size(row: Row, name: str, assumed: list[str]) -> int | None:
    """A size that may be left open, as it is where the cell holds several."""
    try:
        return whole(row, name)
    except NotExpressible as reason:
        assumed.append(f"{reason}: taken as not given")
        return None


def _chunks(row: Row, model: Architecture, layout: _Layout, assumed: list[str]) -> int | None:
    """Virtual stages of a pipeline rank; embedding, loss and multi-token prediction may be stages of their own."""
    chunks = _open_size(row, "vpp", assumed)
    if chunks is None or layout.pipeline == 1:
        return chunks
    most = (model.num_layers + model.mtp_num_layers + 2) // layout.pipeline
    if chunks > most:
        raise NotExpressible(
            f"vpp = {chunks}: {layout.pipeline} x {chunks} stages are more than the model's {model.num_layers} layers"
        )
    return chunks


def device_of(row: Row, assumed: list[str]) -> Device:
    """The GPU of a row, with the network that its name mentions. Raises NotExpressible where it is not known."""
    device = find_device(_HOW_MANY.sub("", row["gpu"]))
    if device is None:
        raise NotExpressible(f"gpu = {row['gpu'] or 'nothing'}: not in the table of devices")
    if device.note:
        assumed.append(device.note)
    network = parse_network(row["gpu"], device.gpus_per_node)
    return device if network is None else replace(device, scale_out_bandwidth=network)


def _precision(row: Row, device: Device, assumed: list[str]) -> Precision:
    allowed = precisions_of(device)
    found = precision(row)
    if found is None:
        assumed.append(f"precision taken as {allowed[0]}")
        return allowed[0]
    if found not in allowed:
        raise NotExpressible(f"precision = {row['precision']}: {device.name} has no products in {found}")
    if " or " in text_of(row, "precision"):
        assumed.append(f"precision = {row['precision']} is read as {found}")
    return found


def _stack(row: Row, assumed: list[str]) -> Stack:
    framework = row.get("framework") or ""
    stack = stack_of(framework)
    if stack is None:
        divided = any((whole(row, name) or 1) > 1 for name in ("tp", "pp", "cp", "ep"))
        stack = "megatron" if divided or precision(row) not in (None, "bf16", "fp16", "fp32") else "fsdp_eager"
        assumed.append(f"software {framework or 'not given'}: taken for the stack {stack}, by its layout")
    return stack


def _expert_sizes(row: Row, model: Architecture, layout: _Layout, assumed: list[str]) -> tuple[int, int]:
    """(expert, expert tensor) parallel ranks that the model and the layout allow: at most those stated.

    Tensor ranks share an expert where nothing else is said and ranks enough are there, as in Megatron.
    """
    if not model.is_moe:
        return 1, 1
    ranks, stated = layout.data * layout.context * layout.tensor, whole(row, "ep") or 1
    split = gcd(whole(row, "etp") or layout.tensor, layout.tensor)
    if whole(row, "etp") is None and ranks % (stated * split):
        split = 1
    common = gcd(model.num_experts, ranks // split)
    size = next(size for size in range(min(stated, common), 0, -1) if common % size == 0)
    if size != stated:
        assumed.append(f"ep = {stated} does not divide experts and ranks: taken as {size}")
    return size, split


def _sharding(row: Row, stack: Stack, assumed: list[str]) -> Sharding:
    found = sharding(row)
    if found is None:
        found = {"megatron": "zero1", "megatron_2021": "none"}.get(stack, "zero3")  # type: ignore[assignment]
        assumed.append(f"sharding taken as {found}, as {stack} does")
    return found


def _node(row: Row, device: Device, ranks: int) -> int | None:
    """Ranks that share one copy of the weights under HSDP: a node's, where these divide all ranks."""
    text = text_of(row, "zero_or_fsdp")
    divided = ("hsdp" in text or "hybrid_shard" in text) and ranks % device.gpus_per_node == 0
    return device.gpus_per_node if divided else None
