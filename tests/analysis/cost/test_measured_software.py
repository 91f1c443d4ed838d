"""Rows of measured runs: what their software is, and what software of its day did."""

from dataclasses import replace

import pytest
from measured_rows import row

from analysis.cost.measured import describe
from analysis.cost.measured_cells import month_of


def test_software_is_that_of_its_day():
    def stack(**changes):
        return describe(row(framework="", **changes)).setup.stack

    assert stack(date="2022-07") == "megatron_2021" and stack(date="2024-01") == stack() == "megatron"
    assert stack(date="07/2024") == stack(date="2023") == "megatron" and stack(date="2022") == "megatron_2021"
    assert describe(row(framework="Megatron-LM", date="2021-04")).setup.stack == "megatron_2021"
    assert describe(row(framework="HF Accelerate + DeepSpeed", date="2025-06")).setup.stack == "fsdp_eager"
    assert stack(date="2022-07", gpu="H100", precision="fp8") == "megatron", "there was no fp8 then"
    said = describe(row(framework="", date="2022-07")).assumptions
    assert "software not given: taken for the stack megatron_2021, by its layout and date" in said


@pytest.mark.parametrize(
    ("framework", "date", "loss"),
    [
        ("torchtitan 2024-12, torch.compile", "2024-12", "whole"),
        ("torchtitan, torch.compile", "2025-06", "compiled"),
        ("torchtitan, no torch.compile", "2025-06", "whole"),
        ("torchtitan, no torch.compile", "2026-06", "chunked"),
        ("torchtitan, torch.compile", "", "chunked"),
        ("nanoGPT, torch.compile", "2023-02", "compiled"),
        ("litgpt, torch.compile", "2025-06", "whole"),
        ("torchtune, torch.compile, chunked output loss", "2024-11", "chunked"),
    ],
)
def test_how_the_software_has_its_loss(framework, date, loss):
    assert describe(row(framework=framework, date=date)).setup.loss == loss


@pytest.mark.parametrize(
    ("date", "fused"), [("26.04", False), ("26.04.01", False), ("26.06", True), ("2026-05", False), ("", True)]
)
def test_experts_are_fused_since_a_release(date, fused):
    moe = {"model": "Mixtral 8x7B", "layers": "", "hidden": "", "heads": "", "tp": "1", "pp": "1", "dp": "64"}
    moe |= {"precision": "mxfp8", "gpu": "B200-SXM"}
    found = describe(row(**moe, date=date)).setup
    assert found.fuses_experts == fused
    assert not replace(found, precision="bf16").fuses_experts


@pytest.mark.parametrize(
    ("date", "month"),
    [
        ("2025-03-01", "2025-03"), ("2025/3", "2025-03"), ("03/2025", "2025-03"), ("1.3.2025", "2025-03"),
        ("25.03", "2025-03"), ("v25.03.01", "2025-03"), ("Mar 2025", "2025-03"), ("2025", "2025"), ("Q1 2025", "2025"),
        ("2026-13", "2026"), ("soon", None), ("", None),
    ],
)  # fmt: skip
def test_dates_are_read_as_people_write_them(date, month):
    assert month_of(row(date=date)) == month
    said = "date = soon: its software is taken for today's"
    assert (said in describe(row(date=date)).assumptions) == (date == "soon")


TITAN = {"micro_batch": "", "vpp": "", "tp": "2", "pp": "4", "dp": "8", "global_batch": "256"}


@pytest.mark.parametrize(
    ("framework", "date", "micro_batch", "chunks"),
    [
        ("torchtitan 2024-12", "2024-12", 8, 1),
        ("torchtitan 2024-12, Interleaved 1F1B", "2024-12", 4, 2),
        ("torchtitan 2025-06", "2025-06", 1, 1),
    ],
)
def test_torchtitans_micro_batch_is_its_default_of_the_day(framework, date, micro_batch, chunks):
    """Before 2025-04 there were as many micro-batches as stages: 32 sequences of a rank over 4 or 8."""
    found = describe(row(framework=framework, date=date, **TITAN))
    assert (found.setup.micro_batch_size, found.setup.virtual_pipeline_parallel_size) == (micro_batch, chunks)
    assert f"micro_batch_size = {micro_batch}, the software's default" in found.assumptions
    assert "micro_batch_size" not in found.open_fields


def test_a_batch_that_stages_do_not_divide_leaves_the_micro_batch_open():
    found = describe(row(framework="torchtitan", date="2024-12", **TITAN | {"global_batch": "48"}))
    assert "micro_batch_size" in found.open_fields, "6 sequences of a rank over 4 stages"


def test_a_flat_batch_of_torchtitan_was_not_accumulated_until_it_could_be():
    flat = TITAN | {"tp": "1", "pp": "1", "dp": "64", "global_batch": "192", "zero_or_fsdp": "FSDP"}
    assert describe(row(framework="torchtitan", date="2024-12", **flat)).setup.micro_batch_size == 3
    assert "micro_batch_size" in describe(row(framework="torchtitan", date="2025-09", **flat)).open_fields
