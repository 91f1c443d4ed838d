"""attempts.jsonl: every start of a worker on a cell, and how it ended.

A start without an end, seen by whoever holds the cell's lock, means that the worker died: the
kernel drops a lock only when its process is gone.

Rank 0 writes attempts.jsonl. Another rank that fails says so in a file of its own, attempts.rank-1.jsonl, since rank 0
may not live to tell; `read_attempts` joins them.
"""

import json
import os
from pathlib import Path
from typing import Any

ATTEMPTS_FILE = "attempts.jsonl"

#: A cell whose workers died this often within one launch is given up until the next launch.
MAX_LOST_ATTEMPTS = 3
#: A cell that ran out of memory this often within one launch, under ever roomier layouts, is given up likewise.
MAX_MEMORY_FAILURES = 4

OUT_OF_MEMORY = "out of memory"


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line, after a line that a killed writer left half written."""
    line = json.dumps(value, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a .jsonl file, without lines that a killed writer left half written."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    values = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            values.append(value)
    return values


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """What all ranks wrote about a cell's attempts: starts and ends in order, at most one end for each start.

    Of several ranks' failures the cause is told: memory that ran out, or else what came first.
    """
    lines = read_lines(run_dir / ATTEMPTS_FILE)
    others = [line for path in sorted(run_dir.glob("attempts.rank-*.jsonl")) for line in read_lines(path)]
    joined = []
    for start in (line for line in lines if line.get("event") == "start"):
        number = start.get("attempt")
        ends = [line for line in (*lines, *others) if line.get("event") == "end" and line.get("attempt") == number]
        ends.sort(key=lambda line: (line.get("outcome") != OUT_OF_MEMORY, str(line.get("ended_at"))))
        joined += [start, *ends[:1]]
    return joined


def start_attempt(run_dir: Path, launch: str, **details: Any) -> int:
    """Record that a worker begins; returns the attempt's number, 1 for the first."""
    number = 1 + sum(line.get("event") == "start" for line in read_lines(run_dir / ATTEMPTS_FILE))
    append_line(run_dir / ATTEMPTS_FILE, {"event": "start", "attempt": number, "launch": launch, **details})
    return number


def end_attempt(run_dir: Path, attempt: int, launch: str, outcome: str, rank: int = 0, **details: Any) -> None:
    """Record how an attempt ended: "finished", "diverged", "interrupted", "error" or OUT_OF_MEMORY.

    The latter two have `error`, and OUT_OF_MEMORY has `roomier`, the layout to try next, None when there is none.
    """
    name = ATTEMPTS_FILE if rank == 0 else f"attempts.rank-{rank}.jsonl"
    append_line(run_dir / name, {"event": "end", "attempt": attempt, "launch": launch, "outcome": outcome, **details})


def lost_attempts(attempts: list[dict[str, Any]], launch: str | None = None, layout: str | None = None) -> int:
    """Starts without an end, of one launch (and one layout) or of all. A held cell's running attempt is among them."""
    ended = {line.get("attempt") for line in attempts if line.get("event") == "end"}
    return sum(
        line.get("event") == "start"
        and line.get("attempt") not in ended
        and (launch is None or line.get("launch") == launch)
        and (layout is None or line.get("layout") == layout)
        for line in attempts
    )


def last_error(attempts: list[dict[str, Any]], launch: str | None = None) -> str | None:
    """Why the latest attempt ended the cell; None when it ended otherwise, goes on, or a roomier layout can be tried.

    With `launch`, None too when that attempt belongs to another launch: a new launch tries again.
    """
    last = attempts[-1] if attempts else {}
    if launch is not None and last.get("launch") != launch:
        return None
    error = str(last.get("error", "unknown error"))
    if last.get("outcome") == "error":
        return error
    if last.get("outcome") != OUT_OF_MEMORY:
        return None
    failures = sum(line.get("outcome") == OUT_OF_MEMORY and line.get("launch") == last["launch"] for line in attempts)
    if last.get("roomier") is not None and failures < MAX_MEMORY_FAILURES:
        return None
    return f"{OUT_OF_MEMORY} under {last.get('layout')}, after {failures} tries: {error}"


def given_up(attempts: list[dict[str, Any]], launch: str) -> str | None:
    """Why a cell that nobody works on is not tried again within `launch`; None when it may be."""
    if (error := last_error(attempts, launch)) is not None:
        return error
    if (lost := lost_attempts(attempts, launch)) >= MAX_LOST_ATTEMPTS:
        return f"its worker died {lost} times (killed, or out of memory?)"
    return None
