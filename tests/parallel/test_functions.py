"""The hand-written backward passes against autograd through the plain modules, in float64."""

import pytest
import torch

from parallel.data import FlatParameters
from parallel.functions import LinearCrossEntropy
from parallel.tensor import Region, Weights
from scaling.config import ModelConfig
from scaling.initialisation import initialise
from scaling.model import Transformer

BASE = {"num_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "vocab_size": 61}
VARIANTS = {
    "one group per head": {},
    "grouped queries": {"num_query_groups": 2},
    "one group": {"num_query_groups": 1},
    "untied": {"tie_word_embeddings": False},
    "attention wider than hidden": {"kv_channels": 10},
    "qk norm (attention stays plain)": {"qk_norm": True},
    "gelu (mlp stays plain)": {"activation": "gelu"},
    "layernorm (norms stay plain)": {"normalization": "layernorm"},
    "rotating a part (attention stays plain)": {"rotary_percent": 0.34},
    "parallel residual": {"parallel_residual": True},
}


def _model(variant: dict, fused: bool) -> tuple[Transformer, FlatParameters]:
    config = ModelConfig(**{**BASE, **variant})
    model = Transformer(config)
    initialise(model, config, seed=3)
    model.double()
    with torch.no_grad():  # norm weights of exactly 1 would hide a wrong gradient
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) + len(name)))
    flat = FlatParameters([model])
    model.bind(flat, fused)
    return model, flat


def _tokens(length: int = 11) -> torch.Tensor:
    return torch.randint(0, 61, (3, length + 1), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_loss_and_every_gradient_equal_autograd(variant):
    tokens = _tokens()
    results = []
    for fused in (False, True):
        model, flat = _model(variant, fused)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        (loss / 33).backward()
        results.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (plain_loss, plain), (fused_loss, fused_grads) = results
    assert fused_loss == pytest.approx(plain_loss, rel=1e-13)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient: the comparison says nothing"
        torch.testing.assert_close(fused_grads[name], gradient, rtol=1e-10, atol=1e-12, msg=lambda m: f"{name}: {m}")


def test_gradients_equal_finite_differences():
    """Autograd of the plain path could be wrong in the same way; the loss itself cannot."""
    tokens = _tokens(5)
    model, flat = _model({"num_query_groups": 2}, fused=True)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    gradient = flat.grad.clone()
    direction = torch.sin(torch.arange(flat.data.numel(), dtype=torch.float64) * 1.7)
    step = 1e-6
    values = []
    for sign in (1, -1):
        flat.data.add_(direction, alpha=sign * step)
        values.append(model(tokens[:, :-1], tokens[:, 1:]).item())
        flat.data.add_(direction, alpha=-sign * step)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(gradient @ direction), rel=1e-7)


def test_gradients_accumulate_over_micro_batches():
    tokens = _tokens()
    model, flat = _model({}, fused=True)
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    whole = flat.grad.clone()
    flat.grad.zero_()
    for micro in tokens.split(1):
        model(micro[:, :-1], micro[:, 1:]).backward()
    torch.testing.assert_close(flat.grad, whole, rtol=1e-11, atol=1e-12)


def test_a_later_token_never_changes_an_earlier_prediction():
    tokens = _tokens()
    model, _ = _model({"num_query_groups": 2}, fused=True)
    changed = tokens.clone()
    changed[:, 6:-1] = (changed[:, 6:-1] + 1) % 61
    before = model.losses(model(tokens[:, :-1]), tokens[:, 1:])
    after = model.losses(model(changed[:, :-1]), tokens[:, 1:])
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_the_loss_is_float32_though_the_products_are_bfloat16():
    tokens = _tokens()
    config = ModelConfig(**BASE)
    model = Transformer(config)
    initialise(model, config, seed=3)
    exact = model(tokens[:, :-1], tokens[:, 1:]).item()
    flat = FlatParameters([model], torch.bfloat16)
    model.bind(flat, True)
    loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    assert loss.dtype == torch.float32 and flat.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=2e-3)
    assert loss.item() != exact, "the products were not bfloat16"


def test_a_loss_beyond_float32_probabilities_is_still_exact():
    """exp(-200) is no float32; the loss of 200 nats is."""
    weight = torch.zeros(4, 2)
    weight[1, 0] = 200.0
    module = torch.nn.ModuleDict({"output": torch.nn.Embedding.from_pretrained(weight, freeze=False)})
    weights = Weights([module["output"]], Region())
    weights.bind(FlatParameters([module]), ["output.weight"])
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = LinearCrossEntropy.apply(x, weights, torch.tensor([[2]]))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert x.grad[0, 0].item() == pytest.approx(200.0)
