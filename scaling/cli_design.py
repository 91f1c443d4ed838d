"""`scaling design`: the next runs, and what each part of the budget buys."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from scaling.cli_decide import one_budget, read_price, read_source, read_speed
from scaling.cli_options import (
    Device,
    Json,
    Price,
    Speeds,
    SurfaceForm,
    TableColumns,
    Utilisation,
    console,
    find_sweep,
    print_json,
)
from scaling.errors import UserError

if TYPE_CHECKING:
    from analysis.design import Belief, Proposal
    from analysis.sampled import SampledLaw

#: A design needs no resamples; the fit wants a few.
_RESAMPLES = 10
#: Steps in which people read what the budget buys.
_STEPS = 8
_LINES = 25


def design(
    source: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[SWEEP_DIR|law.json|FILE.csv]", help="A sweep, a law or a table. Default: the sweep launched last."
        ),
    ] = None,
    target: Annotated[
        float, typer.Option(show_default=False, help="Compute at which N* and L* are wanted, in FLOPs (6ND).")
    ] = 0.0,
    flops: Annotated[Optional[float], typer.Option(help="Budget of the new runs, in FLOPs (6ND).")] = None,
    gpu_hours: Annotated[
        Optional[float], typer.Option(help="Budget of the new runs, in GPU-hours (core-hours of a CPU).")
    ] = None,
    usd: Annotated[Optional[float], typer.Option(help="Budget of the new runs, in US dollars.")] = None,
    smallest: Annotated[
        Optional[float], typer.Option(help="Least compute of a new run, in FLOPs. Default: of the runs there are.")
    ] = None,
    noise: Annotated[float, typer.Option(help="Standard deviation of log loss between seeds.")] = 3e-3,
    form_error: Annotated[float, typer.Option(help="How wrong the form may be, in log loss; 0 trusts it.")] = 1e-2,
    columns: TableColumns = None,
    form: SurfaceForm = None,
    speeds: Speeds = None,
    device: Device = None,
    mfu: Utilisation = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """The runs to train next: those that shrink the uncertainty of N* and L* at --target most for their cost.

    A fifth of the budget is an IsoFLOP of five sizes at the largest compute that this pays, a tenth a run to hold out
    and predict: these two show whether the form of the law is right.
    """
    from analysis.decide import Costs
    from analysis.design import propose

    if not target > 0:
        raise UserError(f"--target {target:g}: give the compute at which N* and L* are wanted, such as --target 1e23")
    for name, value, good in (("noise", noise, noise > 0), ("form-error", form_error, form_error >= 0)):
        if not good:
            raise UserError(f"--{name} {value:g}: must be above zero, such as {3e-3 if name == 'noise' else 1e-2:g}")
    kind, budget = one_budget(flops=flops, gpu_hours=gpu_hours, usd=usd)
    path = find_sweep(source)
    law, rows = read_source(path, columns, form, _RESAMPLES, 0)
    speed = read_speed(path, rows, speeds, device, mfu, 0, 0)
    priced = read_price(path, speed, device, price)
    if kind != "flops" and speed is None:
        raise UserError(f"--{kind.replace('_', '-')} {budget:g}: needs --speeds, or --device with --mfu")
    if kind == "usd" and (priced is None or not priced.mid):
        raise UserError(f"--usd {budget:g}: the price of a device-hour is not known: give yours with --price")
    costs = Costs(speed)
    unit = {"flops": None, "gpu_hours": 1.0, "usd": priced.mid if priced is not None else 1.0}[kind]

    def cost_of(params: Any, tokens: Any) -> Any:
        return 6.0 * params * tokens if unit is None else unit * costs.hours(params, tokens)

    belief, least = _belief(law, smallest, target, noise, form_error)
    found = propose(belief, target, budget, least, cost_of)
    result = {
        "target_flops": target,
        "budget": {"kind": kind, "amount": budget, "spent": float(found.cost.sum())},
        "form": law.law.form,
        "source": law.source,
        "runs_known": 0 if law.runs is None else len(law.runs),
        "assumed": {"noise": noise, "form_error": form_error, "correlation_length": belief.correlation_length},
        "cells": _cells(belief, found),
        "buys": _buys(found),
        "price": None if priced is None else {"usd_per_device_hour": priced.mid, "date": priced.date.isoformat()},
        "conventions": {
            "params": "as in the table that the law was fitted to",
            "flops": "6 x params x tokens",
            "sd": "standard deviation of ln N* and ln L* at target_flops; the form's error is in that of ln L*",
        },
    }
    if as_json:
        print_json(result)
    else:
        _show(result, priced)


def _belief(
    law: "SampledLaw", smallest: float | None, target: float, noise: float, form_error: float
) -> tuple["Belief", float]:
    """What the source tells, and the least compute of a new run."""
    import numpy as np

    from analysis.design import ignorance

    assumed = {"noise": noise, "form_error": form_error}
    if smallest is not None and not smallest > 0:
        raise UserError(f"--smallest {smallest:g}: must be above zero FLOPs")
    if law.runs is not None:
        runs = law.runs
        start = ignorance(type(law.law), runs.params, runs.tokens, **assumed)
        return start.learn(runs.params, runs.tokens, runs.loss), smallest or float(
            (6.0 * runs.params * runs.tokens).min()
        )
    if smallest is None:
        raise UserError(f"{law.source}: a law without its runs does not say how small one may be: give --smallest C")
    best = law.law.optimum(np.geomspace(smallest, target, 9))
    start = ignorance(type(law.law), best.params, best.tokens, **assumed)
    coordinates = law.law.coordinates(start.centre)
    return replace(start, mean=coordinates, prior=coordinates), smallest


def _cells(belief: "Belief", found: "Proposal") -> list[dict[str, Any]]:
    """Every proposed cell once, with its number of seeds and the loss that is expected of it."""
    expected = belief.predict(found.params, found.tokens)
    cells: dict[tuple, dict[str, Any]] = {}
    for role, params, tokens, cost, loss in zip(
        found.role, *(column.tolist() for column in (found.params, found.tokens, found.cost, expected))
    ):
        cell = {"role": role, "params": params, "tokens": tokens, "flops": 6.0 * params * tokens}
        kept = cells.setdefault((role, params, tokens), {**cell, "seeds": 0, "cost_each": cost, "expected_loss": loss})
        kept["seeds"] += 1
    return list(cells.values())


def _buys(found: "Proposal") -> list[dict[str, float]]:
    """Spending, and the standard deviations that it leaves, in steps of about an eighth of the budget."""
    spent = [0.0, *found.cost.cumsum().tolist()]
    steps, last = [], -1.0
    for index, amount in enumerate(spent):
        if amount - last >= spent[-1] / _STEPS or index in (0, len(spent) - 1):
            sd_params, sd_loss = found.deviations[index].tolist()
            steps.append({"spent": amount, "runs": index, "sd_ln_params": sd_params, "sd_ln_loss": sd_loss})
            last = amount
    return steps


def _show(result: dict[str, Any], price: Any) -> None:
    from analysis.formatting import count, dollars, percent, significant

    screen = console(False)
    kind = result["budget"]["kind"]
    unit = {"flops": " FLOPs", "gpu_hours": " device-hours", "usd": ""}[kind]

    def money(amount: float) -> str:
        return dollars(amount) if kind == "usd" else significant(amount) + unit

    def line(text: str) -> None:
        screen.print(text, soft_wrap=True, highlight=False)

    line(f"for N* and L* at {significant(result['target_flops'])} FLOPs, knowing {result['runs_known']} runs:")
    for cell in result["cells"][:_LINES]:
        seeds = f" x {cell['seeds']} seeds" if cell["seeds"] > 1 else ""
        line(
            f"  {cell['role']:<8} N {count(cell['params'])}, D {count(cell['tokens'])}{seeds}, "
            f"{money(cell['cost_each'])} each, loss {cell['expected_loss']:.3f} expected"
        )
    if len(result["cells"]) > _LINES:
        line(f"  and {len(result['cells']) - _LINES} more cells: see --json")
    line("what it buys: spent, standard deviation of N* and of L*")
    for step in result["buys"]:
        left = f"{percent(step['sd_ln_params'])} of N*, {percent(step['sd_ln_loss'])} of L*"
        line(f"  {money(step['spent'])}, {step['runs']} runs: {left}")
    assumed = result["assumed"]
    noise, form_error = (percent(assumed[name]) for name in ("noise", "form_error"))
    line(f"assumed: noise {noise} and form error {form_error} of the loss; C = 6ND")
    if price is not None:
        line(f"{dollars(price.mid)} per {price.device} hour, {price.date.isoformat()}, {price.provider}")
