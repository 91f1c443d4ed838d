"""How the processes of one job find each other, with real processes; rank 0 does not always live."""

import json
import os
import subprocess
import sys

from sweep_lab import wait_for

RANK = """
import sys
from pathlib import Path
import submitit
from sweeps.team import team_of

with team_of(submitit.JobEnvironment(), Path(sys.argv[1])) as team:
    team.connect()
    import torch
    total = torch.tensor([float(team.rank)])
    torch.distributed.all_reduce(total)
    print(team.share({"from": team.rank}), int(total), flush=True)
    if sys.argv[2] == "wait":
        team.share("never" if team.rank else sys.stdin.readline())
"""


def start(directory, job: str, size: int, what: str = "go") -> list[subprocess.Popen]:
    shared = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": job, "SUBMITIT_LOCAL_NTASKS": str(size)}
    ranks = []
    for rank in range(size):
        mine = {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK, str(directory), what],
                env={**os.environ, **shared, **mine},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def test_teams_side_by_side_keep_apart_and_end_with_their_rank_0(tmp_path):
    # what a dead job of the same id left behind is ignored
    (tmp_path / "1_store.json").write_text(json.dumps({"host": "127.0.0.1", "port": 9, "token": "old"}))
    orderly, orphaned = start(tmp_path, "1", 2), start(tmp_path, "2", 2, "wait")
    for rank in orderly:
        said, complaint = rank.communicate(timeout=120)
        assert (rank.returncode, said) == (0, "{'from': 0} 1\n"), complaint
    assert wait_for(orphaned[1].stdout.readline, 120) == "{'from': 0} 1\n"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    orphaned[0].kill()
    _, complaint = orphaned[1].communicate(timeout=60)
    assert orphaned[1].returncode != 0, "it does not wait for ever"
    orphaned[0].communicate()
