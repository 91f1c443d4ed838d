"""`scaling cost layouts`: a short list with reasons, what was searched, and what to do when nothing fits."""

import json
import subprocess
import sys

import pytest

from scaling.cli import main

RUN = ("--model", "llama-3-70b", "--tokens", "1T", "--gpu", "H100-SXM", "--num-gpus", 512, "--global-batch-size", 1024)


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run `scaling cost layouts` in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, verb="layouts"):
        code = main(["cost", verb, *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def answered(run, *arguments, **how):
    code, out, err = run(*arguments, "--json", **how)
    assert code == 0, err
    return json.loads(out)


def test_five_layouts_fastest_first_each_with_its_intervals(run):
    found = answered(run, *RUN)
    assert len(found["layouts"]) == 5 and found["nothing_fits"] is None
    steps = [each["step_time_s"] for each in found["layouts"]]
    assert [step["value"] for step in steps] == sorted(step["value"] for step in steps)
    for each, step in zip(found["layouts"], steps, strict=True):
        assert step["low"] < step["value"] < step["high"] and step["unit"] == "s"
        assert each["memory_gib"]["fits"] and 1.06 * each["memory_gib"]["device"]["value"] <= 80
        assert each["tokens_per_second_per_gpu"]["value"] == pytest.approx(1024 * 4096 / 512 / step["value"])
        assert 0.3 < each["mfu"]["causal"]["value"] < 0.6
        assert each["slower"] == pytest.approx(step["value"] / steps[0]["value"] - 1)
    for each in found["layouts"][1:]:
        assert " instead of " in each["why"] and "saves" in each["why"]
        gained = sum(each["saved_s"].values()) - sum(each["cost_s"].values())
        assert gained == pytest.approx(each["step_time_s"]["value"] - steps[0]["value"], abs=0.2)
    searched = found["searched"]
    counted = sum(searched["impossible"].values()) + searched["too_large"] + searched["too_slow"]
    assert 0 < counted < searched["divisions"] and searched["priced"] >= 5


def test_the_first_is_what_estimate_takes(run):
    best, estimate = answered(run, *RUN)["layouts"][0], answered(run, *RUN, verb="estimate")
    assert estimate["setup"] == best["setup"]
    assert estimate["step_time_s"] == best["step_time_s"]
    said = {choice["field"]: choice["why"] for choice in estimate["choices"]}
    assert "scaling cost layouts" in said["tensor_parallel_size"] == said["recompute_granularity"]


def test_given_sizes_stay_and_top_bounds_the_list(run):
    found = answered(run, *RUN, "--tensor-parallel-size", 8, "--recompute-granularity", "none", "--top", 3)
    assert len(found["layouts"]) == 3
    for each in found["layouts"]:
        assert each["setup"]["tensor_parallel_size"] == 8 and each["setup"]["recompute_granularity"] == "none"


def test_people_read_the_table_and_the_reasons(run):
    code, out, _ = run(*RUN)
    assert code == 0
    assert "tensor" in out and "pipeline" in out and "micro-batch" in out and "context  " not in out
    assert "1 against 2: " in out and "1 against 5: " in out
    assert "ways to divide the GPUs" in out and "chosen for you: stack = megatron" in out


def test_when_nothing_fits_the_least_and_more_gpus_are_said(run):
    arguments = ("--model", "llama-3-70b", "--gpu", "A100-40GB", "--num-gpus", 16, "--global-batch-size", 64)
    code, out, _ = run(*arguments)
    assert code == 0 and "nothing fits: " in out and "GiB of 40" in out and "on more GPUs it fits: " in out
    found = answered(run, *arguments)
    assert found["layouts"] == [] and found["nothing_fits"]["memory_gib"] > 40


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--num-gpus", 11), "global_batch_size = 1024: must be a multiple"),
        (("--tensor-parallel-size", 7), "tensor_parallel_size = 7"),
        (("--global-batch-size", 1), "global_batch_size = 1"),
        (("--top", 0), "--top"),
        (("--gpu", "cpu", "--num-gpus", 1), "gpu = cpu: cores share a run by batch alone"),
    ],
)
def test_mistakes_are_one_line(run, arguments, said):
    code, out, err = run(*RUN, *arguments)
    assert code != 0 and said in err and not out, err


def test_it_starts_without_heavy_imports(tmp_path):
    script = (
        "import sys; from scaling.cli import main; main(sys.argv[1:]);"
        "print([name for name in ('torch', 'pandas', 'scipy', 'matplotlib', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, "cost", "layouts", *map(str, RUN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_sizes_that_exclude_each_other_are_said(run):
    # 6 tensor ranks divide 48 heads, and no 8 groups of keys and values
    config = {"model_type": "llama", "num_hidden_layers": 48, "hidden_size": 6144, "num_attention_heads": 48}
    config |= {"num_key_value_heads": 8, "intermediate_size": 16384, "vocab_size": 32000}
    with open("config.json", "w", encoding="utf-8") as file:
        json.dump(config, file)
    arguments = ("--model", "config.json", "--gpu", "H100-SXM", "--num-gpus", 48, "--tensor-parallel-size", 6)
    code, _, err = run(*arguments)
    assert code == 2 and "choose 4 or 8" in err
    assert "tensor_parallel_size = 6: neither divides the 8 query groups" in err
