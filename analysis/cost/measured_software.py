"""The software of a row of measured runs: its stack, and what software of its day did."""

from analysis.cost.measured_cells import Row, month_of, precision, text_of, whole
from analysis.cost.setup import Loss, Stack
from analysis.cost.stacks import stack_of

#: Before this month whoever divided a model used Megatron-LM or Megatron-DeepSpeed as they were for GPT-3.
_MEGATRON_CORE = "2023-07"
#: Since these months torchtitan compiles its loss with the model (pytorch/torchtitan#1033, after #755 had stopped it in
#: 2024-12), and takes it in chunks (#2937).
_TORCHTITAN_COMPILES, _TORCHTITAN_CHUNKS = "2025-04", "2026-05"
#: torchtitan's micro-batches of a pipeline were as many as its stages, and are of one sequence since (#1073); its
#: batches were not accumulated before (#1238).
_TORCHTITAN_MICRO_BATCH, _TORCHTITAN_ACCUMULATES = "2025-04", "2025-06"
#: Since this month Megatron-Core fuses the experts' products with what is between them (Megatron-Bridge 26.06).
_FUSED_EXPERTS = "2026-06"
#: Software that has the loss within the model that it compiles.
_LOSS_INSIDE = ("gpt", "chat", "llm.c", "pax")
#: Words for a loss that never has all logits.
_CHUNKED = ("chunk", "fused linear cross", "linear cross", "cut cross")


def stack_of_row(row: Row, assumed: list[str]) -> Stack:
    """By the framework's name, or else by the layout and the date."""
    framework = row.get("framework") or ""
    stack = stack_of(framework)
    if stack == "megatron" and "megatron-lm" in framework.lower() and _before(row, _MEGATRON_CORE):
        return "megatron_2021"
    if stack is not None:
        return stack
    low = precision(row) not in (None, "bf16", "fp16", "fp32")
    divided = any((whole(row, name) or 1) > 1 for name in ("tp", "pp", "cp", "ep"))
    reason = "by its layout"
    if divided and not low and _before(row, _MEGATRON_CORE):
        stack, reason = "megatron_2021", "by its layout and date"
    else:
        stack = "megatron" if divided or low else "fsdp_eager"
    assumed.append(f"software {framework or 'not given'}: taken for the stack {stack}, {reason}")
    return stack


def divides_sequences(row: Row, stack: Stack) -> bool:
    """Whether tensor ranks divide norms and residuals as well, as Megatron-LM does since 2022."""
    return stack != "megatron_2021" or "2023" in text_of(row, "framework")


def flash_attention(row: Row, stack: Stack) -> bool:
    """Whether scores are never written: all do but the Megatron-LM of the GPT-3 years, unless it says so."""
    return stack != "megatron_2021" or "flash" in text_of(row, "framework")


def loss_of_row(row: Row, stack: Stack) -> Loss:
    """How the software has its cross-entropy, by its name and date."""
    framework, compiled = text_of(row, "framework"), stack == "fsdp_compiled"
    titan = "torchtitan" in framework
    if any(word in framework for word in _CHUNKED) or titan and not _before(row, _TORCHTITAN_CHUNKS):
        return "chunked"
    if titan:
        return "compiled" if compiled and not _before(row, _TORCHTITAN_COMPILES) else "whole"
    inside = any(word in framework for word in _LOSS_INSIDE) and "litgpt" not in framework
    return "compiled" if compiled and inside else "whole"


def usual_virtual_stages(row: Row) -> int | None:
    """Stages of a pipeline rank by default: torchtitan's interleaved schedules have two; None where none is known."""
    text = text_of(row, "framework") + text_of(row, "pipeline_schedule")
    return 2 if "torchtitan" in text and "interleaved" in text else None


def usual_micro_batch(row: Row, sequences: int, stages: int) -> int | None:
    """Of software that has a default, which a row that does not give its micro-batch has left as it is; else None.

    sequences: of a step on one data rank. stages: of the pipeline, interleaved ones included.
    """
    if "torchtitan" not in text_of(row, "framework"):
        return None
    if stages == 1:
        return sequences if _before(row, _TORCHTITAN_ACCUMULATES) else None
    if not _before(row, _TORCHTITAN_MICRO_BATCH):
        return 1
    return sequences // stages if sequences % stages == 0 else None


def fuses_experts(row: Row) -> bool:
    """Whether the software is as new as that."""
    return not _before(row, _FUSED_EXPERTS)


def _before(row: Row, month: str) -> bool:
    """Whether the row's date is surely of an earlier month; without a date its software is taken for today's."""
    day = month_of(row)
    return day is not None and day < month[: len(day)]
