import numpy as np
import pytest

from scaling.data.prepare import MarkovProcess, prepare_corpus
from scaling.data.synthetic import conditional_entropies, draw, slot_table
from scaling.errors import UserError


def probabilities(slots):
    return np.stack([(slots == x).mean(axis=-1) for x in range(slots.shape[0])], axis=-1)


def test_entropy_of_a_chain_worked_out_by_hand():
    """Two states, left with probability 1/4 and 1/2: pi = (2/3, 1/3), H = 2/3 h(1/4) + 1/3 ln 2."""
    slots = np.array([[0] * 192 + [1] * 64, [0] * 128 + [1] * 128], np.uint8)
    h_quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    h_third = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))
    assert conditional_entropies(slots) == pytest.approx([h_third, 2 / 3 * h_quarter + np.log(2) / 3], abs=1e-12)


@pytest.mark.parametrize("order, alphabet", [(1, 40), (2, 16), (3, 8)])
def test_the_perfect_model_reaches_the_entropy_rate(order, alphabet):
    """The loss of the true probabilities on what was drawn, over all joints of the pieces drawn side by side."""
    process = MarkovProcess(tokens=300_000, order=order, alphabet=alphabet)
    slots = slot_table(process)
    tokens = draw(process, slots).astype(np.int64) - 48
    assert tokens.size == 300_000 and tokens.min() >= 0 and tokens.max() < alphabet
    windows = np.lib.stride_tricks.sliding_window_view(tokens, order + 1)
    chosen = probabilities(slots)[tuple(windows.T)]
    assert chosen.min() > 0, "a step that the process cannot take"
    assert -np.log(chosen).mean() == pytest.approx(conditional_entropies(slots)[-1], abs=0.006)


def test_longer_contexts_tell_more_and_the_block_entropies_are_those_of_the_stream():
    process = MarkovProcess(tokens=300_000, order=2, alphabet=16)
    slots = slot_table(process)
    entropies = conditional_entropies(slots)
    assert len(entropies) == 3 and entropies[0] > entropies[1] + 0.1 > entropies[2] + 0.1
    tokens = draw(process, slots).astype(np.int64) - 48
    blocks = [0.0]
    for length in (1, 2, 3):
        windows = np.lib.stride_tricks.sliding_window_view(tokens, length) @ 16 ** np.arange(length)
        share = np.bincount(windows) / windows.size
        blocks.append(-np.sum(share[share > 0] * np.log(share[share > 0])))
    assert np.diff(blocks) == pytest.approx(entropies, abs=0.015)


def test_the_seed_decides_the_stream():
    def tokens(seed):
        process = MarkovProcess(tokens=3000, seed=seed, order=2, alphabet=8)
        return draw(process, slot_table(process))

    assert np.array_equal(tokens(1), tokens(1)) and not np.array_equal(tokens(1), tokens(2))


def test_the_manifest_carries_the_truth(tmp_path):
    process = MarkovProcess(tokens=5000, order=2, alphabet=8)
    corpus = prepare_corpus("synthetic", tmp_path, process=process)
    assert corpus.train_tokens + corpus.validation_tokens == 5000
    entropies = conditional_entropies(slot_table(process))
    assert corpus.entropy_rate == entropies[-1]
    assert corpus.lowest_loss(1) == entropies[1]
    assert corpus.lowest_loss(100) == pytest.approx((entropies[1] + 99 * entropies[2]) / 100)
    assert prepare_corpus("synthetic", tmp_path, process=process).fingerprint == corpus.fingerprint
    other = prepare_corpus("synthetic", tmp_path, process=MarkovProcess(tokens=5000, order=2, alphabet=8, seed=5))
    assert other.path != corpus.path and other.fingerprint != corpus.fingerprint


@pytest.mark.parametrize(
    "values, words",
    [
        ({"order": 0}, "order = 0"),
        ({"alphabet": 1}, "alphabet = 1"),
        ({"order": 4, "alphabet": 64}, "at most"),
        ({"tokens": 1}, "tokens = 1"),
        ({"concentration": 0.0}, "concentration = 0.0"),
    ],
)
def test_impossible_processes_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        MarkovProcess(**values)
