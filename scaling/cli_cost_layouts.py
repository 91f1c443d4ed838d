"""`scaling cost layouts`: how to divide a run over its GPUs, as a short list of layouts to try, with the reasons."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli_cost_options import RunOptions, read_run
from scaling.cli_options import Json, console, print_json
from scaling.errors import UserError

if TYPE_CHECKING:
    from analysis.cost.defaults import Choice
    from analysis.cost.layouts import LayoutSearch
    from scaling.cli_cost_options import Run

#: Columns of the table that are shown only where a layout has more than one of it.
_SIZES = {
    "tensor_parallel_size": "tensor",
    "pipeline_parallel_size": "pipeline",
    "virtual_pipeline_parallel_size": "virtual",
    "context_parallel_size": "context",
    "expert_parallel_size": "expert",
    "expert_tensor_parallel_size": "expert tensor",
}


def layouts(
    options: RunOptions,
    top: Annotated[int, typer.Option(min=1, max=50, help="Layouts to list.")] = 5,
    as_json: Json = False,
) -> None:
    """List the fastest layouts that fit, to be tried for some steps each, and say why the first one wins.

    Takes the options of `estimate`; sizes, schedule, recomputation, sharding or micro-batch that are given stay, and
    all others are searched: schedules among 1f1b and interleaved, shardings among those usual for the stack.
    """
    from analysis.cost.layout_space import LAYOUT_FIELDS
    from analysis.cost.layout_text import search_dict
    from analysis.cost.layouts import search

    run = read_run(options)
    if run.completed.setup.device.is_cpu_core:
        raise UserError("gpu = cpu: cores share a run by batch alone: price it with `scaling cost estimate --gpu cpu`")
    open_fields = [name for name in LAYOUT_FIELDS if name in run.completed.chosen]
    found = search(run.completed.setup, open_fields, top, run.calibration)
    answer = search_dict(found, run.completed.tokens, open_fields, run.calibration)
    if as_json:
        choices = [vars(choice).copy() for choice in _choices(run)]
        print_json({**answer, "choices": choices, "warnings": _warnings(run)})
    else:
        _show(answer, found, run)


def _choices(run: "Run") -> list["Choice"]:
    """What was chosen before the search."""
    from analysis.cost.layout_space import LAYOUT_FIELDS

    return [choice for choice in run.choices if choice.field not in LAYOUT_FIELDS]


def _warnings(run: "Run") -> list[str]:
    from analysis.cost.calibration import calibration_warnings

    return [*run.warnings, *calibration_warnings(run.calibration, run.completed.setup)]


def _show(answer: dict[str, Any], found: "LayoutSearch", run: "Run") -> None:
    from analysis.cost.layout_text import counts_line

    screen = console(False)

    def line(text: str, style: str | None = None) -> None:
        screen.print(text, soft_wrap=True, style=style)

    setup = run.completed.setup
    line(
        f"{setup.model.name} on {setup.num_gpus} x {setup.device.name}, {setup.precision}, {setup.stack}; "
        f"{setup.global_batch_size} sequences of {setup.seq_length} tokens a step"
    )
    if answer["layouts"]:
        screen.print(_table(answer["layouts"], found))
        if found.margin < found.wanted_margin:
            wanted, left = (f"{100 * margin:.0f} %" for margin in (found.wanted_margin, found.margin))
            line(f"memory: none fits with {wanted} above its estimate, these with {left}", "yellow")
        for place, each in enumerate(answer["layouts"][1:], start=2):
            line(f"1 against {place}: {each['why']}")
        line("predictions err by some percent from layout to layout: run each for a few steps before you choose")
    if answer["nothing_fits"] is not None:
        _show_nothing(line, answer["nothing_fits"], setup)
    line(counts_line(found))
    for choice in _choices(run):
        line(f"chosen for you: {choice}: {choice.why}")
    for warning in _warnings(run):
        line(f"warning: {warning}", "yellow")


def _table(layouts: list[dict[str, Any]], found: "LayoutSearch") -> Any:
    from rich.table import Table

    from analysis.cost.layout_reasons import recomputed

    shown = [name for name in _SIZES if any(each["setup"][name] > 1 for each in layouts)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    sizes = [_SIZES[name] for name in shown]
    for title in ("", *sizes, "data", "micro-batch", "s a step", "90 % interval", "tokens/s/GPU", "MFU", "GiB"):
        table.add_column(title, justify="right")
    table.add_column("memory")
    for place, (each, candidate) in enumerate(zip(layouts, found.candidates, strict=True), start=1):
        step, memory, setup = each["step_time_s"], each["memory_gib"]["device"], each["setup"]
        table.add_row(
            f"{place}",
            *(f"{setup[name]}" for name in shown),
            f"{setup['data_parallel_size']}",
            f"{setup['micro_batch_size']}",
            f"{step['value']:.3g}",
            f"{step['low']:.3g} to {step['high']:.3g}",
            f"{each['tokens_per_second_per_gpu']['value']:.0f}",
            f"{each['mfu']['causal']['value']:.3f}",
            f"{memory['value']:.1f}",
            f"{setup['sharding']}, {recomputed(candidate.setup)}",
        )
    return table


def _show_nothing(line: Any, said: dict[str, Any], setup: Any) -> None:
    have = setup.device.memory_bytes / 2**30
    line(f"nothing fits: {said['memory_gib']:.3g} GiB of {have:.3g} is the least, with {said['layout']}", "red")
    for change in said["changes"]:
        line(f"  {change}")
    more = said["on_more_gpus"]
    line(f"on more GPUs it fits: {more}" if more else "it fits on no number of these GPUs")
