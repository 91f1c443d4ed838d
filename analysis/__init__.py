"""Records to laws to decisions. Imports neither torch nor submitit.

    from analysis import fit, Law

What is offered here is imported when it is first asked for, so that `import analysis` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "fit": "analysis.fitting",
    "Estimator": "analysis.estimator",
    "Fit": "analysis.estimator",
    "Law": "analysis.law",
    "FORMS": "analysis.laws",
    "choose_form": "analysis.choice",
    "analyse": "analysis.study",
    "read_table": "analysis.table",
    "build_table": "analysis.table",
    "confidence_intervals": "analysis.uncertainty",
    **dict.fromkeys(
        (
            *("parameter", "optimum_params", "optimum_tokens", "optimum_loss", "tokens_per_param"),
            *("wasted_flops", "wasted_usd"),
        ),
        "analysis.quantity",
    ),
}
__all__ = [
    *("FORMS", "Estimator", "Fit", "Law", "analyse", "build_table", "choose_form", "confidence_intervals", "fit"),
    *("optimum_loss", "optimum_params", "optimum_tokens", "parameter", "read_table", "tokens_per_param"),
    *("wasted_flops", "wasted_usd"),
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
