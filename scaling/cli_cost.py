"""`scaling cost`: what a run costs before it runs. Each verb is in a file of its own, scaling/cli_cost_VERB.py."""

import typer

from scaling.cli_cost_check import calibrate, validate
from scaling.cli_cost_estimate import estimate
from scaling.cli_cost_explain import explain
from scaling.cli_cost_layouts import layouts
from scaling.cli_cost_options import with_run_options

cost_app = typer.Typer(
    help="Parameters, FLOPs, memory, time, energy and dollars of a run, with 90 % intervals.",
    no_args_is_help=True,
)
cost_app.command()(with_run_options(estimate))
cost_app.command()(with_run_options(explain))
cost_app.command()(with_run_options(layouts))
cost_app.command()(calibrate)
cost_app.command()(validate)
