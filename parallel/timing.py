"""Where the time of a step goes: computing, communicating, or waiting for a slower rank."""

import time
from typing import Any

import torch
import torch.distributed as dist

from parallel.mesh import Axis


class StepTimer:
    """Measures, step by step, how long this rank was blocked in communication. Once per interval, `split` compares.

    A collective ends for all ranks together, when the last one has come and the data have moved. The last rank to
    come is blocked for the movement alone, and every other rank for that and for the time until the last came. So
    of the seconds a rank is blocked, what the least blocked rank has too is communication and the rest is waiting.
    This is exact when one rank is last in all collectives of a step. When they take turns (a pipeline's bubble, too)
    everybody waits, and the part that all have in common counts as communication: `waiting` is a lower bound.

    On a GPU the host only queues the work, so its seconds say nothing: all are None then, and `reason` says why.
    """

    def __init__(self, device: torch.device):
        on_host = device.type == "cpu"
        self.reason = None if on_host else f"the host's clock does not see when {device.type} computes or waits"
        self._depth, self._entered, self._blocked, self._began = 0, 0.0, 0.0, 0.0
        self._steps: list[tuple[float, float]] = []

    def communication(self) -> "StepTimer":
        """A context for the time in which this rank is blocked by others; may be nested, 0.3 us."""
        return self

    def __enter__(self) -> None:
        if self._depth == 0:
            self._entered = time.perf_counter()
        self._depth += 1

    def __exit__(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._blocked += time.perf_counter() - self._entered

    def begin_step(self) -> None:
        """What came since the last step (an evaluation, a checkpoint) is not counted."""
        self._began, self._blocked = time.perf_counter(), 0.0

    def end_step(self) -> None:
        """All ranks must end the same steps."""
        self._steps.append((time.perf_counter() - self._began, self._blocked))

    def split(self, world: Axis) -> dict[str, float | None]:
        """Seconds per step since the last call, the mean over steps and ranks; their sum is the step's wall time.

        One small all-gather over `world`, none for a rank alone. {"compute_seconds", "communication_seconds",
        "waiting_seconds"}.
        """
        mine, self._steps = torch.tensor(self._steps, dtype=torch.float64).reshape(-1, 2), []
        if self.reason is not None or not len(mine):
            return dict.fromkeys(("compute_seconds", "communication_seconds", "waiting_seconds"))
        ranks = mine.new_empty(world.size, *mine.shape)
        if world.size == 1:
            ranks[0] = mine
        else:
            dist.all_gather(list(ranks), mine, group=world.group)
        return split_step(ranks[..., 0], ranks[..., 1])


def split_step(total: torch.Tensor, blocked: torch.Tensor) -> dict[str, float]:
    """The split of steps of `total` seconds, `blocked` of them in communication; both [ranks, steps]. See StepTimer."""
    communication = blocked.amin(dim=0)
    return {
        "compute_seconds": float((total - blocked).mean()),
        "communication_seconds": float(communication.mean()),
        "waiting_seconds": float((blocked - communication).mean()),
    }
