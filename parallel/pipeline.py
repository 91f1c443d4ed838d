"""Pipeline parallelism: the layers cut into stages, micro-batches passed along them by torch's schedules.

Schedules: GPipe (Huang et al., 2019), 1F1B (Narayanan et al., 2019), interleaved 1F1B (Narayanan et al., 2021),
ZBV (Qi et al., 2024) and DualPipeV (DeepSeek, 2025; cut in half by Qi et al.). The last two split the backward
pass: gradients of inputs first, those of weights later, when a rank would otherwise wait. The split needs nothing
of autograd here, since all large weight gradients are computed by our own functions, which can put them off.

The loss of every micro-batch is already divided by the tokens of the whole batch, so gradients are only ever added:
torch's `scale_grads`, which would divide once more, is off.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.layout import Layout
from parallel.mesh import Mesh
from parallel.tensor import Region


def split_layers(layer_cost: float, num_layers: int, first_cost: float, last_cost: float, num_stages: int) -> list[int]:
    """Layers of each stage, at least one each, so that the costliest stage costs least.

    The first stage also bears `first_cost` (embedding), the last one `last_cost` (logits). Among equally good splits
    the one with the lightest ends: they also hold the largest matrices. Raises ValueError for more stages than layers.
    """
    if num_stages > num_layers:
        raise ValueError(f"num_layers = {num_layers} cannot fill {num_stages} pipeline stages: use fewer")
    extra = [0.0] * num_stages
    extra[0] += first_cost
    extra[-1] += last_cost
    counts = [1] * num_stages
    for _ in range(num_layers - num_stages):  # each layer goes where it makes the least heavy stage
        inner_first = sorted(range(num_stages), key=lambda stage: (stage in (0, num_stages - 1), stage))
        target = min(inner_first, key=lambda stage: extra[stage] + (counts[stage] + 1) * layer_cost)
        counts[target] += 1
    return counts


def stage_ranges(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(first layer, end) of each stage from the layers of each."""
    ends = [sum(counts[: stage + 1]) for stage in range(len(counts))]
    return [(end - count, end) for end, count in zip(ends, counts)]


class Pipeline:
    """This rank's stages of a pipeline and the schedule that drives them.

    Args:
        stages: stage index -> module; the first takes ids [B, T], the others hidden states, all give hidden states.
            Their attribute `region` can put weight gradients off.
        loss: (hidden states of the last stage, targets [B, T]) -> scalar to be added up and differentiated.
        ids, hidden: an example of a micro-batch's ids and of what travels between stages, for shapes and types.
    """

    def __init__(
        self,
        mesh: Mesh,
        stages: dict[int, nn.Module],
        loss: Callable[[Tensor, Tensor], Tensor],
        micro_batches: int,
        ids: Tensor,
        hidden: Tensor,
    ):
        from torch.distributed.pipelining import PipelineStage, schedules

        layout, self.mesh, self.stages, self._dtype = mesh.layout, mesh, stages, hidden.dtype
        classes = {
            "gpipe": schedules.ScheduleGPipe,
            "1f1b": schedules.Schedule1F1B,
            "interleaved1f1b": schedules.ScheduleInterleaved1F1B,
            "zbv": schedules.ScheduleZBVZeroBubble,
            "dualpipev": schedules.ScheduleDualPipeV,
        }
        puts_off = layout.pipeline_schedule in ("zbv", "dualpipev")
        for module in stages.values():
            module.region.later = [] if puts_off else None
        made = [
            PipelineStage(
                module,
                stage,
                layout.num_stages,
                mesh.device,
                input_args=ids if stage == 0 else hidden,
                output_args=hidden,
                group=mesh.pipeline.group,
                dw_builder=partial(_take_put_off, module.region) if puts_off else None,
            )
            for stage, module in stages.items()
        ]
        kind = classes[layout.pipeline_schedule]
        single = issubclass(kind, schedules.PipelineScheduleSingle)
        self.schedule = kind(made[0] if single else made, micro_batches, loss_fn=loss, scale_grads=False)

    def forward_backward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """All micro-batches of this rank's [B, T] through the pipeline; their summed loss on the last stage, else 0."""
        losses: list[Tensor] = []
        arguments = (ids,) if 0 in self.stages else ()
        last = self.mesh.layout.num_stages - 1 in self.stages
        self.schedule.step(*arguments, target=targets if last else None, losses=losses, return_outputs=False)
        return (
            torch.stack([loss.detach() for loss in losses]).sum()
            if losses
            else targets.new_zeros((), dtype=self._dtype)
        )

    @torch.no_grad()
    def forward(self, ids: Tensor, hidden_shape: tuple[int, ...]) -> Tensor | None:
        """The last stage's hidden states of one [B, T], on the rank that has that stage; None elsewhere.

        `hidden_shape` is that of the hidden states between stages.
        """
        layout, rank = self.mesh.layout, self.mesh.pipeline.rank
        x: Tensor | None = ids
        for stage in range(layout.num_stages):
            holder = layout.rank_of_stage(stage)
            before = layout.rank_of_stage(stage - 1) if stage else holder
            if rank == before and rank != holder:
                dist.send(x, self.mesh.pipeline.ranks[holder], group=self.mesh.pipeline.group)
                x = None
            elif rank == holder and rank != before:
                x = torch.empty(hidden_shape, dtype=self._dtype, device=ids.device)
                with self.mesh.pipeline.blocked():
                    dist.recv(x, self.mesh.pipeline.ranks[before], group=self.mesh.pipeline.group)
            if rank == holder:
                x = self.stages[stage](x)
        return x if layout.num_stages - 1 in self.stages else None


def _take_put_off(region: Region) -> Callable[[], None]:
    """What computes the weight gradients that `region` has put off since the last call."""
    taken, region.later = region.later, []

    def run() -> None:
        for compute in taken:
            compute()

    return run


def stages_of(layout: Layout, rank: int) -> list[int]:
    """The stages that a pipeline rank holds."""
    return [stage for stage in range(layout.num_stages) if layout.rank_of_stage(stage) == rank]
