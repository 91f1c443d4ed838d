"""`scaling design`: the next runs, and what each part of the budget buys."""

import math
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
    from analysis.design import Belief
    from analysis.sampled import SampledLaw

#: A design needs no resamples; the fit wants a few.
_RESAMPLES = 10


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
    noise: Annotated[
        Optional[float], typer.Option(help="Standard deviation of log loss between seeds. Default: as the runs tell.")
    ] = None,
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
    from analysis.design_text import design_lines
    from analysis.noise import Noise
    from analysis.proposal import Space, describe, propose

    if not 0 < target < math.inf:
        what = "no --target" if target == 0 else f"--target {target:g}"
        raise UserError(f"{what}: give the compute at which N* and L* are wanted, in FLOPs, such as --target 1e23")
    if noise is not None and not 0 < noise < math.inf:
        raise UserError(f"--noise {noise:g}: must be above zero, such as 3e-3; leave it out to have it estimated")
    if not 0 <= form_error < math.inf:
        raise UserError(f"--form-error {form_error:g}: must be zero or above, such as 1e-2")
    kind, budget = one_budget(flops=flops, gpu_hours=gpu_hours, usd=usd)
    if not 0 < budget < math.inf:
        raise UserError(f"--{kind.replace('_', '-')} {budget:g}: must be above zero: give what the new runs may cost")
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

    known = law.noise() if noise is None else Noise(noise, "as given")
    belief, least = _belief(law, smallest, target, known.value, form_error)
    found = propose(belief, target, budget, Space(least), cost_of)
    result = describe(
        belief,
        found,
        target_flops=target,
        budget={"kind": kind, "amount": budget, "source": ""},
        noise=known,
        runs_known=0 if law.runs is None else len(law.runs),
        source=law.source,
        price=None
        if priced is None
        else {
            "usd_per_device_hour": priced.mid,
            "device": priced.device,
            "date": priced.date.isoformat(),
            "provider": priced.provider,
        },
    )
    if as_json:
        print_json(result)
        return
    screen = console(False)
    for line in design_lines(result):
        screen.print(line, soft_wrap=True)


def _belief(
    law: "SampledLaw", smallest: float | None, target: float, noise: float, form_error: float
) -> tuple["Belief", float]:
    """What the source tells, and the least compute of a new run."""
    import numpy as np

    from analysis.design import ignorance

    assumed = {"noise": noise, "form_error": form_error}
    if smallest is not None and not 0 < smallest < math.inf:
        raise UserError(f"--smallest {smallest:g}: must be above zero FLOPs")
    if law.runs is None and smallest is None:
        raise UserError(f"{law.source}: a law without its runs does not say how small one may be: give --smallest C")
    least = smallest or float((6.0 * law.runs.params * law.runs.tokens).min())
    if target < least:
        raise UserError(f"--target {target:g}: below the smallest run, of {least:.3g} FLOPs: give a larger one")
    if law.runs is not None:
        runs = law.runs
        return ignorance(type(law.law), runs.params, runs.tokens, **assumed).learn(
            runs.params, runs.tokens, runs.loss
        ), least
    best = law.law.optimum(np.geomspace(smallest, target, 9))
    start = ignorance(type(law.law), best.params, best.tokens, **assumed)
    coordinates = law.law.coordinates(start.centre)
    return replace(start, mean=coordinates, prior=coordinates), least
