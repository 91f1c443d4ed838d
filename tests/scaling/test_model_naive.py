"""The whole model, alone and divided, against a transformer written a second time as plainly as possible, in float64.

Nothing of parallel/ or scaling/model.py is used in the second one but the names of the parameters.
"""

import math

import numpy as np
import pytest
from distributed import run_distributed

from scaling.parity import Case, batch, sizes

LLAMA = {"tie_word_embeddings": False}  # with scaling.parity: grouped queries, QK-norm, SwiGLU, rotary positions
GPT2 = {
    "num_query_groups": 4,
    "normalization": "layernorm",
    "position_embedding": "learned",
    "max_position_embeddings": 20,
    "activation": "gelu",
    "add_bias_linear": True,
    "qk_norm": False,
    "tie_word_embeddings": True,
}


def _naive(config, p, tokens):
    """Mean loss, nats per token, of int64 [B, T + 1], from a dictionary of whole parameters."""
    import torch

    heads, groups, size = config.num_attention_heads, config.num_query_groups, config.kv_channels
    ids, targets = tokens[:, :-1], tokens[:, 1:]
    count, length = ids.shape

    def norm(x, name):
        if config.normalization == "rmsnorm":
            return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_epsilon).sqrt() * p[f"{name}.weight"]
        spread = x - x.mean(-1, keepdim=True)
        scaled = spread / (spread.pow(2).mean(-1, keepdim=True) + config.norm_epsilon).sqrt()
        return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        y = torch.einsum("btd,fd->btf", x, p[f"{name}.weight"])
        return y + p[f"{name}.bias"] if config.add_bias_linear else y

    def turned(x):  # channels 2j and 2j + 1 of position t turn by t / base^(2j / size)
        turned = torch.empty_like(x)
        for j in range(size // 2):
            angle = torch.arange(length, dtype=x.dtype) * config.rotary_base ** (-2 * j / size)
            cos, sin = angle.cos(), angle.sin()
            even, odd = x[:, :, 2 * j], x[:, :, 2 * j + 1]
            turned[:, :, 2 * j], turned[:, :, 2 * j + 1] = even * cos - odd * sin, even * sin + odd * cos
        return turned

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)
            q_h, k_h, v_h = (y[:, :, at * size : (at + 1) * size] for y, at in ((q, head), (k, group), (v, group)))
            if config.qk_norm:
                q_h, k_h = norm(q_h, f"{name}.query_norm"), norm(k_h, f"{name}.key_norm")
            if config.position_embedding == "rope":
                q_h, k_h = turned(q_h), turned(k_h)
            scores = q_h @ k_h.transpose(1, 2) / math.sqrt(size)
            past = torch.arange(length)[:, None] >= torch.arange(length)
            weights = scores.exp() * past
            outputs.append(weights / weights.sum(-1, keepdim=True) @ v_h)
        return linear(torch.cat(outputs, -1), f"{name}.output")

    def mlp(x, name):
        up = linear(x, f"{name}.up")
        if config.activation == "swiglu":
            gate = linear(x, f"{name}.gate")
            return linear(gate / (1 + (-gate).exp()) * up, f"{name}.down")
        inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        return linear(0.5 * up * (1 + inner.tanh()), f"{name}.down")

    x = p["embedding.weight"][ids]
    if config.position_embedding == "learned":
        x = x + p["position_embedding.weight"][:length]
    for layer in range(config.num_layers):
        x = x + attention(norm(x, f"layers.{layer}.attention_norm"), f"layers.{layer}.attention")
        x = x + mlp(norm(x, f"layers.{layer}.mlp_norm"), f"layers.{layer}.mlp")
    output = p["embedding.weight" if config.tie_word_embeddings else "output.weight"]
    logits = norm(x, "final_norm") @ output.t()
    chosen = logits.gather(-1, targets[..., None])[..., 0]
    return (logits.exp().sum(-1).log() - chosen).sum() / (count * length)


def _perturbed(name, whole):
    """Norm weights of exactly 1 and biases of 0 would hide wrong gradients."""
    import torch

    return whole + 0.3 * torch.sin(torch.arange(whole.numel(), dtype=torch.float64) + len(name)).view(whole.shape)


def _expected(config):
    """(loss, {name: gradient}) of the naive model."""
    import torch

    from scaling.initialisation import initialise
    from scaling.model import Transformer

    model = Transformer(config.model)
    initialise(model, config.model, config.seed)
    p = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    p = {name: (_perturbed(name, value) if value.dim() == 1 else value).requires_grad_() for name, value in p.items()}
    loss = _naive(config.model, p, torch.from_numpy(batch(0)))
    loss.backward()
    return loss.item(), {name: value.grad.numpy() for name, value in p.items()}


def _divided(configs):
    """For each config (part of the loss, [(name, offset, rectangle)]): what this rank owns of the gradients."""
    import torch

    from parallel.mesh import build_mesh
    from scaling.engine import Engine

    found = []
    for config in configs:
        mesh = build_mesh(config.parallel, torch.device("cpu"))
        engine = Engine(config, mesh.device, "float64", mesh)
        storage = engine.storage
        for name, piece in storage.named(storage.data).items():
            shard = storage.shards[name]
            if piece.dim() == 1:
                whole = torch.zeros(shard.shape, dtype=torch.float64)
                length = len(piece) if shard.dim is not None else 0
                piece.add_(shard.cut(_perturbed(name, whole), length))
        loss = float(engine.forward_backward(batch(0)))
        gradients = [gradient for _, gradient, _ in storage.segments()]
        owned = [
            (name, offset, rectangle.numpy().copy()) for name, _, offset, rectangle in storage.owned_pieces(gradients)
        ]
        found.append((loss, owned))
    return found


LAYOUTS = [
    sizes(),
    sizes(tp=2),
    sizes(tp=2, sequence_parallel=False),
    sizes(dp=2),
    sizes(cp=2),
    sizes(cp=2, context_parallel_method="ulysses"),
    sizes(pp=2, pipeline_schedule="zbv"),
    sizes(pp=2, pipeline_schedule="interleaved1f1b"),
    sizes(tp=4),
    sizes(pp=2, tp=2),
]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_loss_and_every_gradient_are_those_of_the_naive_transformer(model, ranks):
    configs = [Case(parallel, model=model).config("float64") for parallel in LAYOUTS]
    configs = [config for config in configs if config.parallel.world_size == ranks]
    loss, gradients = _expected(configs[0])
    by_rank = run_distributed(_divided, ranks, configs)
    for at, config in enumerate(configs):
        where = str(config.parallel)
        assert sum(found[at][0] for found in by_rank) == pytest.approx(loss, rel=1e-12), where
        seen = {name: np.zeros(gradient.shape, bool) for name, gradient in gradients.items()}
        for found in by_rank:
            for name, offset, rectangle in found[at][1]:
                part = tuple(slice(start, start + size) for start, size in zip(offset, rectangle.shape))
                scale = max(np.abs(gradients[name]).max(), 1e-6)  # the key's bias has none: softmax does not see it
                assert np.abs(rectangle - gradients[name][part]).max() / scale < 1e-10, f"{where}: {name}"
                seen[name][part] = True
        assert all(every.all() for every in seen.values()), where
