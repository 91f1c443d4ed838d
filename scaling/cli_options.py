"""Options and output that several verbs of the `scaling` command share."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
DataDir = Annotated[Path, typer.Option("--data-dir", help="Where prepared corpora are kept.")]


def print_json(value: Any) -> None:
    """Print a result on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))
