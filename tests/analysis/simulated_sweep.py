"""A made-up sweep drawn from a known law: records, training curves, plan and law, as the lab writes them."""

import hashlib
import math
import random

from analysis.study import analyse

TRUTH = {"E": 1.3, "A": 16.0, "B": 93.0, "alpha": 0.34, "beta": 0.37}
BUDGETS = (5e10, 1.1e11, 2.5e11, 6e11, 1.3e12, 3e12)
SIZES = (8, 12, 16, 24, 32, 48, 64)
SEQ_LENGTH = 128


def true_loss(params: float, tokens: float) -> float:
    """Nats per token of the law that the sweep is drawn from."""
    return TRUTH["E"] + TRUTH["A"] / params ** TRUTH["alpha"] + TRUTH["B"] / tokens ** TRUTH["beta"]


def true_optimum(flops: float) -> tuple[float, float]:
    """Loss-optimal (params, tokens) of that law for C = 6ND."""
    alpha, beta = TRUTH["alpha"], TRUTH["beta"]
    scale = (alpha * TRUTH["A"] / (beta * TRUTH["B"])) ** (1 / (alpha + beta))
    params = scale * (flops / 6) ** (beta / (alpha + beta))
    return params, flops / 6 / params


def records(budgets=BUDGETS, sizes_per_budget: int = 7, noise: float = 0.004, diverged: int = 1) -> list[dict]:
    """One row per cell with the columns of runs.csv; the last `diverged` cells have no loss."""
    draw = random.Random(7)
    rows = []
    for budget in budgets:
        center, _ = true_optimum(budget)
        for index in range(sizes_per_budget):
            params = round(center * 5 ** (2 * index / max(1, sizes_per_budget - 1) - 1))
            rows.append(_record(budget, params, noise, draw))
    for row in rows[len(rows) - diverged :] if diverged else []:
        row |= {
            "status": "diverged",
            "reason": "loss not finite at step 212",
            "loss": None,
            "loss_stderr": None,
            "bits_per_byte": None,
        }
    return rows


def _record(budget: float, params: int, noise: float, draw: random.Random) -> dict:
    batch = 4 if budget < 1e12 else 8
    steps = max(20, round(budget / (6 * params * batch * SEQ_LENGTH)))
    tokens = steps * batch * SEQ_LENGTH
    flops = 6.0 * params * tokens
    loss = true_loss(params, tokens) * math.exp(draw.gauss(0, noise))
    seconds = flops / (1.1e10 * (params / 2e4) ** 0.35) * math.exp(draw.gauss(0, 0.08))
    hidden = max(8, 8 * round((params / 48) ** 0.5 / 8))
    run_id = hashlib.sha256(f"{budget}-{params}".encode()).hexdigest()[:16]
    return {
        "run_id": run_id,
        "cell": f"C{budget:.0e}-N{params}",
        "status": "finished",
        "reason": None,
        "num_layers": 2 + hidden // 24,
        "hidden_size": hidden,
        "params": params,
        "params_non_embedding": params - 256 * hidden // 4,
        "tokens": tokens,
        "train_steps": steps,
        "global_batch_size": batch,
        "learning_rate": 0.01 * 32 / hidden,
        "flops_budget": budget,
        "flops": flops,
        "flops_causal": 1.07 * flops,
        "flops_full": 1.13 * flops,
        "flops_hardware": 1.13 * flops,
        "loss": loss,
        "loss_stderr": 0.004,
        "bits_per_byte": loss / math.log(2),
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        **predicted("seconds", flops / (1.0e10 * (params / 2e4) ** 0.3), 1.2),
        "peak_memory_bytes": 5.2e8,
        **predicted("peak_memory_bytes", 5e8, 1.1),
        "device_hours": seconds / 3600,
        "mfu_causal": 1.07 * flops / seconds / 6e10,
        "seq_length": SEQ_LENGTH,
        "device": "CPU Example 3000",
        "dtype": "float32",
        "host": "laptop",
        "corpus": "builtin",
        "corpus_fingerprint": "c0ffee" * 10 + "beef",
        "started_at": "2026-03-01T10:03:00+00:00",
        "finished_at": "2026-03-01T10:12:00+00:00",
    }


def curves(rows: list[dict], lines: int = 400) -> dict[str, list[dict]]:
    """metrics.jsonl of each row, as lists of objects; a diverged run ends in a loss that is not a number."""
    draw = random.Random(11)
    return {row["run_id"]: _curve(row, lines, draw) for row in rows}


def _curve(row: dict, lines: int, draw: random.Random) -> list[dict]:
    result = []
    for step in range(1, row["train_steps"] + 1, max(1, row["train_steps"] // lines)):
        share = step / row["train_steps"]
        tokens = step * row["tokens"] // row["train_steps"]
        loss = min(5.6, true_loss(row["params"], tokens) + 0.25 * (1 - share)) + draw.gauss(0, 0.06)
        broken = row["status"] == "diverged" and share > 0.6
        result.append(
            {
                "step": step,
                "tokens": tokens,
                "loss": None if broken else loss,
                "learning_rate": 0.01,
                "seconds": row["seconds"] * share,
            }
        )
    if row["loss"] is not None:
        result.append(
            {
                "step": row["train_steps"],
                "tokens": row["tokens"],
                "validation_loss": row["loss"],
                "validation_loss_stderr": 0.004,
            }
        )
    return result


def interval(value: float, factor: float) -> dict[str, float]:
    """A predicted value that may be off by a factor either way, as plan.json has it."""
    return {"value": value, "low": value / factor, "high": value * factor}


def predicted(column: str, value: float, factor: float) -> dict[str, float]:
    """The columns of a prediction."""
    ends = interval(value, factor)
    return {f"predicted_{column}": value} | {f"predicted_{column}_{end}": ends[end] for end in ("low", "high")}


def plan(rows: list[dict]) -> dict:
    """plan.json of the sweep, without the cells."""
    hours = sum(row["predicted_seconds"] for row in rows) / 3600
    price = {"low": 0.02, "mid": 0.04, "high": 0.06}
    return {
        "plan_version": 2,
        "grid": "chinchilla",
        "profile": "laptop",
        "description": "Byte-level models, about ten minutes on two cores",
        "created_at": "2026-03-01T10:00:00+00:00",
        "machine": "CPU: 2 cores (affinity mask), 7.6 GiB memory, Example 3000\nGPU: none\nSLURM: no",
        "workers": {
            "executor": "local",
            "count": 2,
            "num_threads": 1,
            "device": "cpu",
            "reason": "one process per core",
        },
        "corpus": {
            "name": "builtin",
            "path": "data/builtin",
            "source": "builtin",
            "fingerprint": "c0ffee",
            "train_tokens": 9_400_000,
        },
        "price": {"device": "CPU core", "usd_per_device_hour": price, "date": "2026-02-14", "source": "a price list"},
        "conventions": {},
        "warnings": ["2 of 42 cells see the text more than once"],
        "totals": {
            "cells": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
            "flops": sum(row["flops"] for row in rows),
            "hours": interval(hours / 2, 1.2),
            "device_hours": interval(hours, 1.2),
            "energy_kwh": None,
            "usd": interval(price["mid"] * hours, 1.7),
        },
    }


def law(rows: list[dict], resamples: int = 40) -> dict:
    """law.json of the sweep."""
    return analyse({name: [row[name] for row in rows] for name in rows[0]}, resamples=resamples)
