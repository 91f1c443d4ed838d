import pytest

from analysis.cost.goodput import Failures, goodput, known_goodput
from analysis.cost.interval import Interval
from scaling.errors import UserError


@pytest.mark.parametrize(
    "run, num_gpus, observed",
    [
        ("Megatron-Turing NLG 530B", 4480, 0.73),
        ("Llama 3.1 405B", 16384, 0.84),
        ("BLOOM-176B", 384, 0.88),
        ("BloombergGPT", 512, 0.985),
    ],
)
def test_published_runs_are_within_the_bounds(run, num_gpus, observed):
    estimate = goodput(num_gpus)
    assert estimate.low <= observed <= estimate.high


def test_llama_3_loses_less_than_a_tenth_to_interruptions():
    assert 0.90 < Failures().availability(16384) < 0.95


def test_it_falls_with_the_number_of_gpus():
    assert goodput(8).value > goodput(1024).value > goodput(16384).value > goodput(100_000).value
    assert goodput(8).value == pytest.approx(0.90, abs=0.001)


def test_interruptions_are_as_often_as_llama_3_saw():
    assert Failures().interruptions_per_gpu_hour * 16384 * 24 * 54 == pytest.approx(419)


def test_a_cluster_of_ones_own():
    rare = goodput(16384, Failures(interruptions_per_gpu_hour=0.0))
    assert rare.value == 0.90
    slow = Failures(restart_hours=1.0, checkpoint_interval_hours=2.0)
    assert goodput(16384, slow).value < goodput(16384).value
    assert goodput(16384, Failures(), base=Interval(1.0, 1.0, 1.0)).high == Failures().availability(16384)
    assert known_goodput(0.9) == Interval(0.9, 0.9, 0.9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: known_goodput(1.1), "goodput = 1.1: must be a share"),
        (lambda: known_goodput(0.0), "goodput = 0: must be a share"),
        (lambda: goodput(0), "num_gpus = 0: must be 1 or more"),
        (lambda: Failures(restart_hours=-1.0), "restart_hours = -1.0: must be 0 or more"),
        (lambda: goodput(8, base=Interval(0.9, 0.8, 1.2)), "goodput = 0.9: must be a share"),
    ],
)
def test_impossible_input_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
