"""The processes of one job, which train one cell together: how they find each other and hear what comes next.

Rank 0 opens a store on a port that the system picks, so that two jobs on one machine never want the same one, and says
where it is in a file beside the job's logs. The store outlives the cells: a team that trains many of them meets once.
Imports torch for teams of two and more only.
"""

import json
import os
import sys
import threading
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
_GRACE = timedelta(seconds=5)
_POLL_SECONDS = 0.05
#: A collective waits this long for slow ranks; lost ones are noticed much earlier.
_COLLECTIVE_SECONDS = 1800.0


class Team:
    """The ranks of one job; a job of one process is a team of one."""

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._shared = 0
        if rank:
            # a clone: a client whose thread waits for a key keeps all other threads waiting too
            self._watching = threading.Thread(target=self._end_without_first, args=(store.clone(),), daemon=True)
            self._watching.start()

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

    def connect(self) -> None:
        """Join the process group of all ranks, in which they train cell after cell. Collective."""
        if self.size > 1:
            from parallel.mesh import connect

            connect(_COLLECTIVE_SECONDS)

    def leave(self) -> None:
        """End together: the store, which lives in rank 0, must outlive the others' last question. Collective."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
        if self.rank == 0:
            self._store.set("over", "yes")
            with suppress(dist.DistError):  # of one that died on its way out
                self._store.wait([f"left/{rank}" for rank in range(1, self.size)], _GRACE)
        else:
            self._watching.join()
            self._store.set(f"left/{self.rank}", "yes")

    def _end_without_first(self, store: Any) -> None:
        """Wait until rank 0 says that all is over; end this process when rank 0 dies instead.

        While a cell trains, parallel.watch sees to that and can say more; this is for the time before and between.
        """
        from torch.distributed import DistError

        from parallel.watch import EXIT_OTHER_RANK

        try:
            store.wait(["over"], timedelta(days=365))
        except DistError:
            time.sleep(_GRACE.total_seconds())
            print(f"rank {self.rank} stops: rank 0 of its job has ended", file=sys.stderr, flush=True)
            os._exit(EXIT_OTHER_RANK)


@contextmanager
def team_of(environment: submitit.JobEnvironment, directory: Path) -> Iterator[Team]:
    """This process's team while the context lasts: all tasks of its Submitit job. Collective.

    `directory`, which all nodes share, gets a file for the time that the ranks need to find each other. Sets
    torchrun's variables. Raises TimeoutError when rank 0 cannot be found.
    """
    rank, size = environment.global_rank, environment.num_tasks
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(environment.local_rank)}
    os.environ["LOCAL_WORLD_SIZE"] = str(size // environment.num_nodes)
    if size == 1:
        yield Team()
        return
    path = directory / f"{environment.job_id}_store.json"
    host = "127.0.0.1" if environment.num_nodes == 1 else environment.hostnames[0]
    store = _open_store(path, host, size) if rank == 0 else _find_store(path, rank)
    # torch's own rendezvous then joins this store instead of opening one
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    team = Team(rank, size, store)
    yield team
    team.leave()


def _open_store(path: Path, host: str, size: int) -> Any:
    from torch.distributed import TCPStore

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
    token = uuid.uuid4().hex
    store.set(token, "here")
    write_json_atomically(path, {"host": host, "port": store.port, "token": token})
    store.wait([f"joined/{rank}" for rank in range(1, size)])
    path.unlink()
    return store


def _find_store(path: Path, rank: int) -> Any:
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
                return store
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"rank {rank} did not find rank 0 of its job within {_PATIENCE}: see rank 0's log")
