import re

import numpy as np
import pandas as pd
import pytest
from studies import isoflop_study

from analysis.table import build_table, parse_columns, read_table
from scaling.errors import UserError

MAP = {"params": "N", "tokens": "D", "loss": "L"}


def study_frame():
    return pd.DataFrame(isoflop_study()).rename(columns=MAP)


def write(tmp_path, text, name="runs.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def rows(*lines):
    good = [f"{1e4 * 2**i},{1e6 * 3**i},{3 - 0.1 * i}" for i in range(8)]
    return "N,D,L\n" + "\n".join([*good[:2], *lines, *good[2:]]) + "\n"


def test_csv_tsv_and_parquet_give_the_same_table(tmp_path):
    frame = study_frame()
    frame.to_csv(tmp_path / "runs.csv", index=False)
    frame.to_csv(tmp_path / "runs.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "runs.parquet")
    frame.to_csv(tmp_path / "semicolons.csv", index=False, sep=";", encoding="utf-8-sig")
    files = ("runs.csv", "runs.tsv", "runs.parquet", "semicolons.csv")
    tables = [read_table(tmp_path / name, MAP) for name in files]
    for table in tables:
        np.testing.assert_array_equal(table.params, frame["N"])
        np.testing.assert_array_equal(table.flops, 6 * frame["N"] * frame["D"])
        np.testing.assert_array_equal(table.flops_budget, frame["flops_budget"])
        assert table.params.dtype == np.float64


def test_integers_whose_product_overflows_int64_are_safe():
    params, tokens = [10**11, 2 * 10**11, 3 * 10**11] * 2, [10**13] * 3 + [2 * 10**13] * 2 + [3 * 10**13]
    assert build_table({"params": params, "tokens": tokens, "loss": [3.0, *[2.0] * 5]}).flops[0] == 6e24


def test_runs_that_did_not_finish_are_left_out_and_listed():
    study = isoflop_study()
    count = len(study["loss"])
    study["loss"][[1, 2]] = np.nan
    study["status"] = ["finished", "diverged", "failed"] + ["finished"] * (count - 3)
    study["reason"] = [None, float("nan"), "out of memory"] + [None] * (count - 3)
    study["schedule_finished"] = [True] * (count - 1) + [False]
    study["run_id"] = [f"run{i}" for i in range(count)]
    table = build_table(study)
    assert len(table) == count - 3
    assert [run["run_id"] for run in table.excluded] == ["run1", "run2", f"run{count - 1}"]
    assert table.excluded[0]["reason"] == "status diverged"
    assert table.excluded[1]["reason"] == "status failed: out of memory"
    assert "schedule" in table.excluded[2]["reason"]


def test_own_status_column_counts_even_when_it_is_not_mapped(tmp_path):
    frame = study_frame()
    frame["status"] = ["diverged"] + ["finished"] * (len(frame) - 1)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert len(read_table(tmp_path / "runs.csv", MAP).excluded) == 1
    frame["status"] = ["Diverged ", ""] + ["Finished"] * (len(frame) - 2)
    frame.to_csv(tmp_path / "runs.csv", index=False)
    reasons = [run["reason"] for run in read_table(tmp_path / "runs.csv", MAP).excluded]
    assert reasons == ["status diverged", "status empty"]
    frame["status"] = "PUBLISHED"
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert len(read_table(tmp_path / "runs.csv", MAP)) == len(frame)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("7e4,2e6,", "column 'L', data row 3 is empty"),
        ("70B,2e6,2.5", "column 'N', data row 3 = '70B' is not a number"),
        ("7e4,0,2.5", "column 'D', data row 3 = '0' must be above zero"),
        ("7e4,2e6,-2.5", "column 'L', data row 3 = '-2.5' must be above zero"),
        ("7e4,2e6,nan", "column 'L', data row 3 = 'nan' is not finite"),
        ("7e4,inf,2.5", "column 'D', data row 3 = 'inf' is not finite"),
        (f"{10**400},2e6,2.5", "is not finite"),
        ("7e4,2e6,1e-320", "column 'L', data row 3 = '1e-320' is no size, loss or compute that can be"),
        ('"7,000,000",2e6,2.5', "column 'N', data row 3 = '7,000,000' is not a number"),
        ("7e4,2e6", "data row 3 has 2 fields, the header has 3"),
    ],
)
def test_a_bad_value_is_named_with_its_column_and_row(tmp_path, line, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_table(write(tmp_path, rows(line)), MAP)
    assert "runs.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("N,D,L\n", "0 finished runs; a fit needs at least 6"),
        ("N,D,L\n1e4,1e6,3\n2e4,2e6,2.9\n", "2 finished runs; a fit needs at least 6"),
        ("N,D,loss\n1,1,1\n", "no column 'L' (for loss); present are N, D, loss"),
        ("N,N,L\n1,1,1\n", "column 'N' appears 2 times"),
        ("N,D,L\n" + "1e4,1e6,3\n" * 7, "column 'N' has 1 distinct value(s)"),
        ("N,D,L\n" + "".join(f"{i}e4,1e6,3\n" for i in range(1, 9)), "column 'D' has 1 distinct value(s)"),
    ],
)
def test_a_file_that_cannot_be_fitted_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_table(write(tmp_path, text), MAP)


def test_unreadable_files_are_one_clear_error(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"N,D,L\n\xff\xfe,1,1\n")
    (tmp_path / "broken.parquet").write_text("this is not parquet")
    for name, message in (
        ("absent.csv", "cannot be read (No such file or directory)"),
        ("absent.parquet", "cannot be read"),
        ("", "cannot be read (Is a directory)"),
        ("latin.csv", "is not UTF-8 text"),
        ("broken.parquet", "not a Parquet file"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            read_table(tmp_path / name, MAP)


def test_an_integer_too_large_for_a_float_and_a_column_used_twice():
    study = {"params": [10**400, 2, 3, 4, 5, 6], "tokens": [1, 2, 3, 4, 5, 6], "loss": [3.0, *[2.0] * 5]}
    with pytest.raises(UserError, match=r"data row 1 = 1000.*\.\.\. is not finite"):
        build_table(study)
    with pytest.raises(UserError, match="column 'tokens' is given for params and for tokens"):
        build_table(study, {"params": "tokens", "tokens": "tokens", "loss": "loss"})


def test_all_runs_diverged_says_so():
    study = isoflop_study()
    study["status"] = ["diverged"] * len(study["loss"])
    with pytest.raises(UserError, match="0 finished runs .42 more are left out: status diverged"):
        build_table(study)


def test_own_names_need_no_mapping_and_a_missing_one_is_named():
    assert build_table(isoflop_study()).columns["loss"] == "loss"
    study = isoflop_study()
    study["val_loss"] = study.pop("loss")
    with pytest.raises(UserError, match="no column 'loss' .*val_loss.*--columns params=params,tokens=tokens,loss=COL"):
        build_table(study)


def test_sizes_in_millions_or_billions_are_refused():
    study = isoflop_study()
    study["tokens"] = np.asarray(study["tokens"]) / 1e9
    with pytest.raises(UserError, match="'tokens' goes down to .*tokens are counted in ones"):
        build_table(study)


def test_columns_of_different_length_are_refused():
    study = isoflop_study()
    study["tokens"] = study["tokens"][:-1]
    with pytest.raises(UserError, match="differ in length"):
        build_table(study)


def test_parse_columns():
    parsed = parse_columns("params=N, tokens = D,loss=Val Loss,budget=C")
    assert parsed == {"params": "N", "tokens": "D", "loss": "Val Loss", "flops_budget": "C"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params=N,tokens=D", "loss is missing; add loss=COL"),
        ("params=N,tokens=D,loss", "'loss': must look like params=COL"),
        ("params=N,tokens=D,loss=L,size=S", "'size=S': must look like"),
        ("params=N,params=M,tokens=D,loss=L", "params is given twice"),
        ("", "must look like"),
    ],
)
def test_a_bad_mapping_is_one_clear_error(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_columns(text)


def test_a_missing_value_of_a_parquet_file_is_an_empty_cell(tmp_path):
    frame = study_frame().round({"N": 0}).astype({"N": "Int64"})
    frame.loc[3, "N"] = pd.NA
    frame.to_parquet(tmp_path / "runs.parquet")
    with pytest.raises(UserError, match="column 'N', data row 4 is empty"):
        read_table(tmp_path / "runs.parquet", MAP)


def test_runs_of_one_budget_cannot_show_a_surface():
    study = isoflop_study(budgets=1, sizes=20)
    with pytest.raises(UserError, match="one compute budget, 5.00e.10 FLOPs.*add runs at another budget"):
        build_table(study)


def test_a_form_may_need_other_columns(tmp_path):
    values = {"loss": [3.0, 2.8, 2.6, 2.5], "top1": [0.7, 0.66, 0.61, 0.57]}
    table = build_table(values, {"loss": "loss", "error": "top1"}, inputs=("loss",), target="error", min_rows=4)
    np.testing.assert_array_equal(table.column("error"), values["top1"])
    with pytest.raises(UserError, match="no column for params"):
        table.params
    with pytest.raises(UserError, match="no column 'unique_tokens'"):
        build_table(isoflop_study(), inputs=("params", "tokens", "unique_tokens"))


def test_compute_is_a_column_or_follows_from_params_and_tokens():
    study = isoflop_study()
    columns = {name: study[name] for name in ("params", "tokens", "loss")}
    table = build_table(columns, inputs=("flops",))
    np.testing.assert_allclose(table.flops, study["flops_budget"])
    assert len(build_table({"flops": study["flops_budget"], "loss": study["loss"]}, inputs=("flops",))) == 42
    assert parse_columns("flops=C,loss=L", ("flops", "loss")) == {"flops": "C", "loss": "L"}
    with pytest.raises(UserError, match="params is missing"):
        parse_columns("tokens=D,loss=L", ("flops", "loss"))


def test_some_rows_of_a_table():
    study = {**isoflop_study(), "group": [f"g{i % 3}" for i in range(42)]}
    table = build_table(study)
    part = table.take(table.loss < np.median(table.loss))
    assert len(part) == 21 and part.run_id[0] in table.run_id and set(part.group) <= {"g0", "g1", "g2"}
    np.testing.assert_array_equal(part.flops, 6 * part.params * part.tokens)


def test_a_loss_that_never_changes_is_refused():
    study = isoflop_study()
    study["loss"] = [2.5] * len(study["loss"])
    with pytest.raises(UserError, match="column 'loss' is 2.5 in every row"):
        build_table(study)
