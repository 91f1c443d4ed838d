import fcntl
import subprocess
import sys

import pytest
from sweep_lab import wait_for

from scaling.errors import UserError
from sweeps.locks import acquire, acquire_any, acquire_several, holder

HOLD = """
import sys, time
from pathlib import Path
from sweeps.locks import acquire
assert acquire(Path(sys.argv[1]), {"pid": 1234}) is not None
print("held", flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time_and_the_file_names_it(tmp_path):
    path = tmp_path / "deep" / "lock"
    assert holder(path) is None, "no file, no holder"
    lock = acquire(path, {"pid": 7})
    assert acquire(path, {"pid": 8}) is None
    assert holder(path) == {"pid": 7}
    lock.write({"pid": 7, "run_id": "x"})
    assert holder(path) == {"pid": 7, "run_id": "x"}
    lock.release()
    assert holder(path) is None, "the file stays, but only a held lock counts"
    assert acquire(path, {"pid": 8}) is not None


def test_kill_9_frees_the_lock(tmp_path):
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert holder(path) == {"pid": 1234} and acquire(path, {}) is None
    process.kill()
    process.communicate()
    lock = wait_for(lambda: acquire(path, {"pid": 2}))
    assert holder(path) == {"pid": 2}
    lock.release()


def test_any_free_slot_is_taken_and_none_is_none(tmp_path):
    paths = [tmp_path / f"{slot}.lock" for slot in range(2)]
    first, second = (acquire_any(paths, {}) for _ in range(2))
    assert [first.path, second.path] == paths
    assert acquire_any(paths, {}, patience=0.0) is None
    first.release()
    assert acquire_any(paths, {}).path == paths[0]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=f"{tmp_path}: this file system has no file locks.*--sweep-dir"):
        acquire(tmp_path / "lock", {})


def test_several_locks_are_taken_all_or_none(tmp_path):
    paths = [tmp_path / str(n) for n in range(3)]
    first = acquire_several(paths, [{"rank": 0}, {"rank": 1}])
    assert [holder(lock.path) for lock in first] == [{"rank": 0}, {"rank": 1}]
    assert acquire_several(paths, [{}, {}], patience=0.0) is None
    assert holder(paths[2]) is None, "what could not be completed is given back"
    first[0].release()
    second = acquire_several(paths, [{}, {}])
    assert [lock.path for lock in second] == [paths[0], paths[2]]
