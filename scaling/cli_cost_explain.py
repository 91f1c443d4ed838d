"""`scaling cost explain`: where the time of a step and the memory of a GPU go, and what would shrink them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from scaling.cli_cost_options import Run, RunOptions, read_run
from scaling.cli_options import Json, console, print_json

if TYPE_CHECKING:
    from analysis.cost.waterfall import Reason, Trial, Waterfall

_BAR = 40


def explain(
    options: RunOptions,
    plot: Annotated[
        Optional[Path], typer.Option(metavar="FILE.svg|png", help="Also draw both bars into this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show where a step's time and a GPU's memory go, and which change would shorten it, found by trying.

    Takes the options of `estimate`.
    """
    from analysis.cost.calibration import constants_for
    from analysis.cost.waterfall import waterfall

    run = read_run(options)
    setup = run.completed.setup
    found = waterfall(setup, constants_for(setup, run.calibration))
    if plot is not None:
        from analysis.cost.waterfall_plot import save_waterfall

        save_waterfall(found, _title(run).replace("; ", "\n"), plot, setup.device.memory_bytes / 2**30)
    if as_json:
        print_json(_described(run, found, plot))
    else:
        _show(run, found, plot)


def _title(run: Run) -> str:
    from analysis.cost.setup_text import setup_line

    return f"{run.completed.setup.model.name}: {setup_line(run.completed.setup)}"


def _described(run: Run, found: "Waterfall", plot: Path | None) -> dict[str, Any]:
    from analysis.cost.calibration import calibration_warnings
    from analysis.cost.setup_text import setup_dict

    return {
        "setup": setup_dict(run.completed.setup),
        "step_time_s": {**vars(found.time), "total": found.time.total},
        "memory_gib": {**dict(found.memory_parts()), "device": found.memory.device / 2**30},
        "reasons": [
            {
                "part": reason.part,
                "seconds": reason.seconds,
                "share": reason.share,
                "remedy": None if reason.remedy is None else reason.remedy.to_dict(),
            }
            for reason in found.reasons
        ],
        "best_change": None if found.best is None else found.best.to_dict(),
        "choices": [vars(choice) for choice in run.choices],
        "warnings": [*run.warnings, *calibration_warnings(run.calibration, run.completed.setup)],
        "plot": None if plot is None else str(plot),
    }


def _show(run: Run, found: "Waterfall", plot: Path | None) -> None:
    from analysis.cost.calibration import applies, calibration_warnings
    from analysis.cost.memory import fits
    from analysis.cost.waterfall import PART_TEXTS

    screen = console(False)

    def line(text: str = "", style: str | None = None) -> None:
        screen.print(text, soft_wrap=True, style=style)

    line(_title(run))
    total = found.time.total
    constants = "typical constants of the stack"
    if applies(run.calibration, run.completed.setup):
        constants = f"constants refitted to {run.calibration.runs}"
    line(f"\none step: {1e3 * total:.1f} ms on the slowest rank, {constants}, no interval here")
    for bar, (name, seconds) in zip(_bars(found.time_parts(), total), found.time_parts(), strict=True):
        line(f"  {1e3 * seconds:10.1f} ms {100 * seconds / total:5.1f} %  {bar}  {name}")
    device = found.memory.device / 2**30
    line(
        f"\nmemory of the GPU that needs most (pipeline rank {found.memory.pipeline_rank}): {device:.3g} GiB of "
        f"{run.completed.setup.device.memory_bytes / 2**30:.3g}"
    )
    for bar, (name, gib) in zip(_bars(found.memory_parts(), device), found.memory_parts(), strict=True):
        line(f"  {gib:10.2f} GiB {100 * gib / device:5.1f} %  {bar}  {name}")
    if not fits(found.memory, run.completed.setup.device):
        line("  it does not fit: `scaling cost estimate` says what would help", "yellow")
    line("\nwhy")
    for reason in found.reasons:
        line(f"  {100 * reason.share:.0f} % {reason.part}: {PART_TEXTS[reason.part]}; {_remedy(reason)}")
    if found.best is not None:
        line(f"  of all single changes of the layout, {_trial(found.best, total)}")
    for warning in (*run.warnings, *calibration_warnings(run.calibration, run.completed.setup)):
        line(f"warning: {warning}", "yellow")
    if plot is not None:
        line(f"wrote {plot}")


def _bars(parts: list[tuple[str, float]], total: float) -> list[str]:
    """A bar of characters for each part, which begins where the one before it ends."""
    bars, before = [], 0.0
    for _, size in parts:
        start = min(_BAR - 1, round(_BAR * before / total))
        before += size
        bars.append((" " * start + "#" * max(1, round(_BAR * before / total) - start)).ljust(_BAR))
    return bars


def _remedy(reason: "Reason") -> str:
    if reason.remedy is None:
        return "no change that was tried shrinks it and shortens the step"
    change = reason.remedy
    return f"{_trial(change, reason.seconds / reason.share)} ({1e3 * change.part_seconds:.0f} ms of it left)"


def _trial(trial: "Trial", total: float) -> str:
    fits = f"{trial.peak_gib:.3g} GiB" + ("" if trial.fits else ", which does not fit")
    note = "; this alters the training itself" if trial.alters_training else ""
    return f"{trial.change}: step {100 * (trial.seconds / total - 1):+.1f} % for as many tokens, {fits}{note}"
