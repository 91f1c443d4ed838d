"""The processes of one job, which train one cell together: how they find each other and hear what comes next.

Rank 0 opens a store on a port that the system picks, so that two jobs on one machine never want the same one, and says
where it is in a file beside the job's logs. The store outlives the cells: a team that trains many of them meets once.
Imports torch for teams of two and more only.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import submitit

from scaling.record import write_json_atomically

#: Nodes of one job may start minutes apart, and read Python from a slow disk.
_PATIENCE = timedelta(minutes=10)
_POLL_SECONDS = 0.05


class Team:
    """The ranks of one job; a job of one process is a team of one."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._shared = 0

    def share(self, value: Any = None) -> Any:
        """Rank 0's value (plain data) on every rank; the others wait for it. Collective."""
        if self.size == 1:
            return value
        self._shared += 1
        key = f"shared/{self._shared}"
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
            return value
        return json.loads(self._store.get(key))

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A context in which all ranks have one process group, to train cell after cell in. Collective."""
        if self.size == 1:
            yield
            return
        import torch.distributed

        from parallel.mesh import connect

        connect(_PATIENCE.total_seconds())
        yield
        torch.distributed.destroy_process_group()


def form_team(environment: submitit.JobEnvironment, directory: Path) -> Team:
    """This process's team: all tasks of its Submitit job. Collective.

    `directory`, which all nodes share, gets a file for the time that the ranks need to find each other. Sets
    torchrun's variables. Raises TimeoutError when rank 0 cannot be found.
    """
    rank, size = environment.global_rank, environment.num_tasks
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(environment.local_rank)}
    os.environ["LOCAL_WORLD_SIZE"] = str(size // environment.num_nodes)
    if size == 1:
        return Team()
    path = directory / f"{environment.job_id}_store.json"
    host = "127.0.0.1" if environment.num_nodes == 1 else environment.hostnames[0]
    store, port = _open_store(path, host, size) if rank == 0 else _find_store(path, rank)
    # torch's own rendezvous then joins this store instead of opening one
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return Team(rank, size, store)


def _open_store(path: Path, host: str, size: int) -> tuple[Any, int]:
    from torch.distributed import TCPStore

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
    token = uuid.uuid4().hex
    store.set(token, "here")
    write_json_atomically(path, {"host": host, "port": store.port, "token": token})
    store.wait([f"joined/{rank}" for rank in range(1, size)])
    path.unlink()
    return store, store.port


def _find_store(path: Path, rank: int) -> tuple[Any, int]:
    from torch.distributed import DistError, TCPStore

    deadline = time.monotonic() + _PATIENCE.total_seconds()
    while time.monotonic() < deadline:
        # a file that a dead job of this id left behind leads to no store, or to one without its token
        with suppress(FileNotFoundError, DistError):
            found = json.loads(path.read_text())
            store = TCPStore(found["host"], found["port"], is_master=False, timeout=timedelta(seconds=5))
            if store.check([found["token"]]):
                store.set_timeout(_PATIENCE)
                store.set(f"joined/{rank}", "here")
                return store, found["port"]
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"rank {rank} did not find rank 0 of its job within {_PATIENCE}: see rank 0's log")
