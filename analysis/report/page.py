"""The page: figures, tables and text put into the template, and written atomically.

The page loads nothing: figures are inline SVG, style and script are inline, and its own content
security policy forbids every request and every script but the one that sorts tables. All text that
comes from data is escaped by the template engine.
"""

import base64
import hashlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis import figure_style, formatting
from analysis.plots import Curves, draw_figures
from analysis.report import forms, held_out, predicted, tables, text
from analysis.report import plan as plan_section
from analysis.report.captions import captions
from analysis.runs import Rows, tidy_records
from scaling.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"

#: Anchor -> (what the navigation calls it, the content of which any one makes the section appear).
SECTIONS = {
    "answer": ("Answer", ("written_at",)),
    "plan": ("Plan and cost", ("plan_facts", "plan_table", "predicted_table")),
    "isoflop": ("IsoFLOP curves", ("isoflop",)),
    "optimum": ("N* and D*", ("optimal-params",)),
    "fit": ("Fit", ("parameter_table",)),
    "forms": ("Forms", ("forms_table", "predictions_table")),
    "training": ("Training", ("training",)),
    "results": ("All runs", ("results_table",)),
    "conventions": ("Conventions", ("written_at",)),
}


def write_report(
    path: str | Path,
    *,
    records: Any,
    law: dict | None,
    plan: dict | None = None,
    curves: Curves | None = None,
    title: str | None = None,
    machine: str | None = None,
    command: str | None = None,
    versions: dict[str, str] | None = None,
) -> Path:
    """Write the report of a sweep, atomically, and return its path.

    records: rows of the sweep's table (dictionaries or a DataFrame), columns as in sweeps/records.py.
    law: the content of `law.json`, or None. plan: the content of `plan.json`, or None.
    curves: run_id -> the lines of its metrics.jsonl. title and machine default to the plan's; command
    and versions are printed as they are. Anything may be missing, finished runs included: the report
    then says so. Raises UserError when the file cannot be written; one that was there is then untouched.
    """
    path, plan = Path(path), plan or {}
    page = render_report(
        tidy_records(records),
        law,
        plan,
        curves or {},
        title=title or plan.get("grid") or path.resolve().parent.name,
        machine=machine or plan.get("machine"),
        command=command,
        versions=versions or {},
    )
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.write_text(page, encoding="utf-8")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): make room or give another path") from None
    return path


def render_report(
    rows: Rows,
    law: dict | None,
    plan: dict,
    curves: Curves,
    *,
    title: str,
    machine: str | None,
    command: str | None,
    versions: dict[str, str],
) -> str:
    """The page as text; arguments as in `write_report`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    with figure_style.style():
        drawn = draw_figures(rows, law, curves)
        figures = {name: Markup(figure_style.inline_svg(figure, name)) for name, figure in drawn.items()}
    content = {
        "title": title,
        "byline": text.byline(rows, machine),
        "answer": text.answer(rows, law),
        "no_answer": text.no_answer(rows),
        "tiles": text.tiles(law),
        "warnings": (law or {}).get("warnings") or [],
        "allocation": tables.allocation_table(law, rows),
        "plan_text": plan_section.plan_text(plan),
        "plan_facts": plan_section.plan_facts(plan, rows),
        "plan_table": plan_section.plan_table(rows),
        "predicted_table": predicted.predicted_table(rows),
        "outside_text": predicted.outside_text(rows),
        "isoflop_table": tables.isoflop_table(law),
        "exponent_table": tables.exponent_table(law),
        "law": law or {},
        "parameter_table": tables.parameter_table(law),
        "forms_table": forms.forms_table(law),
        "choice_text": forms.choice_text(law),
        "predictions_table": forms.predictions_table(law),
        "held_out_table": held_out.held_out_table(law, rows),
        "results_table": tables.results_table(rows),
        "excluded_table": tables.excluded_table(law, rows),
        "conventions_table": text.conventions_table(rows, law, machine, versions),
        "captions": captions(rows, law),
        "command": command,
        "written_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    script = _template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    present = {name for name, value in content.items() if value} | figures.keys()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"significant": formatting.significant, "raised": _raised}
    return environment.get_template("report.html.j2").render(
        **content,
        figures=figures,
        sections={anchor: label for anchor, (label, needs) in SECTIONS.items() if present.intersection(needs)},
        css=Markup(_template("report.css")),
        light_colors=Markup(figure_style.css_variables(dark=False)),
        dark_colors=Markup(figure_style.css_variables(dark=True)),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def _raised(text: str) -> Any:
    """Raised digits as <sup>, where a headline's font may lack some of them."""
    from markupsafe import Markup, escape

    plain = str.maketrans(formatting.SUPERSCRIPTS, "-0123456789")
    return Markup(
        re.sub(f"[{formatting.SUPERSCRIPTS}]+", lambda run: f"<sup>{run[0].translate(plain)}</sup>", escape(text))
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")
