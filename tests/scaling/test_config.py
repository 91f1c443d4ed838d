import pytest

from scaling.config import ModelConfig, build_config, load_config
from scaling.errors import UserError


def test_yaml_round_trip_keeps_the_run(run_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(run_config.to_yaml())
    assert load_config(path) == run_config


def test_how_a_run_is_carried_out_is_not_part_of_its_identity(run_config, run_values):
    run_values["data"]["name"] = "renamed"
    run_values["execution"] |= {"num_threads": 7, "dtype": "bfloat16", "micro_batch_size": 2, "log_interval": 5}
    run_values["parallel"] = {"data_parallel_size": 2}
    assert build_config(run_values, "test").run_id == run_config.run_id


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "train_steps=31",
        "model.num_layers=3",
        "optimizer.weight_decay=0.2",
        "schedule.warmup_steps=4",
        "data.fingerprint=x",
    ],
)
def test_everything_that_decides_what_is_learned_is(run_config, run_values, override):
    assert build_config(run_values, "test", [override]).run_id != run_config.run_id


def test_the_run_id_of_a_config_never_changes(run_values):
    """Finished sweeps are found again by it: a change here orphans every result that anybody has."""
    run_values["data"] |= {"name": "cats", "fingerprint": "0" * 64}
    assert build_config(run_values, "test").run_id == "d9df8dddd037b98f"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layers=0", ["model.num_layers", "0", "greater than 0"]),
        ("model.num_layer=2", ["model.num_layer", "no such field"]),
        ("model.num_query_groups=3", ["num_query_groups = 3", "num_attention_heads = 2"]),
        ("model.hidden_size=17", ["hidden_size = 17", "num_attention_heads = ", "kv_channels"]),
        ("model=gtp2-small", ["gtp2-small", "gpt2-small"]),
        ("model.kv_channels=7", ["even number of rotated channels", "kv_channels = 7"]),
        ("model.position_embedding=learned", ["max_position_embeddings"]),
        ("optimizer.learning_rate=.inf", ["optimizer.learning_rate", "finite"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "'fast'", "number"]),
        ("schedule.warmup_steps=40", ["warmup_steps", "40", "train_steps = 30"]),
        ("schedule.name=wsd", ["decay_steps", "wsd"]),
        ("execution.micro_batch_size=3", ["global_batch_size = 4", "3"]),
        ("execution.dtype=float8", ["execution.dtype", "float8", "bfloat16"]),
        ("seed", ["--set seed", "optimizer.learning_rate=0.003"]),
        ("data.name.first=3", ["name is a value"]),
    ],
)
def test_a_mistake_is_one_line_with_field_value_and_remedy(run_values, override, words):
    with pytest.raises(UserError) as error:
        build_config(run_values, "run.yaml", [override])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: [1, 2", ["not valid YAML", "line"]),
        (b"\xff\xfe", ["not UTF-8"]),
        (b"- 1\n", ["must be a mapping"]),
        (b"", ["must be a mapping"]),
        (b"model: !!python/object/apply:os.system ['true']", ["not valid YAML"]),
        (b"{}", ["model", "required"]),
    ],
)
def test_bad_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml.*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_sizes_left_out_are_filled_in():
    config = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
    assert (config.num_query_groups, config.kv_channels, config.ffn_hidden_size) == (4, 8, 88)
    assert ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=4, activation="gelu").ffn_hidden_size == 128


def test_a_preset_names_a_model(run_values):
    run_values["model"] = "gpt2-small"
    config = build_config(run_values, "test", ["model.num_layers=3"])
    assert (config.model.hidden_size, config.model.num_layers, config.model.normalization) == (768, 3, "layernorm")
    assert build_config(run_values, "test", ["model=gpt2-medium", "model.num_layers=3"]).model.hidden_size == 1024
    run_values["model"] = "gtp2-small"
    with pytest.raises(UserError, match="gtp2-small.*gpt2-small"):
        build_config(run_values, "test")
