"""The trainer as its user sees it: what it learns, what it writes, how it stops and goes on."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from parallel import matmul
from scaling import checkpoint_format
from scaling.config import build_config
from scaling.data.dataset import validation_batch
from scaling.errors import UserError
from scaling.model import Transformer
from scaling.train import Interrupted, train


def _metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def _losses(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(e["step"], e["loss"], e["grad_norm"]) for e in _metrics(run_dir) if "loss" in e]


def _final_weights(run_dir: Path):
    last = checkpoint_format.steps(run_dir / "checkpoints")[-1]
    tensors = load_file(run_dir / "checkpoints" / f"step-{last:08d}" / "tensors-00000.safetensors")
    return {name.split("/", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith("weights/")}


def _stop_at(*steps: int):
    """should_stop that says yes once at each of the given steps."""
    calls = {"step": -1}

    def should_stop() -> bool:
        calls["step"] += 1
        return calls["step"] in steps

    return should_stop


def test_a_run_learns_and_its_record_adds_up(run_config, corpus, tmp_path):
    record = train(run_config, tmp_path / "run", corpus.path)
    losses = [loss for _, loss, _ in _losses(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(256), abs=0.8)
    assert losses[-1] < losses[0] - 1.5
    assert record.status == "finished" and record.schedule_finished
    assert record.tokens == 30 * 4 * 32
    assert record.evaluation.tokens == 16 * 32
    assert record.evaluation.loss == pytest.approx(losses[-1], abs=0.5)
    assert record.evaluation.bits_per_byte == pytest.approx(
        record.evaluation.loss / math.log(2) / corpus.bytes_per_token
    )
    assert record.flops.c_6nd == 6 * record.parameters * record.tokens
    assert record.flops.c_6nd < record.flops.causal < record.flops.full
    assert record.speed.tokens_per_second == pytest.approx(record.tokens / record.speed.seconds)
    assert record.speed.peak_flops > 1e8 and 0 < record.speed.mfu_causal < 1
    assert record.speed.energy_joules is None and "no counter" in record.speed.energy_source


def test_metrics_hold_every_step_in_full(run_config, corpus, tmp_path):
    seen = []
    train(run_config, tmp_path / "run", corpus.path, on_step=seen.append)
    entries = [e for e in _metrics(tmp_path / "run") if "loss" in e]
    assert entries == seen
    assert [e["step"] for e in entries] == list(range(1, 31))
    assert all(e["tokens"] == e["step"] * 128 for e in entries)
    assert entries[2]["learning_rate"] == 0.01 * 3 / 5
    assert all(e["grad_norm"] > 0 and e["tokens_per_second"] > 0 for e in entries)


def test_the_held_out_loss_is_that_of_the_saved_weights(run_config, corpus, tmp_path):
    """Token by token, through the plain modules, from the checkpoint alone."""
    result = train(run_config, tmp_path / "run", corpus.path).evaluation
    model = Transformer(run_config.model)
    model.load_state_dict(_final_weights(tmp_path / "run"))
    sequences = validation_batch(corpus, 32, 16)
    losses = []
    with torch.no_grad():
        for row in torch.from_numpy(sequences):
            log_p = model.logits(row[None, :-1]).double().log_softmax(-1)[0]
            losses.append([-log_p[t, token].item() for t, token in enumerate(row[1:])])
    means = [sum(row) / 32 for row in losses]
    assert result.loss == pytest.approx(sum(means) / 16, rel=1e-6)
    assert result.loss_stderr == pytest.approx(statistics.stdev(means) / 4, rel=1e-5)


def test_the_same_config_gives_the_same_losses_to_the_bit(run_config, corpus, tmp_path):
    first = train(run_config, tmp_path / "a", corpus.path)
    second = train(run_config, tmp_path / "b", corpus.path)
    assert _losses(tmp_path / "a") == _losses(tmp_path / "b")
    assert first.evaluation == second.evaluation


def test_stopped_twice_it_ends_as_if_never_stopped(run_config, corpus, tmp_path):
    whole = train(run_config, tmp_path / "whole", corpus.path)
    for stop in (7, 9):
        with pytest.raises(Interrupted, match="start again"):
            train(run_config, tmp_path / "parts", corpus.path, should_stop=_stop_at(stop))
    parts = train(run_config, tmp_path / "parts", corpus.path)
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "whole")
    assert parts.evaluation == whole.evaluation
    assert parts.train_loss == whole.train_loss


def test_killed_between_checkpoints_it_repeats_the_lost_steps_exactly(run_values, corpus, tmp_path):
    """SIGKILL, for real: nothing gets a chance to tidy up."""
    run_values["execution"]["checkpoint_interval_seconds"] = 1e-9  # after every step
    config = build_config(run_values, "test")
    run_dir = tmp_path / "killed"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(config.to_yaml())
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from scaling.config import load_config\n"
        "from scaling.train import train\n"
        "run_dir = Path(sys.argv[1])\n"
        "def kill(entry):\n"
        "    if entry['step'] == 17: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(load_config(run_dir / 'config.yaml'), run_dir, Path(sys.argv[2]), on_step=kill)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(run_dir), str(corpus.path)], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    # each save is written while the next step computes: the last one may not have been complete
    assert checkpoint_format.steps(run_dir / "checkpoints") in ([14, 15], [15, 16])
    # a line cut short, as a crash of the machine would leave it
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 18, "tok')
    record = train(config, run_dir, corpus.path)
    whole = train(config, tmp_path / "whole", corpus.path)
    assert _losses(run_dir) == _losses(tmp_path / "whole")
    assert record.evaluation == whole.evaluation


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(run_values, corpus, tmp_path, capsys):
    run_values["execution"]["checkpoint_interval_seconds"] = 1e-9
    config = build_config(run_values, "test")
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, run_dir, corpus.path, should_stop=_stop_at(12))
    newest = run_dir / "checkpoints" / "step-00000012" / "tensors-00000.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    seen = []
    record = train(config, run_dir, corpus.path, on_step=seen.append)
    warning = capsys.readouterr().err
    assert "step-00000012 is damaged" in warning and "tensors-00000.safetensors" in warning
    assert record.evaluation == train(config, tmp_path / "whole", corpus.path).evaluation
    assert _losses(run_dir) == _losses(tmp_path / "whole")
    assert (run_dir / "checkpoints" / "damaged-step-00000012").exists()


def test_a_copy_of_a_checkpoint_under_another_name_is_left_alone(run_config, corpus, tmp_path):
    copy = tmp_path / "run" / "checkpoints" / "step-00000012-copy"
    copy.mkdir(parents=True)
    assert train(run_config, tmp_path / "run", corpus.path).status == "finished"
    assert copy.exists()


def test_damaged_lines_of_the_metrics_are_removed_and_said(run_config, corpus, tmp_path, capsys):
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(run_config, run_dir, corpus.path, should_stop=_stop_at(12))
    path = run_dir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], b"\x00\xff\xfe\n", b"[]\n", b'{"a": 1}\n', *lines[4:], b'{"step": 13, "l']))
    record = train(run_config, run_dir, corpus.path)
    assert "metrics.jsonl: 3 damaged line(s) removed" in capsys.readouterr().err
    assert record.evaluation == train(run_config, tmp_path / "whole", corpus.path).evaluation
    assert _losses(run_dir) == _losses(tmp_path / "whole")


def test_a_resumed_run_computes_as_it_began(run_values, corpus, tmp_path, monkeypatch):
    """The measurement would decide otherwise now; the run must not change its rounding half-way."""
    run_values["execution"]["dtype"] = "auto"
    config = build_config(run_values, "test")
    for rates in ({"torch": 1e9, "bfloat16": 9e9}, {"torch": 1e9, "bfloat16": 1e9}):
        monkeypatch.setattr(matmul, "matmul_rates", lambda device, _rates=rates: _rates)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run", corpus.path, should_stop=_stop_at(4))
    assert train(config, tmp_path / "run", corpus.path).speed.dtype == "bfloat16"


def test_a_choice_that_is_no_longer_possible_is_made_anew_and_said(run_config, corpus, tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(run_config, tmp_path / "run", corpus.path, should_stop=_stop_at(4))
    path = tmp_path / "run" / "choice.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": "cuda"}))
    record = train(run_config, tmp_path / "run", corpus.path)
    assert record.status == "finished"
    assert "on cuda is not possible here" in capsys.readouterr().err


def test_micro_batches_do_not_change_the_run(run_values, corpus, tmp_path):
    whole = train(build_config(run_values, "test"), tmp_path / "whole", corpus.path)
    run_values["execution"]["micro_batch_size"] = 1
    split = train(build_config(run_values, "test"), tmp_path / "split", corpus.path)
    assert split.run_id == whole.run_id
    assert split.evaluation.loss == pytest.approx(whole.evaluation.loss, rel=1e-5)


def test_the_gpt2_variant_trains_and_resumes(run_values, corpus, tmp_path):
    run_values["model"] |= {
        "normalization": "layernorm",
        "position_embedding": "learned",
        "max_position_embeddings": 32,
        "activation": "gelu",
        "add_bias_linear": True,
    }
    config = build_config(run_values, "test")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", corpus.path, should_stop=_stop_at(11))
    parts = train(config, tmp_path / "parts", corpus.path)
    assert parts.evaluation == train(config, tmp_path / "whole", corpus.path).evaluation
    assert parts.evaluation.loss < 4.5


def test_bfloat16_trains_with_a_float32_loss(run_values, corpus, tmp_path):
    exact = train(build_config(run_values, "test"), tmp_path / "fp32", corpus.path)
    run_values["execution"]["dtype"] = "bfloat16"
    low = train(build_config(run_values, "test"), tmp_path / "bf16", corpus.path)
    assert low.speed.dtype == "bfloat16"
    assert low.evaluation.loss == pytest.approx(exact.evaluation.loss, rel=0.02)
    assert low.evaluation.loss != exact.evaluation.loss


def test_precision_left_to_measurement_says_what_it_measured(run_values, corpus, tmp_path):
    run_values["execution"]["dtype"] = "auto"
    record = train(build_config(run_values, "test"), tmp_path / "run", corpus.path)
    assert re.search(r"torch \d+.*bfloat16 \d+", record.speed.dtype_reason)
    assert record.kernels["matmul"]["max_relative_error"] < 2e-5
    assert record.kernels["rms_norm"]["max_relative_error"] < 1e-5


def test_a_diverged_run_says_where_and_has_no_loss(run_values, corpus, tmp_path):
    run_values["optimizer"] = {"learning_rate": 1e30, "clip_grad": 0}
    record = train(build_config(run_values, "test"), tmp_path / "run", corpus.path)
    assert record.status == "diverged" and record.evaluation is None and record.train_loss is None
    assert "at step" in record.reason and not record.schedule_finished
    assert all(math.isfinite(e["loss"]) for e in _metrics(tmp_path / "run") if "loss" in e)
    again = train(build_config(run_values, "test"), tmp_path / "run", corpus.path)
    assert again == record


def test_a_finished_run_is_not_trained_again(run_config, corpus, tmp_path):
    record = train(run_config, tmp_path / "run", corpus.path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert train(run_config, tmp_path / "run", corpus.path, should_stop=lambda: True) == record
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_directory_of_another_run_is_refused(run_config, run_values, corpus, tmp_path):
    with pytest.raises(Interrupted):
        train(run_config, tmp_path / "run", corpus.path, should_stop=_stop_at(3))
    with pytest.raises(UserError, match="belongs to run"):
        train(build_config(run_values, "test", ["seed=2"]), tmp_path / "run", corpus.path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.fingerprint=0000", "fingerprint"),
        ("model.vocab_size=100", "vocab_size = 100"),
        ("data.validation_sequences=100000", "validation_sequences = 100000"),
        ("parallel.tensor_parallel_size=2", "tp2: needs 2 ranks, and 1 started"),
        ("execution.num_threads=100000", "num_threads = 100000"),
    ],
)
def test_what_cannot_work_is_said_before_training(run_values, corpus, tmp_path, override, words):
    with pytest.raises(UserError, match=words):
        train(build_config(run_values, "test", [override]), tmp_path / "run", corpus.path)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_full_disk_is_one_clear_message_and_keeps_the_last_checkpoint(run_values, corpus, tmp_path):
    """The file-size limit of the process stands in for a full disk: the same OSError from write()."""
    config = build_config(run_values, "test")
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config, run_dir, corpus.path, should_stop=_stop_at(5))
    kept = _final_weights(run_dir)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from scaling.config import load_config\n"
        "from scaling.errors import UserError\n"
        "from scaling.train import train\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "run_dir = Path(sys.argv[1])\n"
        "config = load_config(run_dir / 'config.yaml', ['execution.checkpoint_interval_seconds=1e-9'])\n"
        "try:\n"
        "    train(config, run_dir, Path(sys.argv[2]))\n"
        "except UserError as error:\n"
        "    print('USER ERROR', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run_dir), str(corpus.path)], capture_output=True, text=True
    )
    assert done.stdout.startswith("USER ERROR"), done.stderr
    assert "disk space" in done.stdout
    assert checkpoint_format.steps(run_dir / "checkpoints")[0] == 5
    assert _final_weights(run_dir).keys() == kept.keys()
    assert train(config, run_dir, corpus.path).evaluation == train(config, tmp_path / "whole", corpus.path).evaluation
