"""Tensor parallelism: every layer's matrices divided over the ranks of one axis, with plain tensors.

A column-parallel product divides the rows of W: rank i computes x W_i^T, its share of the outputs. A row-parallel
product divides the columns and takes such shares: y = sum_i x_i W_i^T. One after the other they need one sum
over the ranks in the forward pass and one in the backward pass (Shoeybi et al., 2019, section 3).

With sequence parallelism (Korthikanti et al., 2022, section 4.2) that sum leaves every rank only its run of the
tokens (reduce-scatter), norms and residuals work on that run, and the next column-parallel product gathers the
tokens again: the same traffic, 1/n of the memory. Activations are [tokens, channels] here, sequences one after
the other, so that a run of tokens is one block of memory whatever the batch.

Matrices are [out, in], cut as torch.chunk cuts: pieces of ceil(n / ranks) rows, the last one shorter. The gradient
with respect to the input is on its way to the other ranks while the gradient with respect to the weights is computed.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from parallel import backends
from parallel.data import FlatParameters, Shard
from parallel.kernels import UNCHECKED, Kernels
from parallel.mesh import Axis


def piece(size: int, axis: Axis) -> tuple[int, int]:
    """(start, length) of this rank's part of `size` things. Raises ValueError when some rank would have none."""
    length = math.ceil(size / axis.size)
    if length * (axis.size - 1) >= size:
        raise ValueError(f"{size} cannot be divided over tensor_parallel_size = {axis.size} ranks: one would have none")
    start = axis.rank * length
    return start, min(length, size - start)


class Region:
    """Where the tensor ranks share work: tokens enter by `gather` and leave by `reduce`.

    Without sequence parallelism every rank has all M tokens outside the region as well: `gather` is then the
    identity and `reduce` an all-reduce. A region of one rank does nothing.

    Attributes:
        later: None, or a list to which weight-gradient computations are put off (zero-bubble pipelines).
    """

    def __init__(self, axis: Axis = Axis(), sequence_parallel: bool = False, kernels: Kernels = UNCHECKED):
        self.axis, self.kernels = axis, kernels
        self.sequence_parallel = sequence_parallel and axis.size > 1
        self.later: list[Callable[[], None]] | None = None

    def start_gather(self, x: Tensor) -> tuple[Tensor, dist.Work | None]:
        """[M / n, D] -> [M, D], under way."""
        if not self.sequence_parallel:
            return x, None
        out = x.new_empty(x.shape[0] * self.axis.size, *x.shape[1:])
        return out, self.axis.all_gather(out, x.contiguous(), asynchronous=True)

    def start_reduce(self, x: Tensor) -> tuple[Tensor, dist.Work | None]:
        """Sum of the ranks' [M, D] -> [M, D], or this rank's [M / n, D] of it, under way; x may be overwritten."""
        if not self.sequence_parallel:
            return x, self.axis.all_reduce(x, asynchronous=True)
        out = x.new_empty(x.shape[0] // self.axis.size, *x.shape[1:])
        return out, self.axis.reduce_scatter(out, x, asynchronous=True)

    def gather(self, x: Tensor) -> Tensor:
        """All tokens of what every rank has a run of."""
        out, work = self.start_gather(x)
        self.axis.wait(work)
        return out

    def reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks, all tokens of it or this rank's run."""
        out, work = self.start_reduce(x)
        self.axis.wait(work)
        return out

    def own_tokens(self, x: Tensor) -> Tensor:
        """This rank's run of something that every rank has for all M tokens."""
        return x.chunk(self.axis.size)[self.axis.rank] if self.sequence_parallel else x


class Linear(nn.Module):
    """This rank's piece of a linear layer's parameters; `column` or `row` below compute with it.

    The whole weight is [out, in]. `divided` = 0 gives the rank the rows [start, start + length), 1 the columns,
    None everything. Columns leave the bias, which is added after the sum, whole. `partial` and `primary` as in Shard.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        divided: int | None,
        start: int,
        length: int,
        region: Region,
        bias: bool = False,
        partial: Axis | None = None,
        primary: bool = True,
    ):
        super().__init__()
        whole = (out_features, in_features)
        shape = [length if axis == divided else size for axis, size in enumerate(whole)]
        self.weight = nn.Parameter(torch.empty(shape))
        self.shards = {"weight": Shard(whole, divided, start, partial, primary)}
        if bias:
            self.bias = nn.Parameter(torch.zeros(shape[0]))
            if divided == 0:
                self.shards["bias"] = Shard((out_features,), 0, start, partial, primary)
            else:
                self.shards["bias"] = replicated((out_features,), region)


def replicated(shape: tuple[int, ...], region: Region) -> Shard:
    """The Shard of a parameter that acts outside the region: with sequence parallelism each rank sees some tokens."""
    return Shard(shape, partial=region.axis if region.sequence_parallel else None, primary=region.axis.rank == 0)


class Weights:
    """Matrices that multiply the same input, stacked into one: [sum of out, in].

    Bound to a flat buffer they are one view of it, and their gradient is added to its main gradient; unbound (FSDP2,
    which swaps parameters in and out, so that nothing must hold on to them between the passes) they are read from
    their modules, and the gradient is autograd's.
    """

    def __init__(self, modules: list[nn.Module], region: Region):
        self.modules, self.region = modules, region
        self._matrices: list[Tensor] | None = None
        self._gradients: list[Tensor] = []

    def bind(self, flat: FlatParameters, names: list[str]) -> None:
        """Use the views that `flat` has of the named weights."""
        whole = flat.stacked(flat.compute, names)
        if whole is not None:
            self._matrices, self._gradients = [whole], [flat.stacked(flat.grad, names)]
        else:
            self._matrices = [flat.named(flat.compute)[name] for name in names]
            self._gradients = [flat.named(flat.grad)[name] for name in names]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What autograd sees."""
        return [module.weight for module in self.modules]

    def matrix(self) -> Tensor:
        """[sum of out, in], in the precision of the matrix products."""
        parts = self._matrices or self.parameters
        return parts[0] if len(parts) == 1 else torch.cat([part.detach() for part in parts])

    def add_gradient(self, dy: Tensor, x: Tensor) -> tuple[Tensor | None, ...]:
        """Account for dW = dy^T x, dy [M, sum of out] and x [M, in]: what autograd is to be told, per parameter."""
        if self._matrices is None:
            return (dy.t() @ x).split([parameter.shape[0] for parameter in self.parameters])
        if self.region.later is None:
            self._add(dy, x)
        else:
            self.region.later.append(lambda: self._add(dy, x))
        return (None,) * len(self.modules)

    @torch.no_grad()
    def _add(self, dy: Tensor, x: Tensor) -> None:
        parts = dy.split([gradient.shape[0] for gradient in self._gradients], -1)
        for gradient, part in zip(self._gradients, parts):
            self.region.kernels["weight_gradient"](gradient, part, x)


class _Column(torch.autograd.Function):
    """y = gather(x) W^T; dx = reduce(dy W), and meanwhile dW = dy^T gather(x), gathered anew to save its memory."""

    @staticmethod
    def forward(ctx, weights: Weights, wide: bool, x: Tensor, *parameters: Tensor) -> Tensor:
        matrix = weights.matrix()
        x_low = x.to(matrix.dtype)
        ctx.save_for_backward(x_low)
        ctx.weights, ctx.dtype = weights, x.dtype
        x_low = weights.region.gather(x_low)
        return backends.wide_product(x_low, matrix) if wide else torch.mm(x_low, matrix.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        (x,), matrix = ctx.saved_tensors, ctx.weights.matrix()
        region, dy = ctx.weights.region, dy.to(matrix.dtype)
        x, gathering = region.start_gather(x)
        dx, reducing = region.start_reduce(torch.mm(dy, matrix))
        region.axis.wait(gathering)
        gradients = ctx.weights.add_gradient(dy, x)
        region.axis.wait(reducing)
        return None, None, dx.to(ctx.dtype), *gradients


class _Row(torch.autograd.Function):
    """y = reduce(x W^T); with g = gather(dy): dx = g W and dW = g^T x."""

    @staticmethod
    def forward(ctx, weights: Weights, x: Tensor, *parameters: Tensor) -> Tensor:
        matrix = weights.matrix()
        x = x.to(matrix.dtype)
        ctx.save_for_backward(x)
        ctx.weights = weights
        return weights.region.reduce(torch.mm(x, matrix.t()))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        (x,) = ctx.saved_tensors
        dy = ctx.weights.region.gather(dy)
        return None, torch.mm(dy, ctx.weights.matrix()), *ctx.weights.add_gradient(dy, x)


def column(x: Tensor, weights: Weights, wide: bool = False) -> Tensor:
    """Column-parallel products: x [M or M/n, in] -> this rank's outputs [M, sum of out], biases added.

    `wide` outputs are float32 at least, not rounded to the precision of the factors.
    """
    y = _Column.apply(weights, wide, x, *weights.parameters)
    biases = [module.bias for module in weights.modules if hasattr(module, "bias")]
    return y + torch.cat(biases).to(y.dtype) if biases else y


def row(x: Tensor, weights: Weights) -> Tensor:
    """Row-parallel product: this rank's inputs [M, in] -> [M or M/n, out], bias added after the sum."""
    y = _Row.apply(weights, x, *weights.parameters)
    bias = getattr(weights.modules[0], "bias", None)
    return y if bias is None else y + bias.to(y.dtype)


class Embedding(nn.Module):
    """Rows of a [V, D] table by token id, the table's rows divided over the ranks: ids [M] -> [M or M/n, D]."""

    def __init__(
        self, vocab_size: int, hidden_size: int, region: Region, partial: Axis | None = None, primary: bool = True
    ):
        super().__init__()
        self.start, rows = piece(vocab_size, region.axis)
        self.weight = nn.Parameter(torch.empty(rows, hidden_size))
        self.shards = {"weight": Shard((vocab_size, hidden_size), 0, self.start, partial, primary)}
        self.region = region

    def forward(self, ids_M: Tensor) -> Tensor:
        return _Lookup.apply(ids_M, self.weight, self.weight.grad, self.region, self.start)


class _Lookup(torch.autograd.Function):
    """x_m = W[id_m]: each rank gives the rows that it holds and zeros for the others, and reduce adds them up.

    dW[id] = sum over the tokens m with that id of gather(dx)_m.
    """

    @staticmethod
    def forward(ctx, ids_M: Tensor, weight: Tensor, gradient: Tensor | None, region: Region, start: int) -> Tensor:
        ctx.region, ctx.gradient, ctx.shape = region, gradient, weight.shape
        if region.axis.size == 1:
            ctx.save_for_backward(ids_M, None)
            return weight[ids_M]
        local = ids_M - start
        absent = (local < 0) | (local >= weight.shape[0])
        local = local.masked_fill(absent, 0)
        ctx.save_for_backward(local, absent)
        return region.reduce(weight[local].masked_fill_(absent.unsqueeze(1), 0.0))

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Tensor):
        local, absent = ctx.saved_tensors
        dx = ctx.region.gather(dx)
        if absent is not None:
            dx = dx.masked_fill(absent.unsqueeze(1), 0.0)
        into = ctx.gradient if ctx.gradient is not None else dx.new_zeros(ctx.shape)
        into.index_add_(0, local, dx.to(into.dtype))
        return None, None if ctx.gradient is not None else into, None, None, None


class _CrossEntropy(torch.autograd.Function):
    """-log softmax(x W^T)[target] with the vocabulary's logits divided over the ranks, in float32 at least.

    With m = max over all logits and s = sum exp(z - m), both over the ranks, the loss is log s + m - z_target. The
    logits' gradient softmax - onehot takes the logits' place in memory during the forward pass.
    """

    @staticmethod
    def forward(ctx, weights: Weights, x: Tensor, targets_M: Tensor, start: int, weight: Tensor) -> Tensor:
        matrix, region = weights.matrix(), weights.region
        x_low = x.to(matrix.dtype)
        logits = backends.wide_product(region.gather(x_low), matrix)
        largest = logits.amax(-1)
        region.axis.all_reduce(largest, dist.ReduceOp.MAX)
        logits.sub_(largest.unsqueeze(1))
        local = targets_M - start
        absent = (local < 0) | (local >= matrix.shape[0])
        index = local.masked_fill(absent, 0).unsqueeze(1)
        target = logits.gather(1, index).squeeze(1).masked_fill_(absent, 0.0)
        both = torch.stack((logits.exp_().sum(-1), target))
        region.axis.all_reduce(both)
        losses = both[0].log() - both[1]
        dlogits = logits.div_(both[0].unsqueeze(1))
        dlogits.scatter_add_(1, index, (~absent).to(dlogits.dtype).neg_().unsqueeze(1))
        ctx.save_for_backward(x_low, dlogits)
        ctx.weights, ctx.dtype = weights, x.dtype
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, dlosses: Tensor):
        (x, dlogits), matrix = ctx.saved_tensors, ctx.weights.matrix()
        region = ctx.weights.region
        x, gathering = region.start_gather(x)
        dlogits = dlogits.mul_(dlosses.unsqueeze(1)).to(matrix.dtype)
        dx, reducing = region.start_reduce(torch.mm(dlogits, matrix))
        region.axis.wait(gathering)
        (gradient,) = ctx.weights.add_gradient(dlogits, x)
        region.axis.wait(reducing)
        return None, dx.to(ctx.dtype), None, None, gradient


def cross_entropy(x: Tensor, weights: Weights, targets_M: Tensor, start: int) -> Tensor:
    """Losses [M] in nats of x [M or M/n, D] against an output matrix whose rows from `start` on this rank holds."""
    if weights.region.axis.size == 1:
        return weights.region.kernels["cross_entropy"](column(x, weights, wide=True), targets_M)
    return _CrossEntropy.apply(weights, x, targets_M, start, *weights.parameters)
