"""Initial weights as a function of (seed, parameter name) alone.

Each parameter has its own random generator, keyed by its name, that draws the whole parameter, of which a rank
keeps its piece: the initial values depend neither on the order of construction nor on the layout.
"""

import hashlib
import math

import torch
from torch import nn

from parallel.data import named_shards
from scaling.config import ModelConfig

_RESIDUAL_OUTPUTS = ("attention.output.weight", "mlp.down.weight")


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place.

    Matrices: normal with standard deviation `init_method_std`, or 1 / sqrt(fan-in) when that is None;
    the two projections that end in the residual stream are divided by sqrt(2 num_layers) (GPT-2,
    Radford et al., 2019). Norm weights 1, biases 0.
    """
    shards = named_shards(model)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith("_bias"):
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            continue
        shard = shards[name]
        std = config.init_method_std or 1.0 / math.sqrt(shard.shape[1])
        if name.endswith(_RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * config.num_layers)
        values = torch.empty(shard.shape, dtype=torch.float32)
        values.normal_(0.0, std, generator=_generator(seed, name))
        length = 0 if shard.dim is None else parameter.shape[shard.dim]
        parameter.copy_(shard.cut(values, length))
