"""Tables of measured runs: one CSV row to the Setup that it describes, or to the reason why there is none.

Only what was set before a run is read here: the model, the machine, layout, batch, precision, software. Measured speed,
utilisation and memory of a row are read by `measurements` alone, which the prediction never sees.
"""

import csv
import re
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from analysis.cost.devices import Device, find_device
from analysis.cost.feasibility import check_setup, precisions_of
from analysis.cost.measured_cells import (
    NotExpressible,
    Row,
    flag,
    mixed_precision,
    month_of,
    number,
    precision,
    recompute,
    recompute_share,
    schedule,
    sharding,
    text_of,
    whole,
)
from analysis.cost.measured_gaps import complete
from analysis.cost.measured_layout import expert_sizes, layout_of, open_size
from analysis.cost.measured_model import model_of
from analysis.cost.measured_network import parse_network
from analysis.cost.measured_software import (
    divides_sequences,
    flash_attention,
    fuses_experts,
    loss_of_row,
    stack_of_row,
    usual_micro_batch,
    usual_virtual_stages,
)
from analysis.cost.setup import Precision, Setup, Sharding, Stack
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
#: Columns whose names are not of lower case.
_CAPITALS = {name.lower(): name for name in ("params_total_B", "params_active_B", "tokens_T", "peak_mem_GiB")}
#: Columns without which a table says nothing.
_NEEDED = ("model", "gpu", "n_gpus")
#: Sequences of a step, above which a batch is written in tokens.
_MOST_SEQUENCES = 10**5
_NO_LENGTH, _NO_BATCH = "seq_len is not given", "neither global_batch nor micro_batch with dp is given"
#: How many GPUs there were, beside the name of one: "8x H100".
_HOW_MANY = re.compile(r"^\s*\d+\s*x\s*(?=[a-z])|\bx\s*\d+\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Measured:
    """What a row says was measured; None where it does not."""

    step_seconds: float | None
    #: Why a speed that the row gives makes no step time; empty otherwise.
    no_step: str
    peak_gib: float | None
    #: Which of memory.MemoryEstimate's sizes that is.
    memory_metric: str
    gpu_hours: float | None


@dataclass(frozen=True)
class Described:
    """The setup of a row and what was assumed where the row says nothing."""

    setup: Setup
    assumptions: tuple[str, ...]
    #: Fields of the setup that the row leaves open and that were chosen as the fastest that fit.
    open_fields: frozenset[str] = frozenset()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of measured runs, by the short names of its columns, each with an `id`: its own or its line.

    Raises UserError when it cannot be read, lacks columns, or has two of one meaning that differ.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = [_row(header, cells, path, reader.line_num) for cells in reader if any(cells)]
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


def _row(header: list[str], cells: list[str], path: Path, line: int) -> dict[str, str]:
    """A line by the short names of its columns."""
    if any(cell.strip() for cell in cells[len(header) :]):
        raise UserError(
            f"{path}, line {line}: has {len(cells)} cells for {len(header)} columns: quote a cell that holds a comma"
        )
    row: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, cell in zip_longest(header, cells[: len(header)], fillvalue=""):
        short, value = _short_name(name), cell.strip()
        if row.get(short) and value and value != row[short]:
            raise UserError(
                f"{path}, line {line}: {names[short]} = {row[short]} and {name.strip()} = {value} mean the same: "
                "leave one of the columns out"
            )
        if short and not row.get(short):
            row[short], names[short] = value, name.strip()
    row["id"] = row.get("id") or f"line {line}"
    return row


def _short_name(column: str) -> str:
    """`n_gpus` of num_gpus, num-gpus and "Num GPUs"."""
    name = re.sub(r"[\s_-]+", "_", column.strip().lower()).strip("_")
    return _CAPITALS.get(name, _OPTIONS.get(name, name))


def measurements(row: Row) -> Measured:
    """What was measured: seconds of a step (or from tokens/s of one GPU), peak memory and GPU-hours.

    Raises NotExpressible for a cell that holds something else than a number above 0.
    """
    step, no_step = number(row, "step_time_s"), ""
    speed = number(row, "tokens_per_s_per_gpu") or number(row, "derived_tokens_per_s_per_gpu")
    if step is None and speed:
        try:
            step = _tokens_of_a_gpu(row) / speed
        except NotExpressible as reason:
            no_step = str(reason)
    return Measured(step, no_step, number(row, "peak_mem_GiB"), _memory_metric(row), number(row, "gpu_hours"))


def _tokens_of_a_gpu(row: Row) -> float:
    """Tokens of a step over GPUs."""
    layout, length = layout_of(row, []), whole(row, "seq_len")
    if length is None or layout.batch is None:
        raise NotExpressible(_NO_LENGTH if length is None else _NO_BATCH)
    return layout.batch * length / layout.num_gpus


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
    # as torchtitan's log gives it, and between the other two where nothing is said
    return "reserved"


def describe(row: Row) -> Described:
    """The setup of a row. Raises NotExpressible, which says what is missing, impossible or beyond the model."""
    assumed: list[str] = []
    device = device_of(row, assumed)
    model = model_of(row, assumed)
    length = whole(row, "seq_len")
    if length is None:
        raise NotExpressible(_NO_LENGTH)
    layout = layout_of(row, assumed)
    micro_batch = open_size(row, "micro_batch", assumed)
    if layout.batch is None:
        raise NotExpressible(_NO_BATCH)
    if layout.batch > _MOST_SEQUENCES:
        raise NotExpressible(f"global_batch = {layout.batch}: more sequences than a step has: are these tokens?")
    chunks = open_size(row, "vpp", assumed)
    if chunks is None and layout.pipeline > 1 and (chunks := usual_virtual_stages(row)):
        assumed.append(f"virtual_pipeline_parallel_size = {chunks}, the software's default")
    if micro_batch is None:
        sequences, stages = layout.batch // layout.data, layout.pipeline * (chunks or 1)
        micro_batch = usual_micro_batch(row, sequences, stages)
        if micro_batch:
            assumed.append(f"micro_batch_size = {micro_batch}, the software's default")
    experts = expert_sizes(row, model, layout, assumed)
    order = schedule(row)
    if order not in (None, "interleaved1f1b"):
        if (chunks or 1) > 1:
            assumed.append(f"vpp = {chunks} is ignored: pipeline_schedule = {order} has its own stages of a rank")
        chunks = 1
    kind, stack = _precision(row, device, assumed), stack_of_row(row, assumed)
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
        sequence_parallel=divides_sequences(row, stack) if apart is None else apart,
        pipeline_schedule="interleaved1f1b" if (chunks or 1) > 1 else order or "1f1b",
        sharding=_sharding(row, stack, assumed),
        sharding_size=_node(row, device, layout.data * layout.context),
        recompute_granularity=again or "none",
        recompute_share=recompute_share(row),
        precision=kind,
        flash_attention=flash_attention(row, stack) if flash is None else flash,
        loss=loss_of_row(row, stack),
        mixed_precision=mixed_precision(row),
        fused_experts=fuses_experts(row),
        stack=stack,
    )
    open_fields = set()
    if micro_batch is None:
        open_fields.add("micro_batch_size")
    if chunks is None and layout.pipeline > 1 and (stack == "megatron" or order == "interleaved1f1b"):
        open_fields.add("virtual_pipeline_parallel_size")
    if again is None:
        open_fields.add("recompute_granularity")
    if month_of(row) is None and (text_of(row, "date") or setup.fuses_experts or setup.loss == "chunked"):
        assumed.append(f"date = {row.get('date') or 'nothing'}: its software is taken for today's")
    setup, choices = complete(setup, open_fields)
    try:
        check_setup(setup)
    except UserError as error:
        raise NotExpressible(str(error)) from None
    return Described(setup, (*assumed, *choices), frozenset(open_fields))


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


def _sharding(row: Row, stack: Stack, assumed: list[str]) -> Sharding:
    found = sharding(row)
    if found is None:
        found = {"megatron": "zero1", "megatron_2021": "none"}.get(stack, "zero3")  # type: ignore[assignment]
        unread = text_of(row, "zero_or_fsdp") and f"zero_or_fsdp = {row['zero_or_fsdp']} is not known: "
        assumed.append(f"{unread}sharding taken as {found}, as {stack} does")
    return found


def _node(row: Row, device: Device, ranks: int) -> int | None:
    """Ranks that share one copy of the weights under HSDP: a node's, where these divide all ranks."""
    text = text_of(row, "zero_or_fsdp")
    divided = ("hsdp" in text or "hybrid_shard" in text) and ranks % device.gpus_per_node == 0
    return device.gpus_per_node if divided else None
