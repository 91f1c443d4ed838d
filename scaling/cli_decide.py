"""`scaling decide`: which model to train for a budget, and what another one costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

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
    from analysis.cost.prices import Price
    from analysis.cost.speed_curve import SpeedCurve
    from analysis.sampled import SampledLaw
    from sweeps.plan import DevicePrice

_LEVEL = 0.9


def decide(
    source: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[SWEEP_DIR|law.json|FILE.csv]", help="A sweep, a law or a table. Default: the sweep launched last."
        ),
    ] = None,
    flops: Annotated[Optional[float], typer.Option(help="Budget of training, in FLOPs (6ND).")] = None,
    gpu_hours: Annotated[
        Optional[float], typer.Option(help="Budget of training, in GPU-hours (core-hours of a CPU).")
    ] = None,
    usd: Annotated[Optional[float], typer.Option(help="Budget of training and serving, in US dollars.")] = None,
    loss: Annotated[Optional[float], typer.Option(help="The loss to reach, in nats per token.")] = None,
    serve_tokens: Annotated[
        float, typer.Option(min=0, help="Tokens to be served after training, at 2N FLOPs each; they count in dollars.")
    ] = 0.0,
    columns: TableColumns = None,
    form: SurfaceForm = None,
    speeds: Speeds = None,
    device: Device = None,
    mfu: Utilisation = None,
    price: Price = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples that the intervals are read from.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """The loss-, the time- and the dollar-optimal model of a budget, and the price of other sizes.

    Give one of --flops, --gpu-hours, --usd or --loss. The three models reach the same loss: with the fewest FLOPs, in
    the least device time at the measured speed of each size, and for the fewest dollars, serving included.
    """
    from analysis.decide import Costs
    from analysis.decide import decide as decision

    kind, amount = one_budget(flops=flops, gpu_hours=gpu_hours, usd=usd, loss=loss)
    path = find_sweep(source)
    law, rows = read_source(path, columns, form, bootstrap, seed)
    speed = read_speed(path, rows, speeds, device, mfu, bootstrap if law.samples is not None else 0, seed)
    priced = read_price(path, speed, device, price)
    costs = Costs(speed, None if priced is None else priced.mid, serve_tokens)
    found = decision(law.law, kind, amount, costs, law.samples, _LEVEL)
    result = _described(found, law, speed, priced, serve_tokens, bootstrap)
    if as_json:
        print_json(result)
    else:
        _show(result)


def one_budget(**given: float | None) -> tuple[str, float]:
    """The one budget that was given."""
    named = [(name, value) for name, value in given.items() if value is not None]
    options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    if len(named) != 1:
        what = "no budget" if not named else " and ".join(f"--{name.replace('_', '-')}" for name, _ in named)
        raise UserError(f"{what} given: give one of {options}")
    return named[0]


def read_source(
    path: Path, columns: str | None, form: str | None, resamples: int, seed: int
) -> tuple["SampledLaw", list[dict[str, Any]]]:
    """The law with its resamples, and the rows of a sweep."""
    from analysis.sampled import read_law_file, sample_law, settings_of
    from sweeps.records import collect
    from sweeps.results import LAW_FILE, read_law

    if path.name == LAW_FILE and (path.parent / "plan.json").is_file():
        path = path.parent
    is_table = not path.is_dir() and path.suffix != ".json"
    for name, value in (("columns", columns), ("form", form)):
        if value is not None and not is_table:
            raise UserError(f"--{name} {value}: {path} says that itself: leave it out, or give a table")
    if is_table:
        return sample_law(path, columns, {"form": form}, resamples, seed), []
    if not path.is_dir():
        return read_law_file(path, resamples, seed), []
    table = collect(path)
    settings = settings_of(read_law(path) or {}, str(path / LAW_FILE))
    return sample_law(table.columns(), None, settings, resamples, seed), table.rows


def read_speed(
    path: Path,
    rows: list[dict[str, Any]],
    speeds: Path | None,
    device: str | None,
    mfu: float | None,
    resamples: int,
    seed: int,
) -> Optional["SpeedCurve"]:
    from analysis.cost.speed_curve import constant_speed, fit_speed, read_speeds

    if mfu is not None:
        if device is None or speeds is not None:
            raise UserError(f"--mfu {mfu:g}: goes with --device, such as --device H100, and without --speeds")
        return constant_speed(device, mfu)
    if speeds is not None:
        return fit_speed(read_speeds(speeds), str(speeds), resamples, seed, device)
    finished = [row for row in rows if row["status"] == "finished"]
    return fit_speed(finished, f"runs of {path}", resamples, seed, device)


def read_price(path: Path, speed: Optional["SpeedCurve"], device: str | None, own: float | None) -> Optional["Price"]:
    """The user's price, or the dated one of the device; a sweep's plan knows what its own device costs."""
    from analysis.cost.prices import own_price, price_for
    from sweeps.plan import read_plan

    if speed is None:
        return None
    if own is not None:
        return own_price(own, device or speed.device)
    directory = path if path.is_dir() else path.parent
    if device is None and (directory / "plan.json").is_file():
        planned = read_plan(directory).price
        return None if planned is None else _planned_price(planned)
    return price_for(device or speed.device)


def _planned_price(planned: "DevicePrice") -> "Price":
    """The price of a plan, with the unit that goes with its device."""
    from datetime import date

    from analysis.cost.prices import Price, own_price

    usd = planned.usd_per_device_hour
    return Price(
        device=planned.device,
        low=usd.low,
        mid=usd.mid,
        high=usd.high,
        unit=own_price(usd.mid, planned.device).unit,
        date=date.fromisoformat(planned.date),
        provider=planned.provider,
        source=planned.source,
    )


def _described(
    found: dict[str, Any],
    law: "SampledLaw",
    speed: Optional["SpeedCurve"],
    price: Optional["Price"],
    serve_tokens: float,
    resamples: int,
) -> dict[str, Any]:
    """The decision with everything it rests on."""
    from analysis.backtest import loss_errors
    from analysis.fit_findings import backtest_findings, forecast_findings, speed_findings
    from analysis.predictions import AVERAGE, decided_with_form_error
    from analysis.sampled import decades_beyond

    best = found["models"]["loss_optimal"]
    flops = best["flops"]["value"]
    decades = decades_beyond(flops, law.largest_flops)
    smallest = None if law.runs is None else float((6.0 * law.runs.params * law.runs.tokens).min())
    findings = [] if decades is None else forecast_findings([flops], smallest, law.largest_flops)
    if speed is not None:
        largest = max(model["params"]["value"] for model in found["models"].values())
        findings += speed_findings(largest, speed.largest)
    formed = None
    if law.choice is not None:
        formed = decided_with_form_error(law.choice, law.runs, {**best, "loss": found["loss"]}, flops, _LEVEL)
        if formed["of"] != AVERAGE:
            findings += backtest_findings(formed["of"], loss_errors(law.choice.scores))
    sampled = {"level": _LEVEL, "method": law.method, "resamples": resamples}
    return {
        **found,
        "with_form_error": formed,
        "form": law.law.form,
        "parameters": law.law.to_dict()["parameters"],
        "source": law.source,
        "intervals": sampled if law.samples is not None else None,
        "largest_run_flops": law.largest_flops,
        "decades_beyond_data": decades,
        "serve_tokens": serve_tokens,
        "speed": None if speed is None else speed.to_dict(),
        "price": None
        if price is None
        else {
            "usd_per_device_hour": {"low": price.low, "mid": price.mid, "high": price.high},
            "device": price.device,
            "date": price.date.isoformat(),
            "provider": price.provider,
            "source": price.source,
            "warning": price.warning(),
        },
        "conventions": {
            "params": "as in the table that the law was fitted to",
            "flops": "6 x params x tokens",
            "loss": "nats per token, or the unit of the table",
            "device_hours": "6ND / measured FLOP/s of one device; no start-up, evaluation or idle time",
            "usd": "device-hours x mid price; lifetime adds serving at 2 x params FLOPs a token, at the same speed",
        },
        "warnings": [finding.to_dict() for finding in findings],
    }


def _show(result: dict[str, Any]) -> None:
    from analysis.formatting import count, dollars, fixed, percent, significant
    from analysis.predictions import AVERAGE
    from sweeps.display import show_findings

    screen = console(False)

    def line(text: str, **style: Any) -> None:
        screen.print(text, soft_wrap=True, highlight=False, **style)

    def ranged(number: dict | None, show: Any) -> str:
        if number is None or number["value"] is None:
            return ""
        value, low, high = (None if number[end] is None else show(number[end]) for end in ("value", "low", "high"))
        if low is None or low == high:
            return value
        return f"{value} ({low} to {high})" if high is not None else f"{value} (from {low} to beyond reach)"

    def priced(model: dict[str, Any]) -> str:
        hours = ranged(model["device_hours"], lambda value: f"{significant(value)} h")
        money = ranged(model["usd_lifetime" if result["serve_tokens"] else "usd_training"], dollars)
        return "".join(f", {text}" for text in (hours, money) if text)

    kind, amount = result["budget"]["kind"], result["budget"]["amount"]
    budget = {
        "flops": f"for {significant(amount)} FLOPs",
        "gpu_hours": f"for {significant(amount)} device-hours",
        "usd": f"for {dollars(amount)}",
        "loss": "as asked",
    }[kind]
    line(f"loss {ranged(result['loss'], fixed)} {budget}")
    models = dict(result["models"])
    if "dollar_optimal" in models and models["dollar_optimal"] == models["time_optimal"]:
        models["time- and dollar-optimal"] = models.pop("time_optimal")
        del models["dollar_optimal"]
    for name, model in models.items():
        line(
            f"{name.replace('_', '-')}: N {ranged(model['params'], count)}, D {ranged(model['tokens'], count)}, "
            f"{significant(model['flops']['value'])} FLOPs{priced(model)}"
        )
    if formed := result["with_form_error"]:
        shown = (f"N {ranged(formed['params'], count)}", f"D {ranged(formed['tokens'], count)}")
        of = "average of all forms" if formed["of"] == AVERAGE else formed["of"]
        line(
            f"{of}, with the error of the form as its backtest shows it, at {significant(formed['flops'])} FLOPs: "
            f"{', '.join(shown)}, loss {ranged(formed['loss'], fixed)}"
        )
    line("the same loss with other sizes, relative to the loss-optimal one:")
    for other in result["sizes"]:
        start = f"  {other['size']:g} x N = {count(other['params'])}: "
        if not other["reachable"]:
            line(start + "no number of tokens reaches it")
            continue
        pays = other["pays_back_after"]
        after = f", repaid after {count(pays['value'])} tokens served" if pays and pays["value"] else ""
        line(f"{start}{ranged(other['flops_ratio'], significant)} x the FLOPs{priced(other)}{after}")
    wasted = result["wasted"]
    if wasted["share_mean"] is not None:
        spent = f" ({dollars(wasted['usd_mean'])})" if wasted["usd_mean"] is not None else ""
        line(
            f"compute wasted by taking the loss-optimal N as exact: {percent(wasted['share_mean'])} on average{spent}, "
            f"{percent(wasted['share_high'])} at the {percent((1 + _LEVEL) / 2)} point"
        )
    elif result["intervals"] is None:
        line("no intervals: the runs behind the law are not here")
    if result["decades_beyond_data"] is not None:
        line(f"{result['decades_beyond_data']:.1f} decades beyond the largest run; C = 6ND")
    if result["price"] is not None:
        price = result["price"]
        each = f"{dollars(price['usd_per_device_hour']['mid'])} per {price['device']} hour"
        line(f"{each}, {price['date']}, {price['provider']}")
        if price["warning"]:
            line(f"warning: {price['warning']}", style="yellow")
    show_findings(screen, result["warnings"])
