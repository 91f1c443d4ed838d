"""A training step under data parallelism: ZeRO-1 on flat buffers, the default here, against FSDP2 for every layer.

    python -m benchmarks.data_parallel

Two ranks of one thread each on this machine, with real gloo collectives. 12 layers of the tiny model of
benchmarks/peer.py, one sequence of 8 tokens a rank: forward, backward, clipping, AdamW (torch's fused one everywhere),
and the norm is read. With so little arithmetic the time is that of the host and of the messages. FSDP2 is measured
twice: as this trainer's `data_parallel_method: fsdp2`, and by itself, around plain torch modules. The step without any
data parallelism is what each rank does alone. Wall and process CPU time are those of rank 0.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F

from benchmarks.peer import TOKENS, Llama, tiny_config
from benchmarks.timing import Turns, combined, in_turns, middle, options, report, table
from parallel.kernels import Kernels, choose
from parallel.local import run_distributed
from parallel.mesh import Mesh, build_mesh
from scaling.engine import Engine
from scaling.optimizer import AdamW

LAYERS, RANKS, STEPS = 12, 2, 10
LEARNING_RATE, CLIP = 1e-3, 1.0


def our_step(method: str | None) -> Callable[[], float]:
    """What runs one training step of this trainer; `method` None: without data parallelism."""
    device, ranks = torch.device("cpu"), RANKS if method else 1
    parallel = {"data_parallel_size": RANKS, "data_parallel_method": method} if method else {}
    config = tiny_config(LAYERS, sequences=ranks, **parallel)
    mesh = build_mesh(config.parallel, device) if method else Mesh()
    kernels = _kernels(method, device)
    engine = Engine(config, device, "float32", mesh, kernels)
    optimizer = AdamW(engine.storage, config.optimizer, mesh.world, kernels)
    batch = np.tile(np.arange(TOKENS + 1), (ranks, 1))

    def step() -> float:
        part = engine.forward_backward(batch)
        norm, _ = optimizer.step(LEARNING_RATE, part)
        return float(norm)

    return step


def _kernels(method: str | None, device: torch.device) -> Kernels:
    # as the trainer does: the norm by hand adds to a flat gradient, which FSDP2 does not have
    return choose(device, torch.float32, {"rms_norm": "torch"} if method == "fsdp2" else "auto")


def torch_step() -> Callable[[], float]:
    """What runs one training step of plain torch modules under FSDP2, one unit a layer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, ids = Llama(LAYERS), torch.arange(TOKENS).view(1, -1)
    mesh = init_device_mesh("cpu", (RANKS,))
    for unit in (*model.layers, model):
        fully_shard(unit, mesh=mesh)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(norm.full_tensor())

    return step


def measure(turns: int) -> dict[str, Turns]:
    """Times of all candidates on this rank; the ranks begin every turn together."""
    steps = {
        "no data parallelism, ours": our_step(None),
        "ZeRO-1, ours": our_step("zero1"),
        "FSDP2, ours": our_step("fsdp2"),
        "FSDP2, torch modules": torch_step(),
    }
    return in_turns(steps, turns, STEPS, before_turn=dist.barrier)


def main() -> None:
    """Command line; see the module's docstring."""
    arguments = options(__doc__, turns=20)
    times, _ = run_distributed(measure, RANKS, arguments.turns, timeout_seconds=1800)
    zero = times["ZeRO-1, ours"]
    ratios = {
        f"ZeRO-1 / {name}": combined([zero, times[name]], lambda ours, theirs: ours / theirs)
        for name in ("FSDP2, ours", "FSDP2, torch modules")
    }
    rows = [[name, middle(part["wall"]), middle(part["cpu"])] for name, part in times.items()]
    rows += [[f"**{name}**", middle(ratio["wall"], 3), middle(ratio["cpu"], 3)] for name, ratio in ratios.items()]
    what = (
        f"ms per step on rank 0 of {RANKS} (gloo), {LAYERS} tiny layers: "
        f"median (range) of {arguments.turns} turns of {STEPS} steps"
    )
    report(what, table(["", "wall", "CPU"], rows), times, ratios, arguments.json)


if __name__ == "__main__":
    main()
