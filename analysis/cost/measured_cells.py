"""Cells of a table of measured runs as people write them: sizes, flags, precision, recomputation, sharding.

A cell that says nothing gives None; one that says what cannot be read is never taken for nothing.
"""

import math
import re
from collections.abc import Mapping
from typing import get_args

from analysis.cost.setup import Precision, Recompute, Schedule, Sharding

Row = Mapping[str, str]

#: What people write where nothing is known.
_NOTHING = frozenset({"", "-", "--", "?", "nan", "none", "null", "na", "n/a", "unknown", "not given", "not stated"})
_THOUSANDS = re.compile(r"\d{1,3}([, \u00a0]\d{3})+(\.\d+)?")
#: Sizes above this are of no run; they would only overflow.
_LARGEST = 10**9
#: Axes of a layout, which some tables give as 0 where they are not used.
_AXES = ("tp", "pp", "vpp", "dp", "cp", "ep", "etp")

_YES = frozenset({"true", "t", "yes", "y", "on", "1", "1.0", "swiglu", "geglu", "glu"})
_NO = frozenset({"false", "f", "no", "n", "off", "0", "0.0", "none", "gelu", "relu", "plain"})

#: Signs of a precision within a cell, narrowest first: a run that names two multiplies in the narrower.
_PRECISIONS: tuple[tuple[Precision, str], ...] = (
    ("nvfp4", r"fp4"),
    ("mxfp8", r"mx[-_ ]?fp8|fp8[-_ ]?mx"),
    ("fp8", r"fp8|float8|f8|e4m3|e5m2|delayed|rowwise|tensorwise"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|float16|half|^16"),
    ("fp32", r"fp32|float32|tf32|^32"),
)
#: Signs of weights and optimizer in 16 bits: "bf16-true", "pure bf16", "bf16 weights and optimizer".
_ALL_LOW = re.compile(
    r"(bf|fp|float)16\W?true|(?<!not )\b(pure|full)\W?(bf|fp|float)16|(bf|fp)16\W?full|16 weights and optimizer"
)
_NO_RECOMPUTE = frozenset({"none", "no", "false", "0", "0.0", "off", "n", "disabled"})
#: Parts of a layer that Megatron's selective recomputation names, and torch's policy by operator.
_PARTS = frozenset({"op", "ops", "sac", "core", "attn", "attention", "mlp", "moe", "layernorm", "modules"})
#: Who recomputes some layers whole and others not: "selective-layer (every 2nd)", "every 4 layers", "8 of 32 layers".
_EVERY = re.compile(r"every (?:(\d+)(?:st|nd|rd|th)?|second|other)\b")
_SOME_OF = re.compile(r"(\d+) of (\d+) layers")
_SELECTIVE_LAYER = re.compile(r"selective.layer")
#: Dates: 2025-03-01, 2025/3, 2025; 03/2025; NVIDIA's containers, 25.03 or v25.03.01; "Mar 2025".
_YEAR_FIRST = re.compile(r"\b(20\d\d)(?:[-/.](\d\d?))?\b")
_MONTH_FIRST = re.compile(r"\b(?:\d\d?[-/.])?(\d\d?)[-/.](20\d\d)\b")
_CONTAINER = re.compile(r"v?(2\d)\.(\d\d)(\.\d+)*")
_NAMED = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? (20\d\d)\b")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FULL = frozenset({"full", "block", "uniform", "true", "yes", "1", "1.0", "on", "y", "all", "every", "checkpointing"})

#: Other words for a pipeline schedule, without blanks and hyphens; those of a framework's name tell of one too, and
#: there the first that fits counts. ZB-H1 and ZB-H2 are the same two drawn by hand.
_SCHEDULES: dict[str, Schedule] = {
    "zb1p": "zb1p",
    "zbh1": "zb1p",
    "zb2p": "zb2p",
    "zbh2": "zb2p",
    "zbv": "zbv",
    "zerobubble": "zbv",
    "dualpipe": "dualpipev",
}
#: Not looked for in a framework's name, which may speak of some of a table's runs alone.
_INTERLEAVED: dict[str, Schedule] = dict.fromkeys(("interleaved", "1f1binterleaved", "1f1bi"), "interleaved1f1b")


class NotExpressible(Exception):
    """A row that the model cannot express; the message says why."""


def text_of(row: Row, name: str) -> str:
    """A cell in lower case; empty where it says nothing."""
    text = (row.get(name) or "").strip().lower()
    return "" if text in _NOTHING else text


def number(row: Row, name: str) -> float | None:
    """A positive number, such as 1024, 1,024 or 1.02e3; None when the cell is empty.

    Raises NotExpressible for anything else.
    """
    text = text_of(row, name)
    value = _value(text)
    if text and not 0 < value < math.inf:
        raise NotExpressible(f"{name} = {row[name]}: is not a number above 0")
    return value if text else None


def whole(row: Row, name: str) -> int | None:
    """A whole number, at least 1; None when the cell is empty. Raises NotExpressible for anything else."""
    text = text_of(row, name)
    if not text or name in _AXES and text in ("0", "0.0"):
        return None
    value = _value(text)
    if not 1 <= value <= _LARGEST or value != int(value):
        raise NotExpressible(f"{name} = {row[name]}: is not a whole number from 1 to {_LARGEST:.0e}")
    return int(value)


def _value(text: str) -> float:
    """NaN for no number."""
    try:
        return float(re.sub(r"[, \u00a0]", "", text) if _THOUSANDS.fullmatch(text) else text)
    except ValueError:
        return math.nan


def flag(row: Row, name: str) -> bool | None:
    """Yes or no; None when the cell is empty. Raises NotExpressible for anything else."""
    text = (row.get(name) or "").strip().lower()
    if text in _YES or text in _NO:
        return text in _YES
    if text in _NOTHING:
        return None
    raise NotExpressible(f"{name} = {row[name]}: is neither true nor false")


def precision(row: Row) -> Precision | None:
    """The narrowest that the cell names; None when it is empty. Raises NotExpressible for none that is known."""
    text = _of_its_day(text_of(row, "precision"), text_of(row, "date"))
    if not text or text in ("mixed", "amp"):
        return None
    for found, pattern in _PRECISIONS:
        if re.search(pattern, text):
            return found
    raise NotExpressible(f"precision = {row['precision']}: is none of {', '.join(name for name, _ in _PRECISIONS)}")


def _of_its_day(text: str, day: str) -> str:
    """Of "bf16 (fp32 gradients from 02-28) / fp16" what holds on a day such as 2022-02-25: what is after the slash."""
    found = re.fullmatch(r"(.*)\bfrom (\d\d-\d\d)\b(.*)/(.*)", text)
    if found is None or not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        return text
    return found[1] + found[3] if day[5:] >= found[2] else found[4]


def month_of(row: Row) -> str | None:
    """The date as 2025-03, or 2025 where no month can be read; None where it is not given or is none."""
    text = text_of(row, "date")
    if found := _CONTAINER.fullmatch(text):
        year, month = f"20{found[1]}", int(found[2])
    elif found := _MONTH_FIRST.search(text):
        year, month = found[2], int(found[1])
    elif found := _NAMED.search(text):
        year, month = found[2], _MONTHS.index(found[1]) + 1
    elif found := _YEAR_FIRST.search(text):
        year, month = found[1], int(found[2] or 0)
    else:
        return None
    return f"{year}-{month:02d}" if 1 <= month <= 12 else year


def mixed_precision(row: Row) -> bool:
    """Whether weights and moments are in float32, unless the cell says that all is in 16 bits."""
    return not _ALL_LOW.search(text_of(row, "precision"))


def recompute(row: Row) -> Recompute | None:
    """None when the cell is empty, or does not say how much."""
    text = (row.get("recompute") or "").strip().lower()
    words = re.findall(r"[a-z]+|[0-9.]+", text)
    if not words or text in _NOTHING - _NO_RECOMPUTE:
        return None
    if words[0] in _NO_RECOMPUTE:
        return "none"
    if recompute_share(row) < 1.0:
        return "full"
    if any(word.startswith("select") for word in words):
        return "selective"
    if _FULL & set(words):
        return "full"
    return "selective" if _PARTS & set(words) else None


def recompute_share(row: Row) -> float:
    """Share of the layers that are recomputed."""
    text = text_of(row, "recompute")
    if found := _EVERY.search(text):
        return 1.0 / max(1, int(found[1] or 2))
    if found := _SOME_OF.search(text):
        return min(1.0, int(found[1]) / max(1, int(found[2])))
    return 0.5 if _SELECTIVE_LAYER.search(text) else 1.0


def schedule(row: Row) -> Schedule | None:
    """The pipeline's, from its own column or the framework's name; None when neither says it."""
    stated, framework = (re.sub(r"[-_ ]", "", text_of(row, name)) for name in ("pipeline_schedule", "framework"))
    if not stated:
        return next((found for word, found in _SCHEDULES.items() if word in framework), None)
    names: tuple[Schedule, ...] = get_args(Schedule)
    words = {name: name for name in names} | _SCHEDULES | _INTERLEAVED
    if stated not in words:
        raise NotExpressible(f"pipeline_schedule = {row['pipeline_schedule']}: is none of {', '.join(names)}")
    return words[stated]


def sharding(row: Row) -> Sharding | None:
    """None when the cell is empty or names no kind."""
    text = (row.get("zero_or_fsdp") or "").strip().lower()
    stage = re.search(r"zero\W*(?:stage\W*)?([0-3])(?!\d)", text) or re.fullmatch(r"(?:stage\W*)?([0-3])(?:\.0)?", text)
    if stage:
        return ("none", "zero1", "zero2", "zero3")[int(stage[1])]  # type: ignore[return-value]
    for pattern, found in (
        (r"shard_grad_op", "zero2"),
        (r"no_shard|ddp|data.parallel$|^none|^no$|^false$", "none"),
        (r"dist\w*[-_ ]opt", "zero1"),
        (r"full_shard|fsdp|hsdp|hybrid_shard", "zero3"),
    ):
        if re.search(pattern, text):
            return found  # type: ignore[return-value]
    return None
