"""Ranks on this machine: run a function in n processes with a gloo group between them.

The processes are forked from a server that has imported torch and done nothing else, so that starting them costs
a fraction of a second.
"""

import multiprocessing
import os
import queue
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_PRELOADED = ["torch", "torch.distributed", "torch.distributed.pipelining", "numpy"]


def _rank(function: Callable, rank: int, world_size: int, store: str, results: Any, arguments: tuple) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
        )
        results.put((rank, function(*arguments), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run_distributed(function: Callable, world_size: int, *arguments: Any, timeout_seconds: float = 120) -> list[Any]:
    """`function(*arguments)` on every one of `world_size` ranks with a gloo group between them; results by rank.

    One thread a rank. The function must lie at the top of a module, and its arguments and result must pickle.
    Raises RuntimeError with the traceback of the first rank that failed, or when no rank ends in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with TemporaryDirectory() as folder:
        results = context.Queue()
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=_rank, args=(function, rank, world_size, store, results, arguments), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        found: dict[int, Any] = {}
        try:
            for _ in ranks:
                rank, value, error = results.get(timeout=timeout_seconds)
                if error is not None:
                    raise RuntimeError(f"rank {rank} of {world_size} failed:\n{error}")
                found[rank] = value
            for process in ranks:
                process.join(timeout=30)
        except queue.Empty:
            raise RuntimeError(f"{world_size} ranks: no result within {timeout_seconds:g} s") from None
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
        return [found[rank] for rank in range(world_size)]
