"""A rank that dies takes the job down, by name, instead of leaving the others in a collective for ever.

Every rank beats through the process group's store from a thread of its own: a rank whose main thread computes or
compiles for minutes is alive, one that is killed, suspended or cut off is not. Rank 0, beside whom the store
usually lives, watches all ranks and every other rank watches rank 0: 2 N reads per beat, not N^2. Who first sees
a loss, or fails, leaves a verdict that the others read, print and obey.

A silence is counted in beats of the observer: no clocks are compared, and one that was suspended accuses nobody.
"""

import json
import os
import platform
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import torch.distributed as dist

#: Exit code of a rank that stops because another one was lost or failed.
EXIT_OTHER_RANK = 70

_BEAT_SECONDS = 1.0
_START_SECONDS = 60.0


@dataclass
class _Peer:
    beat: dict[str, Any]
    missed: int = 0  # beats of the observer since the last one of this rank


class Watch:
    """Watches over the ranks of a job while its context lasts, and keeps a heartbeat file.

    The training loop sets `watch.step`; nothing else is asked of it. When another rank is lost or fails, this
    process prints one line to stderr,

        rank 3 on node7 (pid 123) was lost at step 41: no sign of life for 20 s; rank 1 stops
        rank 3 on node7 (pid 123) failed at step 41: ValueError: no such token; rank 1 stops

    and ends with code EXIT_OTHER_RANK, whatever its main thread is doing. An exception that leaves the context is
    told to the others and goes on its way. A collective's error is most likely the mark that another rank's end
    left here, so it first waits for the watch to say whose.

    Rank 0 replaces the heartbeat file four times within the patience: {"time": ISO 8601 UTC, "state", "step",
    "train_steps", "ranks": {rank: {"beat", "host", "pid", "step", "state", "seconds_since_beat"}}}. `beat` counts;
    `state` is `running`, `finished`, `stopped` or `failed`; a job that was killed shows by the age of `time`.
    """

    def __init__(
        self,
        train_steps: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        store: dist.Store | None = None,
        file: Path | None = None,
        patience_seconds: float = 20.0,
        orderly: tuple[type[BaseException], ...] = (),
    ):
        """`store` is the process group's; None for one process, who has nobody to watch. `file` counts on rank 0.

        `orderly` are the exceptions with which all ranks end together: a stop that somebody asked for.
        """
        self.step, self._train_steps = 0, train_steps
        self._rank, self._world_size, self._orderly = rank, world_size, orderly
        self._patience, self._beat_seconds = patience_seconds, min(_BEAT_SECONDS, patience_seconds / 10)
        self._file = file if rank == 0 else None
        self._state, self._failure, self._rounds = "running", "", 0
        self._wake, self._closed = threading.Event(), threading.Event()
        self._peers: dict[int, _Peer] = {}
        self._threads: list[threading.Thread] = []
        self._store = None
        if store is not None and world_size > 1:
            # a second watch on the same store must not read the goodbyes of the first
            start = store.add(f"watch/starts/{rank}", 1)
            # a clone: a client whose thread waits for a key keeps all other threads waiting too
            self._store = dist.PrefixStore(f"watch/{start}", store.clone())

    def __enter__(self) -> "Watch":
        """Raises TimeoutError, naming them, when other ranks do not come within a minute."""
        if self._store is not None:
            self._meet()
            self._threads.append(threading.Thread(target=self._talk, name="watch", daemon=True))
        if self._store is not None or self._file is not None:
            self._threads.append(threading.Thread(target=self._guard, name="watch-guard", daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        state = "finished" if error is None else "stopped" if isinstance(error, self._orderly) else "failed"
        if state == "failed":
            self._failure = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            if self._store is not None and _from_a_collective(error):
                self._threads[0].join(1.5 * self._patience)  # it ends the process as soon as it knows who
        self._state = state
        self._wake.set()
        if self._store is not None:
            self._threads[0].join()  # under guard to its end
        self._closed.set()
        for thread in self._threads:
            thread.join()
        self._write()

    def _meet(self) -> None:
        self._store.set(str(self._rank), json.dumps(self._beat()))
        ranks = [str(rank) for rank in range(self._world_size)]
        try:
            self._store.wait(ranks, timedelta(seconds=_START_SECONDS))
        except dist.DistStoreError:
            missing = ", ".join(rank for rank in ranks if not self._store.check([rank]))
            raise TimeoutError(f"rank {missing} did not start within {_START_SECONDS:g} s: see its log") from None
        watched = range(1, self._world_size) if self._rank == 0 else (0,)
        self._peers = {rank: _Peer(json.loads(self._store.get(str(rank)))) for rank in watched}

    def _beat(self) -> dict[str, Any]:
        place = {"host": platform.node(), "pid": os.getpid()}
        return {"beat": self._rounds, "step": self.step, "state": self._state} | place

    def _talk(self) -> None:
        verdict = None
        try:
            while True:
                beat = self._beat()
                found = self._exchange(beat)
                if found and not verdict and beat["state"] != "failed":
                    verdict = found
                    self._say(verdict)
                    self._state = "stopping"
                    self._wake.set()
                # rank 0 goes last: the store that all the others still read may live in its process
                if beat["state"] != "running" and not (self._rank == 0 and self._somebody_runs()):
                    break
                self._wake.wait(self._beat_seconds)
                self._wake.clear()
        except dist.DistError:
            if not verdict and self._state == "running":
                verdict = self._sentence(0, "was lost", "the store on its host is closed")
                self._say(verdict)
        if verdict:
            os._exit(EXIT_OTHER_RANK)

    def _exchange(self, beat: dict[str, Any]) -> str | None:
        """Send this rank's beat, take in those of the watched ranks; returns the verdict, None while all is well."""
        self._store.set(str(self._rank), json.dumps(beat))
        texts = self._store.multi_get([str(rank) for rank in self._peers])
        for peer, text in zip(self._peers.values(), texts, strict=True):
            last, peer.beat = peer.beat, json.loads(text)
            peer.missed = peer.missed + 1 if peer.beat == last else 0
        self._rounds += 1
        if self._store.check(["verdict"]):
            return self._store.get("verdict").decode()
        verdict = self._sentence(self._rank, "failed", self._failure) if beat["state"] == "failed" else None
        for rank in (rank for rank, peer in self._peers.items() if self._lost(peer)):
            verdict = verdict or self._sentence(rank, "was lost", f"no sign of life for {self._patience:g} s")
        # several may find out at the same time: the first word holds for all
        return self._store.compare_set("verdict", "", verdict).decode() if verdict else None

    def _guard(self) -> None:
        """Writes the heartbeat file, and sees whether `_talk` hangs in the store, whose calls have no timeout."""
        missed, rounds = 0, 0
        while True:
            self._write()
            if self._closed.wait(self._patience / 4):
                return
            missed, rounds = missed + 1 if self._rounds == rounds else 0, self._rounds
            if self._store is not None and missed == 4:
                silence = f"the store on its host has not answered for {self._patience:g} s"
                self._say(self._sentence(0, "was lost", silence))
                os._exit(EXIT_OTHER_RANK)

    def _lost(self, peer: _Peer) -> bool:
        return peer.beat["state"] == "running" and peer.missed * self._beat_seconds >= self._patience

    def _somebody_runs(self) -> bool:
        return any(peer.beat["state"] == "running" and not self._lost(peer) for peer in self._peers.values())

    def _sentence(self, rank: int, event: str, reason: str) -> str:
        beat = self._beat() if rank == self._rank else self._peers[rank].beat
        # a step has collectives of all ranks, so nobody is behind this rank; a beat may be
        step = max(beat["step"], self.step)
        return f"rank {rank} on {beat['host']} (pid {beat['pid']}) {event} at step {step}: {reason}"

    def _say(self, verdict: str) -> None:
        # past sys.stderr, whose lock the hanging main thread may hold
        os.write(2, f"{verdict}; rank {self._rank} stops\n".encode())

    def _write(self) -> None:
        if self._file is None:
            return
        peers = {self._rank: _Peer(self._beat())} | self._peers
        value = {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "state": self._state,
            "step": self.step,
            "train_steps": self._train_steps,
            "ranks": {
                rank: peer.beat | {"seconds_since_beat": round(peer.missed * self._beat_seconds, 1)}
                for rank, peer in peers.items()
            },
        }
        scratch = self._file.with_name(f".{self._file.name}.tmp")
        try:
            scratch.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            os.replace(scratch, self._file)
        except OSError:
            scratch.unlink(missing_ok=True)  # a full disk is for what writes results to report


def _from_a_collective(error: BaseException | None) -> bool:
    """Whether a collective raised `error` or what it was raised from. Gloo has no exception class of its own."""
    while error is not None:
        if isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
