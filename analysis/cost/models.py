"""Well-known open models by name: those of models.yaml, models_moe.yaml and scaling/presets.py under one lookup."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from analysis.cost.architecture import Architecture, architecture_of
from analysis.cost.tables import read_table
from scaling.errors import UserError

_TABLES = ("models.yaml", "models_moe.yaml")
_NAMES = "model_names.yaml"

#: Words of a checkpoint's name that say nothing about its geometry.
_REST = {
    "meta", "instruct", "chat", "base", "it", "pt", "hf", "preview", "thinking", "bf16", "fp8", "moe", "dense", "model",
    "davinci", "stage1", "4k", "8k", "128k", "v0.1", "v0.2", "0324", "0325", "0528", "0905", "0924", "1124", "2407",
    "2411", "2501", "2507",
}  # fmt: skip


@dataclass(frozen=True)
class KnownModel:
    """An architecture and what was published about it."""

    architecture: Architecture
    #: Parameters as published, tied weights once; exact to `rounding`.
    published: int
    rounding: int
    source: str
    #: Active per token as published, billions; None for dense models.
    published_active: float | None = None
    note: str = ""


def find_model(name: str) -> Architecture:
    """The architecture of that name, spelt loosely: `Llama 3 70B`, `LLAMA3_70B` and `meta-llama/Llama-3-70B` are one.

    `-L<N>` at the end gives a model cut to N layers, as benchmarks use it: windowed and dense layers keep their share
    (at least one dense layer where there were any), and there is no multi-token prediction.

    Raises UserError with the nearest names for an unknown model, with the reason for one whose layers no Architecture
    describes, and for more layers than the model has.
    """
    cut = re.fullmatch(r"(.+?)[-_ ][Ll]([1-9]\d*)", name.strip())
    stem = cut[1] if cut else name
    rows, names = _rows(), read_table(_NAMES)
    found = _match(stem, {**{model: model for model in rows}, **names["aliases"]})
    if found in rows:
        arch = _known(found, *rows[found]).architecture
    else:
        arch = _preset(found or stem)
        if arch is None:
            raise UserError(_refusal(name, stem, [*rows, *names["aliases"]], names["not_expressible"]))
    if cut and int(cut[2]) > arch.num_layers:
        raise UserError(
            f"model = {name!r}: {arch.name} has {arch.num_layers} layers: choose -L1 to -L{arch.num_layers}"
        )
    return _truncated(arch, int(cut[2])) if cut else arch


def known_models() -> dict[str, KnownModel]:
    """The models of the two tables by name, with what was published about them; scaling/presets.py has its own."""
    return {name: _known(name, family, row) for name, (family, row) in _rows().items()}


def _rows() -> dict[str, tuple[dict[str, Any], list[Any]]]:
    families = [family for table in _TABLES for family in read_table(table)]
    return {name: (family, row) for family in families for name, row in family["models"].items()}


def _known(name: str, family: dict[str, Any], row: list[Any]) -> KnownModel:
    values = {**family.get("common", {}), **dict(zip(family["columns"], row, strict=True))}
    published, rounding, active = values.pop("published"), values.pop("rounding", 1), values.pop("active", None)
    values.setdefault("num_query_groups", values["num_attention_heads"])
    values.setdefault("kv_channels", values["hidden_size"] // values["num_attention_heads"])
    arch = Architecture(name=name, **values)
    return KnownModel(arch, published, rounding, family["source"], active, family.get("note", ""))


def _preset(name: str) -> Architecture | None:
    # scaling.presets needs pydantic, which most calls can do without
    from scaling.presets import PRESETS

    found = _match(name, {preset: preset for preset in PRESETS})
    return architecture_of(PRESETS[found].model, found) if found else None


def _match(name: str, names: dict[str, str]) -> str | None:
    """What the name stands for: as it is, else without a remark in brackets and words that say nothing of geometry."""
    by_key = {_key(known, ()): known for known in names}
    for key in (_key(name, ()), _key(name.split("(")[0], _REST)):
        if key in by_key:
            return names[by_key[key]]
    return None


def _key(name: str, skipped: Collection[str]) -> str:
    """Letters, digits and points (1.3B is not 13B) in lower case: of `meta-llama/Llama-3.1-70B`, `llama3.170b`."""
    words = re.findall(r"[a-z0-9.]+", name.lower().rsplit("/", 1)[-1])
    return "".join(word for word in words if word not in skipped)


def _truncated(arch: Architecture, num_layers: int) -> Architecture:
    share = num_layers / arch.num_layers
    dense = max(1, round(arch.num_dense_layers * share)) if arch.num_dense_layers else 0
    return replace(
        arch,
        name=f"{arch.name}-L{num_layers}",
        num_layers=num_layers,
        num_dense_layers=min(dense, num_layers),
        num_windowed_layers=round(arch.num_windowed_layers * share),
        other_parameters=round(arch.other_parameters * share),
        mtp_num_layers=0,
    )


def _refusal(name: str, stem: str, names: list[str], not_expressible: dict[str, str]) -> str:
    from scaling.presets import CHINCHILLA_TABLE_A9, PRESETS

    for known, reason in not_expressible.items():
        if _key(stem, _REST).startswith(_key(known, ())):
            return f"model = {name!r}: {known} {reason}, which this estimate does not cover"
    names = [*names, *(preset for preset in PRESETS if preset not in CHINCHILLA_TABLE_A9)]
    keys = {_key(known, ()): known for known in names}
    close = [keys[key] for key in difflib.get_close_matches(_key(stem, _REST), keys, n=3, cutoff=0.5)]
    remedy = f"did you mean {' or '.join(close)}?" if close else "give the path of its config.json"
    return f"model = {name!r}: no such model; {remedy}"
