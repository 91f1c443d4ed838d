"""`scaling cost estimate|explain`: a run in, what it needs with intervals out, one line for each mistake."""

import json
import math
import re
import subprocess
import sys

import pytest

from scaling.cli import main

LAYOUT = ("--num-gpus", 512, "--tensor-parallel-size", 8, "--pipeline-parallel-size", 4, "--global-batch-size", 1024)
RUN = ("--model", "llama-3-70b", "--tokens", "1T", "--gpu", "H100-SXM", "--seq-length", 8192, *LAYOUT)
ESTIMATED = ("step_time_s", "tokens_per_second_per_gpu", "gpu_hours", "energy_kwh", "usd")


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Run a verb of `scaling cost` in an empty directory; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["cost", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def answered(run, *arguments, verb="estimate"):
    code, out, err = run(verb, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_quantity_has_its_interval_and_unit(run):
    found = answered(run, *RUN)
    quantities = {name: found[name] for name in ESTIMATED}
    quantities |= {"peak": found["memory_gib"]["peak"], **{name: found["mfu"][name] for name in ("causal", "full")}}
    for name, numbers in quantities.items():
        assert set(numbers) == {"value", "low", "high", "unit"}, name
        assert 0 < numbers["low"] < numbers["value"] < numbers["high"] and numbers["unit"], name
    assert {"parameters", "flops", "conventions", "sources", "warnings", "choices", "setup"} <= set(found)
    assert found["parameters"]["total"] == 70553706496
    assert found["warnings"] == []


def test_quantities_follow_from_each_other(run):
    found = answered(run, *RUN)
    flops = found["flops"]
    assert flops["c_6nd"] == pytest.approx(6 * found["parameters"]["total"] * 1e12)
    assert flops["causal"] < flops["full"] == flops["hardware"]
    step, tokens = found["step_time_s"]["value"], 1024 * 8192
    assert found["tokens_per_second_per_gpu"]["value"] == pytest.approx(tokens / 512 / step)
    causal = flops["causal"] / 1e12 * tokens / step / (512 * 989.4e12)
    assert found["mfu"]["causal"]["value"] == pytest.approx(causal, rel=1e-3)
    hours = 1e12 / tokens * step * 512 / 3600 / found["goodput"]["value"]
    assert found["gpu_hours"]["value"] == pytest.approx(hours)
    assert found["usd"]["value"] == pytest.approx(hours * found["price"]["value"])
    assert found["energy_kwh"]["value"] == pytest.approx(hours * 0.7 * 1.2 * 1.15, rel=0.1)
    tensors = sum(size for size in found["memory_gib"].values() if isinstance(size, float))
    assert tensors == pytest.approx(found["memory_gib"]["peak"]["value"])


def test_recomputation_costs_hardware_flops_time_and_saves_memory(run):
    without, full = answered(run, *RUN), answered(run, *RUN, "--recompute-granularity", "full")
    assert full["flops"]["hardware"] == pytest.approx(4 / 3 * without["flops"]["hardware"], rel=0.02)
    assert full["flops"]["full"] == without["flops"]["full"]
    assert full["step_time_s"]["value"] > 1.15 * without["step_time_s"]["value"]
    assert full["memory_gib"]["peak"]["value"] < 0.7 * without["memory_gib"]["peak"]["value"]


def test_intervals_multiply_through_and_what_one_knows_narrows_them(run):
    def width(numbers):
        return math.log(numbers["high"] / numbers["low"])

    found = answered(run, *RUN)
    sure = answered(run, *RUN, "--goodput", 0.9, "--price", 2, "--pue", 1.1)
    assert width(found["step_time_s"]) < width(found["gpu_hours"]) < width(found["usd"])
    assert width(sure["gpu_hours"]) == pytest.approx(width(sure["step_time_s"]))
    assert width(sure["usd"]) == pytest.approx(width(sure["gpu_hours"]))
    assert width(sure["energy_kwh"]) < width(found["energy_kwh"])
    assert sure["usd"]["value"] == pytest.approx(2 * sure["gpu_hours"]["value"])
    assert sure["co2_kg"] is None
    green = answered(run, *RUN, "--carbon-intensity", 50)
    assert green["co2_kg"]["value"] == pytest.approx(0.05 * green["energy_kwh"]["value"])


def test_a_calibration_decides_stack_time_and_interval(run, tmp_path):
    fitted = {"stack": "fsdp_eager", "changes": {"matmul_efficiency": 0.6}, "spread": 0.02, "num_runs": 9}
    fitted |= {"expert_spread": 0.2, "before": 0.3, "after": 0.02, "left_out": 0.03, "source": "mine.csv"}
    (tmp_path / "calibration.json").write_text(json.dumps(fitted))
    arguments = ("--params", "7B", "--tokens", "1T", "--gpu", "H100", "--num-gpus", 64)
    shipped = answered(run, *arguments, "--stack", "fsdp_eager")
    found = answered(run, *arguments, "--calibration", "calibration.json")
    assert found["setup"]["stack"] == "fsdp_eager"
    assert found["step_time_s"]["value"] > 1.2 * shipped["step_time_s"]["value"]
    assert found["step_time_s"]["high"] / found["step_time_s"]["value"] == pytest.approx(math.exp(1.645 * 0.02))
    assert "9 runs of mine.csv" in found["sources"]["step_time_s"]
    other = answered(run, *arguments, "--calibration", "calibration.json", "--stack", "megatron")
    assert any("not used for megatron" in warning for warning in other["warnings"])
    for verb in ("explain", "layouts"):
        silent = answered(run, *arguments, "--calibration", "calibration.json", verb=verb)
        unused = (*arguments, "--calibration", "calibration.json", "--stack", "megatron")
        assert silent["warnings"] == [] and answered(run, *unused, verb=verb)["warnings"] == other["warnings"][:1]
        assert "warning: the calibration is of the stack fsdp_eager: not used for megatron" in run(verb, *unused)[1]
    told = " ".join(run("estimate", *arguments, "--calibration", "calibration.json")[1].split())
    assert "step time (constants refitted to 9 runs of mine.csv)" in told
    assert "refitted to 9 runs" in run("explain", *arguments, "--calibration", "calibration.json")[1]
    explained = answered(run, *arguments, "--calibration", "calibration.json", verb="explain")
    assert explained["step_time_s"]["total"] == pytest.approx(found["step_time_s"]["value"])


def test_size_tokens_and_gpu_are_enough(run):
    found = answered(run, "--params", "7B", "--tokens", "1T", "--gpu", "H100")
    assert found["parameters"]["total"] == pytest.approx(7e9, rel=0.02)
    chosen = {choice["field"]: choice for choice in found["choices"]}
    assert {"model", "gpu", "num_gpus", "seq_length", "global_batch_size", "tensor_parallel_size"} <= set(chosen)
    assert all(choice["why"] for choice in chosen.values())
    assert found["memory_gib"]["fits"] and found["step_time_s"]["value"] > 0
    # a layout that is only guessed says less than what published runs of this size took, and that is said
    assert "published runs" in found["sources"]["gpu_hours"] and "published runs" in found["warnings"][0]
    assert 2e4 < found["gpu_hours"]["value"] < 1.5e5


@pytest.mark.parametrize("size", ["7e9", "7B", "7b", "7_000_000_000", "7000M"])
def test_sizes_as_people_write_them(run, size):
    assert answered(run, "--params", size, "--tokens", "0.3T", "--gpu", "A100")["tokens"] == 3e11


@pytest.mark.parametrize(("size", "meant"), [("7,5B", "7.5B"), ("1,50B", "1.50B"), ("7,0000B", "7.0000B")])
def test_a_comma_for_a_point_is_refused(run, size, meant):
    code, _, err = run("estimate", "--params", size, "--gpu", "H100")
    assert code == 2 and f"--params {size}" in err and f"did you mean {meant}?" in err


def test_commas_between_thousands_are_read(run):
    arguments = ("--params", "7,000,000,000", "--tokens", "1,500.5B", "--gpu", "A100")
    assert answered(run, *arguments)["tokens"] == 1500.5e9


def test_a_config_json(run, tmp_path):
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4}
    config |= {"intermediate_size": 688, "vocab_size": 1000, "num_key_value_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = answered(run, "--model", "config.json", "--tokens", "1B", "--gpu", "L4")
    assert found["parameters"]["total"] == 2 * 256000 + 4 * (4 * 256**2 + 3 * 256 * 688 + 512) + 256


def test_devices_and_prices_of_ones_own(run, tmp_path):
    device = {"device": "Mine", "tflops": {"bf16": 500}, "memory": {"gib": 96, "gbytes_per_second": 3000}}
    device |= {"scale_up": {"gpus": 8, "gbytes_per_second": 300}, "node": {"gpus": 8, "gbits_per_second_per_gpu": 400}}
    (tmp_path / "mine.json").write_text(json.dumps(device | {"tdp_watts": 500}))
    (tmp_path / "prices.yaml").write_text("Mine:\n  quotes: [{usd: 1.5, date: 2020-01-01}]\n")
    arguments = ("--params", "8B", "--tokens", "1T", "--device-file", "mine.json", "--num-gpus", 64)
    assert answered(run, *arguments)["usd"] is None
    found = answered(run, *arguments, "--price-file", "prices.yaml")
    assert found["usd"]["value"] == pytest.approx(1.5 * found["gpu_hours"]["value"])
    assert any("2020-01-01" in warning and "months ago" in warning for warning in found["warnings"])


def test_a_cpu_is_measured_on_the_spot(run):
    found = answered(run, "--params", "1M", "--tokens", "20M", "--gpu", "cpu")
    assert found["setup"]["device"] == "CPU core" and found["setup"]["precision"] == "fp32"
    assert found["usd"]["value"] > 0 and found["energy_kwh"] is None
    # not by a GPU's rooflines: half of what the cores multiply and more, as our trainer does
    assert 0.3 < found["mfu"]["full"]["value"] < 1.6 and "cpu_step" in found["sources"]["step_time_s"]
    assert any("no energy" in warning for warning in found["warnings"])


def test_what_does_not_fit_is_said_first_with_what_helps(run):
    crowded = ("--model", "llama-3-70b", "--tokens", "1T", "--gpu", "H100", *LAYOUT[:2], "--tensor-parallel-size", 1)
    crowded += ("--pipeline-parallel-size", 1, "--micro-batch-size", 4, "--recompute-granularity", "none")
    found = answered(run, *crowded)
    assert not found["memory_gib"]["fits"] and found["warnings"][0].startswith("out of memory: needs")
    code, out, _ = run("estimate", *crowded)
    assert code == 0 and out.startswith("out of memory: needs") and "saves" in out.splitlines()[0]


def test_people_read_units_conventions_and_warnings_last(run):
    code, out, _ = run("estimate", "--params", "7B", "--tokens", "1T", "--gpu", "H100")
    assert code == 0 and len(out.splitlines()) < 40
    for said in ("90 % interval", "tokens/s per GPU", "989 TFLOP/s, the dense 16-bit peak", "nvidia-smi", "PUE"):
        assert said in out, out
    for said in ("6ND", "causal attention", "chosen for you", "arXiv:2503.04715", "$", "2026-"):
        assert said in out, out
    assert out.splitlines()[-1].startswith("warning")


def test_explain_adds_up_and_tries_changes(run):
    found = answered(run, *RUN, verb="explain")
    parts = found["step_time_s"]
    assert sum(value for name, value in parts.items() if name != "total") == pytest.approx(parts["total"])
    assert parts["total"] == pytest.approx(answered(run, *RUN)["step_time_s"]["value"])
    memory = found["memory_gib"]
    assert sum(value for name, value in memory.items() if name != "device") == pytest.approx(memory["device"])
    assert len(found["reasons"]) == 3 and found["reasons"][0]["part"] == "linear"
    for reason in found["reasons"]:
        if reason["remedy"]:
            assert reason["remedy"]["part_seconds"] < reason["seconds"] and reason["remedy"]["seconds"] < parts["total"]


def test_explain_draws_and_tells(run, tmp_path):
    code, out, _ = run("explain", *RUN, "--plot", "why.svg")
    assert code == 0 and "<svg" in (tmp_path / "why.svg").read_text()
    for said in ("ms", "%", "###", "linear", "activations", "why", "step -", "wrote why.svg"):
        assert said in out, out
    code, _, err = run("explain", *RUN, "--plot", "why.txt")
    assert code == 2 and "--plot why.txt: must end in .svg" in err
    code, _, err = run("explain", *RUN, "--plot", "absent/why.svg")
    assert code == 2 and "absent/why.svg" in err


def test_sequences_longer_than_any_published_run_are_priced_by_their_step(run):
    usual, long = (
        answered(run, "--params", "7B", "--tokens", "1T", "--gpu", "H100", "--seq-length", length)
        for length in ("4096", "1048576")
    )
    assert long["gpu_hours"]["value"] > 5 * usual["gpu_hours"]["value"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--params", "7B", "--tokens", "1T"), "no device given: give one of --gpu NAME"),
        (("--gpu", "H100"), "no model given"),
        (("--params", "7B", "--gpu", "H1000"), "gpu = H1000: not in the table: choose H100"),
        (("--model", "llama-3-71b", "--gpu", "H100"), "did you mean"),
        (("--model", "none.json", "--gpu", "H100"), "none.json"),
        (("--params", "7B", "--gpu", "H100", "--tokens", "-5"), "--tokens -5: must be a number above zero"),
        (("--params", "7B", "--gpu", "H100", "--tokens", "1e300"), "tokens = 1e+300: must be above zero and at most"),
        (("--params", "7B", "--gpu", "H100", "--price", "1e308"), "price = 1e+308: must be from 0"),
        (("--model", "llama3-8b-L99", "--gpu", "H100"), "llama3-8b has 32 layers: choose -L1 to -L32"),
        (("--params", "7B", "--gpu", "H100", "--tokens", "many"), "--tokens many: must be a number above zero"),
        (("--params", "7Q", "--gpu", "H100"), "--params 7Q"),
        (("--params", "7B", "--model", "llama-3-70b", "--gpu", "H100"), "has 70.6B parameters: leave --params out"),
        (("--params", "7B", "--gpu", "H100", "--precision", "bf61"), "did you mean bf16?"),
        (("--params", "7B", "--gpu", "A100", "--precision", "fp8"), "has no such products: choose bf16"),
        (("--params", "7B", "--gpu", "H100", "--stack", "x"), "stack = x"),
        (("--params", "7B", "--gpu", "H100", "--num-gpus", "12", "--tensor-parallel-size", "8"), "choose 8 or 16"),
        (("--params", "7B", "--gpu", "H100", "--num-gpus", "9", "--tensor-parallel-size", "3"), "choose 2 or 4"),
        (("--params", "7B", "--gpu", "H100", "--pipeline-parallel-size", "99"), "more stages than the 28 layers"),
        (("--params", "7B", "--gpu", "H100", "--num-gpus", "0"), "num_gpus = 0: must be 1 or more"),
        (("--params", "7B", "--gpu", "H100", "--goodput", "1.5"), "goodput = 1.5"),
        (("--params", "7B", "--gpu", "H100", "--pue", "0.5"), "pue = 0.5: must be from 1 to 10"),
        (("--params", "7B", "--gpu", "H100", "--carbon-intensity", "-1"), "carbon intensity = -1"),
        (("--params", "7B", "--gpu", "H100", "--price", "-1"), "price = -1.0: must be from 0 to"),
        (("--params", "7B", "--gpu", "H100", "--price", "1", "--price-file", "x"), "give one of them"),
        (("--params", "7B", "--gpu", "H100", "--calibration", "none.json"), "calibration = none.json"),
    ],
)
def test_mistakes(run, arguments, said):
    code, out, err = run("estimate", *arguments)
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, out + err


def test_a_sparse_peak_is_refused(run, tmp_path):
    device = {"device": "H100 SXM", "tflops": {"bf16": 1979}, "memory": {"gib": 80, "gbytes_per_second": 3350}}
    device |= {"scale_up": {"gpus": 8, "gbytes_per_second": 450}, "node": {"gpus": 8, "gbits_per_second_per_gpu": 400}}
    (tmp_path / "sparse.json").write_text(json.dumps(device | {"tdp_watts": 700}))
    code, _, err = run("estimate", "--params", "7B", "--device-file", "sparse.json")
    assert code == 2 and "sparsity" in err and "dense 989" in err


def test_an_estimate_imports_nothing_heavy():
    program = (
        "import sys; from scaling.cli import main; code = main(sys.argv[1:]); "
        "print([name for name in ('torch', 'pandas', 'scipy', 'matplotlib', 'submitit') if name in sys.modules], code)"
    )
    arguments = ["cost", "estimate", "--model", "llama-3-70b", "--tokens", "1T", "--gpu", "H100", "--json"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_a_model_far_too_large_is_told_how_many_gpus_are_enough(run):
    few = ("--model", "llama-3-70b", "--tokens", "1T", "--gpu", "H100-SXM", "--num-gpus")
    _, out, _ = run("estimate", *few, 1)
    found = re.search(r"(\d+) GPUs are enough", out.splitlines()[0])
    assert answered(run, *few, int(found[1]))["memory_gib"]["fits"]
    assert not answered(run, *few, int(found[1]) // 2)["memory_gib"]["fits"]


def test_hours_of_published_runs_stand_beside_those_of_a_layout(run):
    open_layout = ("--params", "7B", "--tokens", "1T", "--gpu", "H100-SXM", "--num-gpus", 64)
    published = answered(run, *open_layout)
    own = answered(run, *open_layout, "--tensor-parallel-size", 1)
    assert "published runs, by N and GPU" in published["sources"]["gpu_hours"]
    assert any("--tensor-parallel-size, --sharding or --goodput" in warning for warning in published["warnings"])
    assert f"took {published['gpu_hours']['value'] / 1e3:.3g}k" in own["sources"]["gpu_hours"]
    assert own["gpu_hours"]["value"] < published["gpu_hours"]["value"]
    redundant = answered(run, *open_layout, "--micro-batch-size", published["setup"]["micro_batch_size"])
    assert redundant["gpu_hours"] == published["gpu_hours"]


def test_where_nothing_fits_the_choices_say_so_and_the_remedies_are_reachable(run):
    crowded = answered(run, "--params", "1B", "--gpu", "4090", "--num-gpus", 1, "--stack", "fsdp_eager")
    assert not crowded["memory_gib"]["fits"]
    assert {choice["why"] for choice in crowded["choices"] if choice["field"] == "sharding"} == {
        "no layout fits: the one that needs least memory"
    }
    assert any("seq_length 4096 -> 2048" in warning and "and fits" in warning for warning in crowded["warnings"])
    many = answered(run, "--model", "deepseek-v3", "--gpu", "H100", "--num-gpus", 2000, "--precision", "fp8")
    assert any("2048 GPUs are enough" in warning for warning in many["warnings"])


def test_stages_of_unequal_layers_are_warned_of(run):
    sizes = ("--model", "llama3-8b", "--gpu", "H100", "--num-gpus", 8, "--pipeline-parallel-size", 8)
    uneven = answered(run, *sizes, "--virtual-pipeline-parallel-size", 3)
    assert any("32 layers on 24 pipeline stages: the fullest has 2" in warning for warning in uneven["warnings"])
    even = answered(run, *sizes, "--virtual-pipeline-parallel-size", 2)
    assert not any("pipeline stages" in warning for warning in even["warnings"])


def test_a_schedule_out_of_the_ordinary_is_named(run):
    code, out, _ = run("explain", *RUN, "--pipeline-schedule", "zbv")
    assert code == 0 and "pipeline 4 (zbv)" in out
    assert "(1f1b)" not in run("explain", *RUN)[1]
