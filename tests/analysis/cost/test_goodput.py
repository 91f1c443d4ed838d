import pytest

from analysis.cost.goodput import INTERRUPTIONS_PER_GPU_HOUR, availability, goodput, known_goodput
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
    assert 0.90 < availability(16384) < 0.95


def test_it_falls_with_the_number_of_gpus():
    assert goodput(8).value > goodput(1024).value > goodput(16384).value > goodput(100_000).value
    assert goodput(8).value == pytest.approx(0.90, abs=0.001)


def test_interruptions_are_as_often_as_llama_3_saw():
    assert INTERRUPTIONS_PER_GPU_HOUR * 16384 * 24 * 54 == pytest.approx(419)


def test_ones_own_has_no_error():
    assert known_goodput(0.9) == Interval(0.9, 0.9, 0.9)


@pytest.mark.parametrize("share", [1.1, 0.0, -0.5])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(UserError, match=f"goodput = {share:g}: must be a share"):
        known_goodput(share)
