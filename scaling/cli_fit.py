"""`scaling fit`: a law for a sweep or for any table of runs."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from scaling.cli_options import Json, console, find_sweep, print_json
from scaling.errors import UserError


def fit(
    source: Annotated[
        Optional[Path],
        typer.Argument(
            metavar="[FILE.csv|SWEEP_DIR]", help="A table of runs, or a sweep. Default: the sweep launched last."
        ),
    ] = None,
    columns: Annotated[
        Optional[str],
        typer.Option(help="Names in your table: params=COL,tokens=COL,loss=COL[,flops=COL,budget=COL,group=COL]."),
    ] = None,
    form: Annotated[
        str, typer.Option(help="auto (by backtest), chinchilla, gamma, tied, kaplan, kaplan_floor, compute, ...")
    ] = "chinchilla",
    loss: Annotated[str, typer.Option(help="huber (on the log), log (least squares on it) or linear.")] = "huber",
    delta: Annotated[float, typer.Option(help="Where Huber's loss turns from square to linear.")] = 1e-3,
    hold: Annotated[
        Optional[list[str]], typer.Option(metavar="NAME=VALUE", help="Keep a parameter at a value, such as E=1.69.")
    ] = None,
    outliers: Annotated[
        str, typer.Option(help="none, highest:K, lowest:F or residual:Z; what is left out is listed.")
    ] = "none",
    duplicates: Annotated[str, typer.Option(help="keep, drop or mean (of runs with equal inputs).")] = "keep",
    weights: Annotated[str, typer.Option(help="equal, flops, sqrt_flops or column (your table's weight).")] = "equal",
    scheme: Annotated[
        Optional[str],
        typer.Option(help="Bootstrap: weights, pairs, stratified (by budget) or clustered. Default: by --loss."),
    ] = None,
    bootstrap: Annotated[int, typer.Option(help="Resamples that the intervals are read from.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    at_flops: Annotated[
        Optional[list[float]],
        typer.Option(metavar="C", help="Predict N*, D*, L* at this compute, counted as your table does; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law, with intervals, to a sweep or to any table of runs."""
    from analysis.fitting import AUTO
    from analysis.laws import Surface, find_form
    from analysis.study import fit_table
    from sweeps.results import fit_sweep

    settings: dict[str, Any] = {
        **{"form": form, "loss": loss, "delta": delta, "held": _held(hold or [])},
        **{"outliers": outliers, "duplicates": duplicates, "weights": weights, "scheme": scheme},
        **{"resamples": bootstrap, "seed": seed, "at_flops": at_flops or []},
    }
    path = find_sweep(source)
    if path.is_dir():
        if columns is not None:
            raise UserError(f"--columns {columns}: {path} is a sweep, whose columns are known: leave it out")
        if form != AUTO and not issubclass(find_form(form), Surface):
            raise UserError(f"--form {form}: a sweep's report shows a surface; for this form give {path / 'runs.csv'}")
        law = fit_sweep(path, **settings)
    else:
        law = fit_table(path, columns, **settings)
    if as_json:
        print_json(law)
    else:
        _show(law)


def _held(items: list[str]) -> dict[str, float]:
    """Parameter -> value of each NAME=VALUE."""
    held = {}
    for item in items:
        name, _, value = item.partition("=")
        try:
            held[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"--hold {item}: must look like E=1.69") from None
    return held


def _show(law: dict[str, Any]) -> None:
    from analysis.formatting import interval, significant
    from sweeps.display import show_findings, show_forms, show_law, show_predictions

    screen = console(False)
    if law["exponents"]:
        show_law(screen, law)
    else:
        screen.print(law["form"])
        for name, number in law["parameters"].items():
            low_to_high = interval(law["intervals"][name], lambda bound: significant(bound, 4))
            screen.print(f"  {name} = {significant(number, 4)} ({low_to_high})")
        show_findings(screen, law["warnings"])
    show_forms(screen, law)
    show_predictions(screen, law)
