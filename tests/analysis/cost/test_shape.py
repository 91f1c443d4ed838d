"""A model of a given size: the number within 2 %, ratios as stated, the limits said."""

import math

import pytest

from analysis.cost.counts import parameters
from analysis.cost.shape import llama_of
from scaling.errors import UserError


@pytest.mark.parametrize(
    "number", [10**exponent for exponent in (5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5, 10, 11, 12, 14)]
)
def test_the_number_is_met_within_two_percent_at_a_sensible_shape(number):
    arch = llama_of(number)
    assert parameters(arch).total == pytest.approx(number, rel=0.02)
    assert 40 < arch.hidden_size / arch.num_layers < 400
    assert 2.5 < arch.ffn_hidden_size / arch.hidden_size < 4.5
    assert arch.num_attention_heads % arch.num_query_groups == 0


def test_eight_billion_are_llama_3():
    arch = llama_of(8.03e9)
    shape = (arch.num_layers, arch.hidden_size, arch.num_attention_heads, arch.num_query_groups, arch.ffn_hidden_size)
    assert shape == (32, 4096, 32, 8, 14336) and not arch.tie_word_embeddings


def test_large_models_divide_into_tensor_ranks_and_stages():
    for number in (7e9, 13e9, 70e9, 405e9, 1e12):
        arch = llama_of(number)
        assert arch.num_attention_heads % 8 == 0 and arch.num_layers % 4 == 0


@pytest.mark.parametrize("number", [0, -7e9, 99, 1e16, math.nan])
def test_numbers_that_no_model_has(number):
    with pytest.raises(UserError, match="must be from 100000 to 1e\\+14"):
        llama_of(number)
