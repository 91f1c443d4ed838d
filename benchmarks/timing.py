"""What the benchmarks of parallel/ share: candidates in turns, medians with their range, the machine, JSON."""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Milliseconds of one step, one entry a turn: {"wall": [...], "cpu": [...]}; "cpu" is the process's CPU time.
Turns = dict[str, list[float]]


def in_turns(
    candidates: Mapping[str, Callable[[], object]],
    turns: int,
    steps: int,
    before_turn: Callable[[], object] = lambda: None,
    warm_up: int = 3,
) -> dict[str, Turns]:
    """Times of the candidates, which take turns of `steps` calls: a change of the machine's speed then meets all.

    A turn is timed as a whole and divided by its steps.
    """
    for candidate in candidates.values():
        for _ in range(warm_up):
            candidate()
    gc.collect()
    gc.freeze()  # a candidate's garbage collection should not search what the others keep
    found: dict[str, Turns] = {name: {"wall": [], "cpu": []} for name in candidates}
    for _ in range(turns):
        for name, candidate in candidates.items():
            before_turn()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                candidate()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found[name]["wall"].append(1e3 * wall / steps)
            found[name]["cpu"].append(1e3 * cpu / steps)
    return found


def combined(turns: Sequence[Turns], function: Callable[..., float]) -> Turns:
    """`function` of the times of several candidates, turn by turn: a slope, a ratio, a sum over ranks."""
    return {clock: [function(*values) for values in zip(*(part[clock] for part in turns))] for clock in ("wall", "cpu")}


def middle(values: Sequence[float], digits: int = 2) -> str:
    """Median (lowest-highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def options(description: str | None, turns: int) -> argparse.Namespace:
    """The command line that the benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=turns, help="turns of each candidate")
    parser.add_argument("--json", type=Path, help="write every turn to this file")
    return parser.parse_args()


def report(what: str, text: str, times: Mapping[str, Turns], ratios: Mapping[str, Turns], path: Path | None) -> None:
    """Print the machine and the text; write all times and ratios, with their medians and ranges, to `path`."""
    import torch

    from scaling.telemetry import device_name

    machine = f"{device_name(torch.device('cpu'))}, {len(os.sched_getaffinity(0))} cores, Linux"
    date, load = time.strftime("%Y-%m-%d"), os.getloadavg()[0]
    print(f"{machine}, torch {torch.__version__}, {date}, load average {load:.1f} at the end\n{what}\n\n{text}")
    if path is None:
        return

    def written(parts: Mapping[str, Turns]) -> dict[str, Any]:
        return {name: {clock: summary(values) for clock, values in part.items()} for name, part in parts.items()}

    def summary(values: list[float]) -> dict[str, Any]:
        ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
        return {key: round(value, 4) for key, value in ends.items()} | {"turns": [round(value, 4) for value in values]}

    contents = {
        "machine": machine,
        "torch": torch.__version__,
        "date": date,
        "load_average_at_end": load,
        "compared": what,
        "milliseconds": written(times),
        "ratios": written(ratios),
    }
    path.write_text(json.dumps(contents, indent=1) + "\n")
