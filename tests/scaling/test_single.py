"""`torchrun -m scaling.train`, as a user calls it, against the same run in one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scaling.config import build_config
from scaling.train import train


def _torchrun(tmp_path: Path, ranks: int, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "scaling.train", "--config", "run.yaml", "--run-dir", "many", *options]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)


@pytest.fixture
def config_values(run_values, tmp_path) -> dict:
    """Written to run.yaml as well."""
    run_values["model"] |= {"num_layers": 3, "tie_word_embeddings": False}
    run_values["execution"]["evaluation_interval"] = 12
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_values))
    return run_values


def _metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_four_processes_write_the_metrics_of_one(config_values, corpus, tmp_path):
    sizes = ["--set", "parallel.tensor_parallel_size=2", "--set", "parallel.pipeline_parallel_size=2"]
    done = _torchrun(tmp_path, 4, "--data", str(corpus.path), "--json", *sizes)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["status"] == "finished" and record["config"]["parallel"]["tensor_parallel_size"] == 2
    expected = train(build_config(config_values, "test"), tmp_path / "one", corpus.path)
    assert record["run_id"] == expected.run_id
    assert record["evaluation"]["loss"] == pytest.approx(expected.evaluation.loss, rel=1e-5)
    one, many = _metrics(tmp_path / "one"), _metrics(tmp_path / "many")
    assert [line.keys() for line in one] == [line.keys() for line in many] and len(one) == 30 + 3
    for mine, theirs in zip(one, many):
        for name in {"step", "tokens", "learning_rate"} & mine.keys():
            assert mine[name] == theirs[name]
        for name in {"loss", "validation_loss", "validation_loss_stderr"} & mine.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5)
        if "grad_norm" in mine:
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_a_layout_of_another_number_of_ranks_stops_all_of_them_with_one_line(config_values, corpus, tmp_path):
    done = _torchrun(tmp_path, 2, "--data", str(corpus.path), "--set", "parallel.tensor_parallel_size=4")
    assert done.returncode != 0 and not (tmp_path / "many" / "metrics.jsonl").exists()
    said = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert len(said) == 1 and "needs 4 ranks, and 2 started" in said.pop()
