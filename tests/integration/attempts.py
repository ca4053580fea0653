"""Runs src/train.py again and again, each time in a process forked from this one, where the imports are done already.

A line of JSON on stdin is an attempt: its command line's `arguments`, how many `ranks` (2 and more over gloo), and what
interrupts it: `interrupts` has (signal, moment, count, rank), and that signal comes just before call number `count` of
the moment. When a rank has been killed the others are too, as srun does it, and with them all that they have started.
The answer is a line of JSON with each rank's status, negative for a signal.
"""

import contextlib
import ctypes
import itertools
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import torch  # noqa: F401
import wandb  # noqa: F401
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

import vdsr.experiment  # noqa: F401
from vdsr import plan, tracking
from vdsr.callbacks.recorder import Recorder
from vdsr.data import LumaStore, SuperResolutionData
from vdsr.task import SuperResolution

SCRIPT = str(Path(__file__).parents[2] / "src" / "train.py")


def replaces(name):
    return lambda source, target: Path(target).name == name


# moment: (owner, function, which of its calls count)
MOMENTS = {
    "loading images": (SuperResolutionData, "load", None),
    "loading a batch": (LumaStore, "windows", None),
    "before a step": (SuperResolution, "training_step", None),
    "before an update": (SuperResolution, "configure_gradient_clipping", None),
    "after an update": (Recorder, "on_train_batch_end", None),
    "writing a record": (os, "replace", replaces("record.json")),
    "writing a checkpoint": (os, "fsync", None),
    "keeping the previous checkpoint": (os, "replace", replaces("previous.ckpt")),
    "renaming a checkpoint": (os, "replace", replaces("last.ckpt")),
    "validating an image": (SuperResolution, "validation_step", None),
    "ending a validation": (Recorder, "on_validation_end", None),
    "testing an image": (SuperResolution, "test_step", None),
    "closing the trackers": (tracking, "finish", None),
}


def interrupt(number, moment, count=1, victim=os.getpid):
    owner, name, counts = MOMENTS[moment]
    function, calls = getattr(owner, name), 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += counts is None or counts(*args)
        if calls == count:
            calls += 1
            os.kill(victim(), number)
        return function(*args, **kwargs)

    setattr(owner, name, interrupted)


def jump(seconds):
    """Put the wall clock back, and let it jump."""
    real, calls = time.time, itertools.count()
    time.time = lambda: real() - seconds * (1 + next(calls) // 10 % 3)


def children():
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def keep_samples(path):
    """Write down every sample of every step that the plan is asked for."""
    step = plan.Plan.step

    def kept(self, first, samples, count):
        with path.open("a") as file:
            for number in range(first, first + count):
                crops = step(self, number, samples)
                rows = [[c.scale, *map(int, row)] for c in crops for row in zip(*c[1:], strict=True)]
                file.write(json.dumps([number, samples.start, samples.stop, rows]) + "\n")
        return step(self, first, samples, count)

    plan.Plan.step = kept


def run(attempt, rank, port):
    out = os.open(attempt["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if attempt["ranks"] > 1:
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
        os.environ.update(places)
        rank_zero_only.rank = rank
    os.environ.update(attempt.get("environment", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    for number, moment, count, who in attempt.get("interrupts", []):
        if who == "wandb":
            interrupt(number, moment, count, lambda: next(pid for pid in children() if "wandb-core" in command(pid)))
        elif who == rank:
            interrupt(number, moment, count)
    if attempt.get("clock"):
        jump(attempt["clock"])
    if attempt.get("samples"):
        keep_samples(Path(f"{attempt['samples']}.{rank}"))
    arguments = [argument.replace("{rank}", str(rank)) for argument in attempt["arguments"]]
    sys.argv = [SCRIPT, *arguments, f"trainer.devices={attempt['ranks']}"]
    runpy.run_path(SCRIPT, run_name="__main__")


def fork(attempt, rank, port):
    child = os.fork()
    if child == 0:
        status = 70
        try:
            run(attempt, rank, port)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                sys.stderr.write(stop.code + "\n")
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
    return child


def attempt(order):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {fork(order, rank, port): rank for rank in range(order["ranks"])}
    statuses = [None] * order["ranks"]
    while running:
        child, status = os.wait()
        if child not in running:
            continue  # started by a rank that is no more
        statuses[running.pop(child)] = os.waitstatus_to_exitcode(status)
        if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            for other in running:
                os.kill(other, signal.SIGKILL)
    for left in children():
        with contextlib.suppress(OSError):
            os.kill(left, signal.SIGKILL)
            os.waitpid(left, 0)
    return statuses


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become this process's children
    for line in sys.stdin:
        sys.stdout.write(json.dumps(attempt(json.loads(line))) + "\n")
        sys.stdout.flush()
