"""`scaling cost estimate`: parameters, FLOPs, memory, time, energy and dollars of one run, each with its interval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from scaling.cli_cost_options import RunOptions, read_run
from scaling.cli_options import Json, console, print_json

if TYPE_CHECKING:
    from analysis.cost.defaults import Choice
    from analysis.cost.estimate import Estimate
    from analysis.cost.prices import Price


#: Conventions of FLOPs, for people.
_FLOPS = {
    "c_6nd": "6ND",
    "causal": "with causal attention",
    "full": "with full attention",
    "hardware": "with full attention and recomputation",
}


def estimate(
    options: RunOptions,
    price: Annotated[
        Optional[float], typer.Option(help="Your price of a GPU-hour (core-hour of a CPU), in US dollars.")
    ] = None,
    price_file: Annotated[
        Optional[Path], typer.Option(metavar="FILE.yaml", help="Your table of prices, with the fields of prices.yaml.")
    ] = None,
    goodput: Annotated[
        Optional[float], typer.Option(help="Share of the hours that train: no restarts, evaluation, lost steps.")
    ] = None,
    pue: Annotated[Optional[float], typer.Option(help="Energy of the building over energy of its computers.")] = None,
    carbon_intensity: Annotated[
        Optional[float], typer.Option(help="Of your grid, in g CO2e per kWh; without it no CO2 is given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a run needs before it runs: parameters, FLOPs, memory, time, energy, dollars, with 90 % intervals.

    Give a model (--model or --params) and a GPU (--gpu or --device-file); what else is left open is chosen by rules
    that the answer states. Nothing measured in the run in question is an input.
    """
    from analysis.cost.estimate import Assumptions
    from analysis.cost.estimate import estimate as estimated
    from analysis.cost.estimate_text import described

    run = read_run(options)
    device = run.completed.setup.device
    assumptions = Assumptions(
        price=_price(device.name, price, price_file),
        goodput=goodput,
        pue=pue,
        carbon_intensity=carbon_intensity,
        calibration=run.calibration,
        layout_is_guessed=run.completed.layout_is_guessed,
    )
    found = estimated(run.completed.setup, run.completed.tokens, assumptions)
    answer = described(found, run.choices, run.warnings)
    if as_json:
        print_json(answer)
    else:
        _show(answer, found, run.choices)


def _show(answer: dict[str, Any], found: "Estimate", choices: tuple["Choice", ...]) -> None:
    """A table of the estimates, then what they rest on, warnings last; that it does not fit comes first."""
    from rich.table import Table

    from analysis.cost.estimate_text import memory_warning
    from analysis.cost.setup_text import setup_line
    from analysis.formatting import count

    screen = console(False)

    def line(text: str, style: str | None = None) -> None:
        screen.print(text, soft_wrap=True, style=style)

    setup, counted = found.setup, found.parameters
    if not found.fits:
        line(memory_warning(found), "red")
    active = f", {count(counted.active)} active" if counted.active != counted.total else ""
    line(
        f"{setup.model.name}: {count(counted.total)} parameters ({count(counted.non_embedding)} without embeddings"
        f"{active}), {count(found.tokens)} tokens in {found.train_steps:,} steps"
    )
    line(setup_line(setup))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("")
    table.add_column("estimate", justify="right")
    table.add_column("90 % interval", justify="right")
    table.add_column("unit and convention")
    for name, numbers, unit in _rows(answer, found):
        if numbers is not None:
            value, low, high = (_short(numbers[bound]) for bound in ("value", "low", "high"))
            table.add_row(name, value, f"{low} to {high}", unit)
    screen.print(table)
    line(f"FLOPs of the run: {', '.join(f'{_FLOPS[name]} {value:.3g}' for name, value in found.flops.items())}")
    tensors = sorted(found.memory.tensors.items(), key=lambda item: -item[1])
    line("memory, GiB: " + ", ".join(f"{name} {size / 2**30:.3g}" for name, size in tensors if size >= 2**20))
    if found.assumptions.price is not None:
        line(_price_line(found.assumptions.price))
    for title, name in (("GPU-hours", "gpu_hours"), ("energy", "energy_kwh")):
        if name in answer["sources"]:
            line(f"{title}: {answer['sources'][name]}")
    line("chosen for you:")
    chosen: dict[str, list[str]] = {}
    for choice in choices:
        chosen.setdefault(choice.why, []).append(str(choice))
    for why, said in chosen.items():
        line(f"  {', '.join(said)}: {why}")
    for warning in answer["warnings"][not found.fits :]:
        line(f"warning: {warning}", "yellow")


def _rows(answer: dict[str, Any], found: "Estimate") -> list[tuple[str, dict[str, Any] | None, str]]:
    bits = "float32" if found.setup.precision == "fp32" else "16-bit"
    peak = f"of {found.peak_flops / 1e12:.3g} TFLOP/s, the dense {bits} peak"
    memory = answer["memory_gib"]
    capacity = f"GiB of {found.setup.device.memory_bytes / 2**30:.3g}"
    is_core = found.setup.device.is_cpu_core
    each = "core" if is_core else "GPU"
    wall, unit = _wall(answer["wall_hours"])
    return [
        ("step time", answer["step_time_s"], "s, slowest rank"),
        ("throughput", answer["tokens_per_second_per_gpu"], f"tokens/s per {each} while it trains"),
        ("MFU, causal attention", answer["mfu"]["causal"], peak),
        ("MFU, full attention", answer["mfu"]["full"], peak),
        ("memory, tensors", memory["peak"], f"{capacity}, as torch's max_memory_allocated"),
        ("memory, device", None if is_core else memory["device"], f"{capacity}, as nvidia-smi"),
        (f"{each}-hours", answer["gpu_hours"], f"hours x {each}s, restarts and evaluation included"),
        ("wall time", wall, f"{unit}, restarts and evaluation included"),
        ("energy", answer["energy_kwh"], f"kWh, node and PUE {found.pue.value:g} included"),
        ("carbon", answer["co2_kg"], "kg CO2e of the electricity"),
        ("cost", answer["usd"], "US dollars"),
    ]


def _wall(hours: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Hours in the unit that suits them."""
    value = hours["value"]
    factor, unit = (1 / 24, "days") if value >= 72 else (1, "hours") if value >= 1 else (60, "minutes")
    return {bound: hours[bound] * factor for bound in ("value", "low", "high")}, unit


def _price_line(price: "Price") -> str:
    from analysis.formatting import dollars

    bounds = f" ({dollars(price.low)} to {dollars(price.high)})" if price.low != price.high else ""
    unit = price.unit.removeprefix("USD ")
    return f"price: {dollars(price.mid)}{bounds} {unit}, {price.date.isoformat()}, {price.provider}"


def _short(value: float) -> str:
    """Three digits, with a prefix from a million up."""
    from analysis.formatting import count, significant

    return count(value) if value >= 1e6 else significant(value)


def _price(device: str, own: float | None, table: Path | None) -> "Price | None":
    """The user's price, by option or from their table, else the dated one of the device."""
    from analysis.cost.prices import own_price, price_for
    from scaling.errors import UserError

    if own is not None and table is not None:
        raise UserError(f"--price {own:g} and --price-file {table} given: give one of them")
    if own is not None:
        return own_price(own, device)
    if table is not None:
        from analysis.cost.price_file import price_from_file

        return price_from_file(table, device)
    return price_for(device)
