"""Seconds of one layer on one GPU, operator by operator: a roofline with efficiencies that depend on the shape.

Notation: M = tokens of a micro-batch on one context rank, t tensor ranks. A matrix product [M, K] x [K, N] takes

    max( 2 M N K / (rate x tiles x depth),  bytes moved / bandwidth ) + launch

where tiles = 1 / (1 + wave_loss x (128 x 256 x multiprocessors) / (M N)) is the share of tile slots that are used when
a product ends with a part-filled wave, and depth = K / (K + half_depth) the share of a tile's time that is not its
start and end. The backward pass makes two products of each, for the input's gradient and for the weight's.

Attention is its own operator: 2 x heads x (qk + v channels) x keys FLOPs a token, at a rate of its own, backward 2.5
times (flash attention computes the scores again; Dao et al. 2022, section 3.1). Where the stack writes scores to
memory, reading and writing these costs more than the products. Everything else (norms, residuals, rotary positions,
activation) is counted by the bytes it moves. Between tensor ranks a layer gathers and scatters [M, hidden] twice each
way (Korthikanti et al. 2022, section 4.2.2); context ranks gather keys and values; expert ranks exchange tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from analysis.cost.collectives import all_to_all_seconds, gather_seconds
from analysis.cost.counts import mean_keys
from analysis.cost.setup import Setup
from analysis.cost.stacks import Constants, Sustained, sustained

_TILE = 128 * 256
#: Of the experts' exchange: what the schedule was made for is "fully hidden" behind another micro-batch's work, as its
#: authors say (DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1).
_DUALPIPE_OVERLAP = 0.95
#: Of one element.
_BYTES = 2


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one pass of one micro-batch through one layer on one GPU."""

    linear: float
    attention: float
    elementwise: float
    tensor_communication: float
    context_communication: float
    expert_communication: float

    @property
    def total(self) -> float:
        """Their sum."""
        return (
            self.linear
            + self.attention
            + self.elementwise
            + self.tensor_communication
            + self.context_communication
            + self.expert_communication
        )


class Rates:
    """What one GPU reaches under a stack's constants: FLOP/s of each kind of product and bytes/s of memory."""

    def __init__(self, setup: Setup, constants: Constants) -> None:
        self.reach: Sustained = sustained(setup.device)
        late = 1.0 if setup.device.name.startswith(("A", "V", "T")) else constants.late_device_share
        share = constants.matmul_efficiency * late
        rate = {"fp8": self.reach.fp8, "mxfp8": self.reach.fp8, "nvfp4": self.reach.fp4}.get(setup.precision)
        rate = self.reach.bf16 if rate is None else max(self.reach.bf16, rate * constants.low_precision)
        if setup.precision == "fp32":
            rate *= setup.device.peak_flops.get("fp32", setup.device.bf16_flops / 2) / setup.device.bf16_flops
        self.linear = rate * share
        self.wide = min(rate, self.reach.bf16) * share  # of what stays at 16 bits under fp8: logits
        self.attention = min(rate, self.reach.bf16) * constants.attention_efficiency * late
        self.bandwidth = setup.device.memory_bandwidth * constants.bandwidth_efficiency
        self.slots = _TILE * self.reach.multiprocessors

    def matmul_seconds(self, m: float, n: float, k: float, rate: float, constants: Constants) -> float:
        """One product [m, k] x [k, n]."""
        tiles = 1.0 / (1.0 + constants.wave_loss * self.slots / (m * n))
        depth = k / (k + constants.half_depth)
        moved = _BYTES * (m * k + k * n + m * n) / self.bandwidth
        return max(2.0 * m * n * k / (rate * tiles * depth), moved) + constants.kernel_seconds

    def both_seconds(self, m: float, n: float, k: float, rate: float, constants: Constants) -> tuple[float, float]:
        """(forward, backward) of a linear layer [m, k] x [k, n]."""
        backward = self.matmul_seconds(m, k, n, rate, constants) + self.matmul_seconds(n, k, m, rate, constants)
        return self.matmul_seconds(m, n, k, rate, constants), backward


def layer_time(setup: Setup, constants: Constants, rates: Rates, moe: bool) -> tuple[LayerTime, LayerTime]:
    """(forward, backward) of one layer; moe: with experts."""
    linear = [0.0, 0.0]
    for m, n, k, rate in _linear_shapes(setup, rates, moe):
        forward, backward = rates.both_seconds(m, n, k, rate, constants)
        linear[0] += forward
        linear[1] += backward
    if moe:
        expert = _expert_seconds(setup, constants, rates)
        linear[0] += expert[0]
        linear[1] += expert[1]
    attention = _attention_seconds(setup, constants, rates)
    moved = _elementwise_bytes(setup, constants, moe) * constants.elementwise / rates.bandwidth
    tensor = _tensor_seconds(setup, constants)
    context = _context_seconds(setup, constants, attention)
    exchange = _exchange_seconds(setup, constants) if moe else 0.0
    return (
        LayerTime(linear[0], attention[0], moved, tensor, context[0], exchange),
        LayerTime(linear[1], attention[1], 2.0 * moved, tensor, context[1], exchange),
    )


def _linear_shapes(setup: Setup, rates: Rates, moe: bool) -> Iterator[tuple[float, float, float, float]]:
    """(M, N, K, rate) of the linear layers of a layer, experts left out."""
    model, tensor, tokens = setup.model, setup.tensor_parallel_size, setup.micro_batch_tokens
    hidden, heads = model.hidden_size, model.num_attention_heads / tensor
    if model.is_latent:
        down = model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim
        yield tokens, down if model.q_lora_rank else down - model.q_lora_rank, hidden, rates.linear
        yield tokens, heads * model.qk_channels, model.q_lora_rank or hidden, rates.linear
        yield tokens, heads * (model.qk_nope_head_dim + model.v_head_dim), model.kv_lora_rank, rates.linear
    else:
        groups = max(1.0, model.num_query_groups / tensor)
        yield tokens, (heads + 2 * groups) * model.kv_channels, hidden, rates.linear
    yield tokens, hidden, heads * model.v_channels, rates.linear
    inner = (model.moe_shared_expert_intermediate_size if moe else model.ffn_hidden_size) / tensor
    if inner:
        yield tokens, (2 if model.gated else 1) * inner, hidden, rates.linear
        yield tokens, hidden, inner, rates.linear
    if moe:
        yield tokens / (tensor if setup.sequence_parallel else 1), model.num_experts, hidden, rates.wide


def _expert_seconds(setup: Setup, constants: Constants, rates: Rates) -> tuple[float, float]:
    """(forward, backward) of the routed experts of one GPU, tokens spread evenly; one grouped product for all."""
    model = setup.model
    here, split = model.num_experts / setup.expert_parallel_size, setup.expert_tensor_parallel_size
    inner = model.moe_ffn_hidden_size / split
    routed = setup.micro_batch_tokens * model.moe_router_topk * split / setup.tensor_parallel_size
    left = constants.fused_share if setup.fuses_experts else 1.0
    lost = constants.half_expert / (inner + constants.half_expert)
    rate = rates.linear * (1.0 - left * lost)
    each = left * constants.expert_seconds
    seconds = [0.0, 0.0]
    for n, k in (
        ((2 if model.gated else 1) * inner, model.hidden_size),
        (model.hidden_size, inner),
    ):
        read = _BYTES * here * n * k / rates.bandwidth
        forward, backward = rates.both_seconds(routed, n, k, rate, constants)
        seconds[0] += max(forward, read) + here * each
        seconds[1] += max(backward, 3.0 * read) + 2.0 * here * each
    return seconds[0], seconds[1]


def _attention_seconds(setup: Setup, constants: Constants, rates: Rates) -> tuple[float, float]:
    """(forward, backward) of scores, softmax and values, mean over windowed and other layers."""
    model, length = setup.model, setup.seq_length
    heads = model.num_attention_heads / setup.tensor_parallel_size
    channels = model.qk_channels + model.v_channels
    windowed = model.num_windowed_layers / model.num_layers if model.sliding_window else 0.0
    causal = setup.flash_attention
    keys = (1.0 - windowed) * mean_keys(length, None, causal)
    if windowed:
        keys += windowed * mean_keys(length, model.sliding_window, causal, model.chunked_attention)
    flops = 2.0 * setup.micro_batch_tokens * heads * channels * keys
    if setup.flash_attention:
        forward = flops / rates.attention
        return (
            forward + constants.kernel_seconds,
            2.5 * forward / constants.attention_backward + constants.kernel_seconds,
        )
    # Batched products of small matrices reach about half of a large product's rate; a score is written and read.
    forward = flops / (rates.wide / 2)
    moved = setup.micro_batch_tokens * heads * length * 2.0 * constants.score_bytes / rates.bandwidth
    return forward + moved, 2.0 * forward + 1.5 * moved


def _elementwise_bytes(setup: Setup, constants: Constants, moe: bool) -> float:
    """Bytes that a forward pass moves between products: residual stream, activation, rotary positions."""
    model, tensor = setup.model, setup.tensor_parallel_size
    inner = model.ffn_hidden_size
    if moe:
        inner = model.moe_shared_expert_intermediate_size + model.moe_router_topk * model.moe_ffn_hidden_size
    divided = tensor if setup.sequence_parallel else 1
    heads = model.num_attention_heads + model.num_query_groups * (not model.is_latent)
    values = constants.residual_values * model.hidden_size / divided
    values += (3 if model.gated else 2) * inner / tensor + 2.0 * heads * model.qk_channels / tensor
    if moe:  # tokens are sorted by expert and back
        left = constants.fused_share if setup.fuses_experts else 1.0
        values += left * constants.routed_values * model.moe_router_topk * model.hidden_size / tensor
    return _BYTES * setup.micro_batch_tokens * values


def _tensor_seconds(setup: Setup, constants: Constants) -> float:
    """Exposed seconds of a pass between tensor ranks: two gathers and two scatters of [M, hidden]."""
    size = setup.tensor_parallel_size
    block = _BYTES * setup.micro_batch_tokens * setup.model.hidden_size
    return 4.0 * gather_seconds(block, size, 1, setup.device, constants) * (1.0 - constants.tensor_overlap)


def _context_seconds(setup: Setup, constants: Constants, attention: tuple[float, float]) -> tuple[float, float]:
    """(forward, backward) exposed seconds between context ranks: keys and values, and on the way back gradients."""
    size, model = setup.context_parallel_size, setup.model
    if size == 1:
        return 0.0, 0.0
    channels = model.num_query_groups * (model.qk_channels + model.v_channels) / setup.tensor_parallel_size
    block = _BYTES * setup.micro_batch_tokens * channels * size
    seconds = gather_seconds(block, size, setup.tensor_parallel_size, setup.device, constants)
    hidden = [constants.context_overlap * part for part in attention]
    return max(0.0, seconds - hidden[0]), max(0.0, 2.0 * seconds - hidden[1])


def _exchange_seconds(setup: Setup, constants: Constants) -> float:
    """Exposed seconds of a pass between expert ranks: every routed token there and back.

    Ranks that share an expert are neighbours: they gather what each of them was sent, and scatter what comes out.
    """
    split, device = setup.expert_tensor_parallel_size, setup.device
    routed = setup.micro_batch_tokens * setup.model.moe_router_topk / setup.tensor_parallel_size
    block = _BYTES * routed * setup.model.hidden_size
    exchange = all_to_all_seconds(block, setup.expert_parallel_size, split, device, constants)
    exchange += gather_seconds(block * split, split, 1, device, constants)
    hidden = _DUALPIPE_OVERLAP if setup.pipeline_schedule == "dualpipev" else constants.expert_overlap
    return 2.0 * exchange * (1.0 - hidden)
