import torch
from torch import nn

from parallel.data import FlatParameters


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
    module = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(3, 2, bias=False), "c": nn.Linear(3, 1, bias=False)})
    flat = FlatParameters([module])
    both = flat.stacked(flat.data, ["a.weight", "b.weight"])
    assert torch.equal(both, torch.cat((module["a"].weight, module["b"].weight)))
    both.zero_()
    assert module["b"].weight.abs().sum() == 0
    assert flat.stacked(flat.data, ["a.weight", "c.weight"]) is None
