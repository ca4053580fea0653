"""One folder, one run: who may write a run's folder."""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vdsr import records
from vdsr.errors import InputError
from vdsr.ranks import rank

log = logging.getLogger(__name__)

LOCK, OWNER = "run.lock", "owner.json"
PATIENCE = 5  # seconds; the workers of a process that was killed may hold its lock for a moment


class Claim:
    """Holds a run's folder against other processes, from the first rank, until `release` or the process's end.

    A job that Slurm requeued takes the folder from its earlier attempt: when a node's daemon dies, a rank may live on
    there, with the lock, and unknown to Slurm. That rank finds out by `check`, before it writes.
    Raises InputError when another process has the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.owner: dict[str, Any] = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "attempt": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        }
        self._lock = FileLock(run_dir / LOCK)
        if rank() != 0:
            return
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            other = self._other()
            if not self._succeeds(other):
                who = "process {process} on {host}".format(**other) if other else "another process"
                job = f" (Slurm job {other['job']})" if other.get("job") else ""
                raise InputError(
                    f"{run_dir} is in use by {who}{job}: wait until it ends, stop it, or set name=…"
                ) from None
            log.warning("%s: taken over from attempt %d on %s", run_dir, other["attempt"], other["host"])
        records.write_json(run_dir / OWNER, self.owner)
        for left in (*run_dir.glob("*.tmp"), *run_dir.glob("checkpoints/*.tmp")):
            left.unlink(missing_ok=True)  # by a process that was killed

    def check(self) -> None:
        """Raises InputError when a later attempt of this job has taken the folder over."""
        if not self.held:
            raise InputError(f"{self.run_dir}: taken over by a later attempt of this job; this one ends")

    @property
    def held(self) -> bool:
        """Whether the folder still is this process's to write; only the first rank writes."""
        return rank() != 0 or self._other() == self.owner

    def release(self) -> None:
        """Let the next process have the folder."""
        self._lock.release()

    def _other(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.run_dir / OWNER).read_text()))
        except (OSError, ValueError):
            return {}

    def _succeeds(self, other: dict[str, Any]) -> bool:
        mine = self.owner
        return mine["job"] is not None and mine["job"] == other.get("job") and other["attempt"] < mine["attempt"]
