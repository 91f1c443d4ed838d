"""After training: the table, the law and the report of a sweep. All three can be made again at any time."""

import json
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.record import write_json_atomically
from sweeps.attempts import read_lines
from sweeps.plan import Plan, read_plan
from sweeps.records import Table, collect

LAW_FILE = "law.json"
REPORT_FILE = "report.html"


def fit_sweep(sweep_dir: Path, **settings: Any) -> dict[str, Any]:
    """Fit the law to the finished cells of a sweep's plan and write law.json; returns its content.

    `settings` are those of `analysis.study.analyse`. Rewrites the table first. Raises UserError when there are too few
    finished cells; a law.json of other cells is then removed.
    """
    return fit_rows(sweep_dir, collect(sweep_dir), **settings)


def fit_rows(sweep_dir: Path, table: Table, **settings: Any) -> dict[str, Any]:
    """As `fit_sweep`, for a table that was just collected."""
    from analysis.study import analyse

    path = sweep_dir / LAW_FILE
    try:
        law = analyse(table.columns(), **settings)
    except UserError:
        path.unlink(missing_ok=True)
        raise
    write_json_atomically(path, law)
    return law


def report_sweep(sweep_dir: Path) -> Path:
    """Write report.html from the run directories and law.json as they are; returns its path.

    Raises UserError when there is no sweep, or the report cannot be written.
    """
    return report_rows(sweep_dir, collect(sweep_dir))


def save_sweep_figures(sweep_dir: Path, directory: Path) -> list[Path]:
    """Write the report's figures as SVG and PNG files into a folder; returns their paths.

    Raises UserError when there is no sweep, or the folder cannot be written.
    """
    from analysis.plots import save_figures

    table = collect(sweep_dir)
    curves = _curves(sweep_dir, read_plan(sweep_dir))
    try:
        return save_figures(directory, records=table.rows, law=read_law(sweep_dir), curves=curves)
    except OSError as error:
        raise UserError(f"{directory}: figures cannot be written ({error.strerror}): choose another folder") from None


def _curves(sweep_dir: Path, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    return {cell.run_id: read_lines(sweep_dir / cell.run_id / "metrics.jsonl") for cell in plan.cells}


def report_rows(sweep_dir: Path, table: Table) -> Path:
    """As `report_sweep`, for a table that was just collected."""
    from analysis.report import write_report

    plan = read_plan(sweep_dir)
    return write_report(
        sweep_dir / REPORT_FILE,
        records=table.rows,
        law=read_law(sweep_dir),
        plan=plan.model_dump(mode="json", exclude={"cells": {"__all__": {"config"}}}),
        curves=_curves(sweep_dir, plan),
        title=f"{plan.grid}, profile {plan.profile}",
        machine=plan.machine,
        command=plan.command,
    )


def read_law(sweep_dir: Path) -> dict[str, Any] | None:
    """The content of law.json, None when there is none. Raises UserError when it is damaged."""
    path = sweep_dir / LAW_FILE
    try:
        law = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        law = None
    if not isinstance(law, dict):
        raise UserError(f"{path}: cannot be read: rebuild it with `scaling fit {sweep_dir}`")
    return law
