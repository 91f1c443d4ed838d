"""Flat buffers, buckets and the slices of the replicas."""

import pytest
import torch
from distributed import run_distributed
from torch import nn

from parallel.data import FlatParameters, Ready, Shard, sum_partial
from parallel.layout import Layout
from parallel.mesh import Axis


def test_parameters_and_gradients_become_views_matrices_first():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    flat = FlatParameters([module])
    assert [(s.start, s.end, s.decay) for s in flat.owned] == [(0, 20, True), (20, 24, False)]
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name])
    module(torch.ones(1, 3)).sum().backward()
    assert flat.grad.abs().sum() > 0
    flat.data.zero_()
    assert all(p.abs().sum() == 0 for p in module.parameters())


def test_neighbours_stack_and_others_do_not():
    module = nn.ModuleDict(
        {"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(3, 2, bias=False), "c": nn.Linear(3, 1, bias=False)}
    )
    flat = FlatParameters([module])
    both = flat.stacked(flat.data, ["a.weight", "b.weight"])
    assert torch.equal(both, torch.cat((module["a"].weight, module["b"].weight)))
    both.zero_()
    assert module["b"].weight.abs().sum() == 0
    assert flat.stacked(flat.data, ["a.weight", "c.weight"]) is None


def _model(tensor_rank: int = 0) -> nn.ModuleDict:
    """Odd sizes; of two tensor ranks the one has rows 0-3 and columns 0-2 of what is divided, the other the rest."""
    rows, columns = ((0, 4), (0, 3)) if tensor_rank == 0 else ((4, 3), (3, 2))
    shared = Axis(tensor_rank, 2, (0, 1))
    layers = nn.ModuleDict()
    for number in "01":
        up, down = nn.Linear(5, rows[1], bias=False), nn.Linear(columns[1], 3)
        up.shards = {"weight": Shard((7, 5), 0, rows[0])}
        down.shards = {
            "weight": Shard((3, 5), 1, columns[0]),
            "bias": Shard((3,), partial=shared, primary=tensor_rank == 0),
        }
        layers[number] = nn.ModuleDict({"up": up, "down": down})
    embedding = nn.Embedding(11, 5)
    embedding.shards = {"weight": Shard((11, 5), partial=shared, primary=tensor_rank == 0)}
    return nn.ModuleDict(
        {
            "embedding": embedding,
            "layers": layers,
            "final_norm": nn.LayerNorm(5),
            "output": nn.Linear(5, 11, bias=False),
        }
    )


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5])
def test_the_replicas_own_every_element_of_the_buffer_once(replicas, bucket_bytes):
    axes = [Axis(rank, replicas, tuple(range(replicas))) for rank in range(replicas)]
    flats = [FlatParameters([_model()], None, axis, bucket_bytes) for axis in axes]
    first = flats[0]
    owners, decays = torch.zeros(len(first.data), dtype=torch.int64), torch.zeros(len(first.data), dtype=torch.bool)
    for flat in flats:
        assert flat.slices == first.slices and len(flat.data) == len(flat.grad) == len(first.data)
        assert sum(segment.end - segment.start for segment in flat.owned) * replicas == len(flat.data)
        for segment in flat.owned:
            owners[segment.start : segment.end] += 1
            decays[segment.start : segment.end] = segment.decay
    assert (owners == 1).all()
    assert {name: bool(part.all()) for name, part in first.named(decays).items()} == {
        name: parameter.dim() >= 2 for name, parameter in _model().named_parameters()
    }
    assert not any(part.any() and not part.all() for part in first.named(decays).values())


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5])
def test_the_owned_rectangles_put_every_parameter_together_again(replicas):
    whole, seen = {}, {}
    for tensor_rank in range(2):
        for rank in range(replicas):
            flat = FlatParameters([_model(tensor_rank)], None, Axis(rank, replicas, tuple(range(replicas))), 1)
            for name, piece in flat.named(flat.data).items():  # an element's value says which one it is
                shard = flat.shards[name]
                numbers = torch.arange(float(torch.Size(shard.shape).numel())).view(shard.shape)
                piece.copy_(shard.cut(numbers, piece.shape[shard.dim] if shard.dim is not None else 0))
                whole[name] = numbers
            for name, shard, offset, rectangle in flat.owned_pieces([weights for weights, _, _ in flat.segments()]):
                at = tuple(slice(start, start + size) for start, size in zip(offset, rectangle.shape))
                assert torch.equal(rectangle, whole[name][at]), name
                if shard.primary:
                    seen.setdefault(name, torch.zeros(shard.shape))[at] += 1
    copies = {
        name: 2 if name.startswith(("final_norm", "output")) else 1 for name in whole
    }  # shards that nobody marked
    assert seen.keys() == whole.keys()
    for name, count in seen.items():
        assert (count == copies[name]).all(), name


class _Recorder(Axis):
    """The first of two replicas; keeps what is sent and how the gradients stood then."""

    def __init__(self):
        super().__init__(0, 2, (0, 1))
        object.__setattr__(self, "sent", [])

    def reduce_scatter(self, out, x, asynchronous=False):
        self.sent.append((x.storage_offset(), len(x), self.flat.grad.clone()))
        return "under way"

    def wait(self, work):
        assert work == "under way"

    def all_reduce(self, x, op=None, asynchronous=False):
        self.sent.append(x.tolist())
        x.mul_(10)


def _backward(model: nn.ModuleDict, flat: FlatParameters) -> None:
    x = model["embedding"](torch.arange(3))
    for number, layer in model["layers"].items():
        x = Ready.apply(x, flat.ready, f"layers.{number}")
        x = x + torch.nn.functional.pad(layer["down"](layer["up"](x)[:, :3]), (0, 2))
    model["output"](model["final_norm"](x)).square().sum().backward()


def test_a_layers_bucket_is_sent_after_its_last_gradient_while_others_still_compute():
    axis, model = _Recorder(), _model()
    flat = FlatParameters([model], replica=axis, bucket_bytes=1)
    object.__setattr__(axis, "flat", flat)
    flat.expect(2)
    _backward(model, flat)
    assert not axis.sent, "sent before the second micro-batch"
    _backward(model, flat)
    assert len(axis.sent) == 2, "the buckets of the two layers, in the backward pass"
    (start, length, at_layer_1), (_, _, at_layer_0) = axis.sent
    names = [name for name, (offset, _) in flat.slices.items() if start <= offset < start + length]
    assert names == ["layers.1.up.weight", "layers.1.down.weight"]
    final, then = flat.named(flat.grad), flat.named(at_layer_1)
    for name in names:
        assert torch.equal(then[name], final[name]), f"{name} was not complete"
    assert not torch.equal(then["layers.0.up.weight"], final["layers.0.up.weight"]), "layer 0 had already computed"
    assert not torch.equal(flat.named(at_layer_0)["embedding.weight"], final["embedding.weight"])
    flat.shards = {name: Shard(tuple(piece.shape)) for name, piece in final.items()}
    flat.finish()
    ends = [start + length for start, length, _ in sorted(axis.sent, key=lambda message: message[:2])]
    assert [start for start, _, _ in sorted(axis.sent, key=lambda message: message[:2])] == [0, *ends[:-1]]
    assert ends[-1] == len(flat.grad), "finish sends the rest, and nothing twice"


def test_what_is_summed_elsewhere_first_and_what_does_not_decay_comes_last():
    flat = FlatParameters([_model()], replica=Axis(0, 2, (0, 1)))
    assert list(flat.slices) == [
        *(f"layers.{number}.{part}.weight" for number in "01" for part in ("up", "down")),
        "output.weight",
        "embedding.weight",
        *(f"layers.{number}.down.bias" for number in "01"),
        "final_norm.weight",
        "final_norm.bias",
    ]


def test_layers_share_a_bucket_up_to_a_size():
    sent = {}
    for bucket_bytes in (1, 200, 1 << 20):
        axis = _Recorder()
        flat = FlatParameters([_model()], replica=axis, bucket_bytes=bucket_bytes)
        object.__setattr__(axis, "flat", flat)
        flat.expect(1)
        sent[bucket_bytes] = []
        for unit in ("layers.1", "output", "layers.0"):
            flat.ready(unit)
            sent[bucket_bytes].append([length for _, length, _ in axis.sent])
            axis.sent.clear()
    one_layer, both, head = 4 * 5 + 3 * 3, 2 * (4 * 5 + 3 * 3), 11 * 5
    assert sent[1] == [[one_layer + 1], [head + 1], [one_layer + 1]], "rounded up to a multiple of two replicas"
    assert sent[200] == [[], [head + 1], [both]]
    assert sent[1 << 20] == [[], [], [both + head + 1]]


def test_partial_gradients_are_summed_in_one_message_for_each_axis():
    axis, other, alone = _Recorder(), _Recorder(), Axis()
    object.__setattr__(other, "ranks", (0, 2))
    shards = {"a": axis, "b": other, "c": axis, "d": alone, "e": None}
    gradients = {name: torch.full((2,), float(number)) for number, name in enumerate(shards)}
    sum_partial({name: Shard((2,), partial=partial) for name, partial in shards.items()}, gradients)
    assert axis.sent == [[0.0, 0.0, 2.0, 2.0]] and other.sent == [[1.0, 1.0]]
    assert [gradient.tolist() for gradient in gradients.values()] == [[0, 0], [10, 10], [20, 20], [3, 3], [4, 4]]


def test_gradients_of_bfloat16_products_add_up_in_float32():
    from parallel.tensor import Linear, Region, Weights

    region = Region()
    module = nn.ModuleDict({"only": Linear(1, 1, None, 0, 1, region)})
    flat = FlatParameters([module], torch.bfloat16)
    weights = Weights([module["only"]], region)
    weights.bind(flat, ["only.weight"])
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    for _ in range(1000):
        weights.add_gradient(one, one)
    assert flat.grad.dtype == torch.float32 and flat.grad.item() == 1000.0, "bfloat16 stops at 256"


def _update(replicas: int) -> tuple[list[float], list[float], list[float], bool]:
    """Two steps. Gradients step * (rank + 1) everywhere, summed; weights plus the sum; what every rank then has."""
    from parallel.mesh import build_mesh

    mesh = build_mesh(Layout(data_parallel_size=replicas), torch.device("cpu"))
    torch.manual_seed(0)
    flat = FlatParameters([nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))], torch.bfloat16, mesh.replica)
    before = flat.data.clone()
    for step in (1, 2):
        flat.grad.fill_(step * (mesh.rank + 1.0))
        flat.expect(1)
        flat.finish()
        summed = [float(value) for _, gradient, _ in flat.segments() for value in gradient]
        for weights, gradient, _ in flat.segments():
            weights.add_(gradient)
        flat.publish()
    compute_follows = torch.equal(flat.compute, flat.data.bfloat16())
    return summed, (flat.data - before).tolist(), flat.grad.tolist(), compute_follows


@pytest.mark.parametrize("replicas", [2, 3])
def test_summed_gradients_and_updated_weights_reach_every_replica(replicas):
    total = replicas * (replicas + 1) / 2
    for summed, change, cleared, compute_follows in run_distributed(_update, replicas, replicas):
        assert set(summed) == {2 * total} and len(summed) * replicas == len(change)
        assert change == pytest.approx([3 * total] * len(change)) and not any(cleared) and compute_follows
