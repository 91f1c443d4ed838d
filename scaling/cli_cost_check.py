"""`scaling cost validate` and `scaling cost calibrate`: the estimates against measured runs."""

import math
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from scaling.cli_options import Json, console, print_json
from scaling.errors import UserError

#: Kinds of refused rows, and of assumptions, that are listed for people.
_MOST_KINDS = 20

Table = Annotated[
    Optional[Path],
    typer.Argument(
        metavar="[FILE.csv]",
        help="Measured runs, one a row, columns as in analysis/cost/published_steps.csv, the default.",
    ),
]
CalibrationFile = Annotated[
    Optional[Path], typer.Option("--calibration", metavar="FILE", help="Constants that `calibrate` has written.")
]


def validate(
    table: Table = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Published runs of sources that no constant was fitted to.")
    ] = False,
    calibration: CalibrationFile = None,
    as_json: Json = False,
) -> None:
    """Predict every run of a table blind and compare with what was measured, beside a 40 % utilisation rule."""
    from analysis.cost.calibration import Calibration
    from analysis.cost.measured import PUBLISHED, UNSEEN, read_rows
    from analysis.cost.validate import validate as compare

    if unseen and table is not None:
        raise UserError(f"--unseen: comes with the project; leave it or {table} out")
    rows = read_rows(table or (UNSEEN if unseen else PUBLISHED))
    found = compare(rows, None if calibration is None else Calibration.from_file(calibration))
    if as_json:
        print_json(_finite(found))
        return
    screen = console(False)
    for quantity, title in (("step_time", "step time"), ("memory", "peak memory"), ("gpu_hours", "GPU-hours")):
        _show(screen, title, quantity, found)
    _count(screen, "cannot be expressed", [(row["reason"], row["id"]) for row in found["not_expressible"]])
    assumed = [(text, row["id"]) for row in found["assumed"] for text in row["assumptions"]]
    _count(screen, "leave something open", assumed)
    for warning in found["warnings"]:
        screen.print(f"warning: {warning}", style="yellow", soft_wrap=True)


def _count(screen: Any, what: str, said: list[tuple[str, str]]) -> None:
    """How many rows something is said of, by what is said, most frequent first."""
    if not said:
        return
    screen.print(f"{len({name for _, name in said})} row(s) {what}:")
    rows: dict[str, list[str]] = {}
    for text, name in said:
        rows.setdefault(text, []).append(name)
    for text, names in sorted(rows.items(), key=lambda item: -len(item[1]))[:_MOST_KINDS]:
        screen.print(f"  {len(names):4d}  {text}  (first {names[0]})", soft_wrap=True)
    if len(rows) > _MOST_KINDS:
        screen.print(f"        and {len(rows) - _MOST_KINDS} kinds more: all are in --json")


def _show(screen: Any, title: str, quantity: str, found: dict[str, Any]) -> None:
    from rich.table import Table as RichTable

    rows = {name: scores[quantity] for name, scores in found["groups"].items() if scores[quantity]}
    if not rows:
        return
    shown = RichTable(title=f"{title}: errors in percent of the measured value", title_justify="left")
    shown.add_column("group")
    for name in ("n", "mean |error|", "median |error|", "bias", "in 90 % interval", "40 % rule: mean |error|"):
        shown.add_column(name, justify="right")
    total = {"all": found["overall"][quantity]} if len(rows) > 1 else {}
    for name, scores in (*rows.items(), *total.items()):
        rule = scores["baseline_mape"]
        shown.add_row(
            name,
            f"{scores['n']}",
            *(f"{scores[key]:.1f}" for key in ("mape", "median_error")),
            f"{scores['bias']:+.1f}",
            f"{scores['coverage']:.2f}",
            "" if math.isnan(rule) else f"{rule:.1f}",
        )
    screen.print(shown)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def calibrate(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.csv|SWEEP_DIR", help="Measured runs, or a sweep whose cells have finished.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the constants.")] = Path(
        "calibration.json"
    ),
    stack: Annotated[
        Optional[str], typer.Option(help="Only the runs of this stack, where the table has several.")
    ] = None,
    group: Annotated[Optional[str], typer.Option(help="Only the rows of this group.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a handful of constants to your own runs; estimate, layouts and validate take the result."""
    import json

    from analysis.cost.calibration import calibrate as fit
    from analysis.cost.run_records import read_runs

    runs, refused = read_runs(source, group)
    if refused and not runs:
        first = refused[0]
        raise UserError(f"{source}: none of {len(refused)} run(s) can be used, first {first['id']}: {first['reason']}")
    chosen = [run for run in runs if stack is None or run[0].stack == stack]
    if stack is not None and not chosen:
        seen = ", ".join(sorted({setup.stack for setup, _ in runs})) or "none"
        raise UserError(f"--stack {stack}: {source} has runs of {seen}")
    found = fit(chosen, str(source))
    out.write_text(found.to_json(), encoding="utf-8")
    answer = {**json.loads(found.to_json()), "warning": found.warning, "not_expressible": refused, "file": str(out)}
    if as_json:
        print_json(_finite(answer))
        return
    screen = console(False)
    left_out = f", {100 * found.left_out:.1f} % when each is predicted from the others"
    screen.print(
        f"{found.num_runs} run(s) of the stack {found.stack}: off by {100 * found.before:.1f} % before, "
        f"{100 * found.after:.1f} % after{'' if math.isnan(found.left_out) else left_out} (root mean square)"
    )
    for name, value in found.changes.items():
        screen.print(f"  {name} = {value:.4g}")
    if refused:
        screen.print(f"{len(refused)} row(s) cannot be used:")
        for row in refused[:_MOST_KINDS]:
            screen.print(f"  {row['id']}: {row['reason']}", soft_wrap=True)
    if found.warning:
        screen.print(f"warning: {found.warning}", style="yellow", soft_wrap=True)
    screen.print(f"written to {out}: use it with --calibration {out}")
