"""The model of a row: columns first, a known model of that name for what they leave open."""

import json

import pytest
from measured_rows import row

from analysis.cost.counts import parameters
from analysis.cost.measured_cells import NotExpressible
from analysis.cost.measured_model import model_of

LLAMA3 = {"model": "Llama-3 70B", "layers": "80", "hidden": "8192", "heads": "64"}


def test_empty_columns_are_those_of_the_known_model():
    found = model_of(row(**LLAMA3, kv_heads="", ffn="", gated="", vocab=""), [])
    assert (found.num_query_groups, found.ffn_hidden_size, found.gated, found.vocab_size) == (8, 28672, True, 128256)


def test_columns_win_over_the_name_and_another_width_is_another_model():
    assert model_of(row(**LLAMA3, kv_heads="64", vocab="32000"), []).num_query_groups == 64
    narrow = model_of(row(**LLAMA3 | {"hidden": "4096"}, kv_heads="", vocab="", ffn=""), [])
    assert (narrow.num_query_groups, narrow.ffn_hidden_size) == (64, 16384)


def test_experts_are_seen_without_expert_ranks_and_active_parameters():
    found = model_of(row(model="Mixtral 8x7B", layers="32", hidden="4096", heads="32", ffn="14336", ep=""), [])
    assert found.num_experts == 8


CONFIG = {
    "model_type": "llama", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4,
    "intermediate_size": 688, "vocab_size": 1000, "num_key_value_heads": 2,
}  # fmt: skip
NO_SIZES = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "gated"), "")


def test_a_config_json_is_read_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(CONFIG))
    for path in ("ours/config.json", "ours"):
        found = model_of(row(**NO_SIZES, model=path), [])
        assert (found.num_layers, found.num_query_groups, found.ffn_hidden_size) == (4, 2, 688)
    assert model_of(row(**NO_SIZES | {"layers": "4"}, model="ours"), []).num_layers == 4
    with pytest.raises(NotExpressible, match="layers = 8: ours has 4"):
        model_of(row(**NO_SIZES | {"layers": "8"}, model="ours"), [])
    with pytest.raises(NotExpressible, match="absent.json: No such file"):
        model_of(row(**NO_SIZES, model="absent.json"), [])


def test_what_a_config_json_leaves_open_is_said(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "ours"}))
    assumed = []
    model_of(row(**NO_SIZES, model=str(tmp_path / "config.json")), assumed)
    assert "'ours' is not known" in assumed[0]


def test_a_cut_model_keeps_the_rows_layers():
    assert model_of(row(model="DeepSeek-V3", layers="16", hidden="", heads=""), []).num_layers == 16


def test_the_stated_size_decides_what_the_columns_leave_open():
    sizes = {"layers": "16", "hidden": "2048", "heads": "16", "ffn": "8192", "vocab": "131072"}
    open_row = row(model="mine", gated="", kv_heads="", **sizes)
    plain, assumed = model_of(open_row, []), []
    gated = model_of(open_row | {"params_total_B": "1.61"}, assumed)
    assert not plain.gated and gated.gated and not gated.tie_word_embeddings
    assert parameters(gated).total == pytest.approx(1.61e9, rel=0.02)
    assert any("params_total_B" in words for words in assumed)
    assert model_of(open_row | {"params_total_B": "1.34", "gated": "yes"}, []).tie_word_embeddings


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "Llama 2 70B LoRA"}, "adapters"),
        ({"heads": "8192"}, "heads = 8192"),
        ({"layers": "1e6"}, "layers = 1000000"),
        ({"model": "my experts", "ep": "8"}, "experts, whose sizes are not given"),
        ({"model": "Mine 8x22B"}, "experts, whose sizes are not given"),
        ({"params_total_B": "70"}, "params_total_B = 70: the columns make 6.74"),
    ],
)
def test_models_that_are_not_covered_say_why(changes, reason):
    with pytest.raises(NotExpressible, match=reason):
        model_of(row(**changes), [])
