"""Run any function on n gloo ranks: real processes, on one machine.

The ranks are forked from a server that has imported torch once and done nothing else, so that starting
them costs a fraction of a second.
"""

import multiprocessing
import os
import traceback
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "numpy"])


def _rank(function: Callable, rank: int, world_size: int, store: str, results: Any, arguments: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        value = function(*arguments)
        results.put((rank, value, None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_distributed(function: Callable, world_size: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on every one of `world_size` ranks with a gloo group between them; results by rank.

    The function must lie at the top of a module, and its arguments and result must pickle (tensors as numpy
    arrays or lists). Raises AssertionError with the traceback of the first rank that failed.
    """
    with TemporaryDirectory() as folder:
        results = _CONTEXT.Queue()
        store = str(Path(folder) / "store")
        ranks = [
            _CONTEXT.Process(target=_rank, args=(function, rank, world_size, store, results, arguments), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        found: dict[int, Any] = {}
        try:
            for _ in ranks:
                rank, value, error = results.get(timeout=120)
                if error is not None:
                    raise AssertionError(f"rank {rank} of {world_size} failed:\n{error}")
                found[rank] = value
            for process in ranks:
                process.join(timeout=30)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
        return [found[rank] for rank in range(world_size)]
