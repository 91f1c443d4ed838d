"""Column- and row-parallel products, embedding and cross-entropy against plain autograd on one process, in float64."""

import pytest
from distributed import run_distributed

from parallel.layout import Layout
from parallel.mesh import Axis
from parallel.tensor import piece

TOKENS, HIDDEN, INNER, VOCABULARY = 12, 6, 10, 509
EXACT = 1e-12


def _made(name, *shape):
    import torch

    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(map(ord, name))))


def _modules(region, bias=True):
    """Embedding, up and gate (column), down (row) and output (column), each with its piece of the whole weight."""
    import torch
    from torch import nn

    from parallel.tensor import Embedding, Linear, piece

    inner, vocabulary = piece(INNER, region.axis), piece(VOCABULARY, region.axis)
    modules = nn.ModuleDict(
        {
            "embedding": Embedding(VOCABULARY, HIDDEN, region),
            "up": Linear(INNER, HIDDEN, 0, *inner, region, bias),
            "gate": Linear(INNER, HIDDEN, 0, *inner, region, bias),
            "down": Linear(HIDDEN, INNER, 1, *inner, region, bias),
            "output": Linear(VOCABULARY, HIDDEN, 0, *vocabulary, region),
        }
    ).double()
    with torch.no_grad():
        for name, module in modules.named_modules():
            for kind, parameter in module.named_parameters(recurse=False):
                shard = module.shards[kind]
                length = parameter.shape[shard.dim] if shard.dim is not None else 0
                parameter.copy_(shard.cut(_made(f"{name}.{kind}", *shard.shape), length))
    return modules


def _parallel(axis, sequence_parallel, bound):
    """(losses [M], {name: gradient of this rank's piece}) of embedding, a gated MLP and the output, added up."""
    import torch

    from parallel.data import FlatParameters, named_shards, sum_partial
    from parallel.tensor import Region, Weights, column, cross_entropy, row

    region = Region(axis, sequence_parallel)
    modules = _modules(region)
    enter, leave, head = (
        Weights([modules[name] for name in names], region) for names in (("up", "gate"), ("down",), ("output",))
    )
    flat = FlatParameters([modules]) if bound else None
    if bound:
        enter.bind(flat, ["up.weight", "gate.weight"])
        leave.bind(flat, ["down.weight"])
        head.bind(flat, ["output.weight"])
    ids, targets, weighting = _tokens()
    for _ in range(2):  # gradients add up
        x = modules["embedding"](ids)
        up, gate = column(x, enter).chunk(2, -1)
        x = x + row(torch.sigmoid(gate) * up, leave)
        losses = cross_entropy(x, head, targets, modules["output"].shards["weight"].start)
        (losses * weighting).sum().backward()
    gradients = {name: parameter.grad for name, parameter in modules.named_parameters()}
    sum_partial(named_shards(modules), gradients)
    return losses.detach(), gradients, named_shards(modules)


def _tokens():
    import torch

    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCABULARY, (2, TOKENS), generator=generator)
    ids[0, :3], ids[1, :3] = torch.tensor([0, VOCABULARY - 1, VOCABULARY - 1]), torch.tensor([VOCABULARY - 1, 128, 127])
    return ids[0], ids[1], _made("weighting", TOKENS)


def _naive():
    """The same by torch's own functions on whole weights."""
    import torch
    from torch.nn import functional as F

    shapes = {
        "embedding.weight": (VOCABULARY, HIDDEN),
        **{f"{name}.weight": (INNER, HIDDEN) for name in ("up", "gate")},
        **{f"{name}.bias": (INNER,) for name in ("up", "gate")},
        "down.weight": (HIDDEN, INNER),
        "down.bias": (HIDDEN,),
        "output.weight": (VOCABULARY, HIDDEN),
    }
    p = {name: _made(name, *shape).requires_grad_() for name, shape in shapes.items()}
    ids, targets, weighting = _tokens()
    x = F.embedding(ids, p["embedding.weight"])
    up, gate = (F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]) for name in ("up", "gate"))
    x = x + F.linear(torch.sigmoid(gate) * up, p["down.weight"], p["down.bias"])
    losses = F.cross_entropy(F.linear(x, p["output.weight"]), targets, reduction="none")
    (losses * weighting).sum().backward()
    return losses.detach(), {name: 2 * parameter.grad for name, parameter in p.items()}


def _differences(size: int) -> dict[str, float]:
    """Largest difference from the naive computation of the losses and of every gradient, for every way to compute."""
    import torch

    from parallel.mesh import build_mesh

    axis = build_mesh(Layout(tensor_parallel_size=size), torch.device("cpu")).tensor
    expected_losses, expected = _naive()
    found = {}
    for sequence_parallel in (False, True):
        for bound in (False, True):
            losses, gradients, shards = _parallel(axis, sequence_parallel, bound)
            assert gradients.keys() == expected.keys()
            way = f"sequence_parallel {sequence_parallel}, bound {bound}: "
            found[way + "losses"] = float((losses - expected_losses).abs().max())
            for name, gradient in gradients.items():
                shard = shards[name]
                length = gradient.shape[shard.dim] if shard.dim is not None else 0
                right = shard.cut(expected[name], length)
                assert gradient.shape == right.shape and right.abs().max() > 1e-3, name
                found[way + name] = float((gradient - right).abs().max())
    return found


@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_and_every_gradient_are_those_of_plain_autograd(size):
    for rank, found in enumerate(run_distributed(_differences, size, size)):
        assert len(found) == 4 * 9
        wrong = {what: difference for what, difference in found.items() if not difference < EXACT}
        assert not wrong, f"rank {rank} of {size}"


def _input_gradients(sequence_parallel: bool) -> dict[str, float]:
    import torch
    from torch.nn import functional as F

    from parallel.mesh import build_mesh
    from parallel.tensor import Region, Weights, column, row

    region = Region(build_mesh(Layout(tensor_parallel_size=2), torch.device("cpu")).tensor, sequence_parallel)
    modules = _modules(region, bias=False)
    x, dy = _made("x", TOKENS, HIDDEN), _made("dy", TOKENS, HIDDEN)
    own_x = region.own_tokens(x).clone().requires_grad_()
    hidden = column(own_x, Weights([modules["up"]], region))
    y = row(hidden, Weights([modules["down"]], region))
    (y * region.own_tokens(dy)).sum().backward()
    whole = x.clone().requires_grad_()
    right = F.linear(F.linear(whole, _made("up.weight", INNER, HIDDEN)), _made("down.weight", HIDDEN, INNER))
    (right * dy).sum().backward()
    return {
        "tokens here": len(y),
        "output": float((y - region.own_tokens(right)).abs().max()),
        "input gradient": float((own_x.grad - region.own_tokens(whole.grad)).abs().max()),
    }


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_outside_of_a_region_each_rank_has_its_run_of_the_tokens_or_all(sequence_parallel):
    for found in run_distributed(_input_gradients, 2, sequence_parallel):
        assert found.pop("tokens here") == (TOKENS // 2 if sequence_parallel else TOKENS)
        assert max(found.values()) < EXACT


class _Recorder(Axis):
    """Two ranks of which the other one has the same; writes down what is started and waited for."""

    def __init__(self):
        super().__init__(0, 2, (0, 1))
        object.__setattr__(self, "events", [])

    def wait(self, work):
        if work is not None:
            self.events.append(f"{work} waited for")

    def all_reduce(self, x, op=None, asynchronous=False):
        return self._start("reduce", asynchronous)

    def all_gather(self, out, x, asynchronous=False):
        out.copy_(x.repeat(2, 1))
        return self._start("gather", asynchronous)

    def reduce_scatter(self, out, x, asynchronous=False):
        out.copy_(x[: len(out)])
        return self._start("reduce", asynchronous)

    def _start(self, what, asynchronous):
        assert asynchronous
        self.events.append(f"{what} started")
        return what


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_input_gradient_travels_while_the_weight_gradient_is_computed(sequence_parallel):
    from parallel.data import FlatParameters
    from parallel.tensor import Region, Weights, column

    axis = _Recorder()
    kernels = {"weight_gradient": lambda gradient, dy, x: axis.events.append("weight gradient")}
    region = Region(axis, sequence_parallel, kernels)
    modules = _modules(region, bias=False)
    weights = Weights([modules["up"]], region)
    weights.bind(FlatParameters([modules]), ["up.weight"])
    x = _made("x", TOKENS // 2 if sequence_parallel else TOKENS, HIDDEN).requires_grad_()
    y = column(x, weights)
    axis.events.clear()
    y.sum().backward()
    expected = ["reduce started", "weight gradient", "reduce waited for"]
    if sequence_parallel:  # the gather hides behind the input gradient's product
        expected = ["gather started", "reduce started", "gather waited for", *expected[1:]]
    assert axis.events == expected


def test_wide_outputs_are_not_rounded_to_the_precision_of_the_factors():
    import torch

    from parallel.data import FlatParameters
    from parallel.tensor import Region, Weights, column

    region = Region()
    modules = _modules(region, bias=False).float()
    weights = Weights([modules["output"]], region)
    weights.bind(FlatParameters([modules], torch.bfloat16), ["output.weight"])
    x = _made("x", TOKENS, HIDDEN).float()
    low_x, low_w = x.bfloat16().double(), modules["output"].weight.detach().bfloat16().double()
    exact = low_x @ low_w.t()
    wide, narrow = column(x, weights, wide=True), column(x, weights)
    assert wide.dtype == torch.float32 and narrow.dtype == torch.bfloat16
    assert (wide - exact).abs().max() < 1e-5 < 1e-3 < (narrow - exact).abs().max()


def test_pieces_are_those_of_torch_chunk_and_none_is_empty():
    assert [piece(509, Axis(rank, 4)) for rank in range(4)] == [(0, 128), (128, 128), (256, 128), (384, 125)]
    with pytest.raises(ValueError, match="5 cannot be divided over tensor_parallel_size = 4"):
        piece(5, Axis(0, 4))
