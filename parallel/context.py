"""Context parallelism: causal attention over a sequence that is split over the ranks of one axis.

Two ways. In *ring* attention (Liu, Zaharia & Abbeel, 2023) queries stay, and keys and values travel round the
ranks, each rank merging what it sees by online softmax; any number of heads will do. In *Ulysses* attention
(Jacobs et al., 2023) an all-to-all trades the split of the sequence for a split of the heads, so that each rank
sees the whole sequence for some heads.

Shapes: B sequences, T local positions, S keys of one block, H query heads, G key/value heads, R = H / G,
K channels a head, N ranks of the axis. Query head h reads key/value head h // R.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from parallel.mesh import Axis

Method = Literal["ring", "ulysses"]


def local_positions(length: int, axis: Axis, method: Method) -> Tensor:
    """The global positions that this rank holds, in its local order, ascending: int64 [length / N].

    Ulysses: the rank-th of N contiguous runs. Ring: of 2N equal blocks rank r holds blocks r and 2N - 1 - r
    (Llama 3, 2024, section 3.3.2); a late block, which sees many keys, comes with an early one, which sees few,
    so all ranks compute alike.

    Raises ValueError when `length` does not divide so.
    """
    if axis.size == 1:
        return torch.arange(length)
    blocks = 2 * axis.size if method == "ring" else axis.size
    if length % blocks:
        raise ValueError(
            f"a sequence of {length} tokens does not split into {blocks} equal blocks, as {method} attention over"
            f" {axis.size} context ranks needs: make the sequence length a multiple of {blocks}"
        )
    parts = torch.arange(length).view(blocks, -1)
    if method == "ring":
        return torch.cat((parts[axis.rank], parts[blocks - 1 - axis.rank]))
    return parts[axis.rank]


def attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, axis: Axis, method: Method) -> Tensor:
    """Causal softmax(q k^T / sqrt(K)) v over the whole sequence, this rank's positions of it: [B, H, T, K].

    Collective over `axis`, and so is its backward pass. Positions are those of `local_positions`.
    """
    if axis.size == 1:
        return _causal_attention(q_BHTK, k_BGTK, v_BGTK)
    split = {"ring": ring_attention, "ulysses": ulysses_attention}[method]
    return split(q_BHTK, k_BGTK, v_BGTK, axis)


def _causal_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)


# Communication: these two functions are all there is.


def send_on(block: Tensor, axis: Axis) -> Callable[[], Tensor]:
    """Start sending `block` to the next rank of the ring; the function returned waits for the previous rank's block.

    `block` is contiguous, of one shape and type on all ranks, and must not be written to until then.
    """
    arriving = torch.empty_like(block)
    following, previous = axis.ranks[(axis.rank + 1) % axis.size], axis.ranks[axis.rank - 1]
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, block, following, axis.group), dist.P2POp(dist.irecv, arriving, previous, axis.group)]
    )

    def wait() -> Tensor:
        for work in works:
            axis.wait(work)
        return arriving

    return wait


def all_to_all(x_N: Tensor, axis: Axis) -> Tensor:
    """Piece i of the result, [N, ...], is the piece of rank i's `x_N` that has this rank's number."""
    result = torch.empty_like(x_N, memory_format=torch.contiguous_format)
    axis.wait(dist.all_to_all_single(result, x_N.contiguous(), group=axis.group, async_op=True))
    return result


# Ring


def ring_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, axis: Axis) -> Tensor:
    """Causal attention with keys and values that travel round the two or more ranks of `axis`: [B, H, T, K].

    Keeps O(T) for the backward pass; the scores of one block, [B, H, T, T], live only while it is computed.

    Raises ValueError for an odd T, which is no two blocks.
    """
    if q_BHTK.shape[2] % 2:
        raise ValueError(
            f"ring attention holds two equal blocks a rank and got {q_BHTK.shape[2]} tokens:"
            f" make the sequence length a multiple of {2 * axis.size}"
        )
    return _RingAttention.apply(q_BHTK, k_BGTK, v_BGTK, axis)


def _blocks_arriving(block: Tensor, axis: Axis) -> Iterator[tuple[int, Tensor]]:
    """(step, block of rank `axis.rank` - step) for all ranks; the next one travels while the caller computes."""
    for step in range(axis.size - 1):
        arrived = send_on(block, axis)
        yield step, block
        block = arrived()
    yield axis.size - 1, block


def _visible(step: int, axis: Axis, length: int) -> tuple[slice, slice]:
    """Which local queries see which keys of the block that arrives at `step`, given the blocks r and 2N - 1 - r.

    An earlier rank's first block lies before both of ours and its second behind both; a later rank's blocks lie
    both between ours. Within our own (step 0) a causal mask decides.
    """
    everything, half = slice(None), length // 2
    if step == 0:
        return everything, everything
    return (everything, slice(half)) if step <= axis.rank else (slice(half, None), everything)


def _scores(q_BGRTK: Tensor, k_BGSK: Tensor, causal: bool) -> Tensor:
    """q k^T, with -inf at later keys when `causal`: [B, G, R, T, S]."""
    scores = torch.einsum("bgrtk,bgsk->bgrts", q_BGRTK, k_BGSK)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores.masked_fill_(future, -math.inf)
    return scores


def _grouped(x_BHTK: Tensor, groups: int) -> Tensor:
    """[B, H, T, K] as [B, G, R, T, K], in float32 at least, the type of all sums here."""
    return x_BHTK.to(torch.promote_types(x_BHTK.dtype, torch.float32)).unflatten(1, (groups, -1))


class _RingAttention(torch.autograd.Function):
    """Softmax over blocks of keys that arrive one after another (Milakov & Gimelshein, 2018; Dao et al., 2022).

    Forward, with s = q k^T / sqrt(K) of the arriving block, its log-sum-exp l = log sum exp(s) and its own output
    o = exp(s - l) v:  L' = log(exp(L) + exp(l)),  O' = exp(L - L') O + exp(l - L') o.

    Backward, from the final L and O alone: p = exp(s - L), dv = p^T dO, ds = p (dO v^T - sum(dO O)),
    dq = sum over blocks of ds k / sqrt(K), dk = ds^T q / sqrt(K). dk and dv travel one step behind their block,
    each rank adding its part, and come home after N steps.
    """

    @staticmethod
    def forward(ctx, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, axis: Axis) -> Tensor:
        q = _grouped(q_BHTK, k_BGTK.shape[1]) / math.sqrt(q_BHTK.shape[-1])
        out = torch.zeros_like(q)
        lse = torch.full_like(q[..., 0], -math.inf)
        for step, kv in _blocks_arriving(torch.stack((k_BGTK, v_BGTK)), axis):
            queries, keys = _visible(step, axis, q.shape[3])
            k, v = kv[..., keys, :].to(q.dtype)
            scores = _scores(q[..., queries, :], k, causal=step == 0)
            block_lse = scores.logsumexp(-1)
            before = lse[..., queries]
            after = torch.logaddexp(before, block_lse)
            # exp(l - L') o = exp(s - L') v: no need of the block's own output
            part = torch.einsum("bgrts,bgsk->bgrtk", scores.sub_(after[..., None]).exp_(), v)
            out[..., queries, :] = torch.addcmul(part, out[..., queries, :], (before - after).exp_()[..., None])
            lse[..., queries] = after
        out = out.flatten(1, 2).to(q_BHTK.dtype)
        ctx.save_for_backward(q_BHTK, k_BGTK, v_BGTK, out, lse)
        ctx.axis = axis
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout_BHTK: Tensor):
        q_BHTK, k_BGTK, v_BGTK, out_BHTK, lse = ctx.saved_tensors
        groups, scale, axis = k_BGTK.shape[1], 1.0 / math.sqrt(q_BHTK.shape[-1]), ctx.axis
        q, out, dout = _grouped(q_BHTK, groups) * scale, _grouped(out_BHTK, groups), _grouped(dout_BHTK, groups)
        delta = torch.linalg.vecdot(dout, out)
        dq = torch.zeros_like(q)
        kv = torch.stack((k_BGTK, v_BGTK))
        dkv, arrived = torch.zeros_like(kv, dtype=q.dtype), None
        for step, kv in _blocks_arriving(kv, axis):
            queries, keys = _visible(step, axis, q.shape[3])
            k, v = kv[..., keys, :].to(q.dtype)
            q_part, dout_part = q[..., queries, :], dout[..., queries, :]
            p = _scores(q_part, k, causal=step == 0).sub_(lse[..., queries, None]).exp_()
            dv = torch.einsum("bgrts,bgrtk->bgsk", p, dout_part)
            dp = torch.einsum("bgrtk,bgsk->bgrts", dout_part, v)
            ds = dp.sub_(delta[..., queries, None]).mul_(p)
            dq[..., queries, :] += torch.einsum("bgrts,bgsk->bgrtk", ds, k)
            dk = torch.einsum("bgrts,bgrtk->bgsk", ds, q_part)
            if arrived is not None:
                dkv = arrived()
            dkv[..., keys, :] += torch.stack((dk, dv))
            arrived = send_on(dkv, axis)
        dk, dv = arrived()
        return (dq * scale).flatten(1, 2).to(q_BHTK.dtype), dk.to(k_BGTK.dtype), dv.to(v_BGTK.dtype), None


# Ulysses


def ulysses_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, axis: Axis) -> Tensor:
    """Causal attention of the whole sequence for H / N heads on each of the two or more ranks of `axis`: [B, H, T, K].

    Key/value heads are repeated until N divides them; as N divides H = G R, N / gcd(G, N) times will do, and that
    number divides R, so that query heads still read their own.

    Raises ValueError when N does not divide H.
    """
    heads, groups = q_BHTK.shape[1], k_BGTK.shape[1]
    if heads % axis.size:
        raise ValueError(
            f"ulysses attention splits the heads over the ranks, and {heads} heads do not divide by {axis.size} context"
            " ranks: take a divisor of the heads for the context parallel size, or ring attention"
        )
    repeats = axis.size // math.gcd(groups, axis.size)
    k, v = (x.repeat_interleave(repeats, 1) for x in (k_BGTK, v_BGTK))
    by_rank = [x.unflatten(1, (axis.size, -1)).movedim(1, 0) for x in (q_BHTK, k, v)]  # [N, B, heads / N, T, K]
    shares = [x.shape[2] for x in by_rank]
    mine = _AllToAll.apply(torch.cat(by_rank, 2), axis).movedim(0, 2).flatten(2, 3)  # [B, heads / N, N T, K]
    out = _causal_attention(*mine.split(shares, 1))
    by_rank = out.unflatten(2, (axis.size, -1)).movedim(2, 0)
    return _AllToAll.apply(by_rank, axis).movedim(0, 1).flatten(1, 2)


class _AllToAll(torch.autograd.Function):
    """`all_to_all`, a transpose over (rank, piece), and so its own gradient: [N, ...] -> [N, ...]."""

    @staticmethod
    def forward(ctx, x_N: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return all_to_all(x_N, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_N: Tensor):
        return all_to_all(dy_N, ctx.axis), None
