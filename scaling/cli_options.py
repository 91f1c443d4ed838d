"""Options and output that several verbs of the `scaling` command share."""

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from scaling.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where prepared corpora are kept.")]

# what `decide` and `design` are told of the table, and of the machine that would train
TableColumns = Annotated[
    Optional[str], typer.Option("--columns", help="Names in your table: params=COL,tokens=COL,loss=COL[,budget=COL].")
]
SurfaceForm = Annotated[
    Optional[str], typer.Option("--form", help="Surface to fit to your table, or auto. Default: chinchilla.")
]
Speeds = Annotated[
    Optional[Path],
    typer.Option(
        "--speeds", help="CSV of measured speeds: params with tokens_per_second, mfu, or flops and device_hours."
    ),
]
Device = Annotated[Optional[str], typer.Option("--device", help="Whose speed and price, such as H100.")]
Utilisation = Annotated[Optional[float], typer.Option("--mfu", help="One utilisation for all sizes; needs --device.")]
Price = Annotated[Optional[float], typer.Option("--price", min=0, help="Your price of a device-hour, in US dollars.")]


def print_json(value: Any) -> None:
    """Print a result on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))


def console(as_json: bool) -> Any:
    """Where people read: stdout, or stderr while stdout carries JSON; wide enough where no terminal tells its width."""
    from rich.console import Console

    # No markup: a message may hold brackets. No highlighting: numbers carry no meaning by colour.
    screen = Console(stderr=as_json, markup=False, highlight=False)
    if not screen.is_terminal:
        screen.width = 160
    return screen


def find_sweep(given: Path | None) -> Path:
    """The sweep directory asked for, or the one launched last under runs/."""
    if given is not None:
        return given
    plans = sorted(Path("runs").glob("*/plan.json"), key=lambda path: path.stat().st_mtime)
    if not plans:
        raise UserError("SWEEP_DIR: none given, and there is no sweep under runs/: start one with `scaling launch`")
    return plans[-1].parent
