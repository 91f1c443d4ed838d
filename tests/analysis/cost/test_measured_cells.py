"""Cells of a table of measured runs, in the spellings that people use."""

import pytest

from analysis.cost.measured_cells import NotExpressible, flag, number, precision, recompute, sharding, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [("1024", 1024), ("1024.0", 1024), ("1,024", 1024), (" 1 024 ", 1024), ("1e3", 1000), ("", None), ("N/A", None)],
)
def test_whole_numbers(text, value):
    assert whole({"seq_len": text}, "seq_len") == value


@pytest.mark.parametrize("text", ["8k", "1-2", "-1", "0", "2.5", "1e300", "inf", "two", "12,5"])
def test_what_is_no_whole_number_is_not_taken_for_nothing(text):
    with pytest.raises(NotExpressible, match="seq_len"):
        whole({"seq_len": text}, "seq_len")


def test_an_axis_of_zero_is_not_used():
    assert whole({"cp": "0"}, "cp") is None


@pytest.mark.parametrize("text", ["", "nan", "-", "N/A"])
def test_numbers_that_nobody_gave_are_not_there(text):
    assert number({"step_time_s": text}, "step_time_s") is None


@pytest.mark.parametrize("text", ["OOM", "-3", "0", "inf", "1e999", "4.1s", "12,5"])
def test_numbers_that_cannot_be_read_are_named(text):
    with pytest.raises(NotExpressible, match=f"step_time_s = {text}: is not a number above 0"):
        number({"step_time_s": text}, "step_time_s")


@pytest.mark.parametrize(
    ("text", "value"),
    [("TRUE", True), ("Yes", True), ("1.0", True), ("SwiGLU", True), ("no", False), ("False", False), ("", None)],
)
def test_flags(text, value):
    assert flag({"gated": text}, "gated") is value


def test_a_flag_that_is_neither_is_refused():
    with pytest.raises(NotExpressible, match="gated = perhaps"):
        flag({"gated": "perhaps"}, "gated")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("BF16-mixed", "bf16"),
        ("bfloat16", "bf16"),
        ("16-mixed", "fp16"),
        ("bf16 + fp8", "fp8"),
        ("float8", "fp8"),
        ("bf16 with float8 rowwise", "fp8"),
        ("FP8-DS", "fp8"),
        ("FP8-CS", "fp8"),
        ("delayed scaling", "fp8"),
        ("FP8-MX", "mxfp8"),
        ("MXFP8", "mxfp8"),
        ("NVFP4", "nvfp4"),
        ("tf32", "fp32"),
        ("mixed", None),
        ("", None),
    ],
)
def test_precisions(text, value):
    assert precision({"precision": text}) == value


def test_an_unknown_precision_is_not_taken_for_bf16():
    with pytest.raises(NotExpressible, match="int8"):
        precision({"precision": "int8"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("none", "none"),
        ("none (8K stage)", "none"),
        ("0", "none"),
        ("False", "none"),
        ("selective_core_attn", "selective"),
        ("selective-AC", "selective"),
        ("op", "selective"),
        ("SAC", "selective"),
        ("full", "full"),
        ("full (option 2)", "full"),
        ("block", "full"),
        ("uniform", "full"),
        ("1", "full"),
        ("", None),
        ("n/a", None),
        ("21", None),
    ],
)
def test_recomputation(text, value):
    assert recompute({"recompute": text}) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("zero0", "none"),
        ("ZeRO stage 3", "zero3"),
        ("zero-2", "zero2"),
        ("zero1 (distributed optimizer)", "zero1"),
        ("1.0", "zero1"),
        ("distributed-optimizer", "zero1"),
        ("DDP", "none"),
        ("distributed data parallel", "none"),
        ("none", "none"),
        ("FSDP2", "zero3"),
        ("FSDP (ZeRO-2 like)", "zero2"),
        ("SHARD_GRAD_OP", "zero2"),
        ("HYBRID_SHARD", "zero3"),
        ("", None),
        ("whatever", None),
        ("zero9", None),
        ("zero12", None),
    ],
)
def test_sharding(text, value):
    assert sharding({"zero_or_fsdp": text}) == value


def test_a_precision_that_changed_on_a_day_is_that_of_the_rows_day():
    cell = "bf16(fp32 grad accum from 02-28)/fp16"
    days = {"2022-02-27": "fp16", "2022-02-28": "bf16", "2022-03-01": "bf16"}
    assert {day: precision({"precision": cell, "date": day}) for day in days} == days
    assert precision({"precision": "fp8 / bf16", "date": "2022-02-27"}) == "fp8"
