"""SIGUSR1 and SIGTERM ask a training to save and leave.

Light on purpose: the handlers must be in place before torch is imported, or a signal in that time kills the process.
What a handler does depends on what there is to lose: nothing (EXIT), something to tidy up (RAISE), or steps to save
(WAIT), which is done between two steps by whoever asks `asked()` there.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

# What tells a batch script why a run left: after 85 it requeues the job, after 143 (128 + SIGTERM) it does not.
STATUS = {signal.SIGUSR1: 85, signal.SIGUSR2: 85, signal.SIGTERM: 143}

EXIT, RAISE, WAIT = range(3)

_mode = EXIT
_owner = 0  # forked processes inherit the handlers
_before: dict[int, Any] = {}  # the handlers that were there
_received: set[int] = set()


class Preempted(SystemExit):
    """Ends the process with one of `STATUS`."""


def catch() -> None:
    """Handle SIGUSR1 and SIGTERM from here on; SIGUSR2 where it has a handler: submitit requeues on it."""
    global _mode, _owner
    _mode, _owner = EXIT, os.getpid()
    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STATUS:
        before = signal.getsignal(number)
        if before is not _handle and (number != signal.SIGUSR2 or callable(before)):
            _before[number] = before
            signal.signal(number, _handle)


def mode(new: int) -> None:
    """From here on EXIT, RAISE or WAIT."""
    global _mode
    _mode = new
    if new != WAIT and asked():
        leave(asked())


def asked() -> int:
    """The exit status that the signals so far ask for, 0 for none; SIGTERM comes before SIGUSR1."""
    return max((STATUS[signal.Signals(number)] for number in _received), default=0)


def stopped_by_sweep(status: int) -> bool:
    """Whether this is a point that its W&B sweep has stopped early: the agent sends SIGTERM.

    Such a point is not to be given out again, nor has it failed: after a few statuses above 0 an agent gives up.
    """
    return status == STATUS[signal.SIGTERM] and "WANDB_SWEEP_ID" in os.environ


def leave(status: int) -> None:
    """Raise Preempted, or exit if there is nothing to tidy up; submitit's handler, if any, comes first."""
    for number in _received - {signal.SIGTERM}:
        if callable(_before.get(number)):
            _before[number](number, None)
    if _mode == EXIT:  # an exception within an import may come out as another one
        os._exit(status)
    raise Preempted(status)


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:
        return
    _received.add(number)
    if _mode != WAIT:
        os.write(2, f"{signal.Signals(number).name}: leaving, with nothing to save\n".encode())
        leave(asked())
