"""Timings one can compare: side by side in one process, in turns, as medians and their ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

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
