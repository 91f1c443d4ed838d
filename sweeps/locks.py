"""Who holds what: advisory file locks that the kernel drops when their process dies.

A lock file stays where it is after its holder has gone; only a held lock means something. Its
content is one JSON object that tells people (and `scaling status`) who the holder is.
"""

import errno
import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from scaling.errors import UserError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class FileLock:
    """An exclusive lock that is held until `release()` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def write(self, content: dict[str, Any]) -> None:
        """Replace what the lock file says about its holder."""
        text = json.dumps(content).encode() + b"\n"
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def release(self) -> None:
        """Give the lock up. The file stays: removing it would let two processes lock two files of one name."""
        os.close(self._descriptor)


def acquire(path: Path, content: dict[str, Any]) -> FileLock | None:
    """The lock on `path`, or None at once when somebody holds it.

    Raises UserError when the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        locked = _flock(descriptor, fcntl.LOCK_EX, path)
        if locked:
            lock = FileLock(path, descriptor)
            lock.write(content)
            return lock
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def acquire_any(paths: list[Path], content: dict[str, Any], patience: float = 1.0) -> FileLock | None:
    """The lock on the first of `paths` that is free, None when all stay held for `patience` seconds."""
    locks = acquire_several(paths, [content], patience)
    return locks and locks[0]


def acquire_several(paths: list[Path], contents: list[dict[str, Any]], patience: float = 1.0) -> list[FileLock] | None:
    """Locks on as many of `paths` as there are `contents`, one for each; None when too many of them stay held.

    All or none, so that two that want several never wait for each other with a part of them. The patience outlasts
    `holder()`, which holds a shared lock for an instant.
    """
    deadline = time.monotonic() + patience
    while True:
        locks: list[FileLock] = []
        for path in paths:
            if len(locks) < len(contents) and (lock := acquire(path, contents[len(locks)])) is not None:
                locks.append(lock)
        if len(locks) == len(contents):
            return locks
        for lock in locks:
            lock.release()
        if time.monotonic() > deadline:
            return None
        time.sleep(0.05)


def holder(path: Path) -> dict[str, Any] | None:
    """What the holder of the lock on `path` wrote into it; None when nobody holds it. Writes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _flock(descriptor, fcntl.LOCK_SH, path):
            return None
        with suppress(ValueError):
            content = json.loads(os.pread(descriptor, 1 << 16, 0))
            if isinstance(content, dict):
                return content
        return {}
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"{path.parent}: this file system has no file locks ({error.strerror}): "
                "choose a --sweep-dir on one that has"
            ) from None
        raise
    return True
