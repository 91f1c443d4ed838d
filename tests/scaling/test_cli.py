"""The command line: what each verb prints, and one clear line for each mistake."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from sweep_lab import REPOSITORY, grid_values, wait_for

from scaling.accounting import parameter_count
from scaling.cli import main
from scaling.config import RunConfig
from scaling.record import read_record
from sweeps.locks import acquire

VERBS = ["launch", "status", "collect", "fit", "report", "train", "data prepare", "data show"]


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run the command line in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def mistake(run):
    """Run the command line with a mistake; the one line that stderr shows."""

    def call(*arguments):
        code, out, err = run(*arguments)
        assert code == 2, out + err
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
        return err

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(run, verb):
    code, out, _ = run(*verb.split(), "--help")
    assert code == 0 and "--json" in out and len(out.splitlines()) > 8


def test_help_does_not_wait_for_heavy_libraries():
    program = (
        "import sys; from scaling.cli import main; main(['launch', '--help']);"
        "print([name for name in ('torch', 'scipy', 'pandas', 'submitit', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_unknown_options_and_verbs_are_usage_errors(run):
    for arguments, said in (
        ("launch --nonsense", "--nonsense"),
        ("lunch", "lunch"),
        ("launch --workers 0", "--workers"),
    ):
        code, _, err = run(*arguments.split())
        assert code == 2 and said in err


# --- launch ---------------------------------------------------------------------------------------


def launch_options(directory, corpus):
    grid = directory / "grid.yaml"
    grid.write_text(yaml.safe_dump(grid_values()))
    return ["launch", "--grid", grid, "--data", corpus.path, "--executor", "local"]


def test_dry_run_prints_the_plan_as_one_json_object_and_starts_nothing(run, tmp_path, corpus):
    code, out, err = run(*launch_options(tmp_path, corpus), "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and "predicted:" in err
    assert len(plan["cells"]) == plan["totals"]["cells"] == 6
    for cell in plan["cells"]:
        config = RunConfig.model_validate(cell["config"])
        count = parameter_count(config.model)
        assert cell["run_id"] == config.run_id
        assert (cell["params"], cell["params_non_embedding"]) == (count.total, count.non_embedding)
        assert cell["flops"] == 6 * cell["params"] * cell["tokens"] and cell["tokens"] == config.tokens
    assert plan["totals"]["flops"] == sum(cell["flops"] for cell in plan["cells"])
    assert plan["totals"]["tokens"] == sum(cell["tokens"] for cell in plan["cells"])
    assert not (tmp_path / "runs").exists()


def test_dry_run_for_people(run, tmp_path, corpus):
    code, out, _ = run(*launch_options(tmp_path, corpus), "--dry-run", "--price", "3")
    assert code == 0 and not (tmp_path / "runs").exists()
    for text in ("2e+08-L1-h8", "non-emb.", "6ND FLOPs", "CPU core hours", "at $3.00", "your own"):
        assert text in out


@pytest.mark.parametrize("limit", ["--max-flops", "--max-gpu-hours", "--max-usd"])
def test_a_plan_above_a_limit_is_refused_before_any_job(mistake, tmp_path, corpus, limit):
    said = mistake(*launch_options(tmp_path, corpus), limit, "1e-12")
    assert f"{limit} 1e-12: the plan's 6 cells cost" in said
    assert not (tmp_path / "runs").exists()


def test_mistakes_of_a_launch(mistake, tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM, wherever this runs
    options = launch_options(tmp_path, corpus)
    assert "did you mean chinchilla" in mistake("launch", "--grid", "chinchila")
    assert "did you mean laptop" in mistake(*options, "--profile", "lap")
    assert "must be auto, local or slurm" in mistake(*options[:-1], "pbs")
    assert "there is no srun" in mistake(*options[:-1], "slurm")
    assert "--slurm partition: must look like" in mistake(*options, "--slurm", "partition")
    assert "threads" in mistake(*options, "--workers", 1, "--threads", 10_000)
    assert "nowhere" in mistake(*options[:3], "--data", "nowhere")
    assert not (tmp_path / "runs").exists()


def test_a_profile_for_gpus_is_priced_anywhere_and_started_only_where_there_is_one(run, corpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = ["launch", "--profile", "paper", "--data", corpus.path, "--executor", "local"]
    code, out, _ = run(*options, "--dry-run")
    assert code == 0 and "H100" in out and "a launch would refuse: profile paper needs a GPU" in out
    code, _, err = run(*options)
    assert code == 2 and "profile paper needs a GPU" in err


def test_launch_py_without_an_installation_says_what_to_run(tmp_path):
    program = "import runpy, sys; sys.argv = ['launch.py']; sys.modules['scaling'] = None; sys.path.insert(0, 'x'); "
    program += f"runpy.run_path({str(REPOSITORY / 'sweeps' / 'launch.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "make sweep" in done.stderr and len(done.stderr.strip().splitlines()) == 1


# --- status, collect, fit, report -----------------------------------------------------------------


def test_status_collect_fit_and_report_agree_on_a_sweep(run, trained, monkeypatch):
    monkeypatch.chdir(trained.directory)
    code, out, _ = run("status", "--json")
    status = json.loads(out)
    assert code == 0 and status["counts"]["finished"] == 6 and status["launcher"] is None
    assert "6/6 cells done" in run("status")[1], "without a directory: the sweep launched last"

    code, out, _ = run("collect", "runs/tiny", "--json")
    rows = json.loads(out)["runs"]
    assert code == 0 and {row["run_id"] for row in rows} == {cell["run_id"] for cell in status["cells"]}

    code, out, _ = run("fit", "runs/tiny", "--json")
    assert code == 0 and json.loads(out) == trained.summary["law"]
    assert "compute-optimal" in run("fit", "runs/tiny")[1]

    code, out, _ = run("report", "runs/tiny", "--json")
    assert code == 0 and (trained.directory / json.loads(out)["report"]).stat().st_size > 1000


def test_verbs_without_a_sweep(mistake):
    for verb in ("status", "collect", "fit", "report"):
        assert "there is no sweep under runs/" in mistake(verb)
    for verb in ("status", "collect", "report"):
        assert "holds no sweep" in mistake(verb, "nowhere")


def test_fit_any_table(run, tmp_path):
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["N", "D", "L"])
        for n in (1e6, 3e6, 1e7, 3e7):
            for d in (1e8, 1e9, 1e10):
                writer.writerow([n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28])
    code, out, _ = run("fit", "table.csv", "--columns", "params=N,tokens=D,loss=L", "--json")
    law = json.loads(out)
    assert code == 0 and law["n_points"] == 12
    assert law["parameters"]["alpha"] == pytest.approx(0.34, rel=1e-3)
    assert {"form", "objective", "exponents", "intervals", "warnings"} <= law.keys()


def test_fit_with_another_form_and_loss(run, tmp_path):
    cells = [(n, d) for n in (1e6, 3e6, 1e7, 3e7) for d in (1e8, 1e9, 1e10)]
    lines = [f"{n},{d},{1.7 + (400 / n**0.34 + 410 / d**0.28) ** 0.8}" for n, d in cells]
    (tmp_path / "table.csv").write_text("\n".join(["params,tokens,loss", *lines]) + "\n")
    options = ["--form", "gamma", "--loss", "log", "--bootstrap", 20, "--seed", 3]
    options += ["--at-flops", 1e18, "--at-flops", 1e19]
    code, out, _ = run("fit", "table.csv", *options, "--json")
    law = json.loads(out)
    assert code == 0 and law["parameters"]["gamma"] == pytest.approx(0.8, rel=1e-2)
    assert law["settings"]["loss"] == "log" and law["settings"]["seed"] == 3 and law["intervals"]["resamples"] == 20
    assert [point["flops"] for point in law["predictions"]] == [1e18, 1e19] and "squares" in law["method"]
    assert "at 1e+18 FLOPs, gamma: params" in run("fit", "table.csv", *options)[1]
    assert "gamma =" in run("fit", "table.csv", "--form", "compute", "--bootstrap", 20)[1]


def test_mistakes_of_fit(mistake, tmp_path):
    (tmp_path / "table.csv").write_text("N,D,L\n1,2,3\n")
    assert "nowhere.csv" in mistake("fit", "nowhere.csv")
    assert "params" in mistake("fit", "table.csv")
    assert "form = 'cubic'" in mistake("fit", "table.csv", "--form", "cubic")
    assert "loss = 'mae'" in mistake("fit", "table.csv", "--loss", "mae")
    assert "--hold E" in mistake("fit", "table.csv", "--hold", "E")
    assert "a surface" in mistake("fit", tmp_path, "--form", "compute")
    assert "--columns" in mistake("fit", tmp_path, "--columns", "params=N,tokens=D,loss=L")


# --- train, data ----------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path, run_values):
    def write(**changes):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**run_values, **changes}))
        return path

    return write


def test_train_one_run_and_find_it_finished(run, config_file, corpus, tmp_path):
    options = ["train", "--config", config_file(), "--data", corpus.path, "--run-dir", "one"]
    code, out, err = run(*options, "--json")
    record = json.loads(out)
    assert code == 0 and record["status"] == "finished" and "step " in err
    again = json.loads(run(*options, "--json")[1])
    assert again == record, "a finished run is not trained again"
    assert f"validation loss {record['evaluation']['loss']:.4f}" in run(*options)[1]


def test_train_fills_in_the_corpus_and_takes_overrides(run, config_file, corpus):
    path = config_file(data={"seq_length": 32, "validation_sequences": 8})
    code, out, _ = run(
        "train", "--config", path, "--data", corpus.path, "--set", "train_steps=7", "--set", "seed=3", "--json"
    )
    record = json.loads(out)
    assert code == 0 and record["config"]["train_steps"] == 7 and record["config"]["seed"] == 3
    assert record["config"]["data"]["fingerprint"] == corpus.fingerprint


def test_mistakes_of_train(mistake, config_file, corpus):
    options = ["train", "--data", corpus.path, "--config", config_file()]
    assert "optimizer.learning_rate = -1" in mistake(*options, "--set", "optimizer.learning_rate=-1")
    assert "no such field" in mistake(*options, "--set", "optimizer.momentum=1")
    assert "must look like" in mistake(*options, "--set", "seed")
    assert "nowhere.yaml: cannot be read" in mistake("train", "--config", "nowhere.yaml")
    assert "parallel" in mistake(*options, "--set", "parallel.tensor_parallel_size=2")


def test_a_run_directory_in_which_another_process_trains_is_refused(mistake, config_file, corpus, tmp_path):
    lock = acquire(tmp_path / "one" / "lock", {"pid": 4321, "host": "elsewhere"})
    message = mistake("train", "--config", config_file(), "--data", corpus.path, "--run-dir", "one")
    assert "pid 4321 on elsewhere trains this run" in message
    lock.release()


def test_tokens_that_changed_after_they_were_prepared_are_not_trained_on(mistake, config_file, corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "changed")
    tokens = bytearray((tmp_path / "changed" / "train.bin").read_bytes())
    tokens[100] ^= 1
    (tmp_path / "changed" / "train.bin").write_bytes(tokens)
    for verb in (["train", "--config", config_file()], ["launch", "--dry-run", "--profile", "laptop"]):
        assert "the tokens have changed" in mistake(*verb, "--data", tmp_path / "changed")


def test_a_diverged_run_is_recorded_and_fails_the_command(run, config_file, corpus):
    code, out, _ = run(
        "train", "--config", config_file(), "--data", corpus.path, "--json",
        "--set", "optimizer.learning_rate=1.0e30", "--set", "optimizer.clip_grad=0",
    )  # fmt: skip
    record = json.loads(out)
    assert code == 1 and record["status"] == "diverged" and record["evaluation"] is None


def test_ctrl_c_stops_a_run_after_a_checkpoint(config_file, corpus, tmp_path):
    path = config_file(train_steps=100_000)
    command = [
        sys.executable,
        "-m",
        "scaling.cli",
        "train",
        "--config",
        path,
        "--data",
        corpus.path,
        "--run-dir",
        "one",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "one" / "metrics.jsonl").exists())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "start again to go on" in out and "Traceback" not in err
    assert list((tmp_path / "one" / "checkpoints").glob("step-*")) and read_record(tmp_path / "one") is None
    attempts = [json.loads(line) for line in (tmp_path / "one" / "attempts.jsonl").read_text().splitlines()]
    assert [(line["event"], line["attempt"]) for line in attempts] == [("start", 1), ("end", 1)]
    assert attempts[1]["outcome"] == "interrupted"


def test_data_prepare_and_show(run, mistake, tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"text number {number} " * 200)
    code, out, _ = run("data", "prepare", tmp_path, "--name", "mine", "--json")
    corpus = json.loads(out)
    assert code == 0 and corpus["name"] == "mine" and corpus["train"]["tokens"] > 0 and corpus["entropy_rate"] is None
    code, out, _ = run("data", "show", "data/mine", "--verify", "--json")
    assert code == 0 and json.loads(out)["fingerprint"] == corpus["fingerprint"]
    assert corpus["fingerprint"] in run("data", "show", "data/mine")[1]
    assert "scaling data prepare" in mistake("data", "show", "data/other")
    (tmp_path / "data" / "mine" / "train.bin").write_bytes(b"")
    assert "train" in mistake("data", "show", "data/mine")


def test_synthetic_text_states_its_entropy_rate(run):
    code, out, _ = run("data", "prepare", "synthetic", "--json")
    assert code == 0 and 0 < json.loads(out)["entropy_rate"] < math.log(256)


def test_a_full_disk_is_one_line(run, monkeypatch):
    import scaling.data.prepare

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "data/x")

    monkeypatch.setattr(scaling.data.prepare, "prepare_corpus", full)
    code, _, err = run("data", "prepare")
    assert code == 2 and err == "error: data/x: No space left on device: make room or choose another directory\n"
