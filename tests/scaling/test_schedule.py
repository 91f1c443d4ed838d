import pytest

from scaling.config import build_config
from scaling.schedule import learning_rate


def _rates(run_values, **schedule) -> list[float]:
    config = build_config(
        {**run_values, "schedule": schedule, "train_steps": 100, "optimizer": {"learning_rate": 2.0}}, "test"
    )
    return [learning_rate(config, step) for step in range(100)]


def test_cosine_warms_up_to_the_peak_and_ends_at_the_floor(run_values):
    rates = _rates(run_values, name="cosine", warmup_steps=10, min_learning_rate_ratio=0.1)
    assert rates[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert rates[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[9:], rates[10:]))
    assert rates[54] == pytest.approx(1.1, abs=0.02)  # half-way down at half time


def test_wsd_is_flat_then_straight(run_values):
    rates = _rates(run_values, name="wsd", warmup_steps=10, decay_steps=20, min_learning_rate_ratio=0.0)
    assert set(rates[9:80]) == {2.0}
    assert rates[80:] == pytest.approx([2.0 * (19 - i) / 20 for i in range(20)])


def test_without_warmup_the_first_step_is_full(run_values):
    assert _rates(run_values, name="wsd", decay_steps=0)[0] == 2.0
