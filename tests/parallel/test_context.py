"""Attention over a sequence split over ranks, against one process's attention over the whole sequence."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from distributed import run_distributed
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from parallel.context import _visible, attention, local_positions, ring_attention, ulysses_attention
from parallel.layout import Layout
from parallel.mesh import Axis, build_mesh

LENGTH, CHANNELS = 24, 5
# (heads, groups): multi-head, grouped-query, multi-query, and groups that 2 or 4 ranks do not divide
HEADS = [(4, 4), (4, 2), (4, 1), (12, 6), (12, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def _axis(size: int, rank: int = 0) -> Axis:
    return Axis(rank, size, tuple(range(size)))


def _whole(heads: int, groups: int, batch: int, query_scale: float = 1.0) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, of the whole sequence, float64."""
    generator = torch.Generator().manual_seed(heads * 100 + groups * 10 + batch)
    shapes = [(batch, count, LENGTH, CHANNELS) for count in (heads, groups, groups, heads)]
    q, k, v, dout = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [q * query_scale, k, v, dout]


def _results(function, q, k, v, dout) -> list[torch.Tensor]:
    """The output and the gradients of q, k, v."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v)
    (out * dout).sum().backward()
    return [out.detach(), q.grad, k.grad, v.grad]


def _expected(whole: list[torch.Tensor]) -> list[torch.Tensor]:
    return _results(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), *whole)


@dataclass(frozen=True)
class Problem:
    whole: list[torch.Tensor]
    dtype: torch.dtype = torch.float64
    recompute: bool = False


def _context_axis(layout: Layout) -> Axis:
    return build_mesh(layout, torch.device("cpu")).context


def _split_results(layout: Layout, method: str, problems: list[tuple]) -> tuple[np.ndarray, list]:
    """On every rank: the positions held, and the local results of each problem."""
    axis = _context_axis(layout)
    positions = local_positions(LENGTH, axis, method)

    def recomputed(q, k, v):
        return checkpoint(attention, q, k, v, axis, method, use_reentrant=False)

    def kept(q, k, v):
        return attention(q, k, v, axis, method)

    results = []
    for whole, dtype, recompute in problems:
        local = [torch.from_numpy(x)[:, :, positions].to(dtype) for x in whole]
        found = _results(recomputed if recompute else kept, *local)
        assert all(x.dtype == dtype for x in found)
        results.append([x.double().numpy() for x in found])
    return positions.numpy(), results


def _distributed(method: str, size: int, problems: list[Problem], replicas: int = 1) -> list[list[torch.Tensor]]:
    """The results of each problem, put together by position from the ranks of the last replica."""
    layout = Layout(data_parallel_size=replicas, context_parallel_size=size)
    plain = [([x.numpy() for x in problem.whole], problem.dtype, problem.recompute) for problem in problems]
    parts = run_distributed(_split_results, layout.world_size, layout, method, plain)[-size:]
    order = np.argsort(np.concatenate([positions for positions, _ in parts]))
    found = []
    for index in range(len(problems)):
        by_name = zip(*(results[index] for _, results in parts), strict=True)
        found.append([torch.from_numpy(np.concatenate(pieces, 2)[:, :, order]) for pieces in by_name])
    return found


def _assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float, label: str) -> None:
    for name, x, y in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda m: f"{label}, {name}: {m}")


@pytest.mark.parametrize("replicas, size", [(2, 2), (1, 4)])
@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_output_and_gradients_equal_one_process(method, replicas, size):
    cases = [(heads, groups, batch) for heads, groups in HEADS for batch in (1, 2)]
    problems = [Problem(_whole(*case), dtype) for case in cases for dtype in TOLERANCE]
    found = _distributed(method, size, problems, replicas)
    for problem, results in zip(problems, found, strict=True):
        label = f"{tuple(problem.whole[0].shape)} by {tuple(problem.whole[1].shape)} in {problem.dtype}"
        _assert_equal(results, _expected(problem.whole), TOLERANCE[problem.dtype], label)


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_scores_beyond_the_range_of_exp(method):
    whole = _whole(4, 2, 1, query_scale=2000.0)
    (found,) = _distributed(method, 4, [Problem(whole)])
    _assert_equal(found, _expected(whole), 1e-8, "scores of thousands")


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_repeated_and_recomputed_results_have_the_same_bits(method):
    whole = _whole(4, 2, 2)
    problems = [Problem(whole, torch.float32, recompute) for recompute in (False, False, True)]
    for first, second, recomputed in zip(*_distributed(method, 4, problems), strict=True):
        assert torch.equal(first, second) and torch.equal(first, recomputed)


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_sums_are_float32_though_the_inputs_are_bfloat16(method):
    """Scores of about 50, rounded to bfloat16, would make probabilities wrong by a tenth."""
    rounded = [x.bfloat16().double() for x in _whole(4, 2, 2, query_scale=30.0)]
    (found,) = _distributed(method, 4, [Problem(rounded, torch.bfloat16)])
    expected = _expected(rounded)
    for x, y in zip(found, expected, strict=True):
        assert (x - y).norm() / y.norm() < 0.01
    if method == "ring":  # the output and dv, sums over ranks, are rounded once, at the end
        for x, y in ((found[0], expected[0]), (found[3], expected[3])):
            assert (x - y).norm() < 1.02 * (y.bfloat16() - y).norm()


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_alone_any_length_is_plain_attention(method):
    whole = [x[:, :, :7] for x in _whole(4, 2, 2)]
    assert local_positions(7, Axis(), method).tolist() == list(range(7))
    found = _results(lambda q, k, v: attention(q, k, v, Axis(), method), *whole)
    _assert_equal(found, _expected(whole), 1e-14, "alone")


def test_ring_computes_alike_on_all_ranks_and_little_that_the_mask_hides():
    """Of 8 x 8 pairs of blocks 36 are visible; each of 4 ranks computes its own 4 and 2 with each other rank: 40."""
    local = range(LENGTH // 4)
    for rank in range(4):
        slices = [_visible(step, _axis(4, rank), len(local)) for step in range(4)]
        pairs = [len(local[queries]) * len(local[keys]) for queries, keys in slices]
        assert sum(pairs) == LENGTH * LENGTH * 10 // 64


def test_positions_are_shared_out_and_ring_balances_the_keys_seen():
    for size in (2, 4):
        for method in ("ring", "ulysses"):
            held = [local_positions(LENGTH, _axis(size, rank), method) for rank in range(size)]
            assert torch.cat(held).sort().values.equal(torch.arange(LENGTH))
            assert all(x.equal(x.sort().values) for x in held)
        seen = {int((local_positions(LENGTH, _axis(size, rank), "ring") + 1).sum()) for rank in range(size)}
        assert len(seen) == 1
    assert local_positions(LENGTH, _axis(4, 1), "ulysses").tolist() == list(range(6, 12))


def test_what_does_not_divide_is_refused_with_the_numbers_and_a_remedy():
    with pytest.raises(ValueError, match="28 tokens .* 8 equal blocks.* ring .* 4 context ranks.* multiple of 8"):
        local_positions(28, _axis(4), "ring")
    with pytest.raises(ValueError, match="30 tokens .* 4 equal blocks.* multiple of 4"):
        local_positions(30, _axis(4), "ulysses")
    with pytest.raises(ValueError, match="6 heads do not divide by 4 context ranks.* ring"):
        ulysses_attention(*_whole(6, 2, 1)[:3], _axis(4))
    with pytest.raises(ValueError, match="7 tokens: make the sequence length a multiple of 8"):
        ring_attention(*(x[:, :, :7] for x in _whole(4, 2, 1)[:3]), _axis(4))
