"""A training step of a two-rank pipeline against one process that does the same work.

    python -m benchmarks.pipeline_parallel

Both sides train the same model on the same 8 micro-batches: forward, backward, clipping, AdamW. One process takes the
micro-batches one after the other and adds up gradients, on one thread; the pipeline has two ranks of one thread each
on this machine and sends activations by gloo. Two sizes: `large`, whose time is arithmetic, shows how near the
schedule comes to its ideal, and `tiny`, whose time is the host's, shows what the schedule itself costs.

The ideal ratio of p ranks and m micro-batches is (m + (p - 1) / v) / (m p), with v stages a rank for the interleaved
schedule and 1 for GPipe and 1F1B (Narayanan et al., 2021, section 2.2). Zero-bubble schedules come near 1 / p where
forward, input-gradient and weight-gradient passes cost alike (Qi et al., 2024). Embedding and logits, which the ideal
leaves out, belong to one stage each. `CPU` is the process CPU time of both ranks together against that of the one
process: where it exceeds 1, a schedule costs host time that no number of ranks hides.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.timing import Turns, combined, in_turns, middle, options, report, table
from parallel.kernels import choose
from parallel.local import run_distributed
from parallel.mesh import Mesh, build_mesh
from scaling import precision
from scaling.config import RunConfig, build_config
from scaling.engine import Engine
from scaling.optimizer import AdamW

MICRO_BATCHES, RANKS, LAYERS = 8, 2, 8
#: Schedule: ideal ratio to one process.
SCHEDULES = {
    "gpipe": (MICRO_BATCHES + RANKS - 1) / (MICRO_BATCHES * RANKS),
    "1f1b": (MICRO_BATCHES + RANKS - 1) / (MICRO_BATCHES * RANKS),
    "interleaved1f1b": (MICRO_BATCHES + (RANKS - 1) / 2) / (MICRO_BATCHES * RANKS),
    "zbv": 1 / RANKS,
    "dualpipev": 1 / RANKS,
}
ALONE = "one process"


@dataclass(frozen=True)
class Size:
    """A model of 8 layers, and how many steps a turn takes."""

    hidden: int
    heads: int
    seq_length: int
    micro_batch_size: int
    steps: int

    def config(self, **parallel: object) -> RunConfig:
        """A step of 8 micro-batches."""
        values = {
            "model": {
                "num_layers": LAYERS,
                "hidden_size": self.hidden,
                "num_attention_heads": self.heads,
                "vocab_size": 256,
                "tie_word_embeddings": False,
            },
            "data": {"name": "none", "fingerprint": "none", "seq_length": self.seq_length},
            "optimizer": {"learning_rate": 1e-3},
            "global_batch_size": MICRO_BATCHES * self.micro_batch_size,
            "train_steps": 1,
            "execution": {"device": "cpu", "dtype": "float32", "micro_batch_size": self.micro_batch_size},
            "parallel": parallel,
        }
        return build_config(values, "benchmark")


SIZES = {"large": Size(256, 4, 128, 2, steps=1), "tiny": Size(32, 4, 8, 1, steps=5)}


def training_step(config: RunConfig, mesh: Mesh) -> Callable[[], float]:
    """What runs one step on this rank: the gradient norm."""
    kernels = choose(mesh.device, torch.float32)
    engine = Engine(config, mesh.device, "float32", mesh, kernels)
    optimizer = AdamW(engine.storage, config.optimizer, mesh.world, kernels)
    tokens = config.data.seq_length + 1
    batch = np.random.default_rng(0).integers(0, 256, (config.global_batch_size, tokens))

    def step() -> float:
        part = engine.forward_backward(batch)
        norm, _ = optimizer.step(1e-3, part)
        return float(norm)

    return step


def measure(size: Size, choice: precision.Choice, turns: int) -> dict[str, Turns]:
    """Times on this rank. Rank 0 is the one process too; the others sleep in the next barrier meanwhile."""
    config = size.config()
    precision.apply(choice, config.execution)
    steps = {ALONE: training_step(config, Mesh()) if dist.get_rank() == 0 else lambda: 0.0}
    for schedule in SCHEDULES:
        divided = size.config(pipeline_parallel_size=RANKS, pipeline_schedule=schedule)
        steps[schedule] = training_step(divided, build_mesh(divided.parallel, torch.device("cpu")))
    return in_turns(steps, turns, size.steps, before_turn=dist.barrier)


def main() -> None:
    """Command line; see the module's docstring."""
    arguments = options(__doc__, turns=15)
    rows, times, ratios = [], {}, {}
    for label, size in SIZES.items():
        config = size.config()
        choice = precision.choose(config.execution, torch.device("cpu"), size.hidden, attention_fused=True)
        first, second = run_distributed(measure, RANKS, size, choice, arguments.turns, timeout_seconds=1800)
        alone = first[ALONE]
        times[f"{label}, {ALONE}"] = alone
        rows.append([label, ALONE, middle(alone["wall"], 1), "1", "1", "1"])
        for schedule, ideal in SCHEDULES.items():
            # a step takes as long as rank 0 says, and as much CPU time as both say
            both = {
                "wall": first[schedule]["wall"],
                "cpu": [a + b for a, b in zip(first[schedule]["cpu"], second[schedule]["cpu"])],
            }
            name = f"{label}, {schedule}"
            times[name], ratios[name] = both, combined([both, alone], lambda ours, one: ours / one)
            cells = [middle(both["wall"], 1), f"{ideal:.3f}", middle(ratios[name]["wall"]), middle(ratios[name]["cpu"])]
            rows.append([label, schedule, *cells])
    what = (
        f"ms per step of {MICRO_BATCHES} micro-batches, {LAYERS} layers: {RANKS} pipeline ranks or one process, "
        f"one thread each, gloo; median (range) of {arguments.turns} turns"
    )
    heads = ["size", "schedule", "step, ms", "ideal ratio", "ratio of wall time", "ratio of CPU time"]
    report(what, table(heads, rows), times, ratios, arguments.json)


if __name__ == "__main__":
    main()
