"""What the rows of a table show before anything is fitted: runs left out, repeated, unfinished, too few."""

from dataclasses import fields

import numpy as np

from analysis.findings import Code, Finding
from analysis.law import Law
from analysis.table import HELD_OUT, MID_SCHEDULE, Table

#: Runs to each parameter of the form that leave something to judge it by.
_RUNS_PER_PARAMETER = 3


def table_findings(table: Table, form: type[Law]) -> list[Finding]:
    """Exclusions, checkpoints of unfinished schedules, too few runs for the form, duplicates."""
    return _excluded(table) + _checkpoints(table) + _numbers(table, form)


def _excluded(table: Table) -> list[Finding]:
    found = []
    kinds: dict[str, list[dict[str, str]]] = {"diverged": [], MID_SCHEDULE: [], "others": []}
    for run in table.excluded:
        if run["status"] == HELD_OUT:  # as it was meant to be
            continue
        kinds.get(run["status"], kinds["others"]).append(run)
    if diverged := kinds["diverged"]:
        found.append(
            Finding(
                Code.DIVERGED_RUNS_EXCLUDED,
                f"{len(diverged)} diverged run(s) are left out of the fit, first {diverged[0]['run_id']}",
                "lower the learning rate or lengthen the warm-up of these cells and train them again",
                _runs(diverged),
            )
        )
    if unfinished := kinds[MID_SCHEDULE]:
        found.append(
            Finding(
                Code.UNFINISHED_SCHEDULE,
                f"{len(unfinished)} run(s) whose learning-rate schedule did not run to the end are left out of the "
                f"fit, first {unfinished[0]['run_id']}: their loss is not that of a run planned for their tokens",
                "train them to the end of the schedule, or plan shorter schedules",
                _runs(unfinished),
            )
        )
    if others := kinds["others"]:
        found.append(
            Finding(
                Code.UNFINISHED_RUNS_EXCLUDED,
                f"{len(others)} run(s) that did not finish are left out of the fit, first {others[0]['run_id']} "
                f"({others[0]['reason']})",
                "finish them and fit again",
                _runs(others),
            )
        )
    return found


def _runs(excluded: list[dict[str, str]]) -> dict[str, object]:
    return {"n_runs": len(excluded), "run_ids": [run["run_id"] for run in excluded]}


def _checkpoints(table: Table) -> list[Finding]:
    """Rows of one run at several tokens: all but the last of each stand in the middle of its schedule."""
    if "run_id" not in table.columns or "schedule_finished" in table.columns:
        return []  # rows are then known to be runs of their own, or finished
    if not {"params", "tokens"} <= table.values.keys():
        return []
    most: dict[tuple[str, float], float] = {}
    for key, tokens in zip(zip(table.run_id, table.params), table.tokens):
        most[key] = max(tokens, most.get(key, 0.0))
    early = [i for i, key in enumerate(zip(table.run_id, table.params)) if table.tokens[i] < most[key]]
    if not early:
        return []
    column = table.columns["run_id"]
    owners = {table.run_id[i] for i in early}
    return [
        Finding(
            Code.UNFINISHED_SCHEDULE,
            f"{len(early)} of {len(table)} rows are checkpoints of {len(owners)} run(s) that went on to more tokens "
            f"(column {column!r}): before the end of a decaying schedule the loss is too high, and rows of one run "
            "share its noise",
            f"keep the last row of each run; or, under a constant rate, resample whole runs with group={column}",
            {"n_rows": len(early), "n_runs": len(owners), "column": column},
        )
    ]


def _numbers(table: Table, form: type[Law]) -> list[Finding]:
    found = []
    parameters = len(fields(form))
    recommended = _RUNS_PER_PARAMETER * parameters
    if len(table) < recommended:
        found.append(
            Finding(
                Code.TOO_FEW_POINTS,
                f"{len(table)} runs for a form with {parameters} parameters: intervals are wide and may be too narrow "
                "still",
                f"use at least {recommended}",
                {"n_points": len(table), "recommended": recommended},
            )
        )
    names = (*form.inputs, form.target)
    distinct = len(np.unique(np.stack([table.column(name) for name in names], 1), axis=0))
    if distinct < len(table):
        found.append(
            Finding(
                Code.DUPLICATE_POINTS,
                f"{len(table) - distinct} run(s) repeat the {', '.join(names)} of another to the last digit and "
                "each counts as a run of its own",
                "if one run is listed twice, remove the copy, or use --duplicates drop",
                {"n_duplicates": len(table) - distinct},
            )
        )
    return found
