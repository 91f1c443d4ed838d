import pytest
import torch

from scaling.accounting import parameter_shapes
from scaling.config import ModelConfig
from scaling.initialisation import initialise
from scaling.model import Transformer

BASE = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "vocab_size": 50}
GPT2 = {
    "normalization": "layernorm",
    "position_embedding": "learned",
    "max_position_embeddings": 12,
    "activation": "gelu",
    "add_bias_linear": True,
}
VARIANTS = {
    "llama": {"num_query_groups": 2, "tie_word_embeddings": False},
    "qk_norm": {"qk_norm": True},
    "gpt2": GPT2,
    "pythia": {
        **GPT2,
        "position_embedding": "rope",
        "rotary_percent": 0.5,
        "parallel_residual": True,
        "max_position_embeddings": None,
    },
    "olmo": {"normalization": "layernorm_no_affine"},
    "chinchilla": {"position_embedding": "relative", "activation": "gelu"},
    "no positions": {"position_embedding": "none"},
}


def _model(variant, seed=1) -> Transformer:
    config = ModelConfig(**{**BASE, **variant})
    model = Transformer(config)
    initialise(model, config, seed)
    return model


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_modules_have_exactly_the_shapes_that_are_counted(variant):
    model = _model(variant)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(model.config)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_parameter_matters_and_the_future_does_not(variant):
    model = _model(variant)
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    model(ids[:, :-1], ids[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    with torch.no_grad():
        before, after = model.logits(ids), model.logits(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-5, atol=1e-5)
    assert before.shape == (2, 12, 50) and before.dtype == torch.float32


@pytest.mark.parametrize("variant", [k for k in VARIANTS if k != "no positions"])
def test_positions_are_seen(variant):
    model = _model(VARIANTS[variant])
    ids = torch.tensor([[3, 3, 3, 3, 3, 9, 3, 3]])
    swapped = torch.tensor([[3, 3, 9, 3, 3, 3, 3, 3]])
    with torch.no_grad():
        assert not torch.allclose(model.logits(ids)[0, -1], model.logits(swapped)[0, -1], atol=1e-5)


def test_transformer_xl_positions_match_the_definition():
    model = _model(VARIANTS["chinchilla"])
    relative = model.layers["0"].attention.relative
    with torch.no_grad():
        relative.position_bias.normal_(generator=torch.Generator().manual_seed(2))
    q = torch.randn(1, 4, 5, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        scores = relative(q)
        frequency = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
        for i in range(5):
            for j in range(i + 1):
                angle = (i - j) * frequency
                r = (relative.weight @ torch.cat((angle.sin(), angle.cos()))).view(4, 4)
                expected = ((q[0, :, i] + relative.position_bias) * r).sum(-1)
                torch.testing.assert_close(scores[0, :, i, j], expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_depend_on_seed_and_name_alone():
    shallow, deep = _model({}), _model({"num_layers": 4})
    others = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        if "output" in name or "down" in name:  # scaled by depth
            torch.testing.assert_close(parameter * 2**0.5, others[name] * 4**0.5)
        else:
            assert torch.equal(parameter, others[name]), name
    assert not torch.equal(shallow.embedding.weight, _model({}, seed=2).embedding.weight)
    layers = shallow.layers
    assert not torch.equal(layers["0"].mlp.up.weight, layers["1"].mlp.up.weight)
