"""Stop under one layout, go on under another: `scaling parity --checkpoints`, and a training run that does it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from distributed import run_distributed

from scaling import reshard
from scaling.cli import main
from scaling.config import RunConfig, build_config
from scaling.parity import sizes

#: They keep their state in different places: rows of FSDP2, both arms of a V, pieces of matrices shared by two ranks.
THREE = tuple(case for case in reshard.LAYOUTS if reshard._name(case) in ("dp4 fsdp2", "pp2 zbv", "cp2 tp2"))


def test_any_layout_goes_on_from_any_others_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr(reshard, "reshard", partial(reshard.reshard, THREE))
    assert main(["parity", "--checkpoints", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["passed"] and len(found["rows"]) == 9 == len(printed.err.splitlines())
    assert len({(row["saved_under"], row["loaded_under"]) for row in found["rows"]}) == 9
    for row in found["rows"]:
        assert row["passed"] and row["differing_tensors"] == 0, row
        assert row["tensors"] == 3 * (1 + 5 * 11 + 1), "weights and both moments of every parameter"
        assert row["max_relative_loss_difference"] <= 1e-5, row


def test_the_table_of_the_command_has_every_pair_of_nine_layouts():
    assert len(reshard.LAYOUTS) == 9 == len({reshard._name(case) for case in reshard.LAYOUTS})


def _second_halves_without(kind: str, config: RunConfig, pairs: list) -> list[list[float]]:
    """What `reshard` does, with checkpoints of which one kind of tensor is forgotten when they are loaded."""
    from scaling.checkpoint import Checkpointer

    load = Checkpointer.load_latest

    def forgetful(self, pieces, warn):
        state = load(self, pieces, warn)
        for piece in pieces:
            if piece.name.startswith(kind):
                piece.tensor.zero_()
        return state

    Checkpointer.load_latest = forgetful
    return _SECOND_HALVES(config, pairs)


_SECOND_HALVES: Callable = reshard._second_halves


def test_a_forgotten_moment_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(reshard, "_second_halves", partial(_second_halves_without, "exp_avg/"))
    monkeypatch.setattr(reshard, "reshard", partial(reshard.reshard, reshard.LAYOUTS[:1]))
    assert main(["parity", "--checkpoints"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "57 of 171 tensors differ" in line and "DIFFERS" in line


def _train(config: RunConfig, folder: Path, corpus_dir: Path, steps: int) -> bool:
    """Train at most so many steps; whether that was all."""
    from scaling.train import Interrupted, train

    asked = -1

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == steps

    try:
        train(config, folder, corpus_dir, should_stop=should_stop)
    except Interrupted:
        return False
    return True


def _metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_stopped_twice_goes_on_under_other_layouts_as_if_nothing_had_happened(run_values, corpus, tmp_path):
    run_values["model"] |= {"num_layers": 4, "qk_norm": True}
    run_values["execution"]["evaluation_interval"] = 10
    configs = [
        build_config(run_values | {"parallel": parallel}, "test")
        for parallel in (sizes(tp=2), sizes(pp=2, pipeline_schedule="zbv"), sizes(dp=4, data_parallel_method="fsdp2"))
    ]
    assert len({config.run_id for config in configs}) == 1
    for config, steps, finished in zip(configs, (7, 9, 100), (False, False, True)):
        ranks = config.parallel.world_size
        assert run_distributed(_train, ranks, config, tmp_path / "parts", corpus.path, steps) == [finished] * ranks
    assert run_distributed(_train, 1, build_config(run_values, "test"), tmp_path / "whole", corpus.path, 100) == [True]
    whole, parts = _metrics(tmp_path / "whole"), _metrics(tmp_path / "parts")
    assert len(whole) == len(parts) == 30 + 3
    for expected, found in zip(whole, parts):
        assert found.keys() == expected.keys()
        for name in {"step", "tokens", "learning_rate"} & found.keys():
            assert found[name] == expected[name]
        for name in {"loss", "grad_norm", "validation_loss"} & found.keys():
            assert found[name] == pytest.approx(expected[name], rel=1e-4 if name == "grad_norm" else 1e-5)
    records = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert records[1]["train_loss"] == pytest.approx(records[0]["train_loss"], rel=1e-5)
