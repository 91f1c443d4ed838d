"""What is proposed when a run does not fit."""

from dataclasses import replace

from published_memory import A100, DEEPSEEK_V2, llama

from analysis.cost.devices import CPU_CORE
from analysis.cost.memory import fits, memory
from analysis.cost.memory_remedies import remedies
from analysis.cost.setup import Setup

GIB = 2**30


def large(**fields) -> Setup:
    model = llama(80, 8192, 64, 28672)
    values = {"num_gpus": 64, "micro_batch_size": 2, "tensor_parallel_size": 8, **fields}
    return Setup(model, A100, seq_length=8192, global_batch_size=256, **values)


def test_changes_that_suffice_come_first_and_are_computed():
    setup = large()
    assert not fits(memory(setup), A100)
    found = remedies(setup)
    suffice = [remedy.fits for remedy in found]
    assert suffice[0] and suffice == sorted(suffice, reverse=True)
    for remedy in found:
        assert remedy.saved == memory(setup).device - memory(remedy.setup).device > 0
        assert remedy.fits == fits(memory(remedy.setup), A100) and remedy.setup.num_gpus == 64
    rest = [remedy.saved for remedy in found if not remedy.fits]
    assert rest == sorted(rest, reverse=True)
    assert str(found[0]) == f"sharding = zero3 saves {found[0].saved / GIB:.3g} GiB and fits"
    assert "micro_batch_size 2 -> 1" in {remedy.change for remedy in found}
    assert not any("tensor_parallel_size" in remedy.change for remedy in found), "8 tensor ranks are a whole node"


def test_where_no_single_change_suffices_pairs_and_more_gpus_are_tried():
    setup = replace(large(), num_gpus=32)
    found = remedies(setup)
    assert found[0].fits and found[0].change.startswith("recompute_granularity = full, ")
    assert any(remedy.setup.num_gpus == 64 for remedy in found)


def test_every_change_is_possible():
    experts = Setup(DEEPSEEK_V2, A100, 8, 4096, 32, expert_parallel_size=4)
    changed = {remedy.change for remedy in remedies(experts)}
    assert "expert_parallel_size 4 -> 8" in changed
    again = {remedy.change for remedy in remedies(replace(experts, expert_parallel_size=8))}
    needs_data_ranks = "expert_parallel_size", "pipeline_parallel_size"
    assert not any(change.startswith(needs_data_ranks) for change in again)
    alone = {remedy.change for remedy in remedies(Setup(llama(2, 1024, 8, 4096), A100, 1, 4096, 8))}
    assert not any("parallel_size" in change or "sharding" in change for change in alone)


def test_cores_share_one_memory():
    machine = replace(A100, name=CPU_CORE, gpus_per_node=4)
    crowded = replace(large(num_gpus=4, tensor_parallel_size=1), device=machine)
    changed = " ".join(remedy.change for remedy in remedies(crowded))
    assert "seq_length 8192 -> 4096" in changed
    assert "tensor" not in changed and "pipeline" not in changed and "num_gpus" not in changed
