"""Layouts that cannot work are refused before training, with the numbers and with layouts that can."""

import re

import pytest

from parallel.layout import Layout
from scaling.config import RunConfig, build_config
from scaling.errors import UserError
from scaling.layouts import check_layout, layout_problems, possible_layouts

SHORT = {"pp": "pipeline_parallel_size", "dp": "data_parallel_size", "cp": "context_parallel_size"}
SHORT["tp"] = "tensor_parallel_size"


def run(sizes: str, model=None, micro=None, batch=16, seq_length=32, **options) -> RunConfig:
    values = {
        "model": {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 509, **(model or {})},
        "data": {"name": "words", "fingerprint": "f" * 64, "seq_length": seq_length},
        "optimizer": {"learning_rate": 0.01},
        "global_batch_size": batch,
        "train_steps": 10,
        "execution": {} if micro is None else {"micro_batch_size": micro},
        "parallel": {**layout(sizes).model_dump(), **options},
    }
    return build_config(values, "test")


def layout(sizes: str) -> Layout:
    pairs = [re.fullmatch(r"([a-z]+)(\d+)", part).groups() for part in sizes.split()]
    return Layout(**{SHORT[name]: int(size) for name, size in pairs})


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        (run("tp3"), ["tensor_parallel_size = 3", "num_attention_heads = 8"]),
        (run("tp4", {"num_attention_heads": 12, "num_query_groups": 6, "hidden_size": 96}), ["num_query_groups = 6"]),
        (run("tp4", {"vocab_size": 5}), ["vocab_size = 5"]),
        (run("tp8", {"ffn_hidden_size": 20}), ["ffn_hidden_size = 20"]),
        (run("cp4", seq_length=36), ["context_parallel_size = 4", "seq_length = 36", "ring"]),
        (run("cp3", context_parallel_method="ulysses", seq_length=32), ["seq_length = 32", "ulysses"]),
        (run("cp4 tp4", context_parallel_method="ulysses"), ["num_attention_heads", "8 / 4"]),
        (run("cp2", {"position_embedding": "relative"}), ["position_embedding = relative"]),
        (run("pp16"), ["pipeline_parallel_size = 16", "num_layers = 8"]),
        (run("pp8", pipeline_schedule="zbv"), ["16 stages", "num_layers = 8"]),
        (run("pp2", pipeline_split=(3, 3, 2)), ["pipeline_split = [3, 3, 2]", "must be 2 numbers"]),
        (run("pp2", pipeline_split=(3, 4)), ["pipeline_split = [3, 4]", "num_layers = 8"]),
        (run("dp3"), ["data_parallel_size = 3", "global_batch_size = 16"]),
        (run("pp4", micro=8), ["at least 4 micro-batches", "16 / 1 / 8 makes 2"]),
        (run("pp4", pipeline_schedule="zbv", micro=4), ["at least 8 micro-batches", "makes 4"]),
        (
            run("pp4", pipeline_schedule="interleaved1f1b", batch=6, micro=1),
            ["a multiple of 4 micro-batches", "makes 6"],
        ),
        (run("tp8", batch=1, seq_length=12, sequence_parallel=True), ["12 tokens", "tensor_parallel_size = 8"]),
        (
            run("tp2", batch=2, micro=2, seq_length=15, sequence_parallel=True),
            ["15 tokens", "tensor_parallel_size = 2"],
        ),
        (run("pp2 dp2", pipeline_schedule="zbv", data_parallel_method="fsdp2"), ["tie_word_embeddings", "fsdp2"]),
    ],
)
def test_a_layout_that_cannot_work_is_one_line_with_the_numbers_and_a_layout_that_can(config, numbers):
    with pytest.raises(UserError) as raised:
        check_layout(config)
    message = str(raised.value)
    assert "\n" not in message
    for text in numbers:
        assert text in message
    advice = re.findall(r"(?:(?:pp|dp|cp|tp)\d+ ?)+|single", message.partition(" can: ")[2])
    assert advice
    for sizes in advice:
        other = Layout() if sizes == "single" else layout(sizes.strip())
        options = config.parallel.model_dump(exclude=set(SHORT.values())) | {"pipeline_split": None}
        changed = config.model_copy(update={"parallel": other.model_copy(update=options)})
        check_layout(changed)


@pytest.mark.parametrize(
    "config",
    [
        run(""),
        run("pp2 dp2 cp2 tp2"),
        run("tp8", {"num_query_groups": 2}),
        run("tp2", {"num_query_groups": 4}),
        run("pp4", pipeline_schedule="zbv"),
        run("pp2", pipeline_split=(5, 3)),
        run("pp4", pipeline_schedule="interleaved1f1b", batch=8),
        run("cp2 tp4", context_parallel_method="ulysses"),
        run("dp16"),
    ],
)
def test_layouts_that_work_pass(config):
    check_layout(config)
    check_layout(config, config.parallel.world_size)


def test_every_possible_layout_works_and_data_parallelism_comes_first():
    config = run("")
    found = possible_layouts(config, 8)
    assert found[0] == layout("dp8")
    assert all(each.world_size == 8 for each in found) and len({str(each) for each in found}) == len(found)
    assert {"tp8", "pp8", "pp2 dp2 tp2", "dp2 cp4"} <= {str(each) for each in found}
    for each in found:
        assert layout_problems(config.model_copy(update={"parallel": each})) == []
    assert possible_layouts(config, 11) == []


def test_the_nearest_layout_is_named_first():
    with pytest.raises(UserError, match=r"layouts of 6 ranks that can: dp3 tp2,"):
        check_layout(run("dp2 tp3", batch=12))


def test_as_many_processes_as_the_layout_has_ranks():
    with pytest.raises(UserError, match=r"parallel = dp2 tp2: needs 4 ranks, and 2 started .*; .*2 ranks that can"):
        check_layout(run("dp2 tp2"), 2)
    with pytest.raises(UserError, match=r"no layout of 11 ranks can; the nearest that can: pp5 dp2 \(10 ranks\)"):
        check_layout(run("tp11"))
