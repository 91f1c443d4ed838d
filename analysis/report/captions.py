"""What each figure of the report shows, in words: its heading, and a caption that is also its alt text."""

from analysis import formatting
from analysis.formatting import is_number
from analysis.law_json import interval_level, isoflop_budgets, optimum_points
from analysis.runs import Rows, finished_runs, predicted_losses


def captions(rows: Rows, law: dict | None) -> dict[str, dict[str, str]]:
    """Figure name -> {"title", "text"}, for every figure of plots.py."""
    level = interval_level(law)
    bands = f" Shaded: the {level}; grey: beyond the largest run." if optimum_points(law) else ""
    published = "Dashed and dotted: published laws, for their slopes."
    minima = "Diamonds: the minima of the IsoFLOP curves with their intervals; solid: the fitted surface."
    residuals = (
        "Measured over predicted loss of each run. Scatter about zero is noise; a bend that repeats from budget to "
        "budget is an error of the law's form, and no interval on this page includes it."
    )
    training = (
        "One panel per compute budget, dark to light from the smallest to the largest model; losses are means over "
        "stretches of equal length in log tokens. Dashed: runs that did not finish."
    )
    time = (
        "Each dot is a finished run; on the grey line it took the time that the plan predicted, above it longer. "
        "A bar is the prediction's 90 % interval: it should meet the grey line."
    )
    texts = {
        "isoflop": ("Loss against size at fixed compute", _isoflop(rows, law)),
        "compute": ("Loss against compute", _compute(law, level)),
        "optimal-params": ("Optimal parameters against compute", f"{minima}{bands} {published}"),
        "optimal-tokens": ("Optimal tokens against compute", f"The same for training tokens.{bands} {published}"),
        "predicted": ("Measured against predicted loss", _predicted(rows, law)),
        "residuals": ("What the surface misses", residuals),
        "training": ("Training loss of every run", training),
        "time": ("Measured against predicted time", time),
    }
    return {name: {"title": title, "text": text} for name, (title, text) in texts.items()}


def _isoflop(rows: Rows, law: dict | None) -> str:
    text = "Each colour is one compute budget, each dot a run."
    errors = [row["loss_stderr"] for row in finished_runs(rows) if is_number(row.get("loss_stderr"))]
    if errors:
        # Drawn as bars it would suggest that runs of one budget cannot be told apart.
        largest = formatting.significant(max(errors), 2)
        text += f" All are scored on the same held-out text; its standard error, {largest}, moves all dots together."
    fits = isoflop_budgets(law)
    if not fits:
        return text + " No parabola was fitted."
    inside = sum(bool(fit.get("interior")) for fit in fits)
    text += " Curves are parabolas in ln N; a diamond marks the minimum, the best size for that compute."
    if inside == len(fits):
        return text + f" All {len(fits)} minima lie inside their grid."
    return (
        text + f" Only {inside} of {len(fits)} minima lie inside their grid; hollow diamonds do not: do not trust them."
    )


def _compute(law: dict | None, level: str) -> str:
    text = (
        "Thin lines: training loss of every run against the compute spent so far. Dots: final validation loss. "
        "Dotted: the lowest training loss at each compute, noisy, and of runs still in the middle of their schedule."
    )
    if optimum_points(law):
        text += f" Solid: the lowest loss L*(C) that the fitted law promises, with its {level}."
    return text


def _predicted(rows: Rows, law: dict | None) -> str:
    text = "Dots on the line are runs whose loss the surface gives exactly."
    runs = finished_runs(rows)
    if not runs or not (law or {}).get("parameters"):
        return text
    misses = [abs(row["loss"] / loss - 1) for row, loss in zip(runs, predicted_losses(law, runs))]
    if is_number(law.get("r_squared_log_loss")):
        text += f" R\N{SUPERSCRIPT TWO} in log loss is {formatting.fixed(law['r_squared_log_loss'], 4)}."
    mean, worst = formatting.percent(sum(misses) / len(misses)), formatting.percent(max(misses))
    return text + f" The surface misses by {mean} on average and by {worst} at worst."
