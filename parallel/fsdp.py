"""Fully sharded data parallelism by torch's FSDP2, behind the interface of parallel.data.FlatParameters.

For models whose weights and gradients must be sharded too (ZeRO stage 3): every layer's weights are gathered just
before use and freed after. Costs more host time than the flat buffers, so small models use those.
"""

import math

import torch
from torch import Tensor, nn

from parallel.data import Shard, named_shards, sum_partial
from parallel.mesh import Mesh


class ShardedParameters:
    """Shards the parameters of a rank's pipeline stages over the replicas, by rows, layer by layer.

    `compute_dtype` is that of the gathered weights; gradients are summed and accumulated in the parameters' own.
    """

    def __init__(self, modules: list[nn.Module], compute_dtype: torch.dtype | None, mesh: Mesh):
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.replica, self.modules = mesh.replica, modules
        self.shards = {name: shard for module in modules for name, shard in named_shards(module).items()}
        shapes = {name: p.shape for module in modules for name, p in module.named_parameters()}
        exact = next(modules[0].parameters()).dtype
        policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=exact, cast_forward_inputs=False)
        devices = DeviceMesh.from_group(mesh.replica.group, mesh.device.type, list(mesh.replica.ranks))
        for module in modules:
            for unit in (*module.layers.values(), module):
                fully_shard(unit, mesh=devices, mp_policy=policy)
                # the loss is divided by the tokens of the whole batch already: gradients are summed, not averaged
                unit.set_gradient_divide_factor(1.0)
                unit.set_force_sum_reduction_for_comms(True)
        self._named = {name: p for module in modules for name, p in module.named_parameters()}
        self._decays = {name: len(shape) >= 2 for name, shape in shapes.items()}
        self._rows = {name: shape[0] for name, shape in shapes.items()}

    def expect(self, backward_passes: int) -> None:
        """Announce how many backward passes follow before `finish`; FSDP2 needs to know the last one only."""

    def before_backward(self, last: bool) -> None:
        """Announce a backward pass; gradients are summed over the replicas in the last one."""
        for module in self.modules:
            module.set_requires_gradient_sync(last)
            module.set_is_last_backward(last)

    def finish(self) -> None:
        """Complete the gradients: those of which ranks of another axis hold parts are summed over it."""
        sum_partial(self.shards, {name: p.grad.to_local() for name, p in self._named.items()})

    def counted_gradients(self) -> list[Tensor]:
        """The gradients that this rank stands for in the global norm."""
        found = [p.grad.to_local() for name, p in self._named.items() if self.shards[name].primary]
        return [gradient for gradient in found if gradient.numel()]

    def publish(self) -> None:
        """After an update: clear the gradients, and forget gathered weights, which are out of date."""
        for module in self.modules:
            module.reshard()
        for parameter in self._named.values():
            parameter.grad = None

    def segments(self) -> list[tuple[Tensor, Tensor | None, bool]]:
        """(weights, gradients, decay) of what this rank owns, to update in place."""
        return [
            (p._local_tensor, None if p.grad is None else p.grad._local_tensor, self._decays[name])
            for name, p in self._named.items()
        ]

    def owned_pieces(self, buffers: list[Tensor]) -> list[tuple[str, Shard, tuple[int, ...], Tensor]]:
        """(name, shard, offset in the whole parameter, rectangle) of everything owned; as FlatParameters'."""
        found = []
        for (name, p), buffer in zip(self._named.items(), buffers):
            if buffer.numel():
                offset = [0] * buffer.dim()
                # rows are cut as torch.chunk cuts
                offset[0] = self.replica.rank * math.ceil(self._rows[name] / self.replica.size)
                shard = self.shards[name]
                if shard.dim is not None:
                    offset[shard.dim] += shard.start
                found.append((name, shard, tuple(offset), buffer))
        return found
