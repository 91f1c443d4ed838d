"""Exported folders as transformers sees them, imported weights as our model sees them."""

import json
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from parallel.mesh import Axis
from scaling.checkpoint import Checkpointer, Piece
from scaling.cli import main
from scaling.config import ModelConfig, RunConfig, build_config
from scaling.data.dataset import validation_batch
from scaling.errors import UserError
from scaling.export import export_run, import_weights
from scaling.huggingface import from_huggingface, to_huggingface
from scaling.initialisation import initialise
from scaling.model import Transformer
from scaling.train import train

BASE = {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 509}
WIDE = {"num_query_groups": 2, "kv_channels": 20, "rotary_base": 500.0, "norm_epsilon": 0.03}
VARIANTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "grouped queries": {"num_query_groups": 2, "tie_word_embeddings": False},
    "wide heads, other base and epsilon": {**WIDE, "ffn_hidden_size": 36, "init_method_std": 0.1},
    "qk_norm": {"qk_norm": True},
    "qk_norm, wide heads, untied": {**WIDE, "qk_norm": True, "tie_word_embeddings": False},
    "qk_norm, heads that do not divide the width": {"qk_norm": True, "hidden_size": 50, "kv_channels": 12},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.fixture(scope="module")
def transformers():
    """The library, never online."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            import transformers
        except ImportError:
            reason = "transformers is missing, exported logits are NOT compared with it: pip install -e '.[test,hf]'"
            warnings.warn(reason)
            pytest.skip(reason)
        yield transformers


def _model(variant: dict, dtype: torch.dtype = torch.float32) -> Transformer:
    """Random weights everywhere, norms included, so that none can be left out or misplaced unnoticed."""
    config = ModelConfig(**{**BASE, **variant})
    model = Transformer(config)
    initialise(model, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * (parameter.std() or 1.0) * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype)


def _weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _ids(vocab_size: int = 509) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, 40), generator=torch.Generator().manual_seed(3))


def _write(folder, weights: dict[str, torch.Tensor], values: dict) -> None:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(values))


def _load(transformers, folder, dtype: torch.dtype = torch.float32):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info.values()), info
    return model


def _compute_in_float64(model, base: float) -> None:
    """transformers computes norms and angles in float32 whatever the weights are: put float64 in their place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if name.endswith("norm"):
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    head = model.config.head_dim
    frequency = base ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    angle = torch.outer(torch.arange(40, dtype=torch.float64), torch.cat((frequency, frequency)))[None]
    model.model.rotary_emb.forward = lambda x, position_ids: (angle.cos(), angle.sin())


@torch.no_grad()
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"]
)
@every_variant
def test_transformers_computes_the_same_logits(transformers, tmp_path, variant, dtype, tolerance):
    model = _model(variant, dtype)
    _write(tmp_path / "hf", *to_huggingface(_weights(model), model.config, 40))
    other = _load(transformers, tmp_path / "hf", dtype)
    assert type(other).__name__ == ("Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM")
    if dtype == torch.float64:
        _compute_in_float64(other, model.config.rotary_base)
    ours, theirs = model.logits(_ids()), other(_ids()).logits
    assert ours.dtype == theirs.dtype == dtype
    assert (ours - theirs).abs().max() <= tolerance * ours.abs().max()


@every_variant
def test_there_and_back_changes_no_bit(variant):
    model = _model(variant)
    named, values = to_huggingface(_weights(model), model.config, 40)
    back, config = from_huggingface(named, json.loads(json.dumps(values)), "test")
    assert config == model.config
    assert back.keys() == _weights(model).keys()
    assert all(back[name].equal(weight) for name, weight in _weights(model).items())


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
def test_what_transformers_saves_in_several_files_can_be_imported(transformers, tmp_path, qk_norm):
    geometry = {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 509, "head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
        "rms_norm_eps": 0.01, "initializer_range": 0.2,
    }  # fmt: skip
    kind = transformers.Qwen3Config if qk_norm else transformers.LlamaConfig
    torch.manual_seed(4)
    theirs = transformers.AutoModelForCausalLM.from_config(kind(**geometry)).to(torch.bfloat16)
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    import_weights(tmp_path / "hf", tmp_path / "ours.safetensors")
    config = ModelConfig(**yaml.safe_load((tmp_path / "ours.yaml").read_text())["model"])
    model, weights = Transformer(config), load_file(tmp_path / "ours.safetensors")
    model.load_state_dict(weights)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    expected = _load(transformers, tmp_path / "hf")(_ids()).logits
    assert (model.logits(_ids()) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_config_json_as_transformers_4_writes_it(tmp_path):
    model = _model(WIDE)
    named, values = to_huggingface(_weights(model), model.config, 40)
    del values["rope_parameters"], values["dtype"]
    values |= {"rope_scaling": None, "torch_dtype": "float32", "pretraining_tp": 1, "mlp_bias": False}
    named |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(10),
        "lm_head.weight": named["model.embed_tokens.weight"].clone(),
    }
    _write(tmp_path, named, values)
    import_weights(tmp_path, tmp_path / "ours.safetensors")
    back = load_file(tmp_path / "ours.safetensors")
    assert all(back[name].equal(weight) for name, weight in _weights(model).items())


def test_fields_left_out_of_config_json_are_what_llama_takes_them_for():
    variant = {"tie_word_embeddings": False, "norm_epsilon": 1e-6, "rotary_base": 10000.0}
    model = _model(variant)
    named, values = to_huggingface(_weights(model), model.config, 40)
    for field in (
        "tie_word_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "num_key_value_heads",
        "head_dim",
    ):
        del values[field]
    assert from_huggingface(named, values, "test")[1] == model.config


def _save_run(run_dir, config: RunConfig, step: int = 30) -> dict[str, torch.Tensor]:
    """A run directory with one checkpoint, whose matrices several ranks wrote in pieces; returns its weights."""
    weights = _weights(_model(config.model.model_dump()))
    if config.execution.dtype == "float64":
        weights = {name: weight.double() for name, weight in weights.items()}
    pieces = []
    for name, weight in weights.items():
        dim = 1 if name.endswith(("attention.output.weight", "mlp.down.weight")) else 0
        start = [0] * weight.dim()
        for cut in weight.chunk(3, dim):
            place = (tuple(weight.shape), tuple(start))
            pieces += [Piece(f"weights/{name}", *place, cut), Piece(f"moments/{name}", *place, torch.zeros_like(cut))]
            start[dim] += cut.shape[dim]
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(config.to_yaml())
    Checkpointer(run_dir / "checkpoints", 2, Axis()).save(step, pieces, {"run_id": config.run_id})
    return weights


def test_an_exported_run_has_the_recorded_loss_and_its_tokenizer(transformers, run_config, corpus, tmp_path):
    record = train(run_config, tmp_path / "run", corpus.path)
    export_run(tmp_path / "run", tmp_path / "hf", pytest.fail)
    model = _load(transformers, tmp_path / "hf")
    sequences = torch.from_numpy(validation_batch(corpus, 32, 16))
    with torch.no_grad():
        logits = model(sequences[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten())
    assert loss.item() == pytest.approx(record.evaluation.loss, rel=1e-5)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = bytes(range(1, 128)).decode() + " Übung: naïve 漢字 🙂 Ā\n\n  def f(x):\treturn 'x'\r\n"
    ids = tokenizer(text).input_ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    end = corpus.end_of_document
    assert tokenizer(f"one{chr(end)}two").input_ids == [*b"one", end, *b"two"]
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == end


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_of_several_ranks_comes_back_to_the_bit(run_values, tmp_path, dtype):
    run_values["execution"]["dtype"] = dtype
    config = build_config(run_values, "test")
    weights = _save_run(tmp_path / "run", config)
    export_run(tmp_path / "run", tmp_path / "hf", pytest.fail)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == dtype
    import_weights(tmp_path / "hf", tmp_path / "w.safetensors")
    back = load_file(tmp_path / "w.safetensors")
    assert back.keys() == weights.keys()
    assert all(back[name].equal(weight) and back[name].dtype == weight.dtype for name, weight in weights.items())
    assert ModelConfig(**yaml.safe_load((tmp_path / "w.yaml").read_text())["model"]) == config.model


def test_a_damaged_checkpoint_is_named_passed_over_and_left_where_it_is(run_config, tmp_path):
    _save_run(tmp_path / "run", run_config, 10)
    _save_run(tmp_path / "run", run_config, 20)
    newest = tmp_path / "run" / "checkpoints" / "step-00000020"
    (newest / "tensors-00000.safetensors").write_bytes(b"")
    warnings = []
    assert export_run(tmp_path / "run", tmp_path / "hf", warnings.append)["step"] == 10
    assert len(warnings) == 1 and "step-00000020 is damaged" in warnings[0] and newest.is_dir()


def test_tokens_of_another_tokenizer_are_exported_without_one(run_values, tmp_path):
    run_values["data"]["tokenizer"] = "theirs"
    _save_run(tmp_path / "run", build_config(run_values, "test"))
    assert export_run(tmp_path / "run", tmp_path / "hf", pytest.fail)["files"] == ["config.json", "model.safetensors"]
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["bos_token_id"] is values["eos_token_id"] is None, "not the 1 and 2 that Llama's config falls back to"


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def run(capfd):
    """Run the command line; (exit code, stdout, stderr)."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def mistake(run):
    """Run the command line with a mistake; the one line that stderr shows."""

    def call(*arguments):
        code, out, err = run(*arguments)
        assert code == 2, out + err
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1, err
        return err

    return call


def test_export_and_import_by_hand(run, run_config, tmp_path):
    weights = _save_run(tmp_path / "run", run_config)
    parameters = sum(weight.numel() for weight in weights.values())
    code, out, _ = run("export", tmp_path / "run", tmp_path / "deep" / "hf", "--json")
    done = json.loads(out)
    assert code == 0 and (done["run_id"], done["step"], done["parameters"]) == (run_config.run_id, 30, parameters)
    assert sorted(path.name for path in (tmp_path / "deep" / "hf").iterdir()) == done["files"]
    code, out, _ = run("import", tmp_path / "deep" / "hf", "--to", tmp_path / "new" / "w.safetensors", "--json")
    assert code == 0 and json.loads(out)["parameters"] == parameters
    Transformer(run_config.model).load_state_dict(load_file(tmp_path / "new" / "w.safetensors"))

    modes = {path.stat().st_mode for path in (*(tmp_path / "deep" / "hf").iterdir(), *(tmp_path / "new").iterdir())}
    assert len(modes) == 1, "whoever may read the config may read the weights"

    assert "LlamaForCausalLM in" in run("export", tmp_path / "run", tmp_path / "again")[1]
    assert "w2.yaml" in run("import", tmp_path / "again", "--to", tmp_path / "w2.safetensors")[1]
    for verb in ("export", "import"):
        code, out, _ = run(verb, "--help")
        assert code == 0 and "--json" in out


INEXPRESSIBLE = {
    "normalization = layernorm": {"normalization": "layernorm"},
    "position_embedding = learned": {"position_embedding": "learned", "max_position_embeddings": 64},
    "position_embedding = relative": {"position_embedding": "relative"},
    "position_embedding = none": {"position_embedding": "none"},
    "activation = gelu": {"activation": "gelu"},
    "add_bias_linear = True": {"add_bias_linear": True},
    "parallel_residual = True": {"parallel_residual": True},
    "rotary_percent = 0.5": {"rotary_percent": 0.5},
    "hidden_size = 50": {"hidden_size": 50, "kv_channels": 12},
}


@pytest.mark.parametrize("said, variant", INEXPRESSIBLE.items(), ids=INEXPRESSIBLE.keys())
def test_a_model_that_llama_cannot_express_is_refused_by_field(said, variant):
    model = _model(variant)
    with pytest.raises(UserError, match=f"model.{said}: "):
        to_huggingface(_weights(model), model.config, 40)


def test_mistakes_of_export(mistake, run_config, tmp_path):
    run_dir = tmp_path / "run"
    _save_run(run_dir, run_config)
    assert "holds no config.yaml" in mistake("export", tmp_path / "nowhere", tmp_path / "hf")
    assert "is there already" in mistake("export", run_dir, run_dir)
    assert "cannot be written" in mistake("export", run_dir, run_dir / "config.yaml" / "hf")
    (tmp_path / "untrained").mkdir()
    (tmp_path / "untrained" / "config.yaml").write_text(run_config.to_yaml())
    assert "no whole checkpoint" in mistake("export", tmp_path / "untrained", tmp_path / "hf")
    (run_dir / "config.yaml").write_text(run_config.to_yaml().replace("seed: 1234", "seed: 7"))
    assert f"belongs to run {run_config.run_id}" in mistake("export", run_dir, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


FOREIGN = {
    "model_type = 'gpt2'": {"model_type": "gpt2"},
    "model_type = None": {"model_type": None},
    "rope_type = 'llama3'": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}},
    "rope_type = 'linear'": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope_parameters = 3": {"rope_parameters": 3},
    "partial_rotary_factor = 0.5": {"partial_rotary_factor": 0.5},
    "attention_bias = True": {"attention_bias": True},
    "hidden_act = 'gelu'": {"hidden_act": "gelu"},
    "use_sliding_window = True": {"use_sliding_window": True},
    "num_layers: Field required": {"num_hidden_layers": None},
    "hidden_size = 'wide'": {"hidden_size": "wide"},
    "1 missing (lm_head.weight)": {"tie_word_embeddings": False},
    "9 surplus (model.layers.1": {"num_hidden_layers": 1},
    "of another shape (model.embed_tokens.weight (509, 48) instead of (510, 48)": {"vocab_size": 510},
}


@pytest.mark.parametrize("said, changes", FOREIGN.items(), ids=FOREIGN.keys())
def test_a_model_that_is_not_ours_is_refused_by_field(mistake, tmp_path, said, changes):
    model = _model({})
    named, values = to_huggingface(_weights(model), model.config, 40)
    _write(tmp_path / "hf", named, {**values, **changes})
    assert said in mistake("import", tmp_path / "hf", "--to", tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists() and not (tmp_path / "w.yaml").exists()


def test_mistakes_of_import(mistake, tmp_path):
    model, folder, target = _model({}), tmp_path / "hf", tmp_path / "w.safetensors"
    named, values = to_huggingface(_weights(model), model.config, 40)
    _write(folder, named, values)
    assert "must end in .safetensors" in mistake("import", folder, "--to", tmp_path / "w.pt")
    assert "is not a directory" in mistake("import", "meta-llama/Llama-2-7b", "--to", target)
    (tmp_path / "w.yaml").touch()
    assert "w.yaml is there already" in mistake("import", folder, "--to", target)
    (tmp_path / "w.yaml").unlink()
    for quantised in (torch.int8, torch.float8_e4m3fn):
        _write(folder, named | {"model.norm.weight": torch.ones(48).to(quantised)}, values)
        assert f"final_norm.weight is {quantised}" in mistake("import", folder, "--to", target)
    (folder / "model.safetensors").write_bytes(b"half a fi")
    assert "model.safetensors: cannot be read" in mistake("import", folder, "--to", target)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "never read" in mistake("import", folder, "--to", target)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    assert "'../elsewhere.safetensors', which is not a file of this folder" in mistake("import", folder, "--to", target)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001.safetensors"}}))
    assert "model-00001.safetensors: cannot be read" in mistake("import", folder, "--to", target)
    (folder / "config.json").write_text("{")
    assert "config.json: cannot be read" in mistake("import", folder, "--to", target)
