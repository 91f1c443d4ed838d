"""Data parallelism: parameters and gradients in flat buffers, optimizer state sharded over the replicas (ZeRO-1).

All parameters that a rank holds are views of one flat tensor, and their float32 main gradients of another. The
gradient norm, the update and the clearing are then one operation each, however many parameters there are; weights
that are multiplied together (query, key, value; gate, up) lie side by side and serve as one matrix; and gradients
of several micro-batches add up in float32.

The buffer is cut into buckets, of the matrices of one layer or several small ones, and a last one, the tail. Each of
the R replicas owns 1/R of every bucket: it alone receives that slice's summed gradient (reduce-scatter), keeps its
moments and updates it; then the slices are gathered again (Rajbhandari et al., 2020, ZeRO stage 1). A bucket is sent
as soon as its last gradient is there, while the layers before it still compute. The tail holds what must be summed
over another axis first, and the vectors, which do not decay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.mesh import Axis


@dataclass(frozen=True)
class Shard:
    """How a rank's piece of a parameter lies in the whole parameter.

    Attributes:
        shape: of the whole.
        dim, start: the piece is whole.narrow(dim, start, ...); dim None: the piece is the whole.
        partial: ranks with the same piece that each see a part of its gradient, to be summed; None if there are none.
        primary: whether this rank stands for the piece (in the gradient norm and in checkpoints) among equal copies.
    """

    shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    partial: Axis | None = None
    primary: bool = True

    def cut(self, whole: Tensor, length: int) -> Tensor:
        """The piece, `length` long in `dim`, of a whole tensor."""
        return whole if self.dim is None else whole.narrow(self.dim, self.start, length)


def named_shards(module: nn.Module) -> dict[str, Shard]:
    """The Shard of every parameter, by name; modules say so in their attribute `shards`."""
    found = {}
    for prefix, part in module.named_modules():
        own = getattr(part, "shards", {})
        for name, parameter in part.named_parameters(recurse=False):
            found[f"{prefix}.{name}".lstrip(".")] = own.get(name) or Shard(tuple(parameter.shape))
    return found


@dataclass(frozen=True)
class Segment:
    """A run [start, end) of the flat buffer that this rank owns, all of it decaying or none."""

    start: int
    end: int
    decay: bool


#: Below it a collective costs more to start than to carry out.
_BUCKET_BYTES = 4 << 20


@dataclass
class _Bucket:
    start: int
    end: int
    units: set[str]
    pending: int = 0
    work: dist.Work | None = None


class FlatParameters:
    """Moves the parameters of a rank's modules into flat buffers, in place.

    Attributes:
        data: [P] all parameters, in the modules' dtype (float32 for training).
        grad: [P] their main gradients; `parameter.grad` is a view of it, so plain autograd accumulates into it too.
        compute: [P] copy of `data` in the precision of the matrix products, or `data` itself.
        slices: name -> (offset, shape of this rank's piece); shards: name -> Shard.
        owned: the segments whose optimizer state this rank keeps.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        compute_dtype: torch.dtype | None = None,
        replica: Axis = Axis(),
        bucket_bytes: int = _BUCKET_BYTES,
    ):
        named = {name: p for module in modules for name, p in module.named_parameters()}
        self.shards = {name: shard for module in modules for name, shard in named_shards(module).items()}
        self.replica = replica

        def late(name: str) -> int:  # 0: a layer's own matrix, 1: summed elsewhere first, 2: does not decay
            return 2 if named[name].dim() < 2 else int(self.shards[name].partial is not None)

        order = sorted(named, key=late)  # stable: registration order within each kind
        self.slices: dict[str, tuple[int, torch.Size]] = {}
        first = named[order[0]]
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[str, _Bucket] = {}
        offset, self._vectors = 0, None
        for name in order:
            unit = "tail" if late(name) or replica.size == 1 else _unit(name)
            if unit not in self._bucket_of:
                full = not self._buckets or offset - self._buckets[-1].start >= bucket_bytes // first.element_size()
                if full or unit == "tail":
                    offset = math.ceil(offset / replica.size) * replica.size
                    self._buckets.append(_Bucket(offset, offset, set()))
                self._bucket_of[unit] = self._buckets[-1]
                self._buckets[-1].units.add(unit)
            if late(name) == 2 and self._vectors is None:
                self._vectors = offset
            self.slices[name] = (offset, named[name].shape)
            offset += named[name].numel()
            self._buckets[-1].end = math.ceil(offset / replica.size) * replica.size
        total = math.ceil(offset / replica.size) * replica.size
        self._vectors = total if self._vectors is None else self._vectors
        self.data = torch.zeros(total, dtype=first.dtype, device=first.device)
        self.grad = torch.zeros_like(self.data)
        for name, (start, shape) in self.slices.items():
            parameter = named[name]
            view = self.data[start : start + shape.numel()].view(shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.grad[start : start + shape.numel()].view(shape)
        self.compute = self.data if compute_dtype in (None, self.data.dtype) else self.data.to(compute_dtype)
        self.owned = [segment for bucket in self._buckets for segment in self._segments(bucket)]
        self._counted = self._ranges_of_primaries()
        self._gradients = self.named(self.grad)

    def _own(self, bucket: _Bucket) -> tuple[int, int]:
        length = (bucket.end - bucket.start) // self.replica.size
        start = bucket.start + self.replica.rank * length
        return start, start + length

    def _segments(self, bucket: _Bucket) -> list[Segment]:
        start, end = self._own(bucket)
        middle = min(max(self._vectors, start), end)
        parts = (Segment(start, middle, True), Segment(middle, end, False))
        return [part for part in parts if part.end > part.start]

    def _ranges_of_primaries(self) -> list[tuple[int, int]]:
        """Ranges of owned elements that the gradient norm counts here, as few as possible."""
        ranges: list[tuple[int, int]] = []
        for segment in self.owned:
            for name, (start, shape) in sorted(self.slices.items(), key=lambda item: item[1][0]):
                begin, end = max(start, segment.start), min(start + shape.numel(), segment.end)
                if begin < end and self.shards[name].primary:
                    if ranges and ranges[-1][1] == begin:
                        ranges[-1] = (ranges[-1][0], end)
                    else:
                        ranges.append((begin, end))
        return ranges

    def expect(self, backward_passes: int) -> None:
        """Announce how many backward passes follow before `finish`; None of the buckets is sent earlier."""
        for bucket in self._buckets:
            bucket.pending = backward_passes * len(bucket.units)

    def before_backward(self, last: bool) -> None:
        """Announce a backward pass; nothing to prepare here."""

    def ready(self, unit: str) -> None:
        """One backward pass has added all gradients of `unit`'s matrices; after the last of a bucket's it is sent."""
        bucket = self._bucket_of.get(unit)
        if bucket is not None:
            bucket.pending -= 1
            if bucket.pending == 0:
                self._send(bucket)

    def _send(self, bucket: _Bucket) -> None:
        start, end = self._own(bucket)
        whole, own = self.grad[bucket.start : bucket.end], self.grad[start:end]
        bucket.work = self.replica.reduce_scatter(own, whole, asynchronous=True)

    def finish(self) -> None:
        """Complete the gradients of the owned segments: sums over partial axes, then over the replicas."""
        sum_partial(self.shards, self._gradients)
        if self.replica.size == 1:
            return
        for bucket in self._buckets:
            if bucket.work is None:
                self._send(bucket)
        for bucket in self._buckets:
            self.replica.wait(bucket.work)
            bucket.work = None

    def counted_gradients(self) -> list[Tensor]:
        """The gradients that this rank stands for in the global norm."""
        return [self.grad[start:end] for start, end in self._counted]

    def publish(self) -> None:
        """After an update of the owned segments: clear the gradients, hand the new weights to all replicas."""
        self.grad.zero_()
        if self.replica.size > 1:
            works = []
            for bucket in self._buckets:
                start, end = self._own(bucket)
                whole, own = self.data[bucket.start : bucket.end], self.data[start:end]
                works.append(self.replica.all_gather(whole, own, asynchronous=True))
            for work in works:
                self.replica.wait(work)
        if self.compute is not self.data:
            self.compute.copy_(self.data)

    def segments(self) -> list[tuple[Tensor, Tensor, bool]]:
        """(weights, gradients, decay) of the owned segments, flat views to update in place."""
        return [(self.data[s.start : s.end], self.grad[s.start : s.end], s.decay) for s in self.owned]

    def owned_pieces(self, buffers: list[Tensor]) -> list[tuple[str, Shard, tuple[int, ...], Tensor]]:
        """(name, shard, offset in the whole parameter, rectangle) of everything owned here.

        `buffers` has one flat tensor for each segment of `segments()`, in order: the weights or a moment. A run of
        a matrix's elements is up to three rectangles: the end of a row, whole rows, the start of a row.
        """
        found = []
        for segment, buffer in zip(self.owned, buffers):
            for name, (start, shape) in self.slices.items():
                begin, end = max(start, segment.start), min(start + shape.numel(), segment.end)
                shard = self.shards[name]
                for low, high, origin, size in _rectangles(begin - start, end - start, shape):
                    offset = list(origin)
                    if shard.dim is not None:
                        offset[shard.dim] += shard.start
                    at = start - segment.start
                    found.append((name, shard, tuple(offset), buffer[at + low : at + high].view(size)))
        return found

    def named(self, buffer: Tensor) -> dict[str, Tensor]:
        """Views of a flat buffer by parameter name, in the shapes of this rank's pieces."""
        return {name: buffer[start : start + shape.numel()].view(shape) for name, (start, shape) in self.slices.items()}

    def stacked(self, buffer: Tensor, names: list[str]) -> Tensor | None:
        """View of `buffer` with the named [out, in] weights one below the other; None where they lie apart."""
        start, shape = self.slices[names[0]]
        rows, offset = 0, start
        for name in names:
            begin, shape = self.slices[name]
            if begin != offset:
                return None
            rows += shape[0]
            offset += shape.numel()
        return buffer[start:offset].view(rows, *shape[1:])


def _unit(name: str) -> str:
    """`layers.3` for a layer's parameter, `embedding` or `output` for the others."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def _rectangles(begin: int, end: int, shape: torch.Size) -> list[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """The elements [begin, end) of a tensor in row-major order as (begin, end, origin, size) of rectangles."""
    if begin >= end:
        return []
    if len(shape) == 1:
        return [(begin, end, (begin,), (end - begin,))]
    width, found = shape[1], []
    while begin < end:
        row, column = divmod(begin, width)
        rows = (end - begin) // width if column == 0 else 0
        size = (rows, width) if rows else (1, min(width - column, end - begin))
        found.append((begin, begin + math.prod(size), (row, column), size))
        begin += math.prod(size)
    return found


def sum_partial(shards: dict[str, Shard], gradients: dict[str, Tensor]) -> None:
    """Sum, in place, the gradients of which several ranks hold parts: one all-reduce for each axis."""
    axes: dict[tuple[int, ...], tuple[Axis, list[Tensor]]] = {}
    for name, shard in shards.items():
        if shard.partial is not None and shard.partial.size > 1:
            axes.setdefault(shard.partial.ranks, (shard.partial, []))[1].append(gradients[name])
    for axis, parts in axes.values():
        joined = torch.cat([part.flatten() for part in parts])
        axis.all_reduce(joined)
        for part, summed in zip(parts, joined.split([part.numel() for part in parts])):
            part.copy_(summed.view_as(part))


class Ready(torch.autograd.Function):
    """Identity whose backward pass says that everything computed from its output has its gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, call: Callable[[str], None], unit: str) -> Tensor:
        ctx.call, ctx.unit = call, unit
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dx: Tensor):
        ctx.call(ctx.unit)
        return dx, None, None
