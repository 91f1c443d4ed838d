"""`scaling parity`: the table, and whether its comparison could fail."""

import json
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
from distributed import run_distributed

from scaling import parity
from scaling.cli import main
from scaling.parity import TOLERANCE, Case, batch, sizes


@pytest.fixture(scope="module")
def table() -> list[dict]:
    """What a user gets from the command; the differences were printed to stderr as they came."""
    done = subprocess.run(
        [sys.executable, "-m", "scaling.cli", "parity", "--json"], capture_output=True, text=True, timeout=1200
    )
    assert done.stdout, done.stderr
    printed = json.loads(done.stdout)
    assert done.returncode == 0 and printed["passed"] is True, done.stderr
    assert len(done.stderr.strip().splitlines()) == len(printed["rows"])
    return printed["rows"]


def test_every_layout_equals_one_process_within_the_promised_differences(table):
    promised = {"float32": (1e-5, 1e-4), "float64": (1e-10, 1e-10)}
    assert TOLERANCE == promised
    for row in table:
        loss, norm = promised[row["dtype"]]
        assert row["max_relative_loss_difference"] <= loss, row
        assert row["max_relative_grad_norm_difference"] <= norm, row
        assert row["initial_weights_equal"] and row["passed"], row


def test_the_table_is_as_broad_as_the_promise(table):
    by_dtype = Counter(row["dtype"] for row in table)
    assert by_dtype.keys() == {"float32", "float64"} and len(set(by_dtype.values())) == 1
    layouts = {row["layout"] for row in table}
    pairs = {"dp2 tp2", "pp2 tp2", "cp2 tp2", "pp2 dp2", "pp2 cp2", "dp2 cp2"}
    assert layouts >= {"pp2", "dp2", "cp2", "tp2", "pp4", "tp4", "pp2 dp2 tp2"} | pairs
    distinct = {(row["layout"], row["schedule"], json.dumps(row["options"], sort_keys=True)) for row in table}
    assert len(distinct) >= 16 and len(distinct) == by_dtype["float32"], "a row stands there twice"
    assert {row["schedule"] for row in table} >= {"gpipe", "1f1b", "interleaved1f1b", "zbv", "dualpipev"}
    options = Counter((name, str(value)) for row in table for name, value in row["options"].items())
    for option in (
        ("recompute_granularity", "selective"),
        ("recompute_granularity", "full"),
        ("tie_word_embeddings", "True"),
        ("micro_batch_size", "1"),
        ("micro_batch_size", "2"),
        ("data_parallel_method", "fsdp2"),
        ("context_parallel_method", "ulysses"),
        ("sequence_parallel", "False"),
        ("pipeline_split", "[1, 4]"),
    ):
        assert options[option] >= 2, option
    config = Case().config("float32")
    assert (config.model.vocab_size, config.train_steps, config.model.qk_norm) == (509, 20, True)
    assert config.model.activation == "swiglu" and config.model.num_query_groups < config.model.num_attention_heads
    assert not config.model.tie_word_embeddings


def test_the_model_of_the_comparison_learns():
    """A loss that stands still would be equal under a wrong update, too."""
    losses = run_distributed(parity.train_here, 1, Case().config("float32"))[0]["losses"]
    assert losses[-1] < 0.5 * losses[0]


def _train_all_with(mistake: str, configs: list) -> list[dict]:
    """What the ranks of `parity` do, with a mistake where there are several."""
    import torch.distributed as dist

    from parallel.data import Shard
    from scaling import engine, model

    right = engine.initialise
    if dist.get_world_size() > 1:
        if mistake == "gradients of norms are not summed over the tensor ranks":
            model.replicated = lambda shape, region: Shard(shape, primary=region.axis.rank == 0)
        elif mistake == "every rank draws its own weights":
            engine.initialise = lambda module, config, seed: right(module, config, seed + dist.get_rank())
        elif mistake == "the last rank sees other tokens":
            parity.batch = lambda step: batch(step + dist.get_rank())
    return [parity.train_here(config) for config in configs]


@pytest.mark.parametrize(
    ("mistake", "parallel"),
    [
        ("gradients of norms are not summed over the tensor ranks", sizes(tp=2)),
        ("every rank draws its own weights", sizes(dp=2)),
        ("the last rank sees other tokens", sizes(dp=2)),
    ],
)
def test_a_mistake_is_seen(mistake, parallel, monkeypatch):
    monkeypatch.setattr(parity, "_train_all", partial(_train_all_with, mistake))
    rows = parity.parity((Case(parallel),))
    assert [row["dtype"] for row in rows] == ["float32", "float64"]
    for row in rows:
        assert not row["passed"] and row["max_relative_loss_difference"] > TOLERANCE[row["dtype"]][0]
        assert row["initial_weights_equal"] == (mistake != "every rank draws its own weights")


def test_the_command_fails_when_a_layout_differs(monkeypatch, capsys):
    monkeypatch.setattr(parity, "parity", partial(parity.parity, (Case(sizes(dp=2)),)))
    monkeypatch.setattr(parity, "TOLERANCE", {"float64": (0.0, 0.0)})
    assert main(["parity"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "dp2" in line and "float64" in line and "DIFFERS" in line
