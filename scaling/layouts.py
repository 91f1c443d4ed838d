"""Which layouts can train a run: the rules, the nearest layouts that keep them. Imports no torch."""

import math
from collections.abc import Iterator
from itertools import islice

from parallel.layout import Layout
from scaling.config import RunConfig
from scaling.errors import UserError

#: How many of the layouts that can work an error names.
_SHOWN = 4


def check_layout(config: RunConfig, ranks: int | None = None) -> None:
    """Raise UserError when `config.parallel` cannot train this run, naming the numbers and layouts that can.

    `ranks` is the number of processes that were started, where that is known.
    """
    layout = config.parallel
    wanted = layout.world_size if ranks is None else ranks
    problems = layout_problems(config)
    if wanted != layout.world_size:
        start = f"torchrun --nproc-per-node {layout.world_size} -m scaling.train starts {layout.world_size}"
        problems.insert(0, f"parallel = {layout}: needs {_count(layout.world_size)}, and {wanted} started ({start})")
    if not problems:
        return
    possible = sorted(possible_layouts(config, wanted), key=lambda other: _distance(layout, other))
    if possible:
        shown = ", ".join(map(str, possible[:_SHOWN]))
        remedy = f"layouts of {_count(wanted)} that can: {shown}" + (", ..." if len(possible) > _SHOWN else "")
    else:
        near = (f"{layouts[0]} ({_count(n)})" for n in _outwards(wanted) if (layouts := possible_layouts(config, n)))
        remedy = f"no layout of {_count(wanted)} can; the nearest that can: {', '.join(islice(near, 2))}"
    raise UserError("; ".join(problems) + f"; {remedy}")


def possible_layouts(config: RunConfig, world_size: int) -> list[Layout]:
    """The layouts of `world_size` ranks that can train this run, with the options of `config.parallel`.

    Data parallelism first: fewer pipeline, then context, then tensor ranks come earlier.
    """
    found = []
    for pipeline, context, tensor in _factors(world_size):
        sizes = {
            "pipeline_parallel_size": pipeline,
            "data_parallel_size": world_size // (pipeline * context * tensor),
            "context_parallel_size": context,
            "tensor_parallel_size": tensor,
        }
        layout = config.parallel.model_copy(update=sizes)
        if layout.num_stages != config.parallel.num_stages:
            layout = layout.model_copy(update={"pipeline_split": None})
        if not layout_problems(config.model_copy(update={"parallel": layout})):
            found.append(layout)
    return found


def least_micro_batches(layout: Layout) -> int:
    """Micro-batches that a pipeline needs to fill: one for each stage of its V, or for each of its ranks."""
    if layout.pipeline_schedule in ("zbv", "dualpipev"):
        return layout.num_stages
    return layout.pipeline_parallel_size


def layout_problems(config: RunConfig) -> list[str]:
    """What is wrong with `config.parallel` for this run: phrases with field and numbers; none when it works."""
    return [*_tensor(config), *_context(config), *_pipeline(config), *_batch(config)]


def _tensor(config: RunConfig) -> Iterator[str]:
    model, size = config.model, config.parallel.tensor_parallel_size
    this = f"parallel.tensor_parallel_size = {size}"
    if model.num_attention_heads % size:
        yield f"{this}: must divide model.num_attention_heads = {model.num_attention_heads}"
    elif model.num_query_groups % size and size % model.num_query_groups:
        yield f"{this}: must divide model.num_query_groups = {model.num_query_groups} or be a multiple of it"
    for name in ("vocab_size", "ffn_hidden_size"):
        rows = getattr(model, name)
        each = math.ceil(rows / size)
        if (size - 1) * each >= rows:  # torch.chunk: every rank takes `each` while there are any
            yield f"{this}: model.{name} = {rows} in pieces of {each} leaves nothing for the last rank"


def _context(config: RunConfig) -> Iterator[str]:
    model, layout, length = config.model, config.parallel, config.data.seq_length
    size = layout.context_parallel_size
    if size == 1:
        return
    this = f"parallel.context_parallel_size = {size}"
    if model.position_embedding == "relative":
        yield f"{this}: must be 1 with model.position_embedding = relative"
    if layout.context_parallel_method == "ring":
        if length % (2 * size):
            yield f"{this}: data.seq_length = {length} must be a multiple of 2 x {size} (ring)"
        return
    if length % size:
        yield f"{this}: data.seq_length = {length} must be a multiple of {size} (ulysses)"
    heads, tensor = model.num_attention_heads, layout.tensor_parallel_size
    if heads % (tensor * size):
        both = "model.num_attention_heads / parallel.tensor_parallel_size"
        yield f"{this} (ulysses): must divide {both} = {heads} / {tensor}"


def _pipeline(config: RunConfig) -> Iterator[str]:
    model, layout = config.model, config.parallel
    if layout.pipeline_parallel_size == 1:
        return
    this = f"parallel.pipeline_parallel_size = {layout.pipeline_parallel_size}"
    if layout.num_stages > model.num_layers:
        yield (
            f"{this}: {layout.num_stages} stages ({layout.stages_per_rank} a rank, {layout.pipeline_schedule}) "
            f"are more than model.num_layers = {model.num_layers}"
        )
    one_rank_has_both_ends = layout.rank_of_stage(layout.num_stages - 1) == 0
    if one_rank_has_both_ends and layout.uses_fsdp2 and model.tie_word_embeddings:
        yield (
            f"parallel.data_parallel_method = fsdp2 with parallel.pipeline_schedule = {layout.pipeline_schedule}: "
            f"needs "
            "model.tie_word_embeddings = false, since first and last stage, on one rank, would share a sharded weight"
        )
    split = layout.pipeline_split
    if split is not None and (len(split) != layout.num_stages or sum(split) != model.num_layers):
        yield (
            f"parallel.pipeline_split = {list(split)}: must be {layout.num_stages} numbers, one for each stage, "
            f"with the sum model.num_layers = {model.num_layers}"
        )


def _batch(config: RunConfig) -> Iterator[str]:
    layout, batch = config.parallel, config.global_batch_size
    size = layout.data_parallel_size
    if batch % size:
        yield f"parallel.data_parallel_size = {size}: must divide global_batch_size = {batch}"
        return
    micro = config.micro_batch_size
    if batch // size % micro:
        yield (
            f"execution.micro_batch_size = {micro}: must divide global_batch_size / parallel.data_parallel_size = "
            f"{batch} / {size}"
        )
    else:
        yield from _pipeline_filled(layout, batch, micro)
    tokens = config.data.seq_length // layout.context_parallel_size
    if layout.sequence_parallel and tokens % layout.tensor_parallel_size:
        yield (
            f"parallel.sequence_parallel = true: data.seq_length / parallel.context_parallel_size = {tokens} tokens "
            f"of a sequence do not divide by parallel.tensor_parallel_size = {layout.tensor_parallel_size}"
        )


def _pipeline_filled(layout: Layout, batch: int, micro: int) -> Iterator[str]:
    pipeline, data, schedule = layout.pipeline_parallel_size, layout.data_parallel_size, layout.pipeline_schedule
    count, least = batch // data // micro, least_micro_batches(layout)
    multiple = pipeline if schedule == "interleaved1f1b" else 1
    if pipeline > 1 and (count < least or count % multiple):
        kind = "a multiple of" if multiple > 1 else "at least"
        yield (
            f"parallel.pipeline_parallel_size = {pipeline}: {schedule} needs {kind} {least} micro-batches, and "
            "global_batch_size / parallel.data_parallel_size / execution.micro_batch_size = "
            f"{batch} / {data} / {micro} makes {count}"
        )


def _factors(world_size: int) -> list[tuple[int, int, int]]:
    """(pipeline, context, tensor) sizes whose product divides the world size."""
    divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
    triples = [(p, c, t) for p in divisors for c in divisors for t in divisors]
    return [(p, c, t) for p, c, t in triples if world_size % (p * c * t) == 0]


def _distance(one: Layout, other: Layout) -> float:
    """How far two layouts are apart: the sum over the axes of |log2 of the ratio of their sizes|."""
    names = ("pipeline_parallel_size", "data_parallel_size", "context_parallel_size", "tensor_parallel_size")
    return sum(abs(math.log2(getattr(one, name) / getattr(other, name))) for name in names)


def _outwards(size: int) -> Iterator[int]:
    """The world sizes below twice `size`, nearest first, the smaller before the larger; the last is 1."""
    for step in range(1, size):
        yield from (size - step, size + step)


def _count(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"
