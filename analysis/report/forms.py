"""The report's section on forms: what each predicted for budgets left out, and what is predicted of those asked for."""

from analysis import formatting
from analysis.law_json import form_errors, interval_level
from analysis.report.tables import Column, Row, Table, number, words


def forms_table(law: dict | None) -> Table | None:
    """What each form got wrong at the next budget, and its weight in the average; None without a backtest."""
    body = [
        Row(
            [
                words(row["form"]),
                number(row["n"], formatting.whole),
                number(row["log_params_error"], formatting.percent),
                number(row["loss_error"], formatting.percent),
                number(row["params_weight"], _share),
                number(row["loss_weight"], _share),
            ]
        )
        for row in form_errors(law)
    ]
    columns = [
        Column("Form"),
        Column("Budgets", "left out in turn"),
        Column("Error of N*", "root mean square of ln"),
        Column("Error of L*", "root mean square of ln"),
        Column("Weight", "in N*"),
        Column("Weight", "in L*"),
    ]
    caption = (
        "Every form is fitted without the largest budgets and predicts the next one; N* and L* are held against the "
        "parabola through its runs near the minimum. Average: all forms, weighted by what each got wrong on budgets "
        "below the one predicted. Weights count public tables as one budget more."
    )
    return Table("Forms by backtest", caption, columns, body) if body else None


def _share(weight: float | None) -> str:
    return formatting.DASH if weight is None else f"{100 * weight:.0f}\N{NO-BREAK SPACE}%"


def choice_text(law: dict | None) -> str | None:
    """Which form was chosen, by whom and why; None without a surface."""
    law = law or {}
    if choice := law.get("choice"):
        return f"Chosen surface: {choice['surface']}. {choice['reason']}."
    if not law.get("optimum"):
        return None
    form = (law.get("settings") or {}).get("form")
    return f"The form {form} was asked for; --form auto chooses by the table below." if form else None


def predictions_table(law: dict | None) -> Table | None:
    """N*, D*, L* at each compute that was asked for; None when none was."""
    body = []
    for point in (law or {}).get("predictions") or []:
        wide = point.get("with_form_error") or {}
        cells = [number(point["flops"], formatting.power), words(point.get("of"))]
        for name, show in (("params", formatting.count), ("tokens", formatting.count), ("loss", formatting.fixed)):
            ends = wide.get(name) or [point[name]["low"], point[name]["high"]]
            cells += [number(point[name]["value"], show), words(formatting.interval(ends, show))]
        body.append(Row(cells, "beyond" if point["decades_beyond_data"] > 0 else ""))
    columns = [Column("Compute", "FLOPs, as in the table of runs"), Column("By", text=True)]
    for name, unit in (("N*", "parameters"), ("D*", "tokens"), ("L*", "nats per token")):
        columns += [Column(name, unit), Column("", interval_level(law), text=True)]
    caption = "Intervals hold the noise of the runs and the error of the form, as its backtest shows it."
    return Table("Predictions", caption, columns, body) if body else None
