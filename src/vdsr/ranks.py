"""What the ranks of a training tell one another beside gradients."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric.utilities.rank_zero import rank_zero_only

from vdsr.errors import InputError


def rank() -> int:
    """This process's rank, before the ranks know one another too: by what its launcher says."""
    return int(getattr(rank_zero_only, "rank", 0))


class Ranks:
    """A group of its own, over gloo: talking in it does not wait for a GPU. Alone, a rank agrees with itself."""

    def __init__(self) -> None:
        self._group: Any = None

    def meet(self) -> None:
        """Form the group, once the ranks are connected."""
        if dist.is_available() and dist.is_initialized():
            self._group = dist.new_group(backend="gloo")

    def most(self, number: int) -> int:
        """The greatest of the ranks' numbers."""
        if self._group is None:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, self._group)
        return int(numbers)

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raises InputError on every rank when they differ in a fact, with the ranks that have each value."""
        if self._group is None:
            return
        every: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(every, dict(facts), self._group)
        keys = sorted({key for one in every for key in one})
        different = [key for key in keys if any(one.get(key) != every[0].get(key) for one in every)]
        if different:
            text = "; ".join(f"{key}: {_who_has_what([one.get(key) for one in every])}" for key in different[:3])
            raise InputError(f"the ranks disagree on {text}. Start all with the same code, data and command")


def _who_has_what(values: list[Any]) -> str:
    """`3 on rank 0, 4 on ranks 1, 2`."""
    ranks: dict[str, list[str]] = {}
    for number, value in enumerate(values):
        ranks.setdefault(str(value), []).append(str(number))
    return ", ".join(f"{value} on rank{'s'[: len(who) > 1]} {', '.join(who)}" for value, who in ranks.items())
