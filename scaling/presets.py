"""Models that people cite, as ModelConfig, each with the parameter count its authors published.

The geometry decides; the published count is kept beside it so that a test can hold the one against
the other. Where a paper's table contradicts itself, the note says which number was kept.
"""

import difflib
from dataclasses import dataclass

from scaling.config import ModelConfig
from scaling.errors import UserError


@dataclass(frozen=True)
class Preset:
    """A model and what was published about it."""

    model: ModelConfig
    #: Parameters as published: all of them, embeddings included, tied weights once.
    published: int
    #: Unit of the last published digit; 1 when the count is exact (that of the released checkpoint).
    rounding: int
    source: str
    #: Where the published figures disagree with each other, and which were kept.
    note: str = ""


_GPT2_SOURCE = "Radford et al. 2019, table 2; counts of the released checkpoints (openai-community/gpt2*)"
_GPT2_NOTE = "the paper's 117M / 345M / 762M / 1542M were corrected by its repository to 124M / 355M / 774M / 1558M"
_GPT3_SOURCE = "Brown et al. 2020, table 2.1"
_PYTHIA_SOURCE = "Biderman et al. 2023; model cards EleutherAI/pythia-* (exact counts, vocabulary padded)"
_LLAMA2_SOURCE = "Touvron et al. 2023; counts of the released checkpoints (meta-llama/Llama-2-*)"
_LLAMA3_SOURCE = "Llama Team 2024, table 3; counts of the released checkpoints (meta-llama/Llama-3*)"
_OLMO_SOURCE = "Groeneveld et al. 2024, table 1; counts of the released checkpoints (allenai/OLMo-*-hf)"
_CHINCHILLA_SOURCE = "Hoffmann et al. 2022, table 4"
_A9_SOURCE = "Hoffmann et al. 2022, table A9"


def _gpt2(num_layers: int, hidden_size: int, heads: int, published: int) -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, vocab_size=50257,
        max_position_embeddings=1024, normalization="layernorm", position_embedding="learned",
        activation="gelu", add_bias_linear=True,
    )  # fmt: skip
    return Preset(model, published, 1, _GPT2_SOURCE, _GPT2_NOTE)


def _gpt3(num_layers: int, hidden_size: int, heads: int, published: int, rounding: int, note: str = "") -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, vocab_size=50257,
        max_position_embeddings=2048, normalization="layernorm", position_embedding="learned",
        activation="gelu", add_bias_linear=True,
    )  # fmt: skip
    return Preset(model, published, rounding, _GPT3_SOURCE, note)


def _pythia(num_layers: int, hidden_size: int, heads: int, published: int, vocab_size: int = 50304) -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, vocab_size=vocab_size,
        normalization="layernorm", position_embedding="rope", rotary_percent=0.25, activation="gelu",
        add_bias_linear=True, parallel_residual=True, tie_word_embeddings=False,
    )  # fmt: skip
    return Preset(model, published, 1, _PYTHIA_SOURCE)


def _llama2(num_layers: int, hidden_size: int, heads: int, groups: int, ffn: int, published: int) -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, num_query_groups=groups,
        ffn_hidden_size=ffn, vocab_size=32000, tie_word_embeddings=False,
    )  # fmt: skip
    return Preset(model, published, 1, _LLAMA2_SOURCE)


def _llama3(num_layers: int, hidden_size: int, heads: int, ffn: int, published: int, tied: bool = False) -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, num_query_groups=8,
        ffn_hidden_size=ffn, vocab_size=128256, rotary_base=500000.0, tie_word_embeddings=tied,
    )  # fmt: skip
    return Preset(model, published, 1, _LLAMA3_SOURCE)


def _olmo(num_layers: int, hidden_size: int, heads: int, ffn: int, published: int, tied: bool) -> Preset:
    model = ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, ffn_hidden_size=ffn,
        vocab_size=50304, normalization="layernorm_no_affine", tie_word_embeddings=tied,
    )  # fmt: skip
    return Preset(model, published, 1, _OLMO_SOURCE)


def _chinchilla(hidden_size: int, ffn: int, kv_channels: int, heads: int, num_layers: int) -> ModelConfig:
    """Gopher's architecture (Rae et al. 2021): RMSNorm, Transformer-XL positions, 32,000 tokens.

    Tied embeddings and biases are inferred from Table A9: with both, and with the RMSNorm weights
    (at most 0.02 % of a model) left out, all 50 counts come out as printed. Counting those weights too,
    as here, 42 rows round to the printed million and the other 8 are one too high.
    """
    return ModelConfig(
        num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=heads, kv_channels=kv_channels,
        ffn_hidden_size=ffn, vocab_size=32000, position_embedding="relative", activation="gelu", add_bias_linear=True,
    )  # fmt: skip


#: Table A9 of Hoffmann et al. 2022: parameters (millions), d_model, ffw_size, kv_size, n_heads, n_layers.
_TABLE_A9 = (
    (44, 512, 2048, 64, 8, 8), (57, 576, 2304, 64, 9, 9), (74, 640, 2560, 64, 10, 10),
    (90, 640, 2560, 64, 10, 13), (106, 640, 2560, 64, 10, 16), (117, 768, 3072, 64, 12, 12),
    (140, 768, 3072, 64, 12, 15), (163, 768, 3072, 64, 12, 18), (175, 896, 3584, 64, 14, 14),
    (196, 896, 3584, 64, 14, 16), (217, 896, 3584, 64, 14, 18), (251, 1024, 4096, 64, 16, 16),
    (278, 1024, 4096, 64, 16, 18), (306, 1024, 4096, 64, 16, 20), (425, 1280, 5120, 128, 10, 18),
    (489, 1280, 5120, 128, 10, 21), (509, 1408, 5632, 128, 11, 18), (552, 1280, 5120, 128, 10, 24),
    (587, 1408, 5632, 128, 11, 21), (632, 1536, 6144, 128, 12, 19), (664, 1408, 5632, 128, 11, 24),
    (724, 1536, 6144, 128, 12, 22), (816, 1536, 6144, 128, 12, 25), (893, 1792, 7168, 128, 14, 20),
    (1018, 1792, 7168, 128, 14, 23), (1143, 1792, 7168, 128, 14, 26), (1266, 2048, 8192, 128, 16, 22),
    (1424, 2176, 8704, 128, 17, 22), (1429, 2048, 8192, 128, 16, 25), (1593, 2048, 8192, 128, 16, 28),
    (1609, 2176, 8704, 128, 17, 25), (1731, 2304, 9216, 128, 18, 24), (1794, 2176, 8704, 128, 17, 28),
    (2007, 2304, 9216, 128, 18, 28), (2283, 2304, 9216, 128, 18, 32), (2298, 2560, 10240, 128, 20, 26),
    (2639, 2560, 10240, 128, 20, 30), (2980, 2560, 10240, 128, 20, 34), (3530, 2688, 10752, 128, 22, 36),
    (3802, 2816, 11264, 128, 22, 36), (4084, 2944, 11776, 128, 22, 36), (4516, 3072, 12288, 128, 24, 36),
    (6796, 3584, 14336, 128, 28, 40), (9293, 4096, 16384, 128, 32, 42), (11452, 4352, 17408, 128, 32, 47),
    (12295, 4608, 18432, 128, 36, 44), (12569, 4608, 18432, 128, 32, 47), (13735, 4864, 19456, 128, 32, 47),
    (14940, 4992, 19968, 128, 32, 49), (16183, 5120, 20480, 128, 40, 47),
)  # fmt: skip

#: In some rows n_heads x kv_size is not d_model. The published counts follow from the heads as printed, so they stay.
_A9_NOTES = {
    millions: "n_heads x kv_size is not d_model in the table; the published count confirms the heads as printed"
    for millions, hidden_size, _, kv_channels, heads, _ in _TABLE_A9
    if heads * kv_channels != hidden_size
}

#: Every size trained for Hoffmann et al. 2022, smallest first; the `paper` grid profile draws on it.
CHINCHILLA_TABLE_A9: dict[str, Preset] = {
    f"chinchilla-{millions}m": Preset(
        _chinchilla(*geometry), millions * 10**6, 10**6, _A9_SOURCE, _A9_NOTES.get(millions, "")
    )
    for millions, *geometry in _TABLE_A9
}

PRESETS: dict[str, Preset] = {
    "gpt2-small": _gpt2(12, 768, 12, 124_439_808),
    "gpt2-medium": _gpt2(24, 1024, 16, 354_823_168),
    "gpt2-large": _gpt2(36, 1280, 20, 774_030_080),
    "gpt2-xl": _gpt2(48, 1600, 25, 1_557_611_200),
    "gpt3-125m": _gpt3(12, 768, 12, 125_000_000, 10**6),
    "gpt3-350m": _gpt3(24, 1024, 16, 350_000_000, 10**7, "the table's own geometry makes 356M, printed as 350M"),
    "gpt3-760m": _gpt3(24, 1536, 16, 760_000_000, 10**7),
    "gpt3-1.3b": _gpt3(
        24,
        2048,
        16,
        1_300_000_000,
        10**8,
        "the table prints 24 heads of 128, which is not d_model = 2048 and would make 1.5B; 16 heads make 1.3B",
    ),  # fmt: skip
    "gpt3-2.7b": _gpt3(32, 2560, 32, 2_700_000_000, 10**8),
    "gpt3-6.7b": _gpt3(32, 4096, 32, 6_700_000_000, 10**8),
    "gpt3-13b": _gpt3(
        40, 5120, 40, 13_000_000_000, 10**9, "the table prints d_model = 5140, which 40 heads of 128 do not make; 5120"
    ),
    "gpt3-175b": _gpt3(96, 12288, 96, 175_000_000_000, 10**9),
    "pythia-70m": _pythia(6, 512, 8, 70_426_624),
    "pythia-160m": _pythia(12, 768, 12, 162_322_944),
    "pythia-410m": _pythia(24, 1024, 16, 405_334_016),
    "pythia-1b": _pythia(16, 2048, 8, 1_011_781_632),
    "pythia-1.4b": _pythia(24, 2048, 16, 1_414_647_808),
    "pythia-2.8b": _pythia(32, 2560, 32, 2_775_208_960),
    "pythia-6.9b": _pythia(32, 4096, 32, 6_857_302_016, vocab_size=50432),
    "pythia-12b": _pythia(36, 5120, 40, 11_846_072_320, vocab_size=50688),
    "llama2-7b": _llama2(32, 4096, 32, 32, 11008, 6_738_415_616),
    "llama2-13b": _llama2(40, 5120, 40, 40, 13824, 13_015_864_320),
    "llama2-70b": _llama2(80, 8192, 64, 8, 28672, 68_976_648_192),
    "llama3-8b": _llama3(32, 4096, 32, 14336, 8_030_261_248),
    "llama3-70b": _llama3(80, 8192, 64, 28672, 70_553_706_496),
    "llama3-405b": _llama3(126, 16384, 128, 53248, 405_853_388_800),
    "llama3.2-1b": _llama3(16, 2048, 32, 8192, 1_235_814_400, tied=True),
    "llama3.2-3b": _llama3(28, 3072, 24, 8192, 3_212_749_824, tied=True),
    "olmo-1b": _olmo(16, 2048, 16, 8192, 1_176_764_416, tied=True),
    "olmo-7b": _olmo(32, 4096, 32, 11008, 6_888_095_744, tied=False),
    **CHINCHILLA_TABLE_A9,
    "chinchilla-70b": Preset(_chinchilla(8192, 32768, 128, 64, 80), 70 * 10**9, 10**9, _CHINCHILLA_SOURCE),
}


def get_preset(name: str) -> ModelConfig:
    """The model named `name`, in any case (`Llama3-8B` is `llama3-8b`).

    Raises UserError with the closest names for an unknown one.
    """
    wanted = name.lower()
    if wanted in PRESETS:
        return PRESETS[wanted].model
    close = [known for known in PRESETS if wanted and known.startswith(wanted)]
    close = close or difflib.get_close_matches(wanted, PRESETS, n=3, cutoff=0.5)
    if close:
        remedy = f"did you mean {' or '.join(close)}?"
    else:
        others = [known for known in PRESETS if known not in CHINCHILLA_TABLE_A9]
        first, *_, last = CHINCHILLA_TABLE_A9
        remedy = f"there are {', '.join(others)} and the sizes of Chinchilla's Table A9, {first} to {last}"
    raise UserError(f"preset = {name!r}: no such model; {remedy}")
