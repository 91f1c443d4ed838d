"""A proposal in words: which runs, what each part of the budget buys, and what all of it assumes."""

from typing import Any

from analysis.formatting import count, dollars, percent, significant

_LINES = 25


def design_lines(design: dict[str, Any]) -> list[str]:
    """Lines for people.

    design: "target_flops", "runs_known", "budget" {"kind", "amount", "source"}, "cells", "buys" and "notes" (see
    `analysis.proposal.describe`), "assumed" {"noise", "noise_source", "form_error"}, "price" {"usd_per_device_hour",
    "device", "date", "provider"} or None.
    """
    kind, price, assumed = design["budget"]["kind"], design["price"], design["assumed"]

    def money(amount: float) -> str:
        if kind == "flops":
            return f"{significant(amount)} FLOPs"
        if kind == "usd":
            return dollars(amount)
        paid = "" if price is None else f" ({dollars(amount * price['usd_per_device_hour'])})"
        return f"{significant(amount)} device-hours{paid}"

    def each(seeds: int) -> str:
        return f" for each of {seeds} seeds" if seeds > 1 else ""

    cells = design["cells"]
    lines = [
        f"for N* and L* at {significant(design['target_flops'])} FLOPs, knowing {design['runs_known']} runs, "
        f"a budget of {money(design['budget']['amount'])}{design['budget']['source']}:"
    ]
    lines += [
        f"  {cell['role']:<8} N {count(cell['params'])}, D {count(cell['tokens'])}, {money(cell['cost_each'])}"
        f"{each(cell['seeds'])}, loss {cell['expected_loss']:.3f} expected"
        for cell in cells[:_LINES]
    ]
    if len(cells) > _LINES:
        lines.append(f"  and {len(cells) - _LINES} more cells: see --json")
    lines.append("what it buys: spent, standard deviation of N* and of L*")
    lines += [
        f"  {money(step['spent'])}, {step['runs']} runs: "
        f"{percent(step['sd_ln_params'])} of N*, {percent(step['sd_ln_loss'])} of L*"
        for step in design["buys"]
    ]
    lines += [f"note: {note}" for note in design["notes"]]
    lines.append(
        f"assumed: noise {percent(assumed['noise'])} ({assumed['noise_source']}), form error "
        f"{percent(assumed['form_error'])} of the loss; C = 6ND"
    )
    if price is not None:
        lines.append(
            f"{dollars(price['usd_per_device_hour'])} per {price['device']} hour, {price['date']}, {price['provider']}"
        )
    return lines
