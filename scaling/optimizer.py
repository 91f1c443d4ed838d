"""AdamW over flat segments, with clipping and the non-finite guard folded into the one fused step."""

import torch
from torch import Tensor

from parallel.kernels import UNCHECKED, Kernels
from parallel.mesh import Axis
from scaling.checkpoint_format import Piece
from scaling.config import OptimizerConfig


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter, 2019) on matrices, none on vectors.

    Args:
        storage: has `segments()`, (weights, gradients, decay) that this rank owns and updates, `counted_gradients()`,
            those that it stands for in the norm, and `publish()`, which clears gradients and spreads the weights.

    Attributes:
        exp_avg, exp_avg_sq: first and second moments, one tensor for each segment.
    """

    def __init__(self, storage, config: OptimizerConfig, world: Axis = Axis(), kernels: Kernels = UNCHECKED):
        self.storage, self.config, self.world, self.kernels = storage, config, world, kernels
        owned = [weights for weights, _, _ in storage.segments()]
        self.exp_avg = [torch.zeros_like(weights) for weights in owned]
        self.exp_avg_sq = [torch.zeros_like(weights) for weights in owned]
        self._updates = [torch.zeros((), dtype=torch.float32, device=weights.device) for weights in owned]

    @torch.no_grad()
    def step(self, learning_rate: float, *to_sum: Tensor) -> tuple[Tensor, ...]:
        """One update from the gradients, which are cleared: the gradient norm before clipping, then `to_sum`.

        The scalars `to_sum` are summed over all ranks in the same message that the norm needs, so that a step has
        only one: float64. A non-finite norm leaves weights and moments as they were; the caller sees it in the
        returned value. Collective.
        """
        config = self.config
        gradients = self.storage.counted_gradients()
        zero = torch.zeros((), dtype=torch.float64, device=self._updates[0].device)
        squares = self.kernels["gradient_norm"](gradients).square() if gradients else zero
        sums = torch.stack([squares, *(part.double() for part in to_sum)])
        self.world.all_reduce(sums)
        norm = sums[0].sqrt()
        segments = self.storage.segments()
        scale = torch.ones_like(norm)  # gradients are divided by it
        if config.clip_grad:
            scale = (norm / config.clip_grad).clamp_(min=1.0)
        if segments[0][0].dtype == torch.float64:  # the fused update knows float32 scales only
            self.kernels["gradient_scaling"]([gradients for _, gradients, _ in segments], 1.0 / scale)
            scale = torch.ones_like(norm)
        for decays in (True, False):
            chosen = [index for index, (_, _, decay) in enumerate(segments) if decay == decays]
            if chosen:
                self.kernels["adamw"](
                    [segments[index][0] for index in chosen],
                    [segments[index][1] for index in chosen],
                    [self.exp_avg[index] for index in chosen],
                    [self.exp_avg_sq[index] for index in chosen],
                    [self._updates[index] for index in chosen],
                    lr=learning_rate,
                    beta1=config.beta1,
                    beta2=config.beta2,
                    eps=config.epsilon,
                    weight_decay=config.weight_decay if decays else 0.0,
                    grad_scale=scale.float(),
                    found_inf=(~torch.isfinite(norm)).float(),
                )
        self.storage.publish()
        return norm, *sums[1:]

    def pieces(self) -> list[Piece]:
        """Weights and moments that this rank owns, as checkpoints know them."""
        kinds = {
            "weights": [weights for weights, _, _ in self.storage.segments()],
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
        }
        return [
            Piece(f"{kind}/{name}", shard.shape, offset, tensor, shard.primary)
            for kind, buffers in kinds.items()
            for name, shard, offset, tensor in self.storage.owned_pieces(buffers)
        ]

    def resume(self, updates: int) -> None:
        """Go on after so many updates, from what was loaded into `pieces`. Collective."""
        for count in self._updates:
            count.fill_(updates)
        self.storage.publish()
