import pytest

from analysis.cost.counts import parameters
from analysis.cost.models import find_model, known_models
from scaling.errors import UserError
from scaling.presets import PRESETS

KNOWN = known_models()


@pytest.mark.parametrize("name", KNOWN)
def test_geometry_makes_the_published_count(name):
    known = KNOWN[name]
    assert abs(parameters(known.architecture).total - known.published) <= known.rounding / 2


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.published_active])
def test_geometry_makes_the_published_active_count(name):
    # authors include both tables, the output layer alone or neither, and round to two digits
    known, counted = KNOWN[name], parameters(KNOWN[name].architecture)
    published = known.published_active * 1e9
    assert 0.97 * (counted.active - counted.embedding) <= published <= 1.03 * counted.active


def test_no_model_is_in_both_tables():
    assert not KNOWN.keys() & PRESETS.keys()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("llama3-70b", "llama3-70b"),
        ("LLAMA3_70B", "llama3-70b"),
        ("Llama 3 70B", "llama3-70b"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", "llama3-70b"),
        ("LLAMA3.1_405B", "llama3-405b"),
        ("Llama-3.1 8B (MLPerf) 8xMI355X", "llama3-8b"),
        ("LLaMA-33B", "llama-33b"),
        ("GPT OSS 120B", "gpt-oss-120b"),
        ("Qwen3_235B_a22B", "qwen3-235b-a22b"),
        ("DeepSeekV3", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-v3"),
        ("Kimi_K2", "kimi-k2"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("Nemotron-4 340B", "nemotron4-340b"),
        ("GPT3 175B", "gpt3-175b"),
        ("GPT-3 175B (davinci)", "gpt3-175b"),
        ("PaLM (540B)", "palm-540b"),
        ("google/gemma-2-9b-it", "gemma2-9b"),
    ],
)
def test_names_are_matched_loosely(spelling, name):
    assert find_model(spelling).name == name


def test_every_name_finds_its_own_model():
    for name in [*KNOWN, *PRESETS]:
        assert find_model(name).name == name


def test_a_model_cut_to_some_of_its_layers():
    cut = find_model("llama3_70b-L12")
    assert (cut.name, cut.num_layers, cut.hidden_size) == ("llama3-70b-L12", 12, 8192)
    # 1 dense layer and 3 with experts, as SimuMax's benchmarks cut it (docs/b200), without multi-token prediction
    cut = find_model("deepseekv3-L4")
    assert (cut.num_layers, cut.num_dense_layers, cut.mtp_num_layers) == (4, 1, 0)
    assert find_model("gpt-oss-20b-L6").num_windowed_layers == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama3-71b", "model = 'llama3-71b': no such model; did you mean .*llama3-7?0?b"),
        ("mixtral-8x8b", "did you mean mixtral-8x7b"),
        ("", "model = '': no such model; give the path of its config.json"),
        ("Nemotron_3_Nano", "nemotron-3 has Mamba layers, which this estimate does not cover"),
        ("DeepSeekV4 Flash", "deepseek-v4 has sparse attention"),
    ],
)
def test_an_unknown_model_gets_the_nearest_names_or_the_reason(name, message):
    with pytest.raises(UserError, match=message):
        find_model(name)
