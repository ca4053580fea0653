"""A W&B run on its way to the server, by a process of its own: a training writes to its disk and waits for nobody."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import requests

log = logging.getLogger(__name__)

PATIENCE = 30  # seconds without a connection after which it is said
SILENCE = 15  # seconds without a sign of progress after which a run that has ended waits no longer
LONGEST, SHORTEST = 60, 10  # seconds that one waits at most: after the end, and when the process was asked to leave
ABSENCES = 3  # times in a row that nothing answers at the server's address, half a second apart: it has gone
STUB = 7  # bytes of a log that holds nothing
GIVEN_UP = re.compile(r'"level":"ERROR".*"msg":"(runfiles|fileTransfer|filestream|sender: failed to log)')

# What earlier parts have left, then the run as it is written; W&B's command gives up for good in a few cases. It
# reads what nobody writes, to end with the training however that ends. The training's cores come first: by nice, and
# by the group's, which is all that counts on a Linux that shares its time among sessions.
SCRIPT = """
run=$1; shift
{ echo 10 > /proc/self/autogroup; } 2> /dev/null
{
    for part; do nice "$PYTHON" -m vdsr.upload "$part"; done
    until ls "$run"/*.synced > /dev/null 2>&1; do
        nice "$PYTHON" -m vdsr.upload --live "$run"
        sleep 300
    done
} &
cat > /dev/null
kill -9 0
"""


class Upload:
    """Sends a run's folder `offline-run-…` while W&B writes there, after what earlier parts of it have left unsent.

    server: its address, http…. Says once where the run is to be seen, or why it is not. Sending again what has been
    sent changes nothing.
    """

    def __init__(self, run: Path, server: str) -> None:
        self.run, self.server, self.url = run, server, ""
        self._complained, self._heard = False, time.monotonic()
        # a service that it inherited would be the training's own
        environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_SERVICE", "WANDB_SILENT", "WANDB_MODE")}
        earlier = [part for part in unsent(run.parent) if part.name < run.name]
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "sh", run, *earlier],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is the training's
            env=environment | {"PYTHON": sys.executable},
        )
        self._timer = threading.Timer(PATIENCE, self._complain, ["no answer from the server"])
        self._listener = threading.Thread(target=self._listen)
        for thread in (self._timer, self._listener):
            thread.daemon = True
            thread.start()

    @property
    def complete(self) -> bool:
        """Whether the server has all of a run that has ended."""
        return _synced(self.run)

    def finish(self, asked_to_leave: bool) -> None:
        """Wait for the rest to arrive while the server is there and something moves or has only just begun; end."""
        end = time.monotonic() + (SHORTEST if asked_to_leave else LONGEST)
        self._heard, absences = time.monotonic(), 0
        while not self.complete and time.monotonic() < min(end, self._heard + SILENCE) and absences < ABSENCES:
            if self._complained and not self.url:
                break
            time.sleep(0.5)
            absences = 0 if self._answers() else absences + 1
        self._timer.cancel()
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._listener.join(1)  # whoever left the group may hold the other end of the pipe

    def _answers(self) -> bool:
        """Whether anything is at the server's address, however it answers."""
        try:
            requests.head(self.server, timeout=2)
        except requests.exceptions.SSLError:
            return True
        except requests.RequestException:
            return False
        return True

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._heard = time.monotonic()
                if found := re.search(r"View run .*?at (http\S+)", line):
                    self._timer.cancel()
                    if not self.url:
                        log.info("W&B: %s", found[1])
                    self.url = found[1]
                elif found := re.search(r"ERROR (.*)", line):
                    self._complain(found[1])

    def _complain(self, why: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("W&B: %s; going on offline, sync later", " ".join(why.split())[:200])


def send(run: Path, live: bool) -> None:
    """Send a run's folder with W&B's own command; live: and what is still being written there, to its end."""
    command = [sys.executable, "-m", "wandb", *(["beta", "sync", "--live"] if live else ["sync"]), "--yes", str(run)]
    subprocess.run(command, env=os.environ | {"WANDB_DIR": str(run)}, stdin=subprocess.DEVNULL, check=False)
    _synced(run)


def unsent(folder: Path) -> Iterator[Path]:
    """The runs below a folder `wandb` that the server does not have whole, oldest first."""
    for run in sorted(folder.glob("offline-run-*")):
        if not _synced(run) and any(log.stat().st_size > STUB for log in run.glob("run-*.wandb")):
            yield run


def _synced(run: Path) -> bool:
    """Whether W&B's mark says that all has arrived; it is taken back if W&B's log says that something was given up.

    W&B's client repeats what fails or stays away, but a page that comes with the status of success, as a hotel's or a
    proxy's does, ends its attempts at a picture or an artifact.
    """
    marks, logs = list(run.glob("run-*.wandb.synced")), sorted(run.glob("wandb/logs/debug-sync*.log"))  # by their time
    if marks and logs and GIVEN_UP.search(logs[-1].read_text(errors="replace")):
        for mark in marks:
            mark.unlink(missing_ok=True)
        return False
    return bool(marks)


if __name__ == "__main__":
    send(Path(sys.argv[-1]), live="--live" in sys.argv)
