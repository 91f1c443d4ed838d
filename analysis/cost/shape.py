"""A model of a given number of parameters, where nothing else is known of it: shaped like a Llama.

hidden_size is about 128 x num_layers (Llama 3: 8B 128, 70B 102, 405B 130; Grattafiori et al. 2024, arXiv:2407.21783,
table 3), the MLP's inner size about 3.5 x hidden_size, 8 groups of queries. Among the sizes that give the number within
2 %, those nearest to these two ratios are taken.
"""

import math
from dataclasses import replace

from analysis.cost.architecture import Architecture
from analysis.cost.counts import parameters
from analysis.formatting import count
from scaling.errors import UserError

_ASPECT_RATIO = 128.0
_FFN_RATIO = 3.5
_QUERY_GROUPS = 8
#: Below this many parameters the output layer is the embedding's (Llama 3.2 1B and 3B, Qwen2.5 to 3B).
_UNTIED_FROM = 5e9
#: Vocabulary from so many parameters on: Llama 3's, GPT-2's padded to a multiple of 128, bytes.
_VOCABULARIES = ((1e9, 128256), (2e7, 50304), (0, 256))
#: From a hidden_size on: channels of a head, and the step between sizes, which keeps heads divisible by 8 where it can.
_GRID = ((2048, 128, 1024), (512, 64, 512), (128, 32, 32), (0, 8, 8))
#: Large models have a number of layers that pipeline stages divide.
_LARGE, _LAYER_MULTIPLE = 2048, 4
_SMALLEST, _LARGEST = 1e5, 1e14
_TOLERANCE = 0.02


def llama_of(num_parameters: float) -> Architecture:
    """A dense decoder with `num_parameters`, embeddings included, within 2 %.

    Raises UserError below 100 thousand and above 100 trillion parameters.
    """
    if not _SMALLEST <= num_parameters <= _LARGEST:
        raise UserError(f"params = {num_parameters:g}: must be from {_SMALLEST:g} to {_LARGEST:g}")
    # 12 h^2 parameters a layer, h / 128 layers
    middle = (num_parameters * _ASPECT_RATIO / 12) ** (1 / 3)
    shapes = [shape for hidden in _widths(middle) if (shape := _of_width(num_parameters, hidden)) is not None]
    return min(shapes, key=_distance)


def shape_rule() -> str:
    """The rule in words."""
    return (
        f"a Llama-like shape with hidden_size / num_layers near {_ASPECT_RATIO:.0f} and ffn_hidden_size / hidden_size "
        f"near {_FFN_RATIO} (Llama 3), {_QUERY_GROUPS} query groups, within 2 % of the number"
    )


def _widths(middle: float) -> list[int]:
    """hidden_size from a third to three times `middle`, in the steps of the grid."""
    starts = [start for start, _, _ in _GRID]
    ends = [math.inf, *starts[:-1]]
    widths = []
    for (start, _, step), end in zip(_GRID, ends, strict=True):
        first = max(start, step, math.ceil(middle / 3 / step) * step)
        widths += range(first, int(min(end - 1, 3 * middle)) + 1, step)
    return widths


def _of_width(num_parameters: float, hidden: int) -> Architecture | None:
    """The model of that width whose MLP makes up the number; None where no MLP near the ratio does."""
    channels = next(channels for start, channels, _ in _GRID if hidden >= start)
    heads = hidden // channels
    arch = Architecture(
        name=f"{count(num_parameters)} parameters in a Llama's shape",
        num_layers=1,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=_QUERY_GROUPS if heads % _QUERY_GROUPS == 0 else heads,
        kv_channels=channels,
        ffn_hidden_size=round(_FFN_RATIO * hidden),
        vocab_size=next(size for start, size in _VOCABULARIES if num_parameters >= start),
        tie_word_embeddings=num_parameters < _UNTIED_FROM,
    )
    one = parameters(arch).total
    per_layer = parameters(replace(arch, num_layers=2)).total - one
    multiple = _LAYER_MULTIPLE if hidden >= _LARGE else 1
    layers = multiple * max(1, round(((num_parameters - one) / per_layer + 1) / multiple))
    short = num_parameters - parameters(replace(arch, num_layers=layers)).total
    unit = 256 if hidden >= _LARGE else 8
    inner = unit * round((_FFN_RATIO * hidden + short / (layers * 3 * hidden)) / unit)
    arch = replace(arch, num_layers=layers, ffn_hidden_size=inner)
    near = inner > 0 and abs(parameters(arch).total / num_parameters - 1) <= _TOLERANCE
    return arch if near else None


def _distance(arch: Architecture) -> float:
    """How far the two ratios are from the rule's, in logarithms."""
    aspect = arch.hidden_size / arch.num_layers / _ASPECT_RATIO
    return abs(math.log(aspect)) + 2 * abs(math.log(arch.ffn_hidden_size / arch.hidden_size / _FFN_RATIO))
