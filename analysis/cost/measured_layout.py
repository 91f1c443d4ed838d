"""How a row of a table of measured runs divides the model over its GPUs."""

from dataclasses import dataclass
from math import gcd

from analysis.cost.architecture import Architecture
from analysis.cost.measured_cells import NotExpressible, Row, number, text_of, whole


@dataclass(frozen=True)
class Layout:
    """How a row divides the model over its GPUs; sequences of a batch as far as it says."""

    num_gpus: int
    tensor: int
    pipeline: int
    context: int
    data: int
    batch: int | None


def layout_of(row: Row, assumed: list[str]) -> Layout:
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
    return Layout(gpus, tensor or 1, pipeline or 1, context or 1, data, batch)


def open_size(row: Row, name: str, assumed: list[str]) -> int | None:
    """A size that may be left open, as it is where the cell holds several."""
    try:
        return whole(row, name)
    except NotExpressible as reason:
        assumed.append(f"{reason}: taken as not given")
        return None


def expert_sizes(row: Row, model: Architecture, layout: Layout, assumed: list[str]) -> tuple[int, int]:
    """(expert, expert tensor) parallel ranks; of the former the most that model and layout allow, up to those stated.

    Tensor ranks share an expert where nothing else is said and ranks enough are there, as in Megatron.
    """
    ranks, stated, split = layout.data * layout.context * layout.tensor, whole(row, "ep") or 1, whole(row, "etp")
    if not model.is_moe:
        if max(stated, split or 1) > 1:
            assumed.append(f"ep = {stated}, etp = {split or 1} are ignored: {model.name} has no experts")
        return 1, 1
    if split is None:
        split = 1 if ranks % (stated * layout.tensor) else layout.tensor
    common = gcd(model.num_experts, ranks // split)
    size = next(size for size in range(min(stated, common), 0, -1) if common % size == 0)
    if size != stated:
        assumed.append(f"ep = {stated} does not divide experts and ranks: taken as {size}")
    return size, split
