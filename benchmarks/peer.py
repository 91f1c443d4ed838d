"""A Llama of plain torch modules, for torch's own parallelism to divide, and the same model as a config of ours.

Both have separate query, key and value, SwiGLU, RMSNorm, rotary positions and causal attention; all shapes are equal.
They are tiny: width 32 and 8 tokens, so that a step's time is the work of Python, dispatcher and autograd.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaling.config import RunConfig, build_config
from scaling.model import rotation_table

HIDDEN, HEADS, FFN, VOCABULARY, TOKENS = 32, 4, 88, 256, 8


def tiny_config(num_layers: int, sequences: int = 1, **parallel: Any) -> RunConfig:
    """The tiny model, `sequences` of 8 tokens a step, under a layout; for `parallel` see Layout."""
    model = {"num_layers": num_layers, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "ffn_hidden_size": FFN}
    values = {
        "model": {**model, "vocab_size": VOCABULARY, "tie_word_embeddings": False},
        "data": {"name": "none", "fingerprint": "none", "seq_length": TOKENS},
        "optimizer": {"learning_rate": 1e-3},
        "global_batch_size": sequences,
        "train_steps": 1,
        "parallel": parallel,
    }
    return build_config(values, "benchmark")


class Attention(nn.Module):
    """Causal self-attention with the heads that this rank has: [B, T, D] -> [B, T, D]."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(3))
        self.output = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, HIDDEN // HEADS)) for part in (self.query, self.key, self.value))
        q, k = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) * rotation for part in (q, k))
        q, k = (torch.view_as_real(part).flatten(-2) for part in (q, k))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.output(out.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, FFN, bias=False) for _ in range(2))
        self.down = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(.))."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(HIDDEN, eps=1e-5) for _ in range(2))
        self.attention, self.mlp = Attention(), MLP()

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """Token ids [B, T] -> logits [B, T, V]."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(num_layers))
        self.norm, self.output = nn.RMSNorm(HIDDEN, eps=1e-5), nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.register_buffer("rotation", rotation_table(tiny_config(num_layers).model, torch.arange(TOKENS)))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.rotation)
        return self.output(self.norm(x))
