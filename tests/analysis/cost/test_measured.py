"""Rows of measured runs: what is read, what is assumed, what is refused."""

import pytest
from measured_rows import row

from analysis.cost.measured import NotExpressible, describe, measurements, read_rows
from scaling.errors import UserError


def test_a_full_row_is_read_as_written_and_nothing_is_assumed():
    found = describe(row(vpp="2", zero_or_fsdp="zero1", cp="1"))
    run = found.setup
    assert (run.tensor_parallel_size, run.pipeline_parallel_size, run.data_parallel_size) == (2, 4, 8)
    assert (run.virtual_pipeline_parallel_size, run.num_micro_batches) == (2, 64)
    assert run.model.num_layers == 32 and run.model.gated and run.stack == "megatron"
    assert found.assumptions == ()


def test_the_prediction_never_sees_what_was_measured():
    slow = row(step_time_s="1000", tokens_per_s_per_gpu="1", mfu_reported="0.01", peak_mem_GiB="1", tflops_per_gpu_reported="9")
    assert describe(slow).setup == describe(row()).setup


def test_what_is_open_is_chosen_and_said():
    found = describe(row(micro_batch="", recompute="", vpp=""))
    assert found.setup.micro_batch_size > 1
    text = " ".join(found.assumptions)
    assert "micro_batch_size" in text and "recompute" in text and "virtual_pipeline" in text


def test_no_recomputation_that_cannot_fit_is_taken_as_full():
    found = describe(row(tp="1", pp="1", dp="64", micro_batch="32", global_batch="2048", zero_or_fsdp="zero3"))
    assert found.setup.recompute == "full"
    assert any("cannot fit" in words for words in found.assumptions)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "TPU-v5p"}, "TPU-v5p"),
        ({"seq_len": ""}, "seq_len"),
        ({"n_gpus": ""}, "n_gpus"),
        ({"tp": "", "pp": "", "dp": ""}, "layout"),
        ({"tp": "3"}, "does not divide"),
        ({"global_batch": "", "micro_batch": ""}, "global_batch"),
        ({"layers": "", "model": "my secret model"}, "my secret model"),
        ({"pp": "64", "tp": "1", "dp": "1"}, "32 layers"),
    ],
)
def test_rows_that_cannot_be_expressed_say_why(changes, reason):
    with pytest.raises(NotExpressible, match=reason):
        describe(row(**changes))


def test_models_with_experts_come_from_the_presets_also_when_cut():
    found = describe(row(model="deepseekv3-L4", layers="4", hidden="", heads="", ep="8", tp="1", pp="1", gpu="B200-SXM", n_gpus="8"))
    assert found.setup.model.num_experts == 256 and found.setup.model.num_layers == 4
    assert found.setup.expert_parallel_size == 8


def test_step_time_comes_from_tokens_per_second_where_it_is_not_given():
    found = measurements(row(step_time_s="", tokens_per_s_per_gpu="3276.8"))
    assert found.step_seconds == pytest.approx(512 * 4096 / (3276.8 * 64))


def test_the_network_beside_the_gpus_name_counts():
    slow = describe(row(gpu="A100-SXM-80GB (4x100Gb RoCE/node)")).setup.device.scale_out_bandwidth
    assert slow == pytest.approx(400e9 / 8 / 8)
    assert slow < describe(row()).setup.device.scale_out_bandwidth


def test_a_table_without_the_columns_is_one_clear_error(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("name,speed\na,1\n")
    with pytest.raises(UserError, match="model, gpu, n_gpus"):
        read_rows(path)
    path.write_text("model,gpu,n_gpus\n")
    with pytest.raises(UserError, match="no rows"):
        read_rows(path)
