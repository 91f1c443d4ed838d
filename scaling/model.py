"""The decoder-only transformer: Llama's and GPT-2's families, Pythia's, Chinchilla's, by configuration.

Shapes: B sequences, T positions, M = B T tokens, D hidden, H query heads, G key/value heads, K channels a head,
V vocabulary. On one rank of many T, H, G and V are that rank's part, and the residual stream [M, D] may be one run
of the tokens (sequence parallelism, parallel/tensor.py).

The same modules serve one process and every layout: column- and row-parallel products know their Region, attention
its part of the sequence, and a pipeline stage is a Transformer with some of the layers. `Transformer.bind` connects
them to flat buffers, and where a module's options allow it swaps in the hand-written functions of
parallel/functions.py, which compute the same values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parallel import context, functions, tensor
from parallel.data import FlatParameters, Ready, Shard
from parallel.kernels import UNCHECKED, Kernels
from parallel.mesh import Axis, Mesh
from parallel.recompute import recompute
from parallel.tensor import Embedding, Linear, Region, Weights, column, piece, replicated, row
from scaling.config import ModelConfig


@dataclass(frozen=True)
class Place:
    """Where a Transformer stands among the ranks: which layers it has, and whom it shares them with.

    Attributes:
        mesh, sequence_parallel: the ranks, and whether the tensor ranks divide the tokens between their regions.
        first_layer, end_layer: the layers of this stage; end None: to the last.
        tied: the ranks at the two ends of a pipeline that both hold a tied embedding.
        recompute_granularity: what is computed anew in the backward pass instead of kept.
        seq_length: of the whole sequences; a first stage can tell it from its ids.
        kernels: what computes norms, attention and so on.
    """

    mesh: Mesh = Mesh()
    sequence_parallel: bool = False
    first_layer: int = 0
    end_layer: int | None = None
    tied: Axis = Axis()
    recompute_granularity: str = "none"
    seq_length: int | None = None
    kernels: Kernels = UNCHECKED


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, in float32 at least, handed on in `dtype`."""

    def __init__(self, size: int, epsilon: float, kernels: Kernels, shard: Shard | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.shards = {"weight": shard}
        self.epsilon, self.kernels = epsilon, kernels
        self.dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.kernels["rms_norm"](x, self.weight.to(x.dtype), self.epsilon, self.dtype or x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + epsilon), times weight plus bias if there are any, in float32 at least."""

    kernels: Kernels
    #: Of what it hands on; None: of its input.
    dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.dtype or x.dtype
        if self.weight is None:
            return F.layer_norm(x, self.normalized_shape, eps=self.eps).to(dtype)
        return self.kernels["layer_norm"](x, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps, dtype)


def _norm(config: ModelConfig, region: Region) -> nn.Module:
    shard = replicated((config.hidden_size,), region)
    if config.normalization == "rmsnorm":
        return RMSNorm(config.hidden_size, config.norm_epsilon, region.kernels, shard)
    affine = config.normalization == "layernorm"
    norm = LayerNorm(config.hidden_size, eps=config.norm_epsilon, elementwise_affine=affine)
    norm.shards, norm.kernels = {"weight": shard, "bias": shard}, region.kernels
    return norm


def rotation_table(config: ModelConfig, positions: Tensor, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Complex [T, 1, rotary/2]: exp(i t base^(-2 j / rotary)) for position t and pair j (Su et al., 2021)."""
    rotary = config.rotary_dim
    frequency = config.rotary_base ** (
        -torch.arange(0, rotary, 2, dtype=torch.float64, device=positions.device) / rotary
    )
    angle = torch.outer(positions.double(), frequency)
    return torch.polar(torch.ones_like(angle), angle).to(dtype).unsqueeze(1)


def _rotate(x_BTHK: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring pairs of the first `rotary` channels of each head by their position."""
    rotary = 2 * rotation.shape[-1]
    turned, rest = x_BTHK[..., :rotary], x_BTHK[..., rotary:]
    wide = turned.to(torch.promote_types(x_BTHK.dtype, torch.float32))
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * rotation).flatten(-2).to(x_BTHK.dtype)
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


class RelativePosition(nn.Module):
    """Transformer-XL's relative positions (Dai et al., 2019), as in Gopher and Chinchilla.

    score(i, j) = (q_i + content_bias) k_j + (q_i + position_bias) r_{i-j}, r = W sinusoid(distance).
    """

    def __init__(self, config: ModelConfig, axis: Axis):
        super().__init__()
        heads, size = config.num_attention_heads, config.kv_channels
        start, local = piece(heads, axis)
        self.weight = nn.Parameter(torch.empty(local * size, config.hidden_size))
        self.content_bias = nn.Parameter(torch.zeros(local, size))
        self.position_bias = nn.Parameter(torch.zeros(local, size))
        self.shards = {
            "weight": Shard((heads * size, config.hidden_size), 0, start * size),
            "content_bias": Shard((heads, size), 0, start),
            "position_bias": Shard((heads, size), 0, start),
        }

    def forward(self, q_BHTK: Tensor) -> Tensor:
        """The position part of the scores, [B, H, T, T]; entries with j > i mean nothing."""
        heads, size = self.content_bias.shape
        length, hidden = q_BHTK.shape[2], self.weight.shape[1]
        frequency = 10000.0 ** (-torch.arange(0, hidden, 2, device=q_BHTK.device) / hidden)
        angle = torch.arange(length, device=q_BHTK.device)[:, None] * frequency
        sinusoid = torch.cat((angle.sin(), angle.cos()), -1)[:, :hidden].to(self.weight.dtype)
        r_HTK = F.linear(sinusoid, self.weight).view(length, heads, size).transpose(0, 1)
        by_distance = (q_BHTK + self.position_bias[:, None]) @ r_HTK.transpose(-1, -2)
        position = torch.arange(length, device=q_BHTK.device)
        distance = (position[:, None] - position).clamp(min=0)
        return by_distance.gather(-1, distance.expand(by_distance.shape))


def attention_fusable(config: ModelConfig, mesh: Mesh = Mesh()) -> bool:
    """Whether parallel.functions.Attention computes exactly what the Attention module of this config does."""
    whole = config.position_embedding == "rope" and config.rotary_dim == config.kv_channels
    alone = mesh.tensor.size == 1 and mesh.context.size == 1
    return alone and whole and not config.add_bias_linear and not config.qk_norm


class Attention(nn.Module):
    """Causal self-attention with grouped queries: [M, D] -> [M, D].

    The heads are divided over the tensor ranks. Where those are more than the key/value heads, neighbours share
    one: each holds its weights, sees the gradient of its own query heads, and the parts are summed.
    """

    def __init__(self, config: ModelConfig, place: Place, region: Region):
        super().__init__()
        self.config, self.context, self.method = config, place.mesh.context, place.mesh.layout.context_parallel_method
        self.keep = recompute(place.recompute_granularity == "selective")
        axis, size, hidden, bias = region.axis, config.kv_channels, config.hidden_size, config.add_bias_linear
        heads, groups = config.num_attention_heads, config.num_query_groups
        sharing = max(1, axis.size // groups)
        self.heads, self.groups = heads // axis.size, max(1, groups // axis.size)
        key_value = {
            "divided": 0,
            "start": axis.rank // sharing * self.groups * size,
            "length": self.groups * size,
            "partial": place.mesh.tensor_neighbours(sharing) if sharing > 1 else None,
            "primary": axis.rank % sharing == 0,
        }
        length = self.heads * size
        self.query = Linear(heads * size, hidden, 0, axis.rank * length, length, region, bias)
        self.key = Linear(groups * size, hidden, region=region, bias=bias, **key_value)
        self.value = Linear(groups * size, hidden, region=region, bias=bias, **key_value)
        self.output = Linear(hidden, heads * size, 1, axis.rank * length, length, region, bias)
        if config.qk_norm:
            shard = Shard((size,), partial=axis if axis.size > 1 else None, primary=axis.rank == 0)
            self.query_norm = RMSNorm(size, config.norm_epsilon, region.kernels, shard)
            self.key_norm = RMSNorm(size, config.norm_epsilon, region.kernels, shard)
        if config.position_embedding == "relative":
            self.relative = RelativePosition(config, axis)
        self.qkv = Weights([self.query, self.key, self.value], region)
        self.out = Weights([self.output], region)
        self.scores = region.kernels["attention"]
        self.fused = False

    def forward(self, x: Tensor, tables: "Tables") -> Tensor:
        if self.fused:
            return functions.Attention.apply(
                x, self.qkv, self.out, tables.rotation_query, tables.rotation, tables.mask, self.heads, self.groups
            )
        qkv = column(x, self.qkv)
        return row(self.keep(self._core, qkv, tables), self.out)

    def _core(self, qkv_MC: Tensor, tables: "Tables") -> Tensor:
        """What lies between the projections: [M, (H + 2 G) K] -> [M, H K]."""
        c, size = self.config, self.config.kv_channels
        qkv = qkv_MC.view(-1, tables.length, self.heads + 2 * self.groups, size)
        q, k, v = qkv.split((self.heads, self.groups, self.groups), 2)
        if c.qk_norm:
            q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        if c.position_embedding == "rope":
            q, k = _rotate(q, tables.rotation), _rotate(k, tables.rotation)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if c.position_embedding == "relative":
            length = tables.length
            future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            bias = (self.relative(q) / math.sqrt(size)).masked_fill(future, -math.inf)
            q = q + self.relative.content_bias[:, None].to(q.dtype)
            grouped = self.groups != self.heads
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), enable_gqa=grouped)
        elif self.context.size == 1:
            out = self.scores(q, k, v)
        else:
            out = context.attention(q, k, v, self.context, self.method)
        return out.transpose(1, 2).reshape(qkv_MC.shape[0], -1)


class MLP(nn.Module):
    """SwiGLU, (silu(x Wg) * x Wu) Wd, or GELU, gelu(x Wu) Wd: [M, D] -> [M, D]."""

    def __init__(self, config: ModelConfig, place: Place, region: Region):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.ffn_hidden_size, config.add_bias_linear
        start, length = piece(inner, region.axis)
        self.keep = recompute(place.recompute_granularity == "selective")
        self.gated = config.activation == "swiglu"
        if self.gated:
            self.gate = Linear(inner, hidden, 0, start, length, region, bias)
        self.up = Linear(inner, hidden, 0, start, length, region, bias)
        self.down = Linear(hidden, inner, 1, start, length, region, bias)
        self.enter = Weights([self.gate, self.up] if self.gated else [self.up], region)
        self.leave = Weights([self.down], region)
        self.fusable = self.gated and not bias and region.axis.size == 1
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return functions.SwiGLU.apply(x, self.enter, self.leave)
        return row(self.keep(self._activate, column(x, self.enter)), self.leave)

    def _activate(self, y: Tensor) -> Tensor:
        if self.gated:
            gate, up = y.chunk(2, -1)
            return F.silu(gate) * up
        # GPT-2's form of GELU, Hendrycks & Gimpel's tanh approximation
        return F.gelu(y, approximate="tanh")


class Layer(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(.)); with parallel_residual both read the same x."""

    def __init__(self, config: ModelConfig, place: Place, region: Region):
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.attention_norm = _norm(config, region)
        self.attention = Attention(config, place, region)
        self.mlp_norm = _norm(config, region)
        self.mlp = MLP(config, place, region)

    def forward(self, x: Tensor, tables: "Tables") -> Tensor:
        after = x + self.attention(self.attention_norm(x), tables)
        if self.parallel_residual:
            return after + self.mlp(self.mlp_norm(x))
        return after + self.mlp(self.mlp_norm(after))


class Tables:
    """What depends on the positions alone: rotations, and the causal mask of the fused attention."""

    def __init__(self, config: ModelConfig, positions: Tensor, dtype: torch.dtype, fused: bool):
        self.positions, self.length = positions, positions.numel()
        if config.position_embedding == "rope":
            exact = torch.complex128 if dtype == torch.float64 else torch.complex64
            self.rotation = rotation_table(config, positions, exact)
            self.rotation_query = self.rotation / math.sqrt(config.kv_channels)
        if fused:
            repeats = config.num_attention_heads // config.num_query_groups
            mask = torch.full((self.length, self.length), -math.inf, dtype=dtype, device=positions.device).triu(1)
            self.mask = mask.repeat(repeats, 1)


class Transformer(nn.Module):
    """Token ids [B, T] -> hidden states of the last layer's norm, or of the last layer of this pipeline stage.

    A stage that is not the first takes the hidden states [M, D] of the one before instead of ids. `shared` is the
    embedding of a first stage on the same rank, which a last stage with tied embeddings uses as its own.
    """

    def __init__(self, config: ModelConfig, place: Place = Place(), shared: Embedding | None = None):
        super().__init__()
        self.config, self.place = config, place
        tensor_axis = place.mesh.tensor
        self.region = Region(tensor_axis, place.sequence_parallel, place.kernels)
        end = config.num_layers if place.end_layer is None else place.end_layer
        self.is_first, self.is_last = place.first_layer == 0, end == config.num_layers
        tied = config.tie_word_embeddings
        if self.is_first or (self.is_last and tied):
            pair = place.tied if tied and place.tied.size > 1 else None
            made = Embedding(config.vocab_size, config.hidden_size, self.region, pair, primary=self.is_first)
            self.embedding = shared or made
        if self.is_first and config.position_embedding == "learned":
            self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.position_embedding.shards = {
                "weight": replicated(tuple(self.position_embedding.weight.shape), self.region)
            }
        self.layers = nn.ModuleDict({str(i): Layer(config, place, self.region) for i in range(place.first_layer, end)})
        self._whole_layer = recompute(place.recompute_granularity == "full")
        self.start, rows = piece(config.vocab_size, tensor_axis)
        if self.is_last:
            self.final_norm = _norm(config, self.region)
            if not tied:
                self.output = Linear(config.vocab_size, config.hidden_size, 0, self.start, rows, self.region)
            self.head = Weights([self.embedding if tied else self.output], self.region)
        self.fused_head = False
        self._tables: dict[int, Tables] = {}
        self.call_when_ready: Callable[[str], None] | None = None

    def bind(self, flat: FlatParameters, fuse: bool) -> list[str]:
        """Compute with the flat buffers' views; with `fuse` by hand-written functions wherever they compute the same.

        Returns the names of what was fused.
        """
        self._tables.clear()
        fused, dtype = set(), flat.compute.dtype
        for index, layer in self.layers.items():
            at, mlp = f"layers.{index}.attention", f"layers.{index}.mlp"
            layer.attention.qkv.bind(flat, [f"{at}.{part}.weight" for part in ("query", "key", "value")])
            layer.attention.out.bind(flat, [f"{at}.output.weight"])
            enter = ["gate", "up"] if layer.mlp.gated else ["up"]
            layer.mlp.enter.bind(flat, [f"{mlp}.{part}.weight" for part in enter])
            layer.mlp.leave.bind(flat, [f"{mlp}.down.weight"])
            layer.attention.fused = fuse and attention_fusable(self.config, self.place.mesh)
            layer.mlp.fused = fuse and layer.mlp.fusable
            fused |= {"attention"} if layer.attention.fused else set()
            fused |= {"swiglu"} if layer.mlp.fused else set()
        norms = [norm for layer in self.layers.values() for norm in (layer.attention_norm, layer.mlp_norm)]
        if self.is_last:
            self.head.bind(flat, ["embedding.weight" if self.config.tie_word_embeddings else "output.weight"])
            norms.append(self.final_norm)
            self.fused_head = fuse and self.region.axis.size == 1
            fused |= {"linear_cross_entropy"} if self.fused_head else set()
        for norm in norms:
            norm.dtype = dtype
        return sorted(fused)

    def hidden(self, x: Tensor) -> Tensor:
        """Ids [B, T] (first stage) or hidden states [M or M/n, D] -> hidden states.

        Ids are a context rank's part of the sequences.
        """
        length = self.place.seq_length or x.shape[1] * self.place.mesh.context.size
        tables = self._tables.get(length) or self._build_tables(length, x.device)
        if self.is_first:
            ids_M = x.reshape(-1)
            x = self.embedding(ids_M)
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # the residual stream, whatever the weights are
            if self.config.position_embedding == "learned":
                positions = tables.positions.repeat(ids_M.numel() // tables.length)
                x = x + self.position_embedding(self.region.own_tokens(positions))
        for index, layer in self.layers.items():
            if self.call_when_ready is not None:
                x = Ready.apply(x, self.call_when_ready, f"layers.{index}")
            x = self._whole_layer(layer, x, tables)
        return self.final_norm(x) if self.is_last else x

    def _build_tables(self, length: int, device: torch.device) -> Tables:
        place, fused = self.place, any(layer.attention.fused for layer in self.layers.values())
        positions = context.local_positions(length, place.mesh.context, place.mesh.layout.context_parallel_method)
        dtype = next(self.parameters()).dtype
        self._tables[length] = Tables(self.config, positions.to(device), dtype, fused)
        return self._tables[length]

    def losses(self, hidden: Tensor, targets_BT: Tensor) -> Tensor:
        """-log p(target) of each token [B, T] in nats, from the last stage's hidden states."""
        return tensor.cross_entropy(hidden, self.head, targets_BT.reshape(-1), self.start).view(targets_BT.shape)

    def loss_of(self, hidden: Tensor, targets_BT: Tensor) -> Tensor:
        """The sum of `losses`, a scalar with a gradient."""
        if self.fused_head:
            return functions.LinearCrossEntropy.apply(hidden, self.head, targets_BT)
        return self.losses(hidden, targets_BT).sum()

    def forward(self, x: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Hidden states, or with targets the sum over tokens of -log p(target), nats, in float32 at least."""
        hidden = self.hidden(x)
        return hidden if targets_BT is None else self.loss_of(hidden, targets_BT)

    def logits(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, T, V] in float32 (float64 for a float64 model), of a model that is whole on this rank."""
        return column(self.hidden(ids_BT), self.head, wide=True).view(*ids_BT.shape, -1)
