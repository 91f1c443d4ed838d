"""Seconds of one training step from the setup alone: layers, pipeline, communication, optimizer, host.

A pipeline rank takes, for each of m micro-batches, the time of its layers (operators.py); the pipeline adds its bubble
of (p - 1) / v such times (Narayanan et al. 2021, section 2.2; zero-bubble schedules fill most of it: Qi et al. 2024,
arXiv:2401.10241), messages between stages, and what the last stage has to do beyond the mean. Gradients are scattered
and weights gathered once a step (ZeRO-1) or with every micro-batch (FSDP), behind the work as far as it reaches. When
launching a layer takes the host longer than the GPU needs for it, the host sets the pace.

Where it does not apply: clusters that nobody tuned (measured times there are two to three times these), recurrent and
hybrid layers, TPUs. Mixtures of experts are taken as balanced.
"""

import math
from dataclasses import dataclass, fields

from analysis.cost.collectives import gather_seconds, send_seconds
from analysis.cost.counts import block_parameters, embedding_parameters
from analysis.cost.interval import Interval
from analysis.cost.operators import LayerTime, Rates, layer_time
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants, constants_of

#: Bytes of a weight that is gathered, of a gradient that is scattered (float32), and that the optimizer moves for one
#: parameter: gradient, weight and two moments read, three written in float32 and the weight in 16 bits.
_WEIGHT_BYTES, _GRADIENT_BYTES, _OPTIMIZER_BYTES = 2.0, 4.0, 30.0
#: Of gradients and the optimizer where all is in 16 bits.
_GRADIENT_BYTES_16, _OPTIMIZER_BYTES_16 = 2.0, 14.0
#: Part of the bubble that zero-bubble schedules leave, against 1F1B's, where micro-batches are enough: forward pass,
#: gradients of inputs and of weights take about as long each, and the last are put off to fill it.
_LEFT = {"zb1p": 1 / 3, "zb2p": 0.0, "zbv": 1 / 3, "dualpipev": 1 / 3}
#: Parts of a step in which the GPU computes; in the others it waits. And how far their share may be off, either way.
_COMPUTE = ("linear", "attention", "elementwise", "output_layer", "recompute", "optimizer")
_BUSY_ERROR = 0.1
#: Launching a layer with experts takes the host about twice as long.
_EXPERT_LAUNCHES = 2.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step on the slowest rank, by what they go to; they add up to `total`."""

    linear: float
    attention: float
    elementwise: float
    output_layer: float
    recompute: float
    tensor_communication: float
    context_communication: float
    expert_communication: float
    weight_communication: float
    launch: float
    pipeline_bubble: float
    pipeline_communication: float
    stage_imbalance: float
    data_communication: float
    optimizer: float
    jitter: float
    host: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class _Layer:
    """One layer with its recomputation, launch floor and the weights it has to fetch."""

    forward: LayerTime
    backward: LayerTime
    recompute: float
    launch: float
    weights: float

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total + self.recompute + self.launch + self.weights


def step_time(setup: Setup, constants: Constants | None = None) -> StepTime:
    """The predicted step of `setup`; constants: of its stack, unless calibrated ones are given."""
    constants = constants or constants_of(setup.stack)
    rates = Rates(setup, constants)
    model = setup.model
    kinds = [(False, model.num_layers - model.num_moe_layers), (True, model.num_moe_layers)]
    layers = [(_layer(setup, constants, rates, moe), count) for moe, count in kinds if count]
    micro_batches, ranks = setup.num_micro_batches, setup.pipeline_parallel_size
    share = micro_batches / ranks

    def summed(name: str) -> float:
        return share * sum(
            count * (getattr(layer.forward, name) + getattr(layer.backward, name)) for layer, count in layers
        )

    one_pass = sum(count * layer.total for layer, count in layers) / ranks
    head = _output_seconds(setup, constants, rates)
    mean = one_pass + head / ranks
    excess = _slowest_stage(setup, one_pass, head) - mean
    stage = mean + constants.stage_imbalance * excess
    bubble, messages = _pipeline(setup, constants, stage)
    body = micro_batches * stage + bubble + messages
    nodes = max(1.0, setup.num_gpus / setup.device.gpus_per_node)
    return StepTime(
        **{field.name: summed(field.name) for field in fields(LayerTime)},
        output_layer=micro_batches * head / ranks,
        recompute=share * sum(count * layer.recompute for layer, count in layers),
        weight_communication=share * sum(count * layer.weights for layer, count in layers),
        launch=share * sum(count * layer.launch for layer, count in layers),
        pipeline_bubble=bubble,
        pipeline_communication=messages,
        stage_imbalance=micro_batches * constants.stage_imbalance * excess,
        data_communication=_data_seconds(setup, constants, layers),
        optimizer=_optimizer_seconds(setup, rates),
        jitter=body * constants.jitter * math.log2(nodes),
        host=constants.step_seconds,
    )


def _layer(setup: Setup, constants: Constants, rates: Rates, moe: bool) -> _Layer:
    forward, backward = layer_time(setup, constants, rates, moe)
    again = 0.0
    if setup.recompute_granularity == "full":
        again = setup.recompute_share * forward.total
    elif setup.recompute_granularity == "selective" and setup.is_fsdp:
        # torchtitan's policy: attention and every other product are kept, all that is cheap is computed again
        again = forward.elementwise + forward.linear / 2
    elif setup.recompute_granularity == "selective":
        again = forward.attention  # Korthikanti et al. 2022, section 5
    collectives = setup.tensor_parallel_size > 1
    launch = constants.host_layer_seconds + constants.host_collective_seconds * collectives
    launch *= _EXPERT_LAUNCHES if moe else 1.0
    host_backward = 1.3 * launch + (launch if setup.recompute_granularity == "full" else 0.0)
    waiting = max(0.0, launch - forward.total), max(0.0, host_backward - backward.total - again)
    gather, scatter = _fetched_weights(setup, constants, moe)
    if setup.sharding == "zero3":
        scatter += gather
    hidden = constants.weight_overlap  # behind what the GPU does, and behind its waiting for the host
    weights = max(0.0, gather - hidden * (forward.total + waiting[0]))
    weights += max(0.0, scatter - hidden * (backward.total + again + waiting[1]))
    return _Layer(forward, backward, again, sum(waiting), weights)


def _fetched_weights(setup: Setup, constants: Constants, moe: bool) -> tuple[float, float]:
    """(gather of the weights, scatter of the gradients) of one layer in one micro-batch under FSDP; else zeros."""
    if not setup.fetches_weights:
        return 0.0, 0.0
    block = block_parameters(setup.model, moe)
    # (parameters that a rank holds, ranks that share them, ranks between two of these)
    parts = [
        (
            (block.total - block.routed_experts) / setup.tensor_parallel_size,
            setup.sharding_ranks,
            setup.tensor_parallel_size,
        )
    ]
    if moe:
        parts.append(
            (block.routed_experts / setup.expert_ranks, round(setup.expert_sharding_ranks), setup.expert_ranks)
        )

    def seconds(bytes_each: float) -> float:
        total = 0.0
        for held, size, stride in parts:
            slower = constants.fetch_slowdown if size * stride > setup.device.scale_up_size else 1.0
            total += slower * gather_seconds(bytes_each * held, size, stride, setup.device, constants)
        return total

    return seconds(_WEIGHT_BYTES), seconds(_gradient_bytes(setup))


def _output_seconds(setup: Setup, constants: Constants, rates: Rates) -> float:
    """Embedding, logits and cross-entropy of one micro-batch, forward and backward; again for each MTP layer."""
    tokens, hidden = setup.micro_batch_tokens, setup.model.hidden_size
    table = setup.model.vocab_size / setup.tensor_parallel_size
    forward, backward = rates.both_seconds(tokens, table, hidden, rates.wide, constants)
    loss = constants.logit_bytes * tokens * table / rates.bandwidth
    lookup = 8.0 * tokens * hidden / rates.bandwidth
    return (1 + setup.model.mtp_num_layers) * (forward + backward + loss) + lookup


def _slowest_stage(setup: Setup, one_pass: float, head: float) -> float:
    """Seconds of a micro-batch on the pipeline rank that takes longest; one_pass: of its layers, mean over the ranks.

    The last rank has the output layer besides, and a layer less where the ends are shorter.
    """
    ranks, layers = setup.pipeline_parallel_size, setup.model.num_layers
    if not setup.shortens_ends:
        return one_pass + head
    layer = one_pass * ranks / layers
    longest = layer * (layers + 2) / ranks
    return max(longest, longest - layer + head)


def _pipeline(setup: Setup, constants: Constants, stage: float) -> tuple[float, float]:
    """(bubble, exposed messages) of a step, in which a rank works `stage` seconds on each micro-batch."""
    ranks = setup.pipeline_parallel_size
    if ranks == 1:
        return 0.0, 0.0
    chunks = setup.virtual_pipeline_parallel_size
    bubble = (ranks - 1) / chunks * stage * constants.bubble * _bubble_left(setup)
    inner = setup.tensor_parallel_size * setup.context_parallel_size * setup.data_parallel_size
    crosses = setup.num_gpus > setup.device.scale_up_size and 2 * inner > setup.device.scale_up_size
    block = 2.0 * setup.micro_batch_tokens * setup.model.hidden_size / setup.tensor_parallel_size
    one = 2.0 * send_seconds(block, crosses, setup.device, constants)
    steady = setup.num_micro_batches * chunks * one * (1.0 - constants.pipeline_overlap)
    return bubble, steady + (ranks - 1) * one


def _bubble_left(setup: Setup) -> float:
    """Part of 1F1B's bubble that the schedule leaves.

    The first rank has its last gradient no sooner than p - 1 forward passes, all m of forward passes and gradients of
    inputs on the last rank, and p - 1 gradients on the way back; it can fill 3 m thirds of a stage's time of that.
    So (2 p - 1 - m) / 3 stages are idle whatever is put off (Qi et al. 2023, arXiv:2401.10241: none from m = 2 p - 1).
    """
    if setup.pipeline_schedule not in _LEFT:
        return 1.0
    ranks = setup.pipeline_parallel_size
    idle = (2 * ranks - 1 - setup.num_micro_batches) / 3
    return max(_LEFT[setup.pipeline_schedule], idle / (ranks - 1))


def _data_seconds(setup: Setup, constants: Constants, layers: list[tuple[_Layer, int]]) -> float:
    """Exposed seconds of gradients and weights between data (and context) ranks, once a step."""
    data, ranks = setup.data_parallel_size * setup.context_parallel_size, setup.pipeline_parallel_size
    tensor = setup.tensor_parallel_size
    ends = setup.model.vocab_size * setup.model.hidden_size / tensor
    backward = sum(count * (layer.backward.total + layer.recompute) for layer, count in layers) / ranks
    if setup.fetches_weights:
        size = setup.sharding_ranks
        fetched = 2.0 * gather_seconds(_WEIGHT_BYTES * 2 * ends, size, tensor, setup.device, constants)
        copies = data // size
        if copies > 1:  # HSDP: the shards' gradients are summed over the copies, layer by layer in the backward pass
            block = _gradient_bytes(setup) * _rank_parameters(setup)[0] / size
            summed = 2.0 * gather_seconds(block, copies, tensor * size, setup.device, constants)
            fetched += max(0.02 * summed, summed - constants.data_overlap * backward)
        return fetched
    dense, experts = _rank_parameters(setup)
    gradient = _gradient_bytes(setup)
    scatter = gather_seconds(gradient * dense, data, tensor, setup.device, constants)
    back = _WEIGHT_BYTES if setup.sharding != "none" else gradient
    gather = gather_seconds(back * dense, data, tensor, setup.device, constants)
    if experts:
        copies, stride = max(1, data * tensor // setup.expert_ranks), setup.expert_ranks
        scatter += gather_seconds(gradient * experts, copies, stride, setup.device, constants)
        gather += gather_seconds(back * experts, copies, stride, setup.device, constants)
    forward = sum(count * layer.forward.total for layer, count in layers) / ranks
    exposed = _exposed(setup, scatter, constants.data_overlap * backward)
    exposed += _exposed(setup, gather, constants.data_overlap * forward)
    return exposed + 0.02 * (scatter + gather)


def _exposed(setup: Setup, seconds: float, hidden: float) -> float:
    """What remains of a rank's scatter or gather, of which one micro-batch's pass hides `hidden` seconds.

    The stages of an interleaved rank are done one after the other, each with the last p micro-batches (Narayanan et al.
    2021, figure 4): gradients of the stage done first have those of all later ones to hide behind, p (v - 1) passes
    through a stage, and only the last stage's have no more than its own pass. Weights likewise, the other way round.
    """
    ranks, chunks = setup.pipeline_parallel_size, setup.virtual_pipeline_parallel_size
    last_stage = (seconds - hidden) / chunks
    in_all = seconds - hidden * (ranks * (chunks - 1) + 1) / chunks
    return max(0.0, last_stage, in_all)


def _rank_parameters(setup: Setup) -> tuple[float, float]:
    """(dense, expert) parameters that one rank holds, before any sharding over data ranks."""
    model, ranks, tensor = setup.model, setup.pipeline_parallel_size, setup.tensor_parallel_size
    dense, moe = block_parameters(model, moe=False), block_parameters(model, moe=model.is_moe)
    num_dense = model.num_layers - model.num_moe_layers
    shared = num_dense * dense.total + model.num_moe_layers * (moe.total - moe.routed_experts)
    tables = embedding_parameters(model)
    if ranks == 1 and not model.tie_word_embeddings:
        tables += model.vocab_size * model.hidden_size
    experts = model.num_moe_layers * moe.routed_experts / ranks / setup.expert_ranks
    return shared / ranks / tensor + tables / tensor, experts


def _optimizer_seconds(setup: Setup, rates: Rates) -> float:
    """Adam's pass over what this rank updates."""
    dense, experts = _rank_parameters(setup)
    if setup.sharding != "none":
        dense /= setup.sharding_ranks
        experts /= setup.expert_sharding_ranks
    moved = _OPTIMIZER_BYTES if setup.mixed_precision else _OPTIMIZER_BYTES_16
    return (dense + experts) * moved / rates.bandwidth


def _gradient_bytes(setup: Setup) -> float:
    """Of one gradient on its way between data ranks."""
    return _GRADIENT_BYTES if setup.mixed_precision else _GRADIENT_BYTES_16


def busy_share(step: StepTime) -> Interval:
    """Share of the step in which the GPU computes; in the rest it waits for the host, the network or other GPUs."""
    share = sum(getattr(step, name) for name in _COMPUTE) / step.total
    return Interval(share, max(0.0, share - _BUSY_ERROR), min(1.0, share + _BUSY_ERROR))
