"""The model of a row of a table of measured runs: from its columns, and where these say nothing from its name.

The name may also be the path of a config.json, relative to the working directory, which then says everything.
"""

import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from analysis.cost.architecture import Architecture
from analysis.cost.config_json import read_config_json
from analysis.cost.counts import parameters
from analysis.cost.measured_cells import NotExpressible, Row, flag, number, whole
from analysis.cost.models import find_model
from scaling.errors import UserError

#: GPT-2's vocabulary, padded to a multiple of 128 x 8: what Megatron trains with when nothing is said.
_VOCABULARY = 51200
#: Pipeline ranks and layers are gone through one by one.
_MOST_LAYERS = 1000
#: A name that tells of experts: 8x7B, MoE, A3B.
_EXPERTS = re.compile(r"\bmoe\b|moe$|\d+x\d+(\.\d+)?b|-a\d+(\.\d+)?b", re.IGNORECASE)
#: A model with so many times the parameters of its columns has more than one MLP a layer.
_EXPERTS_FACTOR = 2.0
#: Columns by the field of the architecture.
_CONFIG_FIELDS = {
    "layers": "num_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "kv_heads": "num_query_groups",
    "ffn": "ffn_hidden_size", "vocab": "vocab_size",
}  # fmt: skip
#: Parameters that a row states and those of its columns may differ by so much: names are rounded.
_SAME = 0.02


def model_of(row: Row, assumed: list[str]) -> Architecture:
    """That of a config.json; or that of the columns, completed by a known model of that name and width; with experts
    by name alone.

    Appends what was taken where the row says nothing. Raises NotExpressible when it is not enough.
    """
    if "lora" in row["model"].lower():
        raise NotExpressible(f"model = {row['model']}: trains adapters beside frozen weights, which is not covered")
    layers, hidden, heads = (whole(row, name) for name in ("layers", "hidden", "heads"))
    if layers is not None and layers > _MOST_LAYERS:
        raise NotExpressible(f"layers = {layers}: more than the {_MOST_LAYERS} that any model has")
    if is_config(row["model"]):
        return _of_config(row, assumed)
    known, refusal = _known(row["model"], layers)
    total, active = number(row, "params_total_B"), number(row, "params_active_B")
    experts = (whole(row, "ep") or 1) > 1 or bool(total and active and active < 0.95 * total)
    experts = experts or _EXPERTS.search(row["model"]) is not None
    if known is not None and (known.is_moe or experts or not (layers and hidden and heads)):
        return known
    if experts or not (layers and hidden and heads):
        missing = [name for name in ("layers", "hidden", "heads") if whole(row, name) is None]
        reason = f"{', '.join(missing)} not given" if missing else "experts, whose sizes are not given"
        raise NotExpressible(f"{reason}; {refusal}")
    if heads > hidden:
        raise NotExpressible(f"heads = {heads}: more than hidden = {hidden}")
    if known is not None and (known.hidden_size, known.num_attention_heads) != (hidden, heads):
        known = None
    found = _dense(row, layers, hidden, heads, known, assumed)
    counted = parameters(found).total / 1e9
    if total and total > _EXPERTS_FACTOR * counted:
        raise NotExpressible(f"params_total_B = {total:g}: the columns make {counted:.3g}; experts are not given")
    return found


def is_config(name: str) -> bool:
    """Whether a name is the path of a config.json, or of the directory that holds one."""
    return name.endswith(".json") or bool(name) and os.path.isfile(os.path.join(name, "config.json"))


def named_model(name: str) -> Architecture:
    """The model of a config.json or of that name. Raises UserError where there is none."""
    return read_config_json(Path(name))[0] if is_config(name) else find_model(name)


def _of_config(row: Row, assumed: list[str]) -> Architecture:
    """The model of a config.json, which columns may repeat, not change."""
    try:
        found, remarks = read_config_json(Path(row["model"]))
    except UserError as error:
        raise NotExpressible(f"model = {error}") from None
    for name, field in _CONFIG_FIELDS.items():
        stated, read = whole(row, name), getattr(found, field)
        if stated not in (None, read):
            raise NotExpressible(f"{name} = {stated}: {row['model']} has {read}: leave one of them out")
    assumed += remarks
    return found


@cache
def _known(name: str, layers: int | None) -> tuple[Architecture | None, str]:
    """The model of that name, cut to the row's layers where it has more of them; else why there is none."""
    try:
        found = find_model(name)
        if layers is not None and layers < found.num_layers:
            found = find_model(f"{name.split('(')[0].strip()}-L{layers}")
    except UserError as error:
        return None, str(error)
    return found, ""


def _dense(
    row: Row, layers: int, hidden: int, heads: int, known: Architecture | None, assumed: list[str]
) -> Architecture:
    kv_heads, inner, vocabulary, gated = (
        whole(row, "kv_heads"), whole(row, "ffn"), whole(row, "vocab"), flag(row, "gated")
    )  # fmt: skip
    if known is not None:
        return replace(
            known,
            name=row["model"],
            num_layers=layers,
            num_query_groups=kv_heads or known.num_query_groups,
            ffn_hidden_size=inner or known.ffn_hidden_size,
            vocab_size=vocabulary or known.vocab_size,
            gated=known.gated if gated is None else gated,
        )
    if vocabulary is None:
        assumed.append(f"vocabulary taken as {_VOCABULARY}")
    if inner is None:
        assumed.append(f"MLP taken as 4 x hidden = {4 * hidden}")
    if gated is None:
        assumed.append("MLP taken as plain, not gated")
    found = Architecture(
        name=row["model"],
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=kv_heads or heads,
        kv_channels=hidden // heads,
        ffn_hidden_size=inner or 4 * hidden,
        vocab_size=vocabulary or _VOCABULARY,
        gated=bool(gated),
        tie_word_embeddings=not gated,
    )
    return _as_stated(found, number(row, "params_total_B"), assumed, gated is None)


def _as_stated(found: Architecture, billions: float | None, assumed: list[str], gate_is_open: bool) -> Architecture:
    """Gate and shared embeddings, where open, as the stated number of parameters has them."""
    if billions is None:
        return found

    def distance(arch: Architecture) -> float:
        return abs(parameters(arch).total / (1e9 * billions) - 1)

    if distance(found) <= _SAME:
        return found
    gates = (False, True) if gate_is_open else (found.gated,)
    others = [replace(found, gated=gate, tie_word_embeddings=tied) for gate in gates for tied in (True, False)]
    best = min(others, key=distance)
    if distance(best) > _SAME:
        return found
    ends = "shared by input and output" if best.tie_word_embeddings else "apart for input and output"
    assumed.append(f"MLP {'gated' if best.gated else 'plain'} and embeddings {ends}, as params_total_B has them")
    return best
