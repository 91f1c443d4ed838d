"""Rows of measured runs: what is read, what is assumed, what is refused."""

import pytest
from measured_rows import row

from analysis.cost.measured import describe, measurements, read_rows
from analysis.cost.measured_cells import NotExpressible
from analysis.cost.memory import memory
from analysis.cost.step import step_time
from scaling.errors import UserError


def test_a_full_row_is_read_as_written_and_nothing_is_assumed():
    found = describe(row(vpp="2", zero_or_fsdp="zero1", cp="1"))
    run = found.setup
    assert (run.tensor_parallel_size, run.pipeline_parallel_size, run.data_parallel_size) == (2, 4, 8)
    assert (run.virtual_pipeline_parallel_size, run.num_micro_batches) == (2, 64)
    assert run.model.num_layers == 32 and run.model.gated and run.stack == "megatron"
    assert found.assumptions == ()


EXPERTS = {"model": "Mixtral 8x7B", "layers": "", "hidden": "", "heads": "", "tp": "1", "pp": "1", "dp": "64"}
OPEN_CELLS = dict.fromkeys(("micro_batch", "vpp", "recompute", "precision", "gated"), "")


@pytest.mark.parametrize("open_cells", [{}, OPEN_CELLS])
def test_the_prediction_never_sees_what_was_measured(open_cells):
    names = (
        "step_time_s tokens_per_s_per_gpu tflops_per_gpu_reported mfu_reported hfu_reported gpu_hours peak_mem_GiB "
        "mem_metric train_flops_reported usd_reported energy_reported derived_tokens_per_s_per_gpu "
        "derived_mfu_causal_bf16peak"
    )
    slow = row(**open_cells, **{name: "1000" for name in names.split()})
    assert describe(slow) == describe(row(**open_cells))


def test_ranks_that_are_missing_follow_from_the_others_and_are_said():
    found = describe(row(n_gpus="", zero_or_fsdp="zero1", vpp="1"))
    assert found.setup.num_gpus == 64 and found.assumptions == ("n_gpus = 64, the product of tp, pp, cp and dp",)
    alone = describe(row(n_gpus="1", tp="", pp="", dp="", micro_batch="4", global_batch="4"))
    assert alone.setup.data_parallel_size == 1
    fsdp = describe(row(tp="", pp="", dp="", zero_or_fsdp="FSDP", framework="torchtitan"))
    assert fsdp.setup.data_parallel_size == 64 and "only a sharding" in fsdp.assumptions[0]
    other = describe(row(dp="3"))
    assert other.setup.data_parallel_size == 8 and any("dp = 3" in words for words in other.assumptions)


def test_a_missing_batch_is_one_micro_batch_of_each_data_rank_and_is_said():
    found = describe(row(global_batch="", micro_batch="2", dp=""))
    assert found.setup.global_batch_size == 16 and any("global_batch = 16" in words for words in found.assumptions)
    assert measurements(row(global_batch="", micro_batch="2", dp="", step_time_s="", tokens_per_s_per_gpu="1024")) == (
        measurements(row(step_time_s="1"))
    )


def test_a_range_of_micro_batches_is_open_and_said():
    found = describe(row(micro_batch="1-2"))
    assert any("micro_batch = 1-2" in words for words in found.assumptions)


@pytest.mark.parametrize("name", ["8xH100 SXM", "8 x H100 80GB HBM3", "H100 SXM x8"])
def test_how_many_gpus_there_were_is_not_part_of_their_name(name):
    assert describe(row(gpu=name)).setup.device.name == "H100 SXM 80GB"


@pytest.mark.parametrize(
    ("framework", "metric", "expected"),
    [
        ("torchtitan", "", "reserved"),
        ("Megatron-Core", "", "reserved"),
        ("nanotron", "torch.cuda.max_memory_reserved", "reserved"),
        ("mine", "max_memory_allocated on the device", "allocated"),
        ("mine", "peak GPU memory", "device"),
    ],
)
def test_which_memory_was_read(framework, metric, expected):
    assert measurements(row(framework=framework, mem_metric=metric)).memory_metric == expected


def test_what_is_open_is_chosen_and_said():
    found = describe(row(micro_batch="", recompute="", vpp=""))
    assert found.setup.micro_batch_size > 1
    text = " ".join(found.assumptions)
    assert "micro_batch_size" in text and "recompute" in text and "virtual_pipeline" in text


def test_no_recomputation_that_cannot_fit_is_taken_as_full():
    found = describe(row(tp="1", pp="1", dp="64", micro_batch="32", global_batch="2048", zero_or_fsdp="zero3"))
    assert found.setup.recompute_granularity == "full"
    assert any("cannot fit" in words for words in found.assumptions)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gpu": "TPU-v5p"}, "TPU-v5p"),
        ({"seq_len": ""}, "seq_len"),
        ({"n_gpus": "", "dp": ""}, "n_gpus"),
        ({"tp": "", "pp": "", "dp": ""}, "layout"),
        ({"tp": "3"}, "does not divide"),
        ({"global_batch": "", "micro_batch": ""}, "global_batch"),
        ({"layers": "", "model": "my secret model"}, "my secret model"),
        ({"pp": "64", "tp": "1", "dp": "1"}, "32 layers"),
        ({"tp": "two"}, "tp = two"),
        ({"seq_len": "4k"}, "seq_len = 4k"),
        ({"precision": "fp8"}, "no products in fp8"),
        ({"vpp": "12"}, "virtual_pipeline_parallel_size = 12"),
        ({"vpp": "4", "pp": "1", "dp": "32"}, "virtual_pipeline_parallel_size = 4: needs pipeline"),
        ({"tp": "64", "pp": "1", "dp": "1"}, "tensor_parallel_size = 64: does not divide the 32 attention heads"),
        ({"tp": "1", "pp": "1", "dp": "1", "cp": "64", "seq_len": "100"}, "seq_length = 100: must be a multiple"),
        ({"tp": "1", "pp": "1", "dp": "64", "micro_batch": "3"}, "global_batch_size = 512: must be a multiple"),
        ({"tp": "1", "pp": "1", "dp": "64", "micro_batch": "", "global_batch": "500"}, "global_batch_size = 500"),
        ({**EXPERTS, "tp": "4", "dp": "16", "ep": "2", "etp": "3"}, "expert_tensor_parallel_size = 3: must divide"),
        ({"global_batch": "2097152"}, "are these tokens"),
        ({"global_batch": "4"}, "global_batch_size = 4: must be"),
        ({"tp": "", "pp": ""}, "dp = 8 leaves 8 GPUs"),
    ],
)
def test_rows_that_cannot_be_expressed_say_why(changes, reason):
    with pytest.raises(NotExpressible, match=reason):
        describe(row(**changes))


def test_models_with_experts_come_from_the_presets_also_when_cut():
    cut = {"model": "deepseekv3-L4", "layers": "4", "hidden": "", "heads": ""}
    found = describe(row(**cut, ep="8", tp="1", pp="1", gpu="B200-SXM", n_gpus="8"))
    assert found.setup.model.num_experts == 256 and found.setup.model.num_layers == 4
    assert found.setup.expert_parallel_size == 8


def test_expert_ranks_are_the_most_that_divide_experts_and_ranks():
    assert describe(row(**EXPERTS, ep="8")).setup.expert_parallel_size == 8
    found = describe(row(**EXPERTS, ep="6"))
    assert found.setup.expert_parallel_size == 4 and any("ep = 6" in words for words in found.assumptions)


def test_what_a_row_says_and_the_model_does_not_use_is_said():
    dense = describe(row(ep="8"))
    assert dense.setup.expert_parallel_size == 1
    assert any("ep = 8, etp = 1 are ignored: llama2-7b has no experts" in words for words in dense.assumptions)
    plain = describe(row(vpp="2", pipeline_schedule="1f1b"))
    assert any("vpp = 2 is ignored" in words for words in plain.assumptions)
    odd = describe(row(zero_or_fsdp="zero9"))
    assert any("zero_or_fsdp = zero9 is not known: sharding taken as zero1" in words for words in odd.assumptions)


def test_what_is_open_is_chosen_among_what_can_be_run():
    # with 800 micro-batches a rank one stage each would be the fastest, but is not what interleaved1f1b means
    found = describe(row(vpp="", pipeline_schedule="interleaved1f1b", global_batch="6400")).setup
    assert found.virtual_pipeline_parallel_size > 1


@pytest.mark.parametrize("name", ["step_time_s", "peak_mem_GiB", "gpu_hours"])
def test_a_measurement_that_cannot_be_read_is_named(name):
    with pytest.raises(NotExpressible, match=f"{name} = 4.1s"):
        measurements(row(**{name: "4.1s"}))


def test_a_speed_that_makes_no_step_time_says_why():
    speed = {"step_time_s": "", "tokens_per_s_per_gpu": "1000"}
    for changes, why in (({"seq_len": ""}, "seq_len is not given"), ({"tp": "3"}, "does not divide")):
        found = measurements(row(**speed, **changes))
        assert found.step_seconds is None and why in found.no_step


def test_step_time_comes_from_tokens_per_second_where_it_is_not_given():
    found = measurements(row(step_time_s="", tokens_per_s_per_gpu="3276.8"))
    assert found.step_seconds == pytest.approx(512 * 4096 / (3276.8 * 64))


def test_the_network_beside_the_gpus_name_counts():
    slow = describe(row(gpu="A100-SXM-80GB (4x100Gb RoCE/node)")).setup.device.scale_out_bandwidth
    assert slow == pytest.approx(400e9 / 8 / 8)
    assert slow < describe(row()).setup.device.scale_out_bandwidth


@pytest.mark.parametrize(
    ("changes", "schedule", "chunks"),
    [
        ({"pipeline_schedule": "1F1B", "vpp": ""}, "1f1b", 1),
        ({"pipeline_schedule": "", "vpp": "2"}, "interleaved1f1b", 2),
        ({"pipeline_schedule": "zbv", "vpp": "2"}, "zbv", 1),
        ({"framework": "Megatron-Core with DualPipe"}, "dualpipev", 1),
        ({"framework": "Megatron-LM 2023 + zero bubble"}, "zbv", 1),
        ({"framework": "Megatron-LM 2023 + zero bubble ZB-2p"}, "zb2p", 1),
        ({"pipeline_schedule": "ZB-H1", "vpp": ""}, "zb1p", 1),
        ({"pipeline_schedule": "Interleaved 1F1B", "vpp": "2"}, "interleaved1f1b", 2),
    ],
)
def test_the_pipeline_schedule_is_read(changes, schedule, chunks):
    found = describe(row(**changes)).setup
    assert (found.pipeline_schedule, found.virtual_pipeline_parallel_size) == (schedule, chunks)


def test_a_schedule_that_is_none_is_named_with_those_there_are():
    with pytest.raises(NotExpressible, match="pipeline_schedule = fast: is none of gpipe, 1f1b"):
        describe(row(pipeline_schedule="fast"))


def test_attention_that_writes_its_scores_may_be_stated():
    assert describe(row()).setup.flash_attention
    assert not describe(row(flash_attention="False")).setup.flash_attention
    assert not describe(row(framework="Megatron-LM 2023")).setup.flash_attention
    assert describe(row(framework="Megatron-LM 2023, flash attention")).setup.flash_attention


@pytest.mark.parametrize(
    ("text", "share"),
    [("every 4 layers", 0.25), ("every 4th", 0.25), ("full (8 of 32 layers)", 0.25), ("every other layer", 0.5)],
)
def test_some_layers_are_a_share_of_full_recomputation(text, share):
    found = describe(row(recompute=text)).setup
    assert (found.recompute_granularity, found.recompute_share) == ("full", share)


@pytest.mark.parametrize("text", ["bf16-true", "pure bf16", "bf16 weights and optimizer"])
def test_weights_and_optimizer_in_16_bits_are_read(text):
    assert not describe(row(precision=text)).setup.mixed_precision
    for mixed in ("bf16 (fp32 weights)", "not pure bf16", "bf16"):
        assert describe(row(precision=mixed)).setup.mixed_precision


def test_open_virtual_stages_are_even_ones():
    def stages(**changes):
        return describe(row(vpp="", **changes)).setup.virtual_pipeline_parallel_size

    assert stages(layers="31", pp="4", tp="2", dp="8") == 1, "neither 31 nor 33 layers are stages of 4 ranks"
    assert stages(layers="30", pp="4", tp="2", dp="8") in (2, 4, 8), "with embedding and output 8 a rank"
    assert stages(framework="nanotron", pipeline_schedule="interleaved", pp="4", tp="2", dp="8") > 1


def test_every_other_layer_is_half_of_full_recomputation():
    found = describe(row(recompute="selective-layer (every 2nd layer)")).setup
    assert (found.recompute_granularity, found.recompute_share) == ("full", 0.5)
    assert describe(row(recompute="full")).setup.recompute_share == 1.0


def test_tensor_ranks_share_an_expert_where_a_row_says_nothing_else_and_ranks_are_there():
    grok = row(model="grok-1", layers="", hidden="", heads="", ffn="", tp="4", pp="1", dp="32", n_gpus="128", ep="8")
    cut = row(model="qwen3-235b-a22b", layers="", hidden="", heads="", ffn="", tp="2", pp="8", dp="16", n_gpus="256")
    assert describe(grok).setup.expert_tensor_parallel_size == 4
    assert describe(grok | {"etp": "1"}).setup.expert_tensor_parallel_size == 1
    assert describe(cut | {"ep": "32"}).setup.expert_tensor_parallel_size == 1  # 32 ranks, all with other experts


def test_a_stage_of_its_own_for_the_ends_of_a_model_has_no_layer():
    found = describe(row(layers="62", pp="32", vpp="2", tp="1", dp="1", n_gpus="32", global_batch="96")).setup
    assert memory(found).allocated > 0 and step_time(found).total > 0


def test_columns_may_have_the_names_of_options(tmp_path):
    path, other = tmp_path / "short.csv", tmp_path / "long.csv"
    path.write_text("model,gpu,n_gpus,seq_len,global_batch,tp,zero_or_fsdp\nllama3-8b,H100,64,4096,512,2,zero3\n")
    names = "model,gpu,num_gpus,seq_length,global_batch_size,tensor_parallel_size,sharding"
    other.write_text(path.read_text().replace(path.read_text().splitlines()[0], names))
    short, long = (describe(read_rows(table)[0]).setup for table in (path, other))
    assert short == long and long.tensor_parallel_size == 2 and long.sharding == "zero3"


@pytest.mark.parametrize(
    "names",
    [
        "Model,GPU,num-gpus,Seq Length,Global-Batch-Size,TP,ZERO_or_FSDP,Tokens_T,peak_mem_gib",
        "MODEL,gpu,N_GPUS,seq_len,global_batch,tensor-parallel-size,--sharding,TOKENS_T,Peak-Mem-GiB",
    ],
)
def test_columns_may_be_written_with_hyphens_and_in_any_case(tmp_path, names):
    path = tmp_path / "runs.csv"
    path.write_text(f"{names}\nllama3-8b,H100,64,4096,512,2,zero3,15,40\n")
    (found,) = read_rows(path)
    assert describe(found).setup.tensor_parallel_size == 2 and describe(found).setup.sharding == "zero3"
    assert found["tokens_T"] == "15" and measurements(found).peak_gib == 40


def test_two_columns_of_one_meaning_may_not_differ(tmp_path):
    path = tmp_path / "runs.csv"
    head = "model,gpu,n_gpus,tp,tensor_parallel_size\nllama3-8b,H100,64,2,2\nllama3-8b,H100,64,,4\n"
    path.write_text(head)
    assert [found["tp"] for found in read_rows(path)] == ["2", "4"]
    path.write_text(head + "llama3-8b,H100,64,2,4\n")
    with pytest.raises(UserError, match="line 4: tp = 2 and tensor_parallel_size = 4 mean the same"):
        read_rows(path)
    path.write_text("model,gpu,n_gpus,tp,tp\nllama3-8b,H100,64,2,4\n")
    with pytest.raises(UserError, match="tp = 2 and tp = 4"):
        read_rows(path)


def test_a_comma_that_shifts_the_columns_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("model,gpu,n_gpus\nllama3-8b,H100,1,024\n")
    with pytest.raises(UserError, match="line 2: has 4 cells for 3 columns"):
        read_rows(path)


def test_rows_without_an_id_go_by_their_line(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("id,model,gpu,n_gpus\n,llama3-8b,H100,8\n\nmine,llama3-8b,H100,8\n,llama3-8b,H100,8\n")
    assert [found["id"] for found in read_rows(path)] == ["line 2", "mine", "line 5"]


def test_a_table_without_the_columns_is_one_clear_error(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("name,speed\na,1\n")
    with pytest.raises(UserError, match="model, gpu, n_gpus"):
        read_rows(path)
    path.write_text("model,gpu,n_gpus\n")
    with pytest.raises(UserError, match="no rows"):
        read_rows(path)


@pytest.mark.parametrize(
    ("framework", "stack"),
    [
        ("fsdp_compiled", "fsdp_compiled"),
        ("megatron_2021", "megatron_2021"),
        ("untuned", "untuned"),
        ("FSDP2 compiled", "fsdp_compiled"),
        ("FSDP2, uncompiled", "fsdp_eager"),
        ("MosaicML llm-foundry FSDP", "fsdp_eager"),
        ("Megatron-Bridge 26.02", "megatron"),
    ],
)
def test_software_is_known_by_its_name(framework, stack):
    assert describe(row(framework=framework)).setup.stack == stack
