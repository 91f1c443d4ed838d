"""Records to laws to decisions. Imports neither torch nor submitit.

A table is a pandas DataFrame, a mapping of columns, or the path of a CSV, TSV or Parquet file; results are small frozen
objects.

    from analysis import FORMS, ChainedLaw, Law, fit, intervals
    from analysis import optimum_loss, optimum_params, optimum_tokens, tokens_per_param, wasted_flops, wasted_usd

    found = fit(frame)                          # the reference surface; found.law, found.objective, found.settings
    found = fit(frame, "gamma", loss="log")     # any of FORMS, or a class of one's own; "auto": by backtest
    found.law.optimum(1e24)                     # N*, D*, L* at 1e24 FLOPs
    Law.from_json(found.law.to_json())          # an equal law

    what = [optimum_params(1e24), optimum_tokens(1e24), optimum_loss(1e24), tokens_per_param(1e24)]
    what += [wasted_flops(7e10, 1.4e12), wasted_usd(7e10, 1.4e12, usd_per_flop=2e-18)]
    intervals(found, what)                      # a bootstrap; or method="pairs", "stratified", "clustered", "delta",
                                                # "profile" (the last two not of waste at its own optimum)

    repeated = fit(frame, "repeated")           # with the column unique_tokens
    rate = fit(frame, "learning_rate")          # with the column learning_rate; likewise "batch_size"
    error = fit(frame, "error_sigmoid")         # with the column error
    ChainedLaw(found.law, error.law).error(7e10, 1.4e12)

    analyse(frame, form="auto")                 # all of it with the backtest and the findings, as in law.json

What is offered here is imported when it is first asked for, so that `import analysis` costs nothing.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "fit": "analysis.fitting",
    "Estimator": "analysis.estimator",
    "Fit": "analysis.estimator",
    "Law": "analysis.law",
    "ChainedLaw": "analysis.downstream",
    "FORMS": "analysis.laws",
    "choose_form": "analysis.choice",
    "intervals": "analysis.fit_intervals",
    "analyse": "analysis.study",
    "read_table": "analysis.table",
    "build_table": "analysis.table",
    **dict.fromkeys(("parameter", "optimum_params", "optimum_tokens", "optimum_loss"), "analysis.quantity"),
    **dict.fromkeys(("tokens_per_param", "wasted_flops", "wasted_usd"), "analysis.quantity"),
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
