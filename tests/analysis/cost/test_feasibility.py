"""Impossible setups: one line that names the field, its value and the nearest choice that works."""

from dataclasses import replace

import pytest

from analysis.cost.architecture import Architecture
from analysis.cost.devices import find_device
from analysis.cost.feasibility import check_setup, is_possible, precisions_of
from analysis.cost.setup import Setup
from scaling.errors import UserError

DENSE = Architecture("dense", 32, 4096, 32, 8, 128, 14336, 128256)
EXPERTS = replace(DENSE, name="experts", num_experts=64, moe_router_topk=2, moe_ffn_hidden_size=1024)
GROUPS = replace(DENSE, name="grouped", num_attention_heads=48, num_query_groups=12)
EXPERT_RANKS = {"model": EXPERTS, "expert_parallel_size": 32, "tensor_parallel_size": 4}
LEARNED = replace(DENSE, name="learned", learned_positions=2048)
INTERLEAVED = {
    "pipeline_parallel_size": 4,
    "virtual_pipeline_parallel_size": 2,
    "pipeline_schedule": "interleaved1f1b",
}
SETUP = Setup(DENSE, find_device("H100"), num_gpus=64, seq_length=4096, global_batch_size=512)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"num_gpus": 0}, "num_gpus = 0: must be 1 or more"),
        ({"num_gpus": 10**9}, "num_gpus = 1000000000: must be at most 1,000,000"),
        ({"seq_length": -1}, "seq_length = -1: must be 1 or more"),
        ({"num_gpus": 60, "tensor_parallel_size": 8}, "num_gpus = 60: .*1 x 1 = 8: choose 56 or 64"),
        ({"num_gpus": 4, "tensor_parallel_size": 8}, "num_gpus = 4: .*choose 8$"),
        ({"tensor_parallel_size": 3, "num_gpus": 48}, "tensor_parallel_size = 3: .*32 attention heads.*choose 2 or 4"),
        ({"model": GROUPS, "tensor_parallel_size": 8}, "= 8: neither divides the 12 query groups.*choose 6 or 12"),
        ({"pipeline_parallel_size": 64}, "pipeline_parallel_size = 64: more stages than the 32 layers.*choose 32"),
        ({"virtual_pipeline_parallel_size": 2}, "needs pipeline_parallel_size of 2 or more: choose 1"),
        ({"pipeline_parallel_size": 8, "virtual_pipeline_parallel_size": 5}, "8 x 5 stages.*choose 4"),
        ({"pipeline_parallel_size": 8, "virtual_pipeline_parallel_size": 2}, "= 1f1b has none: .* interleaved1f1b"),
        ({"context_parallel_size": 4, "seq_length": 4100}, "seq_length = 4100: .*choose 4096 or 4104"),
        ({"global_batch_size": 100}, "global_batch_size = 100: .*64 x 1 = 64 sequences: choose 64 or 128"),
        ({"micro_batch_size": 3}, "64 x 3 = 192 sequences: choose 384 or 576"),
        ({"expert_parallel_size": 2}, "dense has no experts: choose 1"),
        ({"model": EXPERTS, "expert_parallel_size": 3}, "64 experts of experts: choose 2 or 4"),
        (EXPERT_RANKS | {"expert_tensor_parallel_size": 4}, "4 x 1 x 16 = 64, 4 times over .*: choose 16"),
        (EXPERT_RANKS | {"expert_tensor_parallel_size": 3}, "must divide tensor_parallel_size = 4: choose 2 or 4"),
        (
            {"seq_length": 4096, "model": LEARNED},
            "seq_length = 4096: learned has 2048 learned positions: .*at most 2048",
        ),
        (INTERLEAVED | {"global_batch_size": 80}, "5 micro-batches .* 4 pipeline ranks, .*: choose 64 or 128"),
        (INTERLEAVED | {"virtual_pipeline_parallel_size": 1}, "= interleaved1f1b needs several .*: choose 2 or more"),
        ({"pipeline_parallel_size": 32, "pipeline_schedule": "zbv"}, "two stages under zbv, .*32 layers.*choose 16"),
        (
            {"model": DENSE, "expert_tensor_parallel_size": 2, "tensor_parallel_size": 2},
            "dense has no experts: choose 1",
        ),
        ({"precision": "nvfp4"}, "H100 SXM 80GB has no such products: choose bf16, fp16, fp8, fp32"),
        ({"precision": "bf16", "device": find_device("V100")}, "choose fp16, fp32"),
    ],
)
def test_what_is_impossible_is_said_with_the_nearest_choice(changes, said):
    setup = replace(SETUP, **changes)
    assert not is_possible(setup)
    with pytest.raises(UserError, match=said) as error:
        check_setup(setup)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_possible_passes():
    check_setup(SETUP)
    interleaved = {"virtual_pipeline_parallel_size": 2, "pipeline_schedule": "interleaved1f1b"}
    check_setup(replace(SETUP, tensor_parallel_size=8, pipeline_parallel_size=4, **interleaved))
    check_setup(replace(SETUP, model=EXPERTS, expert_parallel_size=64))
    check_setup(replace(SETUP, **INTERLEAVED))
    ends = replace(DENSE, num_layers=30)  # embedding and output layer have stages of their own
    check_setup(replace(SETUP, model=ends, **INTERLEAVED | {"pipeline_parallel_size": 16}))
    check_setup(replace(SETUP, **EXPERT_RANKS))  # more expert ranks than data ranks: they take tensor ranks as well
    check_setup(replace(SETUP, context_parallel_size=4, tensor_parallel_size=16))


def test_the_first_precision_is_the_widest_in_use():
    assert precisions_of(find_device("B200"))[0] == "bf16" and "nvfp4" in precisions_of(find_device("B200"))
    assert precisions_of(find_device("V100"))[0] == "fp16" and "fp8" not in precisions_of(find_device("A100"))
