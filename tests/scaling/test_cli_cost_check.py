"""`scaling cost validate` and `calibrate`: the contract of their output."""

import json

import pytest
from measured_rows import row

from scaling.cli import main

ROW = row()
SCORES = {"n", "mape", "median_error", "bias", "coverage", "baseline_mape"}


@pytest.fixture
def run(capsys):
    """Run the command line; (exit code, stdout, stderr)."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def write(path, rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(each.values()) for each in rows)]) + "\n")
    return path


def test_validate_prints_the_contract(run, tmp_path):
    path = write(tmp_path / "runs.csv", [ROW, ROW | {"id": "b", "gpu": "TPU-v4"}])
    code, out, _ = run("cost", "validate", path, "--json")
    found = json.loads(out)
    assert code == 0 and set(found) == {"groups", "overall", "not_expressible", "assumed", "warnings"}
    assert found["assumed"][0]["id"] == "a" and "sharding taken as zero1" in found["assumed"][0]["assumptions"][0]
    assert set(found["groups"]["mine"]) == {"step_time", "memory", "gpu_hours"}
    assert set(found["overall"]["step_time"]) == SCORES and found["overall"]["memory"] is None
    assert found["not_expressible"][0]["id"] == "b" and "TPU-v4" in found["not_expressible"][0]["reason"]
    code, out, _ = run("cost", "validate", path)
    assert code == 0 and "step time" in out and "cannot be expressed" in out
    assert "1 row(s) leave something open" in out and "sharding taken as zero1" in out


def test_one_group_is_shown_once(run, tmp_path):
    _, one, _ = run("cost", "validate", write(tmp_path / "runs.csv", [ROW | {"group": "all"}]))
    _, two, _ = run("cost", "validate", write(tmp_path / "runs.csv", [ROW, ROW | {"group": "theirs"}]))

    def count(text):
        return sum("all" in line.split("│")[1:2][0].split() for line in text.splitlines() if "│" in line)

    assert (count(one), count(two)) == (1, 1)


def test_a_calibration_that_is_not_used_is_said(run, tmp_path):
    path, constants = tmp_path / "runs.csv", tmp_path / "mine.json"
    run("cost", "calibrate", write(path, [ROW | {"step_time_s": "20"}]), "--out", constants)
    write(path, [ROW | {"framework": "FSDP"}])
    code, out, _ = run("cost", "validate", path, "--calibration", constants)
    assert code == 0 and "warning: the calibration is of the stack megatron: not used for 1 prediction(s)" in out


def test_calibrate_names_rows_that_cannot_be_read(run, tmp_path):
    speed = ROW | {"tokens_per_s_per_gpu": ""}
    rows = [speed | {"step_time_s": "20"}, speed | {"id": "b", "step_time_s": "4.1s"}]
    rows.append(speed | {"id": "c", "step_time_s": "", "tokens_per_s_per_gpu": "1000", "seq_len": ""})
    path = write(tmp_path / "runs.csv", rows)
    _, out, _ = run("cost", "calibrate", path, "--out", tmp_path / "mine.json", "--json")
    assert [(each["id"], each["reason"]) for each in json.loads(out)["not_expressible"]] == [
        ("b", "step_time_s = 4.1s: is not a number above 0"),
        ("c", "seq_len is not given"),
    ]


def test_without_a_table_the_published_runs_are_compared(run):
    code, out, _ = run("cost", "validate", "--json")
    assert code == 0 and json.loads(out)["overall"]["step_time"]["n"] > 200


def test_a_unit_that_is_wrong_is_refused_by_the_name_of_its_row(run, tmp_path):
    good = ROW | {"step_time_s": "21"}
    rows = [ROW | {"id": "ms", "step_time_s": "21000"}, ROW | {"id": "fast", "step_time_s": "1"}]
    path = write(tmp_path / "runs.csv", [good, *rows])
    code, out, _ = run("cost", "calibrate", path, "--out", tmp_path / "mine.json", "--json")
    found = json.loads(out)
    assert code == 0 and found["num_runs"] == 1
    reasons = {row["id"]: row["reason"] for row in found["not_expressible"]}
    assert "a step of 21000 s, where" in reasons["ms"] and "dense bf16 peak" in reasons["fast"]
    code, _, err = run("cost", "calibrate", write(path, rows), "--out", tmp_path / "mine.json")
    assert code == 2 and "none of 2 run(s) can be used, first ms: a step of 21000 s" in err


def test_calibrate_writes_constants_that_validate_takes(run, tmp_path):
    rows = [ROW | {"id": str(micro), "micro_batch": str(micro), "step_time_s": str(20 + micro)} for micro in (1, 2, 4)]
    path, constants = write(tmp_path / "runs.csv", rows), tmp_path / "mine.json"
    code, out, _ = run("cost", "calibrate", path, "--out", constants, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["num_runs"] == 3 and answer["after"] < answer["before"]
    errors = []
    for more in ((), ("--calibration", constants)):
        _, out, _ = run("cost", "validate", path, "--json", *more)
        errors.append(json.loads(out)["overall"]["step_time"]["mape"])
    assert errors[1] < errors[0]
    code, out, _ = run("cost", "calibrate", path, "--out", constants)
    assert code == 0 and "matmul_efficiency" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("validate", "absent.csv"), "absent.csv"),
        (("calibrate", "{table}", "--stack", "fsdp_eager"), "megatron"),
        (("calibrate", "{table}", "--group", "theirs"), "theirs"),
        (("calibrate", "{table}", "--out", "absent/mine.json"), "absent/mine.json"),
        (("calibrate", "{tpus}"), "none of 1 run(s) can be used, first a: gpu = TPU-v4"),
        (("validate", "{table}", "--calibration", "{table}"), "scaling cost calibrate"),
    ],
)
def test_mistakes_are_one_clear_line(run, tmp_path, arguments, words):
    table = write(tmp_path / "runs.csv", [ROW])
    tpus = write(tmp_path / "tpus.csv", [ROW | {"gpu": "TPU-v4"}])
    code, _, err = run("cost", *(part.format(table=table, tpus=tpus) for part in arguments))
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1
