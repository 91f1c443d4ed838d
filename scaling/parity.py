"""Does the layout change the run? The same training under many layouts, compared step by step with one process.

The model has everything that has ever gone wrong when divided: grouped queries, SwiGLU, QK-norm, a vocabulary
that no degree divides (509), layers that stages cannot share evenly. Ranks are processes of this machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaling.config import RunConfig, build_config

STEPS = 20
#: Largest relative differences allowed: (loss, gradient norm).
TOLERANCE = {"float32": (1e-5, 1e-4), "float64": (1e-10, 1e-10)}

_VALUES: dict[str, Any] = {
    "model": {
        "num_layers": 5,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "vocab_size": 509,
        "qk_norm": True,
        "tie_word_embeddings": False,
    },
    "data": {"name": "parity", "fingerprint": "none", "seq_length": 16, "validation_sequences": 4},
    "optimizer": {"learning_rate": 0.01},
    "schedule": {"warmup_steps": 4},
    "global_batch_size": 8,
    "train_steps": STEPS,
    "execution": {"device": "cpu", "dtype": "float32", "num_threads": 1},
}


@dataclass(frozen=True)
class Case:
    """One layout with its options, as they stand in a config's `parallel`, `execution` and `model` sections."""

    parallel: dict[str, Any] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def config(self, dtype: str) -> RunConfig:
        """The run that trains this case."""
        values = {**_VALUES, "parallel": self.parallel}
        values["execution"] = {**_VALUES["execution"], "dtype": dtype, **self.execution}
        values["model"] = {**_VALUES["model"], **self.model}
        return build_config(values, "parity")

    def alone(self, dtype: str) -> RunConfig:
        """The same science in one process, all of the batch in one piece."""
        values = {**_VALUES, "model": {**_VALUES["model"], **self.model}}
        values["execution"] = {**_VALUES["execution"], "dtype": dtype, "micro_batch_size": 8}
        return build_config(values, "parity")


def sizes(pp: int = 1, dp: int = 1, cp: int = 1, tp: int = 1, **options: Any) -> dict[str, Any]:
    """The `parallel` section of a config."""
    names = ("pipeline", "data", "context", "tensor")
    return {f"{name}_parallel_size": size for name, size in zip(names, (pp, dp, cp, tp)) if size > 1} | options


_TIED = {"tie_word_embeddings": True}
_GPT2 = {
    "normalization": "layernorm",
    "position_embedding": "learned",
    "max_position_embeddings": 16,
    "activation": "gelu",
    "add_bias_linear": True,
    "qk_norm": False,
    "tie_word_embeddings": True,
}
_RELATIVE = {"position_embedding": "relative", "qk_norm": False}
CASES: tuple[Case, ...] = (
    # every axis alone
    Case(sizes(tp=2)),
    Case(sizes(tp=2, sequence_parallel=False)),
    Case(sizes(tp=4)),
    Case(sizes(dp=2)),
    Case(sizes(dp=4)),
    Case(sizes(dp=2, data_parallel_method="fsdp2")),
    Case(sizes(cp=2)),
    Case(sizes(cp=2, context_parallel_method="ulysses")),
    Case(sizes(cp=4)),
    Case(sizes(cp=4, context_parallel_method="ulysses")),
    Case(sizes(pp=2)),
    Case(sizes(pp=4)),
    # schedules, and splits by hand
    Case(sizes(pp=2, pipeline_schedule="gpipe")),
    Case(sizes(pp=2, pipeline_schedule="interleaved1f1b")),
    Case(sizes(pp=2, pipeline_schedule="zbv")),
    Case(sizes(pp=2, pipeline_schedule="dualpipev")),
    Case(sizes(pp=4, pipeline_schedule="gpipe"), {"micro_batch_size": 1}),
    Case(sizes(pp=2, pipeline_split=(1, 4))),
    # pairs and triples
    Case(sizes(dp=2, tp=2)),
    Case(sizes(pp=2, tp=2)),
    Case(sizes(cp=2, tp=2)),
    Case(sizes(pp=2, dp=2)),
    Case(sizes(pp=2, cp=2)),
    Case(sizes(dp=2, cp=2)),
    Case(sizes(dp=2, tp=2, data_parallel_method="fsdp2")),
    Case(sizes(pp=2, dp=2, data_parallel_method="fsdp2")),
    Case(sizes(pp=2, tp=2, pipeline_schedule="zbv"), {"micro_batch_size": 2}),
    Case(sizes(pp=2, dp=2, pipeline_schedule="dualpipev"), {"micro_batch_size": 1}),
    Case(sizes(pp=2, dp=2, tp=2)),
    Case(sizes(dp=2, cp=2, tp=2)),
    # tied embeddings
    Case(sizes(tp=2), model=_TIED),
    Case(sizes(pp=2), model=_TIED),
    Case(sizes(pp=2, pipeline_schedule="zbv"), model=_TIED),
    Case(sizes(pp=2, tp=2), model=_TIED),
    Case(sizes(pp=2, dp=2, tp=2), model=_TIED),
    Case(sizes(dp=2, data_parallel_method="fsdp2"), model=_TIED),
    Case(sizes(pp=2, dp=2, data_parallel_method="fsdp2"), model=_TIED),
    # accumulation splits, and one key/value head for four ranks
    Case(sizes(dp=2), {"micro_batch_size": 2}),
    Case(sizes(dp=2), {"micro_batch_size": 1}),
    Case(sizes(dp=2, data_parallel_method="fsdp2"), {"micro_batch_size": 2}),
    Case(sizes(tp=2), {"micro_batch_size": 2}),
    Case(sizes(cp=2), {"micro_batch_size": 2}),
    Case(sizes(tp=4, dp=2), model={"num_query_groups": 1}),
    # other architectures: biases, LayerNorm, learned and relative positions
    Case(sizes(tp=2), model=_GPT2),
    Case(sizes(tp=2, sequence_parallel=False), model=_GPT2),
    Case(sizes(pp=2, tp=2), model=_GPT2),
    Case(sizes(cp=2), model=_GPT2),
    Case(sizes(dp=2, data_parallel_method="fsdp2"), model=_GPT2),
    Case(sizes(dp=2, tp=2), model=_RELATIVE),
    # recomputation
    Case(sizes(tp=2), {"recompute_granularity": "selective"}),
    Case(sizes(tp=2), {"recompute_granularity": "full"}),
    Case(sizes(pp=2), {"recompute_granularity": "full"}),
    Case(sizes(cp=2), {"recompute_granularity": "full"}),
    Case(sizes(dp=2, data_parallel_method="fsdp2"), {"recompute_granularity": "selective"}),
)


def batch(step: int) -> np.ndarray:
    """Tokens of one step, int64 [8, 17]: 40 ids from all over the vocabulary, in an order to be learned."""
    generator = np.random.default_rng(step)
    start = generator.integers(0, 40, (8, 1))
    stride = generator.integers(1, 3, (8, 1))
    return (start + stride * np.arange(17)) % 40 * 13 + 1


def train_here(config: RunConfig) -> dict[str, Any]:
    """Losses and gradient norms of the run on the ranks that are connected, and whether its first weights are right."""
    import torch

    from parallel.mesh import build_mesh
    from scaling.engine import Engine
    from scaling.initialisation import initialise
    from scaling.model import Transformer
    from scaling.optimizer import AdamW
    from scaling.schedule import learning_rate

    device = torch.device("cpu")
    mesh = build_mesh(config.parallel, device)
    engine = Engine(config, device, config.execution.dtype, mesh)
    whole = Transformer(config.model)
    initialise(whole, config.model, config.seed)
    expected, equal = dict(whole.named_parameters()), True
    for name, _, offset, piece in engine.storage.owned_pieces([weights for weights, _, _ in engine.storage.segments()]):
        part = tuple(slice(start, start + length) for start, length in zip(offset, piece.shape))
        equal &= torch.equal(piece.float(), expected[name].detach()[part])
    optimizer = AdamW(engine.storage, config.optimizer, mesh.world)
    losses, norms = [], []
    for step in range(config.train_steps):
        part = engine.forward_backward(batch(step))
        norm, loss = optimizer.step(learning_rate(config, step), part)
        losses.append(float(loss))
        norms.append(float(norm))
    held_out = engine.sequence_losses(batch(STEPS))
    mesh.close()
    return {"losses": losses, "grad_norms": norms, "held_out": held_out.tolist(), "initial_weights_equal": bool(equal)}


def _train_all(configs: list[RunConfig]) -> list[dict[str, Any]]:
    return [train_here(config) for config in configs]


def parity(
    cases: tuple[Case, ...] = CASES, on_row: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Rows {layout, schedule, options, dtype, differences...}, one for each case and dtype.

    Differences are the largest over the steps, relative to the single process; the loss's includes the held-out loss.
    """
    from parallel.local import run_distributed

    jobs = [(case, dtype) for dtype in TOLERANCE for case in cases]
    alone = {case.alone(dtype).model_dump_json(): case.alone(dtype) for case, dtype in jobs}
    (references,) = run_distributed(_train_all, 1, list(alone.values()))
    reference = dict(zip(alone, references))
    rows: dict[int, dict[str, Any]] = {}
    for world_size in sorted({case.config("float32").parallel.world_size for case in cases}):
        chosen = [i for i, (case, dtype) in enumerate(jobs) if case.config(dtype).parallel.world_size == world_size]
        configs = [jobs[i][0].config(jobs[i][1]) for i in chosen]
        by_rank = run_distributed(_train_all, world_size, configs, timeout_seconds=900)
        for at, index in enumerate(chosen):
            case, dtype = jobs[index]
            expected = reference[case.alone(dtype).model_dump_json()]
            rows[index] = _row(case, dtype, expected, [found[at] for found in by_rank])
            if on_row is not None:
                on_row(rows[index])
    return [rows[index] for index in range(len(jobs))]


def _row(case: Case, dtype: str, expected: dict[str, Any], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    def difference(*keys: str) -> float:
        pairs = [(np.array(found[key]), np.array(expected[key])) for found in ranks for key in keys]
        return max(float(np.max(np.abs(a / b - 1.0))) for a, b in pairs)

    layout = case.config(dtype).parallel
    options = {key: value for key, value in case.parallel.items() if not key.endswith("_parallel_size")}
    options = {**options, **case.execution, **case.model}
    options.pop("pipeline_schedule", None)
    loss, norm = difference("losses", "held_out"), difference("grad_norms")
    equal = all(found["initial_weights_equal"] for found in ranks)
    allowed = TOLERANCE[dtype]
    return {
        "layout": str(layout),
        "schedule": layout.pipeline_schedule if layout.pipeline_parallel_size > 1 else None,
        "options": options,
        "dtype": dtype,
        "max_relative_loss_difference": loss,
        "max_relative_grad_norm_difference": norm,
        "initial_weights_equal": equal,
        "passed": bool(loss <= allowed[0] and norm <= allowed[1] and equal),
    }


def row_line(row: dict[str, Any]) -> str:
    """A row for people."""
    options = ", ".join(f"{key} {value}" for key, value in row["options"].items())
    loss, norm = row["max_relative_loss_difference"], row["max_relative_grad_norm_difference"]
    where = f"{row['layout']:<12} {row['schedule'] or '':<16} {row['dtype']:<8} {loss:8.1e} {norm:8.1e}"
    return f"{where} {'' if row['passed'] else 'DIFFERS'} {options}"
