"""The `scaling` command. Every verb reads its options, calls one function and prints what it returns.

Results go to stdout (with --json one JSON object and nothing else), progress to stderr where stdout
carries JSON. Heavy imports are inside the verbs, so that --help answers at once.
"""

import errno
import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from scaling.cli_cost import cost_app
from scaling.cli_data import data_app
from scaling.cli_decide import decide, one_budget
from scaling.cli_design import design
from scaling.cli_fit import fit
from scaling.cli_options import DataDir, Json, console, find_sweep, print_json
from scaling.errors import UserError

app = typer.Typer(
    help="Plan, train, fit and price scaling-law experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(cost_app, name="cost")

SweepDir = Annotated[
    Optional[Path],
    typer.Argument(metavar="[SWEEP_DIR]", help="Directory of a launch. Default: the one launched last under runs/."),
]

#: Trouble with the user's disk, not with the program.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


def main(arguments: list[str] | None = None, command: str = "scaling") -> int:
    """Run the command line; returns the exit code: 0 done, 1 cells failed, 2 a mistake of the user, 130 stopped.

    `command` is how the program was called, for messages that tell how to call it again.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    shown = arguments[1:] if command.endswith("launch.py") else arguments
    try:
        app(arguments, prog_name="scaling", obj=shlex.join([*command.split(), *shown]))
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0
    except UserError as error:
        message, code = str(error), 2
    except OSError as error:
        if error.errno not in _DISK:
            raise
        message, code = f"{error.filename or 'disk'}: {error.strerror}: make room or choose another directory", 2
    except KeyboardInterrupt:
        message, code = "stopped", 130
    print(f"error: {message}" if code == 2 else message, file=sys.stderr)
    return code


@app.command()
def launch(
    context: typer.Context,
    grid: Annotated[str, typer.Option(help="Name of a grid that comes with the lab, or a FILE.yaml.")] = "chinchilla",
    profile: Annotated[
        Optional[str], typer.Option(help="Part of the grid: laptop, gpu, cluster or paper. Default: by the machine.")
    ] = None,
    data: Annotated[
        Optional[str],
        typer.Option(
            help="Train on this text: a .txt, .jsonl or .parquet file, a folder of such, python or synthetic."
        ),
    ] = None,
    sweep_dir: Annotated[Optional[Path], typer.Option(help="Directory of the sweep. Default: runs/GRID.")] = None,
    data_dir: DataDir = Path("data"),
    executor: Annotated[str, typer.Option(help="auto, local or slurm.")] = "auto",
    workers: Annotated[
        Optional[int], typer.Option(min=1, help="Cells at once. Default: one a core, or one a GPU.")
    ] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads of each worker.")] = None,
    slurm: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="KEY=VALUE", help="Parameter of Submitit's slurm executor, such as partition=gpu. Repeatable."
        ),
    ] = None,
    price: Annotated[
        Optional[float], typer.Option(min=0, help="Your price in US dollars for an hour of one GPU (or CPU core).")
    ] = None,
    max_flops: Annotated[
        Optional[float], typer.Option(min=0, help="Refuse a plan of more training FLOPs (6ND).")
    ] = None,
    max_gpu_hours: Annotated[
        Optional[float],
        typer.Option(min=0, help="Refuse a plan of more predicted GPU hours (CPU-core hours without a GPU)."),
    ] = None,
    max_usd: Annotated[
        Optional[float], typer.Option(min=0, help="Refuse a plan of more US dollars (mid price).")
    ] = None,
    continue_design: Annotated[
        bool, typer.Option("--continue-design", help="Add the runs that tell most about N* and L* at --target.")
    ] = False,
    target: Annotated[
        Optional[float],
        typer.Option(help="With --continue-design: compute in FLOPs (6ND). Default: 10 times the largest trained."),
    ] = None,
    flops: Annotated[
        Optional[float], typer.Option(help="With --continue-design: what the new runs may cost, in FLOPs (6ND).")
    ] = None,
    gpu_hours: Annotated[
        Optional[float],
        typer.Option(help="The same in GPU-hours (CPU core-hours). Default: as much as the finished cells cost."),
    ] = None,
    usd: Annotated[Optional[float], typer.Option(help="The same in US dollars (mid price).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    as_json: Json = False,
) -> None:
    """Plan a grid, train its cells, fit the law and write the report.

    Idempotent: finished cells are never trained again, unfinished ones go on from their checkpoint.
    Ctrl-C stops after a checkpoint; the same command goes on. Exit code 0: done; 1: some cells
    failed; 2: refused, nothing was started; 130: stopped.
    """
    from scaling.record import RESULT_FILE
    from sweeps import launch as launcher
    from sweeps.display import show_plan

    if executor not in ("auto", "local", "slurm"):
        raise UserError(f"--executor {executor}: must be auto, local or slurm")
    options = launcher.LaunchOptions(
        grid=grid,
        profile=profile,
        data=data,
        data_dir=data_dir,
        sweep_dir=sweep_dir,
        executor=executor,
        workers=workers,
        num_threads=threads,
        slurm=tuple(slurm or ()),
        price=price,
        max_flops=max_flops,
        max_gpu_hours=max_gpu_hours,
        max_usd=max_usd,
        continue_design=_wish(continue_design, target, {"flops": flops, "gpu_hours": gpu_hours, "usd": usd}),
        command=context.obj,
    )
    screen = console(as_json)
    prepared = launcher.prepare(options, screen)
    show_plan(screen, prepared.plan)
    cells = prepared.plan.cells
    if settled := sum((prepared.sweep_dir / cell.run_id / RESULT_FILE).is_file() for cell in cells):
        screen.print(f"{settled} of the {len(cells)} cells have been trained already; the totals count them too")
    if dry_run:
        if prepared.obstacle is not None:
            screen.print(f"a launch would refuse: {prepared.obstacle}", style="yellow", soft_wrap=True)
        if as_json:
            print_json(prepared.plan.model_dump(mode="json"))
        return
    summary = launcher.launch(prepared, options, screen)
    if as_json:
        print_json(summary)
    raise typer.Exit(130 if summary["interrupted"] else 1 if summary["failed"] or summary["trouble"] else 0)


def _wish(wanted: bool, target: float | None, budgets: dict[str, float | None]) -> Any:
    """What --continue-design is to add, None without it."""
    from sweeps.continuation import Wish

    given = {name: value for name, value in {"target": target, **budgets}.items() if value is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')} {value:g}"
        if not wanted:
            raise UserError(f"{option}: goes with --continue-design; limits of a plan are --max-flops and the like")
        if not 0 < value < math.inf:
            raise UserError(f"{option}: must be above zero")
    if not wanted:
        return None
    given.pop("target", None)
    kind, budget = one_budget(**given) if given else ("gpu_hours", None)
    return Wish(target, kind, budget)


@app.command()
def status(sweep_dir: SweepDir = None, as_json: Json = False) -> None:
    """Show where every cell of a sweep stands. Writes nothing; works while it runs and after a crash."""
    from sweeps.display import show_status
    from sweeps.status import read_status

    found = read_status(find_sweep(sweep_dir))
    if as_json:
        print_json(found.to_json())
    else:
        show_status(console(False), found)


@app.command()
def collect(sweep_dir: SweepDir = None, as_json: Json = False) -> None:
    """Rebuild runs.csv and runs.parquet from the run directories. Exit code 1 when a result is damaged."""
    from sweeps.display import show_results
    from sweeps.records import collect as collect_rows

    directory = find_sweep(sweep_dir)
    table = collect_rows(directory)
    if as_json:
        print_json(
            {"sweep_dir": str(directory), "runs": table.rows, "damaged": table.damaged, "left_out": table.left_out}
        )
    else:
        show_results(console(False), table.rows)
    for problem in table.damaged:
        print(f"damaged: {problem}", file=sys.stderr)
    if table.damaged:
        raise typer.Exit(1)


app.command()(fit)
app.command()(decide)
app.command()(design)


@app.command()
def report(
    sweep_dir: SweepDir = None,
    figures: Annotated[
        Optional[Path], typer.Option(help="Also write the figures into this folder, as SVG and PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a sweep's report.html: one file that opens offline."""
    from sweeps.results import report_sweep, save_sweep_figures

    directory = find_sweep(sweep_dir)
    path = report_sweep(directory)
    saved = save_sweep_figures(directory, figures) if figures is not None else []
    if as_json:
        print_json({"report": str(path), "figures": [str(figure) for figure in saved]})
    else:
        for written in (path, *saved):
            print(written)


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML of a RunConfig; a run directory's config.yaml is one.")],
    overrides: Annotated[
        Optional[list[str]],
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, such as optimizer.learning_rate=0.003."),
    ] = None,
    run_dir: Annotated[Optional[Path], typer.Option(help="Where the run is kept. Default: runs/train/RUN_ID.")] = None,
    data: Annotated[
        Optional[str], typer.Option(help="Text or prepared corpus. Default: the corpus of that name in --data-dir.")
    ] = None,
    data_dir: DataDir = Path("data"),
    as_json: Json = False,
) -> None:
    """Train one run, or go on with one that was stopped. Ctrl-C stops after a checkpoint.

    In many processes: torchrun --nproc-per-node 4 -m scaling.train --config FILE --set parallel.tensor_parallel_size=4
    """
    from scaling.single import configure, connected, first_does, train_one

    with connected() as first:

        def configured() -> Any:
            return configure(config, tuple(overrides or ()), data, data_dir)

        # the first rank prepares the corpus, the others then find it there
        run, corpus = first_does(first, configured) or configured()
        record = train_one(run, corpus, run_dir or Path("runs/train") / run.run_id, console(as_json), first)
    if record is None:
        raise typer.Exit(130)
    if as_json and first:
        print_json(record.model_dump(mode="json"))
    raise typer.Exit(0 if record.status == "finished" else 1)


@app.command("export")
def export_(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of a run, such as runs/train/RUN_ID.")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New directory for the Hugging Face model.")],
    as_json: Json = False,
) -> None:
    """Write a run's newest checkpoint as a Hugging Face model: Llama, or Qwen3 with qk_norm.

    OUT_DIR gets one model.safetensors, however many processes trained it, config.json, and the tokenizer of a
    run on bytes; transformers' AutoModelForCausalLM.from_pretrained(OUT_DIR) computes the same logits.
    """
    from scaling.export import export_run

    done = export_run(run_dir, out_dir, lambda message: print(f"warning: {message}", file=sys.stderr))
    if as_json:
        print_json(done)
        return
    print(f"run {done['run_id']}, step {done['step']} of {done['train_steps']}: {done['parameters']:,} parameters")
    print(f"{done['architecture']} in {done['out_dir']}: {', '.join(done['files'])}")


@app.command("import")
def import_(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="Directory of a Llama or Qwen3 in safetensors.")],
    to: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="New file for the weights.")],
    as_json: Json = False,
) -> None:
    """Turn a Hugging Face Llama or Qwen3 into weights under this project's names.

    FILE.safetensors gets the weights in float32, FILE.yaml the `model:` section of a config that fits them;
    what `scaling export` wrote comes back to the bit.
    """
    from scaling.export import import_weights

    done = import_weights(hf_dir, to)
    if as_json:
        print_json(done)
        return
    print(f"{done['model_type']} of {done['parameters']:,} parameters")
    print(f"wrote {done['weights']}")
    print(f"wrote {done['config']}")


@app.command()
def parity(
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Instead stop under each layout and go on under each other one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one small model under many layouts and compare every step with one process.

    Runs on this machine's CPU, in float32 and float64, for some minutes. Exits with 1 when some layout differs.
    """
    from scaling.parity import parity as compare
    from scaling.parity import row_line
    from scaling.reshard import reshard, reshard_line

    run, line = (reshard, reshard_line) if checkpoints else (compare, row_line)

    def show(row: dict[str, Any]) -> None:
        print(line(row), file=sys.stderr if as_json else sys.stdout, flush=True)

    rows = run(on_row=show)
    passed = all(row["passed"] for row in rows)
    if as_json:
        print_json({"rows": rows, "passed": passed})
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    sys.exit(main())
