"""Timings one can compare: side by side in one process, in turns, as medians and their ratios."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def in_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each callable; A B C, A B C, … so that a drifting machine slows all alike."""
    for call in work.values():
        call()  # not counted: first calls allocate and choose kernels
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(dtype: torch.dtype, rounds: int) -> float:
    """The machine's best matrix product in FLOP/s, over three sizes."""
    best = 0.0
    for n in (1024, 2048, 4096):
        a, b = torch.rand(n, n).to(dtype), torch.rand(n, n).to(dtype)
        best = max(best, 2 * n**3 / in_turns({"product": lambda a=a, b=b: a @ b}, rounds)["product"])
    return best


def peak_memory() -> float:
    """The most that this process or one that it waited for has held, in bytes.

    Of its own it is VmHWM on Linux: ru_maxrss begins with what the process that forked it held.
    """
    waited_for = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if sys.platform == "darwin":  # in bytes there
        return float(max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, waited_for))
    status = Path("/proc/self/status").read_text()
    (own,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return max(own, waited_for) * 1024.0
