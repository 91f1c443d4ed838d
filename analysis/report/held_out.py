"""The report's table of held-out runs: what the law of the others predicts for each, against what was measured."""

from analysis import formatting
from analysis.law_json import interval_level
from analysis.report.tables import Column, Row, Table, number, words
from analysis.runs import Rows


def held_out_table(law: dict | None, rows: Rows) -> Table | None:
    """Predicted and measured loss of each run that was kept from the fit; None without any."""
    names = {row.get("run_id"): row.get("cell") for row in rows}
    body = []
    for run in (law or {}).get("held_out") or []:
        predicted = run["predicted"]
        bounds = formatting.interval([predicted["low"], predicted["high"]], formatting.fixed)
        body.append(
            Row(
                [
                    words(names.get(run["run_id"]) or run["run_id"]),
                    number(run.get("params"), formatting.count),
                    number(run.get("tokens"), formatting.count),
                    number(predicted["value"], formatting.fixed),
                    words(bounds),
                    number(run["measured"], formatting.fixed),
                    number(run["error"], lambda error: f"{100 * error:+.2f}\N{NO-BREAK SPACE}%"),
                ]
            )
        )
    columns = [
        Column("Cell"),
        Column("N", "parameters, with embeddings"),
        Column("D", "tokens"),
        Column("Predicted", "nats per token"),
        Column("", interval_level(law), text=True),
        Column("Measured", "nats per token"),
        Column("Difference", "of the logarithm"),
    ]
    caption = (
        "These runs are in no fit. The interval holds the noise of the fitted runs: a difference far outside of it is "
        "the error of the form, and extrapolations are at least as wrong."
    )
    return Table("Held out of the fit", caption, columns, body) if body else None
