"""Host cost of tensor parallelism, per layer: this trainer's against torch's DTensor.

    python -m benchmarks.tensor_parallel

One process, which takes itself for rank 0 of 2: torch's fake process group accepts every collective and moves nothing.
The model is so small (benchmarks/peer.py) that arithmetic is nothing either. The cost per layer, forward, backward and
clearing the gradients, is the slope between models of 2 and of 10 layers: embedding, logits, loss and whatever else
happens once a step cancel out.

The peer is divided by torch's parallelize_module in the usual way: column-wise, row-wise, loss_parallel, and in the
second form SequenceParallel norms. Its projections hand on plain tensors, so that attention and SwiGLU cost no
DTensor dispatch. Ours runs as the trainer runs it, kernels chosen and all.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.peer import TOKENS, Llama, tiny_config
from benchmarks.timing import combined, in_turns, middle, options, report, table
from parallel.kernels import Kernels, choose
from parallel.mesh import Mesh, build_mesh
from scaling.engine import Engine

FEW, MANY = 2, 10
SIZE = 2


def divide(model: Llama, sequence_parallel: bool) -> None:
    """torch's tensor parallelism, in place."""
    mesh = init_device_mesh("cpu", (SIZE,))
    between = Shard(1) if sequence_parallel else Replicate()  # the residual stream
    enter, leave, norm = ColwiseParallel(), RowwiseParallel(output_layouts=between), SequenceParallel()
    plan = {
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        "output": ColwiseParallel(input_layouts=between, use_local_output=False),
    }
    layer_plan = {
        **{f"attention.{name}": enter for name in ("query", "key", "value")},
        **{f"mlp.{name}": enter for name in ("gate", "up")},
        "attention.output": leave,
        "mlp.down": leave,
    }
    if sequence_parallel:  # the tokens are gathered once for the projections that share them
        gather = {"input_layouts": (Shard(1), None), "desired_input_layouts": (Replicate(), None)}
        gather_alone = {"input_layouts": (Shard(1),), "desired_input_layouts": (Replicate(),)}
        plan["norm"] = norm
        layer_plan |= {"attention_norm": norm, "mlp_norm": norm}
        layer_plan |= {"attention": PrepareModuleInput(**gather), "mlp": PrepareModuleInput(**gather_alone)}
    parallelize_module(model, mesh, plan)
    for layer in model.layers:
        parallelize_module(layer, mesh, layer_plan)


def peer_step(num_layers: int, tensor_parallel: bool = False, sequence_parallel: bool = False) -> Callable[[], None]:
    """What runs one forward and backward pass of the peer."""
    model, ids = Llama(num_layers), torch.arange(TOKENS).view(1, -1)
    if tensor_parallel:
        divide(model, sequence_parallel)

    def step() -> None:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        model.zero_grad(set_to_none=True)

    def divided_step() -> None:
        with loss_parallel():
            step()

    return divided_step if tensor_parallel else step


def our_step(kernels: Kernels, num_layers: int, **parallel: object) -> Callable[[], None]:
    """What runs one forward and backward pass of this trainer."""
    device, config = torch.device("cpu"), tiny_config(num_layers, **parallel)
    mesh = build_mesh(config.parallel, device) if parallel else Mesh()
    engine, batch = Engine(config, device, "float32", mesh, kernels), np.arange(TOKENS + 1).reshape(1, -1)

    def step() -> None:
        engine.forward_backward(batch)
        engine.storage.grad.zero_()

    return step


def main() -> None:
    """Command line; see the module's docstring."""
    arguments = options(__doc__, turns=15)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # what a fake collective leaves in its output may be anything
    dist.init_process_group("fake", rank=0, world_size=SIZE, store=FakeStore())
    kernels = choose(torch.device("cpu"), torch.float32)
    makers: dict[str, Callable[[int], Callable[[], None]]] = {
        "one process, torch modules": lambda n: peer_step(n),
        "one process, ours": lambda n: our_step(kernels, n),
        "TP, DTensor": lambda n: peer_step(n, True),
        "TP, ours": lambda n: our_step(kernels, n, tensor_parallel_size=SIZE, sequence_parallel=False),
        "TP + SP, DTensor": lambda n: peer_step(n, True, True),
        "TP + SP, ours": lambda n: our_step(kernels, n, tensor_parallel_size=SIZE, sequence_parallel=True),
    }
    steps = {f"{name}, {layers} layers": make(layers) for name, make in makers.items() for layers in (FEW, MANY)}
    times = in_turns(steps, arguments.turns, 10, warm_up=5)
    dist.destroy_process_group()
    ends = {name: [times[f"{name}, {layers} layers"] for layers in (FEW, MANY)] for name in makers}
    slopes = {name: combined(pair, lambda few, many: (many - few) / (MANY - FEW)) for name, pair in ends.items()}
    ratios = {
        f"{form}: ours / DTensor": combined([slopes[f"{form}, ours"], slopes[f"{form}, DTensor"]], lambda a, b: a / b)
        for form in ("TP", "TP + SP")
    }
    rows = [[name, middle(slope["wall"]), middle(slope["cpu"])] for name, slope in slopes.items()]
    rows += [[f"**{name}**", middle(ratio["wall"], 3), middle(ratio["cpu"], 3)] for name, ratio in ratios.items()]
    what = (
        f"Host ms per layer, forward + backward, tensor_parallel_size {SIZE}: slope between {FEW} and {MANY} layers, "
        f"median (range) of {arguments.turns} turns"
    )
    report(what, table(["", "wall", "CPU"], rows), {**slopes, **times}, ratios, arguments.json)


if __name__ == "__main__":
    main()
