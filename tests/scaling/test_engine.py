"""One rank's part of a run: evaluation, precision and odd sizes under every kind of layout."""

import numpy as np
import pytest
from distributed import run_distributed

from scaling.config import build_config
from scaling.parity import Case, batch, sizes

ODD = [1, 3, 5]
"""Numbers of held-out sequences: fewer than the data ranks, no multiple of them, more than one pass takes."""

LAYOUTS = {
    "single": Case(),
    "dp2": Case(sizes(dp=2)),
    "dp2 fsdp2": Case(sizes(dp=2, data_parallel_method="fsdp2")),
    "tp2": Case(sizes(tp=2)),
    "cp2": Case(sizes(cp=2)),
    "pp2": Case(sizes(pp=2)),
    "pp2 zbv": Case(sizes(pp=2, pipeline_schedule="zbv"), model={"tie_word_embeddings": True}),
    "one replica of fsdp2": Case(sizes(tp=2, data_parallel_method="fsdp2")),
    "pp2 dp2 fsdp2": Case(sizes(pp=2, dp=2, data_parallel_method="fsdp2")),
    "dp2 tp2": Case(sizes(dp=2, tp=2)),
}


def _engine(config):
    import torch

    from parallel.mesh import build_mesh
    from scaling import engine

    engine._TOKENS_PER_PASS = 2 * config.data.seq_length
    mesh = build_mesh(config.parallel, torch.device("cpu"))
    return engine.Engine(config, mesh.device, config.execution.dtype, mesh)


def _held_out(configs) -> list[list[list[float]]]:
    return [[_engine(config).sequence_losses(batch(3)[:count]).tolist() for count in ODD] for config in configs]


def test_every_layout_evaluates_any_number_of_sequences():
    cases = {name: case.config("float64") for name, case in LAYOUTS.items()}
    expected = {}
    for tied in (False, True):
        alone = Case(model={"tie_word_embeddings": tied}).config("float64")
        expected[tied] = run_distributed(_held_out, 1, [alone])[0][0]
    for ranks in (1, 2, 4):
        chosen = {name: config for name, config in cases.items() if config.parallel.world_size == ranks}
        by_rank = run_distributed(_held_out, ranks, list(chosen.values()))
        for at, (name, config) in enumerate(chosen.items()):
            for found in by_rank:
                for mine, right in zip(found[at], expected[config.model.tie_word_embeddings]):
                    np.testing.assert_allclose(mine, right, rtol=1e-12, err_msg=name)


def _losses(configs) -> list[list[float]]:
    """Mean training losses of 12 steps under each config, whose matrix products may be in bfloat16."""
    from scaling.optimizer import AdamW
    from scaling.schedule import learning_rate

    found = []
    for config in configs:
        engine = _engine(config)
        optimizer = AdamW(engine.storage, config.optimizer, engine.mesh.world)
        losses = []
        for step in range(12):
            part = engine.forward_backward(batch(step))
            losses.append(float(optimizer.step(learning_rate(config, step), part)[1]))
        found.append(losses)
    return found


def test_bfloat16_products_give_nearly_the_losses_of_float32_under_every_layout():
    (exact,) = run_distributed(_losses, 1, [Case().config("float32")])[0]
    names = ["dp2", "dp2 fsdp2", "tp2", "cp2", "pp2"]
    found = run_distributed(_losses, 2, [LAYOUTS[name].config("bfloat16") for name in names])
    for name, losses, other in zip(names, *found):
        assert losses == other, f"{name}: the ranks disagree"
        assert losses != exact, f"{name}: the products were not bfloat16"
        np.testing.assert_allclose(losses, exact, rtol=0.01, err_msg=name)


def test_every_normalization_takes_bfloat16_products_on_a_short_sequence():
    for normalization in ("rmsnorm", "layernorm", "layernorm_no_affine"):
        case = Case(model={"normalization": normalization})
        exact, rounded = run_distributed(_losses, 1, [case.config("float32"), case.config("bfloat16")])[0]
        assert rounded != exact, normalization
        np.testing.assert_allclose(rounded, exact, rtol=0.01, err_msg=normalization)


def _train(config, folder, corpus_dir):
    from scaling.train import train

    record = train(config, folder / config.run_id, corpus_dir)
    return record.status, record.reason, record.evaluation, record.tokens


@pytest.mark.parametrize("parallel", [sizes(dp=2), sizes(tp=2), sizes(pp=2, pipeline_schedule="zbv")], ids=str)
def test_a_run_diverges_on_all_ranks_at_once(parallel, run_values, corpus, tmp_path):
    run_values["optimizer"] = {"learning_rate": 1e30, "clip_grad": 0.0}
    run_values["model"]["num_layers"] = 4
    config = build_config(run_values | {"parallel": parallel}, "test")
    first, second = run_distributed(_train, 2, config, tmp_path, corpus.path)
    assert first == second
    status, reason, evaluation, tokens = first
    assert status == "diverged" and "at step 2" in reason and evaluation is None and tokens == 2 * 4 * 32
    assert len((tmp_path / config.run_id / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_batch_of_one_sequence_trains_under_tensor_and_context_parallelism(run_values, corpus, tmp_path):
    run_values |= {"global_batch_size": 1, "train_steps": 6}
    losses = []
    for ranks, parallel in ((1, {}), (2, sizes(tp=2)), (2, sizes(cp=2))):
        config = build_config(run_values | {"parallel": parallel}, "test")
        folder = tmp_path / str(parallel)
        record = run_distributed(_train, ranks, config, folder, corpus.path)[0]
        assert record[0] == "finished"
        losses.append(record[2].loss)
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def _run_with_small_buckets(configs) -> list[tuple[list[float], int]]:
    """Losses of three steps with a bucket for each layer, and how many buckets were sent during backward passes."""
    from parallel.data import FlatParameters
    from scaling import engine as module
    from scaling.optimizer import AdamW

    class SmallBuckets(FlatParameters):
        def __init__(self, modules, compute_dtype, replica):
            super().__init__(modules, compute_dtype, replica, bucket_bytes=1)

    module.FlatParameters = SmallBuckets
    found = []
    for config in configs:
        engine, early = _engine(config), 0
        finish = engine.storage.finish

        def counting(finish=finish, engine=engine):
            nonlocal early
            early += sum(bucket.work is not None for bucket in engine.storage._buckets)
            finish()

        engine.storage.finish = counting
        optimizer = AdamW(engine.storage, config.optimizer, engine.mesh.world)
        losses = [float(optimizer.step(0.01, engine.forward_backward(batch(step)))[1]) for step in range(3)]
        found.append((losses, early))
    return found


def test_buckets_sent_during_the_backward_pass_hold_the_whole_gradient():
    """The tables of scaling/parity.py cannot say: their model fits into one bucket, which is sent at the end."""
    ((alone, _),) = run_distributed(_run_with_small_buckets, 1, [Case().config("float64")])[0]
    cases = {
        2: [Case(sizes(dp=2), {"micro_batch_size": 1}), Case(sizes(cp=2), {"recompute_granularity": "full"})],
        4: [
            Case(sizes(pp=2, dp=2, pipeline_schedule="interleaved1f1b")),
            Case(sizes(dp=2, tp=2), {"micro_batch_size": 2}),
        ],
    }
    for ranks, chosen in cases.items():
        by_rank = run_distributed(_run_with_small_buckets, ranks, [case.config("float64") for case in chosen])
        for at, case in enumerate(chosen):
            for losses, early in (found[at] for found in by_rank):
                assert losses == pytest.approx(alone, rel=1e-12), case
                layers = 5 // case.config("float64").parallel.pipeline_parallel_size
                assert early >= 3 * layers, "every layer's bucket in every step"
